//! The lease of the work that goes on: when it is taken, what is in it, and what is left of it when an attempt has ended.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Worker;
use super::decode::Admitted;
use super::history::{self, Headers};
use super::in_flight::{RunId, Running};
use crate::domain::destination::Destination;
use crate::domain::job::lease::{self, Checkpoint, Lease};
use crate::domain::lane::Lane;
use crate::domain::outcome::{Failure, Reason, TransferResult};
use crate::queue::{Delivery, LeaseHolder, LeaseMessage, QueueError, Settlement};
use crate::runtime::failpoints;
use crate::upload::{OpenUpload, StopSignals};

/// Uploads of objects longer than this are written down at once: their parts are too dear to be forgotten.
const AT_ONCE: u64 = 1 << 30;
/// A delivery that came back this often is put under a lease before anything else: should the worker be lost over it again, then it
/// is known that it was this job, and not one that merely waited beside it.
const SUSPECT: u64 = 3;
/// A job over which workers were lost this often in a row, with nothing to show for it, ends workers.
pub(crate) const CRASHES: u32 = 6;
/// A job that ends workers does so within this time of its start, or is not told from what else may end one.
const HARMLESS: Duration = Duration::from_secs(60);
/// The most leases out of date that are looked at when a job has ended. Each may have 2 MiB.
const OUTDATED: usize = 4;
/// Between two tries to take a lease from a broker that does not answer.
const AGAIN: Duration = Duration::from_secs(30);
/// The namespace of the keys of leases, drawn once.
const NAMESPACE: Uuid = Uuid::from_u128(0x1f5b_86c2_7b0d_4a53_8f0e_94d2_6a3c_e771);

/// The work on one delivery: the job as it came first, and how far it is.
#[derive(Debug)]
pub(super) struct Held {
    body: Bytes,
    content_type: Option<String>,
    lane: Lane,
    /// When the first attempt began, as far as that is known.
    begun: Timestamp,
    /// When this attempt began.
    since: Instant,
    /// The unfinished upload that the delivery came with.
    carried: Option<String>,
    /// How far this attempt's upload has come.
    pub(super) journal: OpenUpload,
    /// Ends this attempt alone, or with all others.
    pub(super) stop: StopSignals,
    /// Workers that were lost over this job so far, and the parts that it came with.
    crashes: u32,
    parts: usize,
    /// The upload that the last lease tells of.
    told: Mutex<Option<String>>,
    /// Leases of the same job that were out of date.
    outdated: Mutex<Vec<Bytes>>,
    leased: AtomicBool,
    lost: AtomicBool,
}

impl Held {
    /// The work on `delivery`; `lease` is what it carried.
    pub(super) fn new(delivery: &Delivery, lease: Option<&Lease>, stop: &StopSignals, now: Timestamp) -> Arc<Self> {
        let (body, content_type) = match lease {
            Some(lease) => (lease.body.clone(), lease.content_type.clone()),
            None => (delivery.body.clone(), delivery.properties.content_type.clone()),
        };
        let journal = OpenUpload::default();
        let checkpoint = lease.and_then(|lease| lease.checkpoint.clone());
        let carried = checkpoint.as_ref().map(|checkpoint| checkpoint.upload_id.clone());
        // On record even if the transfer never begins: whatever ends it must not forget the upload.
        if let Some(checkpoint) = checkpoint {
            journal.open(checkpoint);
        }
        Arc::new(Self {
            body,
            content_type,
            lane: lease.map_or_else(|| published_to(delivery), |lease| lease.lane),
            begun: history::begun(&delivery.properties.headers).unwrap_or(now),
            since: Instant::now(),
            carried,
            journal,
            stop: stop.child(),
            crashes: history::crashes(&delivery.properties.headers),
            parts: lease.and_then(|lease| lease.checkpoint.as_ref()).map_or(0, |checkpoint| checkpoint.parts.len()),
            told: Mutex::default(),
            outdated: Mutex::default(),
            leased: AtomicBool::new(false),
            lost: AtomicBool::new(false),
        })
    }

    /// Whether another worker has the job now.
    pub(super) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    /// The unfinished upload that the delivery came with.
    pub(super) fn carried(&self) -> Option<&str> {
        self.carried.as_deref()
    }

    fn is_leased(&self) -> bool {
        self.leased.load(Ordering::Acquire)
    }

    /// The lease as bytes. One that would be too long goes without its checkpoint: then the job begins anew.
    fn lease(&self, checkpoint: Option<Checkpoint>) -> Bytes {
        let (body, content_type) = (self.body.clone(), self.content_type.clone());
        let lease = Lease { body, content_type, lane: self.lane, checkpoint };
        let bare = || Lease { checkpoint: None, ..lease.clone() }.encode();
        lease.encode().or_else(bare).unwrap_or_default()
    }

    /// Whether a message that will come to somebody tells of this upload.
    fn is_told(&self, checkpoint: &Checkpoint) -> bool {
        let told = || self.told.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let id = Some(&checkpoint.upload_id);
        self.carried.as_ref() == id || self.is_leased() && told().as_ref() == id
    }

    /// Uploads that leases out of date tell of.
    fn left_behind(&self) -> Vec<Checkpoint> {
        let outdated = std::mem::take(&mut *self.outdated.lock().unwrap_or_else(PoisonError::into_inner));
        let told = outdated.iter().filter_map(|lease| Lease::decode(lease).ok()?.checkpoint);
        told.filter(|checkpoint| !self.journal.knows(&checkpoint.upload_id)).collect()
    }

    /// What a copy of the job carries beside its counters. An attempt that ended, however it ended, did not end the worker.
    fn again(&self) -> Headers {
        let survived = (self.crashes > 0).then(|| history::counted_crashes(0));
        history::begun_at(self.begun).into_iter().chain(survived).collect()
    }

    /// A dead letter says since when its object may have been written: it may be requeued.
    fn remembered(&self, settlement: Settlement) -> Settlement {
        match settlement {
            Settlement::DeadLetter { mut headers } => {
                headers.extend(history::begun_at(self.begun));
                Settlement::DeadLetter { headers }
            }
            other => other,
        }
    }

    /// Puts into `delivery` what its copy is to carry: the checkpoint, or the job as it came first.
    pub(super) fn pack(&self, delivery: &mut Delivery, checkpoint: Option<Checkpoint>) {
        let (body, content_type) = match checkpoint {
            Some(checkpoint) => (self.lease(Some(checkpoint)), Some(lease::CONTENT_TYPE.to_owned())),
            None => (self.body.clone(), self.content_type.clone()),
        };
        delivery.body = body;
        delivery.properties.content_type = content_type;
    }
}

impl LeaseHolder for Held {
    fn message(&self) -> LeaseMessage {
        let checkpoint = self.journal.checkpoint();
        *self.told.lock().unwrap_or_else(PoisonError::into_inner) = checkpoint.as_ref().map(|c| c.upload_id.clone());
        // Whoever gets this message gets it because we were lost, or cut off. That counts, unless something came of our work, or the
        // job has been at work long enough not to be what ends us.
        let further = checkpoint.as_ref().is_some_and(|checkpoint| checkpoint.parts.len() > self.parts);
        let crashes = match further {
            _ if self.since.elapsed() >= HARMLESS => 0,
            true => 1,
            false => self.crashes.saturating_add(1),
        };
        LeaseMessage {
            body: self.lease(checkpoint),
            content_type: lease::CONTENT_TYPE.to_owned(),
            headers: history::begun_at(self.begun).into_iter().chain([history::counted_crashes(crashes)]).collect(),
        }
    }

    fn outdated(&self, lease: Bytes) {
        let mut outdated = self.outdated.lock().unwrap_or_else(PoisonError::into_inner);
        if outdated.len() < OUTDATED {
            outdated.push(lease);
        }
    }

    fn lost(&self) {
        self.lost.store(true, Ordering::Release);
        self.stop.cancel.cancel();
    }
}

/// The lane of the routing key: work that was handed over came by another.
pub(super) fn published_to(delivery: &Delivery) -> Lane {
    if delivery.routing_key.starts_with("job.backfill.") { Lane::Backfill } else { Lane::Scheduled }
}

/// What names a run of a job to everybody who works on it.
pub(super) fn key(id: &RunId) -> String {
    let name = format!("{}\n{}\n{}", id.job, id.destination, id.run);
    Uuid::new_v5(&NAMESPACE, name.as_bytes()).simple().to_string()
}

impl Worker {
    /// Runs `transfer` and keeps its lease: from the start for work that was taken over or came back often, as soon as a long upload
    /// has begun, and after `broker.lease_after` for everything. A `delivery` that is found to be lost then is replaced by one that
    /// has joined the work.
    pub(super) async fn under_lease(
        &self,
        delivery: &mut Delivery,
        running: &Running,
        held: &Arc<Held>,
        transfer: impl Future<Output = TransferResult>,
    ) -> TransferResult {
        let over = CancellationToken::new();
        let transfer = async {
            let ended = transfer.await;
            over.cancel();
            ended
        };
        // A lease that is being taken is taken to the end: the queue must know whether there is one.
        let (ended, ()) = tokio::join!(transfer, self.keep_lease(delivery, running, held, &over));
        match ended {
            TransferResult::Failed(_) if held.is_lost() => TransferResult::Failed(Failure::new(
                Reason::LeaseLost,
                "another worker has this job now and continues it",
            )),
            ended => ended,
        }
    }

    async fn keep_lease(&self, delivery: &mut Delivery, running: &Running, held: &Arc<Held>, over: &CancellationToken) {
        let key = key(running.run());
        let due = async {
            if delivery.lane == Lane::Continued || delivery.delivery_count >= SUSPECT {
                return;
            }
            tokio::select! {
                biased;
                () = tokio::time::sleep(self.parts.lease_after) => {}
                () = long_upload(held) => {}
            }
        };
        if over.run_until_cancelled(due).await.is_none() {
            return;
        }
        loop {
            let work: Arc<dyn LeaseHolder> = held.clone();
            match self.parts.queue.lease(delivery, &key, work).await {
                Ok(()) => {
                    failpoints::hit("leased");
                    held.leased.store(true, Ordering::Release);
                    // A long upload that begins only now is to be written down, too.
                    if over.run_until_cancelled(long_upload(held)).await.is_none() {
                        return;
                    }
                    continue;
                }
                Err(QueueError::Lost) if held.is_lost() => return,
                // The delivery comes again and joins this work, and then takes the place of this one.
                Err(QueueError::Lost) => {
                    let again = running.seat().spares.next(held.carried());
                    let Some(again) = over.run_until_cancelled(again).await else { return };
                    *delivery = again;
                    continue;
                }
                Err(problem) => tracing::warn!(%problem, "a job could not be put under a lease; trying again"),
            }
            if over.run_until_cancelled(tokio::time::sleep(AGAIN)).await.is_none() {
                return;
            }
        }
    }

    /// Makes `delivery` carry what is to come back, and gives up what nobody will continue.
    ///
    /// `Settlement::Requeue` with something to go on with becomes a hand-over.
    pub(super) async fn pack(
        &self,
        delivery: &mut Delivery,
        settlement: Settlement,
        held: &Held,
        destination: &Arc<Destination>,
    ) -> Settlement {
        self.clear_up(held, destination).await;
        let checkpoint = held.journal.checkpoint();
        match settlement {
            Settlement::Retry { delay, mut headers } => {
                headers.extend(held.again());
                held.pack(delivery, checkpoint);
                Settlement::Retry { delay, headers }
            }
            Settlement::Defer { delay, mut headers } => {
                headers.extend(held.again());
                held.pack(delivery, checkpoint);
                Settlement::Defer { delay, headers }
            }
            Settlement::Requeue if checkpoint.is_some() || held.is_leased() => {
                held.pack(delivery, checkpoint);
                Settlement::HandOff { headers: held.again() }
            }
            // What comes back by itself is as it was.
            Settlement::Requeue | Settlement::HandOff { .. } => settlement,
            Settlement::Ack | Settlement::DeadLetter { .. } => {
                held.pack(delivery, None);
                // Under a lease that is lost, another worker continues the upload.
                if !held.is_lost() {
                    self.forget(held, destination, |_| true).await;
                }
                held.remembered(settlement)
            }
        }
    }

    /// A delivery ends because its job is done elsewhere: the upload that it carries is given up, unless it is `kept` there.
    pub(super) async fn left_over(&self, admitted: &Admitted, kept: Option<&str>) {
        let carried = admitted.lease.as_ref().and_then(|lease| lease.checkpoint.as_ref());
        if let Some(checkpoint) = carried.filter(|checkpoint| kept != Some(&checkpoint.upload_id)) {
            self.parts.transport.abort_upload(&admitted.destination, checkpoint).await;
        }
    }

    /// Nothing of this attempt may have come to anybody else (the job is lost, or no copy was made for certain): an upload that no
    /// message tells of is given up. What a lease tells, and what the delivery came with, is known to whoever gets it, and may be at
    /// work on it already.
    pub(super) async fn unsettled(&self, held: &Held, destination: &Arc<Destination>) {
        self.clear_up(held, destination).await;
        self.forget(held, destination, |checkpoint| !held.is_told(checkpoint)).await;
    }

    /// Gives up the uploads that leases out of date tell of.
    async fn clear_up(&self, held: &Held, destination: &Arc<Destination>) {
        for checkpoint in held.left_behind() {
            self.parts.transport.abort_upload(destination, &checkpoint).await;
        }
    }

    /// Gives up what is on record, if it is `wanted`.
    async fn forget(&self, held: &Held, destination: &Arc<Destination>, wanted: impl Fn(&Checkpoint) -> bool) {
        if let Some(checkpoint) = held.journal.checkpoint().filter(|checkpoint| wanted(checkpoint)) {
            held.journal.close();
            self.parts.transport.abort_upload(destination, &checkpoint).await;
        }
    }
}

/// Resolves when an upload is open that is to be written down at once, and is not yet.
async fn long_upload(held: &Held) {
    let long = |checkpoint: &Checkpoint| checkpoint.source.length.is_some_and(|length| length > AT_ONCE);
    held.journal.begun(|checkpoint| long(checkpoint) && !held.is_told(checkpoint)).await;
}
