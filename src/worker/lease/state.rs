//! State of one attempt, which its lease records.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::domain::headers::Headers;
use crate::domain::job::IfExists;
use crate::domain::job::lease::{self, Checkpoint, Lease};
use crate::domain::lane::Lane;
use crate::domain::routing_key;
use crate::queue::{Delivery, LeaseHolder, LeaseMessage};
use crate::upload::{OpenUpload, StopSignals};
use crate::worker::decode::DecodedJob;
use crate::worker::history;

/// Length from which on an upload is leased as soon as it is open: its parts are too expensive to
/// lose.
const LEASE_AT_ONCE_BYTES: u64 = 1 << 30;
/// Workers lost in a row over a job, with nothing to show for it, before it is a crash loop.
pub(crate) const MAX_CRASHES: u32 = 6;
/// Age from which on an attempt is not suspected of crashing workers: such a job does so soon.
const CRASH_SUSPICION: Duration = Duration::from_secs(60);
/// Most outdated leases that are examined when a job ends. Each may have 2 MiB.
const MAX_OUTDATED: usize = 4;

/// State of the lease of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::worker) enum LeaseStatus {
    /// The job is not leased.
    Absent,
    /// This worker holds the lease.
    Held,
    /// Another worker has taken the job over.
    Lost,
}

/// Body of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::worker) enum CopyBody {
    /// As the delivery has it.
    AsDelivered,
    /// The job as it was published.
    Original,
    /// The job with the checkpoint of its unfinished upload, or as it was published if there is
    /// none.
    Checkpoint,
}

/// Lease and unfinished upload of the job when it is settled.
#[derive(Debug, Clone)]
pub(in crate::worker) struct LeaseSnapshot {
    pub(in crate::worker) state: LeaseStatus,
    /// Unfinished upload that can be resumed.
    pub(in crate::worker) upload_id: Option<Arc<str>>,
    /// Start of the first attempt.
    pub(in crate::worker) first_started_at: Timestamp,
    /// Workers lost over the job before this attempt.
    pub(in crate::worker) crashes: u32,
}

/// State of one attempt: the job as it was published, and its progress. It is what a lease records.
#[derive(Debug)]
pub(in crate::worker) struct AttemptState {
    body: Bytes,
    content_type: Option<String>,
    lane: Lane,
    /// Start of the first attempt, as far as it is known.
    first_started_at: Timestamp,
    started: Instant,
    /// Upload id of the checkpoint that the delivery carried.
    carried_upload: Option<String>,
    /// Unfinished upload of this attempt.
    pub(in crate::worker) open_upload: OpenUpload,
    /// Stops this attempt alone, or with all others.
    pub(in crate::worker) stop: StopSignals,
    /// Workers lost over this job so far.
    crashes: u32,
    /// True once the attempt has ended: a worker that is lost later did not crash over this job.
    ended: AtomicBool,
    /// Parts that the delivery's checkpoint had.
    carried_parts: usize,
    /// True if the object must not replace another one.
    conditional: bool,
    /// Upload that the last lease records.
    leased_upload: Mutex<Option<String>>,
    /// Outdated leases of the same job.
    outdated: Mutex<Vec<Bytes>>,
    leased: AtomicBool,
    lost: AtomicBool,
}

impl AttemptState {
    pub(in crate::worker) fn new(
        delivery: &Delivery,
        job: &DecodedJob,
        stop: &StopSignals,
        now: Timestamp,
    ) -> Arc<Self> {
        let (body, content_type, lane) = match &job.lease {
            Some(lease) => (lease.body.clone(), lease.content_type.clone(), lease.lane),
            None => (
                delivery.body.clone(),
                delivery.properties.content_type.clone(),
                routing_key::published_lane(&delivery.routing_key),
            ),
        };
        let open_upload = OpenUpload::default();
        // Recorded even if the transfer never starts: the end of the job must not forget the upload.
        if let Some(checkpoint) = job.checkpoint() {
            open_upload.open(checkpoint.clone());
        }
        Arc::new(Self {
            body,
            content_type,
            lane,
            first_started_at: job.headers.started_at.unwrap_or(now),
            started: Instant::now(),
            carried_upload: job.checkpoint().map(|checkpoint| checkpoint.upload_id.clone()),
            open_upload,
            stop: stop.child(),
            crashes: job.headers.crashes,
            ended: AtomicBool::new(false),
            carried_parts: job.checkpoint().map_or(0, |checkpoint| checkpoint.parts.len()),
            conditional: job.job.if_exists != IfExists::Replace,
            leased_upload: Mutex::default(),
            outdated: Mutex::default(),
            leased: AtomicBool::new(false),
            lost: AtomicBool::new(false),
        })
    }

    /// Records that the attempt has ended.
    pub(in crate::worker) fn end(&self) {
        self.ended.store(true, Ordering::Release);
    }

    pub(in crate::worker) fn lease_state(&self) -> LeaseStatus {
        if self.lost.load(Ordering::Acquire) {
            LeaseStatus::Lost
        } else if self.leased.load(Ordering::Acquire) {
            LeaseStatus::Held
        } else {
            LeaseStatus::Absent
        }
    }

    /// Lease and unfinished upload, for the settlement plan.
    pub(in crate::worker) fn lease_context(&self) -> LeaseSnapshot {
        LeaseSnapshot {
            state: self.lease_state(),
            upload_id: self.open_upload.checkpoint().map(|checkpoint| checkpoint.upload_id.into()),
            first_started_at: self.first_started_at,
            crashes: self.crashes,
        }
    }

    /// Upload id of the checkpoint that the delivery carried.
    pub(in crate::worker) fn carried_upload(&self) -> Option<&str> {
        self.carried_upload.as_deref()
    }

    /// Records that the queue has leased the job.
    pub(super) fn record_lease(&self) {
        self.leased.store(true, Ordering::Release);
    }

    pub(super) fn is_lost(&self) -> bool {
        self.lease_state() == LeaseStatus::Lost
    }

    /// Encodes the lease. One that would be too long goes without its checkpoint: the job then
    /// starts over.
    fn encode(&self, checkpoint: Option<Checkpoint>) -> Bytes {
        let (body, content_type) = (self.body.clone(), self.content_type.clone());
        let lease = Lease { body, content_type, lane: self.lane, checkpoint };
        let bare = || Lease { checkpoint: None, ..lease.clone() }.encode();
        lease.encode().or_else(bare).unwrap_or_default()
    }

    /// Returns true if a message that another worker will get records this upload.
    pub(in crate::worker) fn is_recorded(&self, checkpoint: &Checkpoint) -> bool {
        let leased_upload = || self.leased_upload.lock().clone();
        let id = Some(&checkpoint.upload_id);
        self.carried_upload.as_ref() == id || self.leased.load(Ordering::Acquire) && leased_upload().as_ref() == id
    }

    /// Returns true for an upload that must be recorded as soon as it is open: it is long, or an
    /// object that it leaves could be recognised by the time of its initiation alone, as no ETag
    /// under a KMS key is a digest.
    pub(super) fn is_leased_at_once(&self, checkpoint: &Checkpoint) -> bool {
        let encryption = checkpoint.encryption.algorithm.as_deref();
        checkpoint.source.length.is_some_and(|length| length > LEASE_AT_ONCE_BYTES)
            || self.conditional && encryption.is_some_and(|algorithm| algorithm.starts_with("aws:kms"))
    }

    /// Takes the uploads that outdated leases record, and that are not this attempt's.
    pub(in crate::worker) fn take_outdated_uploads(&self) -> Vec<Checkpoint> {
        let outdated = std::mem::take(&mut *self.outdated.lock());
        let checkpoints = outdated.iter().filter_map(|lease| Lease::decode(lease).ok()?.checkpoint);
        checkpoints.filter(|checkpoint| !self.open_upload.knows(&checkpoint.upload_id)).collect()
    }

    /// Puts into `delivery` what its copy carries.
    pub(in crate::worker) fn fill(&self, delivery: &mut Delivery, body: CopyBody) {
        let checkpoint = (body == CopyBody::Checkpoint).then(|| self.open_upload.checkpoint()).flatten();
        let (body, content_type) = match (body, checkpoint) {
            (CopyBody::AsDelivered, _) => return,
            (_, Some(checkpoint)) => (self.encode(Some(checkpoint)), Some(lease::CONTENT_TYPE.to_owned())),
            (_, None) => (self.body.clone(), self.content_type.clone()),
        };
        delivery.body = body;
        delivery.properties.content_type = content_type;
    }
}

impl LeaseHolder for AttemptState {
    fn message(&self) -> LeaseMessage {
        let checkpoint = self.open_upload.checkpoint();
        let upload_id = checkpoint.as_ref().map(|checkpoint| checkpoint.upload_id.clone());
        *self.leased_upload.lock() = upload_id;
        // Another worker gets this message only if this one is lost or cut off. That counts, unless the
        // attempt has ended, got further, or runs too long to be what crashes workers.
        let further = checkpoint.as_ref().is_some_and(|checkpoint| checkpoint.parts.len() > self.carried_parts);
        let crashes = match further {
            _ if self.ended.load(Ordering::Acquire) || self.started.elapsed() >= CRASH_SUSPICION => 0,
            true => 1,
            false => self.crashes.saturating_add(1),
        };
        let headers: Headers =
            history::started_at(self.first_started_at).into_iter().chain(history::crashes(crashes)).collect();
        LeaseMessage { body: self.encode(checkpoint), content_type: lease::CONTENT_TYPE.to_owned(), headers }
    }

    fn outdated(&self, lease: Bytes) {
        let mut outdated = self.outdated.lock();
        if outdated.len() < MAX_OUTDATED {
            outdated.push(lease);
        }
    }

    fn lost(&self) {
        self.lost.store(true, Ordering::Release);
        self.stop.cancel.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::headers::{self, JobHeaders};
    use crate::domain::job;
    use crate::worker::sample;

    /// State of an attempt over which so many workers were lost before.
    fn after(crashes: u32) -> Arc<AttemptState> {
        let body = br#"{"version":1,"id":"a","source":{"url":"https://example.com/a"},"destination":"acme","key":"a"}"#;
        let delivery = Delivery { lane: Lane::Continued, ..sample::delivery(&body[..]) };
        let job = DecodedJob {
            job: job::parse(None, None, body).unwrap(),
            destination: Arc::new(sample::destination("acme", "123456789012")),
            lease: None,
            headers: JobHeaders { crashes, ..JobHeaders::default() },
        };
        AttemptState::new(&delivery, &job, &StopSignals::default(), Timestamp::UNIX_EPOCH)
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_worker_counts_as_a_crash_only_while_its_attempt_runs() {
        let crashes = |state: &AttemptState| state.message().headers[headers::CRASHES].clone();
        for before in [0, 5] {
            let state = after(before);
            assert_eq!(crashes(&state), (before + 1).to_string());
            state.end();
            assert_eq!(crashes(&state), "0", "an attempt that has ended crashed nothing");
        }
        let state = after(5);
        tokio::time::advance(CRASH_SUSPICION).await;
        assert_eq!(crashes(&state), "0", "a job that crashes workers does so soon");
    }
}
