//! The newest refresh wins: of the jobs of one destination and key, the highest generation that was
//! delivered stays.
//!
//! In one worker the jobs of an object run one after the other ([`locks`]), and each delivery is
//! remembered. Workers report to each other on the control stream, which all of them read in the
//! same order:
//!
//! 1. A job that fails, or is deferred, leased, handed off or dead-lettered is *pending*: it may
//!    write late, and that is reported once. So is one whose delivery could not be settled,
//!    whatever its result: it is redelivered. A job that was redelivered reports itself when it
//!    is attempted, and gives the others [`ANSWER_TIME`] before it writes.
//! 2. Who delivered a higher generation within the last hour answers with that delivery. Who
//!    delivers one later, while a lower one is pending, reports it.
//! 3. Right before the request that makes an object visible, a late attempt, and any attempt while
//!    another generation of its object is pending, reports its *write* and reads that back. The
//!    first write in the stream's order goes ahead, the others wait for its end. Reading it back
//!    proves that everything reported before was read, also after a restart.
//! 4. A first attempt of an object of which nothing is pending writes without a report. Should a
//!    generation become pending meanwhile, the write is reported at once.
//!
//! Before a worker ends a job as superseded by a delivery that only it knows of, it reports that
//! delivery. A worker that drains reports its deliveries of the last `broker.lease_after`. One that
//! is killed takes with it what was not reported.
//!
//! A job below a known delivery is superseded: when it is admitted, while it runs, and before it
//! writes. No time is compared between two workers, so their clocks may differ.

mod backlog;
mod locks;
mod own;
mod reporter;
mod table;
mod writer;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::parts::WorkerParts;
use crate::domain::control::GenerationChange;
use crate::domain::fleet::FleetShare;
use crate::domain::generation::{NewerDelivery, ObjectDigest, ObjectGeneration};
use crate::domain::job::JobId;
use backlog::Backlog;
pub(super) use locks::{ObjectGuard, ObjectLocks};
use reporter::GenerationReporter;
use table::GenerationTable;
pub(super) use writer::{DeliveryReport, ObjectWriter, WritingJob};

/// Time that workers have to answer when a job that was not reported before becomes pending.
const ANSWER_TIME: Duration = Duration::from_secs(2);
/// Limit for the confirm of a report. It is published later if it takes longer.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(5);

/// Limit for the reports of a worker that stops.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(3);

/// Generations of objects, as this worker and all others know them.
#[derive(Debug)]
pub(super) struct Generations {
    table: Mutex<GenerationTable>,
    /// Notified after each change of the table.
    changed: Notify,
    reporter: GenerationReporter,
    /// Live workers; 0 while that is not known.
    workers: AtomicU32,
    backlog: Backlog,
    /// True once anything was read from the control stream, until the broker refuses that.
    readable: AtomicBool,
}

impl Generations {
    pub(super) fn new(parts: &WorkerParts) -> Arc<Self> {
        Arc::new(Self {
            table: Mutex::new(GenerationTable::new(&parts.metrics)),
            changed: Notify::new(),
            reporter: GenerationReporter::new(parts),
            workers: AtomicU32::new(0),
            backlog: Backlog::default(),
            readable: AtomicBool::new(false),
        })
    }

    /// Applies what a worker of the fleet reported, and answers.
    pub(super) fn apply(&self, object: ObjectDigest, change: GenerationChange) {
        let answers = self.table.lock().apply(object, change);
        for answer in answers {
            drop(self.reporter.report(object, answer));
        }
        self.changed.notify_waiters();
    }

    /// Records whether the control stream can be read.
    pub(super) fn set_readable(&self, readable: bool) {
        self.readable.store(readable, Ordering::Relaxed);
    }

    /// Records that the reports of the past were read.
    pub(super) fn caught_up(&self) {
        self.backlog.caught_up();
    }

    /// Records that reports may have been missed. See [`Backlog::interrupted`].
    pub(super) fn interrupted(&self) {
        self.backlog.interrupted();
    }

    /// Records the number of live workers.
    pub(super) fn set_share(&self, share: FleetShare) {
        self.workers.store(share.workers.get(), Ordering::Relaxed);
    }

    /// Returns the delivery that supersedes a job, as far as it is known.
    pub(super) fn newer_than(&self, this: ObjectGeneration) -> Option<NewerDelivery> {
        self.table.lock().newer_than(this)
    }

    /// Reports that a job may write late, unless that is known. Returns when the report is
    /// confirmed, or after [`CONFIRM_TIMEOUT`]; false if the broker refuses it.
    pub(super) async fn announce(&self, this: ObjectGeneration) -> bool {
        let is_known = self.table.lock().announced_since(this).is_some();
        is_known || self.report_pending(this).await
    }

    /// Reports a job that is redelivered although its end may have been reported. Its delivery is
    /// reported first: then the worker that answers the redelivery can report that nothing is
    /// pending any more.
    pub(super) async fn announce_redelivery(&self, this: ObjectGeneration) {
        let delivered = self.table.lock().unreported_delivery(this.object, this.below().generation);
        let changes = delivered.into_iter().chain([GenerationChange::Pending { generation: this.generation }]);
        let _ = timeout(CONFIRM_TIMEOUT, self.reporter.report_in_order(this.object, changes)).await;
    }

    async fn report_pending(&self, this: ObjectGeneration) -> bool {
        let reported = self.reporter.report(this.object, GenerationChange::Pending { generation: this.generation });
        !matches!(timeout(CONFIRM_TIMEOUT, reported).await, Ok(Ok(false)))
    }

    /// Reports the writes of this worker again that last for long. To be called every few seconds.
    pub(super) fn report_writes(&self) {
        let reports = self.table.lock().write_reports_due();
        reports.into_iter().for_each(|(object, change)| drop(self.reporter.report(object, change)));
    }

    /// Reports the delivery above a generation that this worker knows of, unless others know it: a
    /// worker that is lost before the job is settled takes that knowledge with it, and the job is
    /// redelivered. Returns when the report is confirmed, or after [`CONFIRM_TIMEOUT`].
    pub(super) async fn report_superseding(&self, this: ObjectGeneration) {
        let unreported = self.table.lock().unreported_delivery(this.object, this.generation);
        if let Some(change) = unreported {
            let _ = timeout(CONFIRM_TIMEOUT, self.reporter.report(this.object, change)).await;
        }
    }

    /// Reports a job that was delivered before and whose message is settled now, if it is still
    /// reported as pending. This message may be a repetition with a higher generation than that
    /// which was delivered: then the job stays pending.
    pub(super) fn delivered_before(&self, this: ObjectGeneration, job: &JobId) {
        let is_due = |table: &GenerationTable| table.pending_since(this).is_some() && table.knows_delivery(this);
        if is_due(&self.table.lock()) {
            let job = job.as_str().into();
            let change = GenerationChange::Delivered { generation: this.generation, job, write: None };
            drop(self.reporter.report(this.object, change));
        }
    }

    /// Reports the deliveries of the last `age`, which nobody else knows of: this worker stops, and
    /// an older job that began before them may become pending later.
    pub(super) async fn hand_over(&self, age: Duration) {
        let reports = self.table.lock().unreported_deliveries(age);
        let reported = reports.into_iter().map(|(object, change)| self.reporter.report(object, change));
        let _ = timeout(HAND_OVER_TIMEOUT, join_all(reported)).await;
    }

    /// Waits until the table has something.
    async fn wait_for<T>(&self, look: impl Fn(&mut GenerationTable) -> Option<T>) -> T {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if let Some(found) = look(&mut self.table.lock()) {
                return found;
            }
            changed.await;
        }
    }

    /// Returns true if nobody else could answer.
    fn is_alone(&self) -> bool {
        self.workers.load(Ordering::Relaxed) == 1
    }
}
