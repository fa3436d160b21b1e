//! State of one attempt, which its lease records, and the guard that keeps the lease while the
//! transfer runs.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::decode::DecodedJob;
use super::generations::Generations;
use super::history;
use super::in_flight::{JobOwner, RunId};
use crate::domain::generation::ObjectGeneration;
use crate::domain::headers::Headers;
use crate::domain::job::IfExists;
use crate::domain::job::lease::{self, Checkpoint, Lease};
use crate::domain::lane::Lane;
use crate::domain::outcome::{Failure, Reason, TransferResult};
use crate::domain::routing_key;
use crate::queue::{Delivery, LeaseHolder, LeaseMessage, Queue, QueueError};
use crate::runtime::failpoints;
use crate::upload::{OpenUpload, StopSignals};

/// Length from which on an upload is leased as soon as it is open: its parts are too expensive to
/// lose.
const LEASE_AT_ONCE_BYTES: u64 = 1 << 30;
/// Redeliveries from which on a job is leased before anything else. Should the worker crash over it
/// once more, the lease shows that it was this job, and not one that merely waited beside it.
const LEASE_AT_ONCE_REDELIVERIES: u64 = 3;
/// Workers lost in a row over a job, with nothing to show for it, before it is a crash loop.
pub(crate) const MAX_CRASHES: u32 = 6;
/// Age from which on an attempt is not suspected of crashing workers: such a job does so soon.
const CRASH_SUSPICION: Duration = Duration::from_secs(60);
/// Most outdated leases that are examined when a job ends. Each may have 2 MiB.
const MAX_OUTDATED: usize = 4;
/// Interval between tries to lease a job from a broker that does not answer.
const LEASE_RETRY_INTERVAL: Duration = Duration::from_secs(30);

/// State of the lease of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LeaseStatus {
    /// The job is not leased.
    Absent,
    /// This worker holds the lease.
    Held,
    /// Another worker has taken the job over.
    Lost,
}

/// Body of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CopyBody {
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
pub(super) struct LeaseSnapshot {
    pub(super) state: LeaseStatus,
    /// Unfinished upload that can be resumed.
    pub(super) upload_id: Option<Arc<str>>,
    /// Start of the first attempt.
    pub(super) first_started_at: Timestamp,
    /// Workers lost over the job before this attempt.
    pub(super) crashes: u32,
}

/// State of one attempt: the job as it was published, and its progress. It is what a lease records.
#[derive(Debug)]
pub(super) struct AttemptState {
    body: Bytes,
    content_type: Option<String>,
    lane: Lane,
    /// Start of the first attempt, as far as it is known.
    first_started_at: Timestamp,
    started: Instant,
    /// Upload id of the checkpoint that the delivery carried.
    carried_upload: Option<String>,
    /// Unfinished upload of this attempt.
    pub(super) open_upload: OpenUpload,
    /// Stops this attempt alone, or with all others.
    pub(super) stop: StopSignals,
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
    pub(super) fn new(delivery: &Delivery, job: &DecodedJob, stop: &StopSignals, now: Timestamp) -> Arc<Self> {
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
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Release);
    }

    pub(super) fn lease_state(&self) -> LeaseStatus {
        if self.lost.load(Ordering::Acquire) {
            LeaseStatus::Lost
        } else if self.leased.load(Ordering::Acquire) {
            LeaseStatus::Held
        } else {
            LeaseStatus::Absent
        }
    }

    /// Lease and unfinished upload, for the settlement plan.
    pub(super) fn lease_context(&self) -> LeaseSnapshot {
        LeaseSnapshot {
            state: self.lease_state(),
            upload_id: self.open_upload.checkpoint().map(|checkpoint| checkpoint.upload_id.into()),
            first_started_at: self.first_started_at,
            crashes: self.crashes,
        }
    }

    /// Upload id of the checkpoint that the delivery carried.
    pub(super) fn carried_upload(&self) -> Option<&str> {
        self.carried_upload.as_deref()
    }

    fn is_lost(&self) -> bool {
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
    pub(super) fn is_recorded(&self, checkpoint: &Checkpoint) -> bool {
        let leased_upload = || self.leased_upload.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let id = Some(&checkpoint.upload_id);
        self.carried_upload.as_ref() == id || self.leased.load(Ordering::Acquire) && leased_upload().as_ref() == id
    }

    /// Returns true for an upload that must be recorded as soon as it is open: it is long, or an
    /// object that it leaves could be recognised by the time of its initiation alone, as no ETag
    /// under a KMS key is a digest.
    fn is_leased_at_once(&self, checkpoint: &Checkpoint) -> bool {
        let encryption = checkpoint.encryption.algorithm.as_deref();
        checkpoint.source.length.is_some_and(|length| length > LEASE_AT_ONCE_BYTES)
            || self.conditional && encryption.is_some_and(|algorithm| algorithm.starts_with("aws:kms"))
    }

    /// Takes the uploads that outdated leases record, and that are not this attempt's.
    pub(super) fn take_outdated_uploads(&self) -> Vec<Checkpoint> {
        let outdated = std::mem::take(&mut *self.outdated.lock().unwrap_or_else(PoisonError::into_inner));
        let checkpoints = outdated.iter().filter_map(|lease| Lease::decode(lease).ok()?.checkpoint);
        checkpoints.filter(|checkpoint| !self.open_upload.knows(&checkpoint.upload_id)).collect()
    }

    /// Puts into `delivery` what its copy carries.
    pub(super) fn fill(&self, delivery: &mut Delivery, body: CopyBody) {
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
        *self.leased_upload.lock().unwrap_or_else(PoisonError::into_inner) = upload_id;
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
        let mut outdated = self.outdated.lock().unwrap_or_else(PoisonError::into_inner);
        if outdated.len() < MAX_OUTDATED {
            outdated.push(lease);
        }
    }

    fn lost(&self) {
        self.lost.store(true, Ordering::Release);
        self.stop.cancel.cancel();
    }
}

/// Returns the key that names a run of a job to every worker.
pub(super) fn key(id: &RunId) -> String {
    id.digest().simple().to_string()
}

/// Keeps the lease of an attempt: from the start for a job that was taken over or redelivered
/// often, as soon as an upload is open that must be recorded, and after `broker.lease_after` for
/// everything.
#[derive(Debug)]
pub(super) struct LeaseGuard<'a> {
    pub(super) queue: &'a Arc<dyn Queue>,
    pub(super) lease_after: Duration,
    pub(super) owner: &'a JobOwner,
    pub(super) state: &'a Arc<AttemptState>,
    /// Object that the job writes: a leased job may write it late.
    pub(super) written: Option<ObjectGeneration>,
    pub(super) generations: &'a Arc<Generations>,
}

impl LeaseGuard<'_> {
    /// Runs `transfer` under the guard. A delivery that turns out to be lost is replaced by a
    /// duplicate.
    pub(super) async fn run(
        &self,
        delivery: &mut Delivery,
        transfer: impl Future<Output = TransferResult>,
    ) -> TransferResult {
        let over = CancellationToken::new();
        let transfer = async {
            let result = transfer.await;
            over.cancel();
            result
        };
        // Leasing is never interrupted: the queue must know whether there is a lease.
        let (result, ()) = tokio::join!(transfer, self.keep(delivery, &over));
        match result {
            TransferResult::Failed(_) if self.state.is_lost() => {
                let message = "another worker has this job now and continues it";
                TransferResult::Failed(Failure::new(Reason::LeaseLost, message))
            }
            result => result,
        }
    }

    async fn keep(&self, delivery: &mut Delivery, over: &CancellationToken) {
        let key = key(self.owner.run());
        let due = async {
            if delivery.lane == Lane::Continued || delivery.delivery_count >= LEASE_AT_ONCE_REDELIVERIES {
                return;
            }
            tokio::select! {
                biased;
                () = tokio::time::sleep(self.lease_after) => {}
                () = self.unrecorded_upload() => {}
            }
        };
        if over.run_until_cancelled(due).await.is_none() {
            return;
        }
        if let Some(written) = self.written {
            self.generations.announce(written).await;
        }
        loop {
            let holder: Arc<dyn LeaseHolder> = self.state.clone();
            match self.queue.lease(delivery, &key, holder).await {
                Ok(()) => {
                    failpoints::hit("leased");
                    self.state.leased.store(true, Ordering::Release);
                    // A long upload that is opened only now must be recorded at once, too.
                    if over.run_until_cancelled(self.unrecorded_upload()).await.is_none() {
                        return;
                    }
                    continue;
                }
                Err(QueueError::Lost) if self.state.is_lost() => return,
                // The message is redelivered, joins this job, and replaces the lost delivery.
                Err(QueueError::Lost) => {
                    let duplicate = self.owner.duplicates().next(self.state.carried_upload());
                    let Some(duplicate) = over.run_until_cancelled(duplicate).await else { return };
                    *delivery = duplicate;
                    continue;
                }
                Err(error) => tracing::warn!(
                    event = "lease_failed",
                    %error,
                    next = "leasing is tried again",
                    remedy = "check the broker if this repeats",
                    "a job could not be leased"
                ),
            }
            if over.run_until_cancelled(tokio::time::sleep(LEASE_RETRY_INTERVAL)).await.is_none() {
                return;
            }
        }
    }

    /// Resolves when an upload is open that a lease must record, and that none does.
    async fn unrecorded_upload(&self) {
        let state = self.state;
        let unrecorded =
            |checkpoint: &Checkpoint| state.is_leased_at_once(checkpoint) && !state.is_recorded(checkpoint);
        self.state.open_upload.begun(unrecorded).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::headers::{self, JobHeaders};
    use crate::domain::job;
    use crate::queue::{DeliveryOrigin, DeliveryTag, Properties};
    use crate::worker::sample;

    /// State of an attempt over which so many workers were lost before.
    fn after(crashes: u32) -> Arc<AttemptState> {
        let body = br#"{"version":1,"id":"a","source":{"url":"https://example.com/a"},"destination":"acme","key":"a"}"#;
        let delivery = Delivery {
            lane: Lane::Continued,
            body: Bytes::from_static(body),
            properties: Properties::default(),
            routing_key: "job.scheduled.acme".to_owned(),
            origin: DeliveryOrigin::Worker,
            publisher: String::new(),
            redelivered: false,
            delivery_count: 0,
            ticket: DeliveryTag { generation: 1, lane: Lane::Continued, tag: 1 },
        };
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
