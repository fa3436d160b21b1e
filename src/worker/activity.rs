//! Activity of the worker for the status page: running transfers, recently ended ones, and
//! throughput.
//!
//! Everything is bounded: [`ended`] keeps the last transfers and a number of destinations,
//! [`throughput`] a number of minutes.

mod ended;
mod throughput;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use jiff::Timestamp;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::time::Instant;

use super::settlement::{SettlementContext, SettlementPlan};
use crate::domain::destination::{DestinationId, DestinationIdentity};
use crate::domain::lane::Lane;
use crate::upload::{Length, Progress};
use ended::EndedTransfers;
pub use ended::{DeadLetterCount, DestinationRecord, EndedTransfer, FailureDetail, Recent};
pub use throughput::Throughput;
use throughput::{ThroughputRecorder, TransferTotals};

/// Running transfers, and a bounded record of ended ones.
#[derive(Debug, Default)]
pub struct Activity {
    next: AtomicU64,
    running: Mutex<RunningTransfers>,
    ended: Mutex<EndedTransfers>,
    throughput: Mutex<ThroughputRecorder>,
}

#[derive(Debug, Default)]
struct RunningTransfers {
    entries: BTreeMap<u64, RunningEntry>,
    /// Bytes that S3 accepted from ended transfers.
    sent: u64,
}

#[derive(Debug)]
struct RunningEntry {
    transfer: TransferEntry,
    started_at: Timestamp,
    started: Instant,
}

/// Running transfer, as `/status` shows it.
#[derive(Debug, Serialize)]
pub struct RunningTransfer {
    /// Number of the attempt, unique in this worker.
    pub number: u64,
    /// Id of the job.
    pub job_id: String,
    /// Id of its destination.
    pub destination: String,
    /// Identity of its destination.
    #[serde(skip)]
    pub identity: DestinationIdentity,
    /// Lane of the delivery.
    pub lane: &'static str,
    /// Number of the attempt; 1 is the first.
    pub attempt: u32,
    /// Time of its start.
    pub started_at: Timestamp,
    /// Seconds since its start.
    pub seconds: f64,
    /// Bytes of the source, if the job or the source tells them.
    pub size: Option<u64>,
    /// Bytes that S3 has accepted.
    pub bytes: u64,
    /// Parts that S3 has accepted.
    pub parts: u32,
    /// `opening` (session and source), `uploading`, or `finishing`: all bytes are accepted, the
    /// object is being completed.
    pub phase: &'static str,
    /// Bytes that the object will have; `null` while unknown (compressed, or a source without a
    /// length).
    pub expected_bytes: Option<u64>,
}

/// Guard of a running transfer: it is listed until the guard is dropped.
#[derive(Debug)]
pub(super) struct ActivityGuard {
    activity: Arc<Activity>,
    key: u64,
}

/// Transfer that starts.
#[derive(Debug)]
pub(super) struct TransferEntry {
    pub(super) job_id: String,
    pub(super) destination: DestinationIdentity,
    pub(super) lane: Lane,
    pub(super) attempt: u32,
    pub(super) size: Option<u64>,
    pub(super) progress: Arc<Progress>,
}

impl Activity {
    /// Lists a transfer while the guard lives.
    pub(super) fn enter(self: &Arc<Self>, transfer: TransferEntry) -> ActivityGuard {
        let key = self.next.fetch_add(1, Ordering::Relaxed);
        let running = RunningEntry { transfer, started_at: Timestamp::now(), started: Instant::now() };
        self.running.lock().entries.insert(key, running);
        ActivityGuard { activity: self.clone(), key }
    }

    /// Records the end of an attempt, or of a job that ended without one.
    pub(super) fn ended(&self, context: &SettlementContext<'_>, plan: &SettlementPlan, progress: &Progress) {
        let ended = EndedTransfer::of(context, plan, progress);
        self.ended.lock().attempt(ended, &context.job.destination, plan);
    }

    /// Records a message that was rejected.
    pub(super) fn rejected(
        &self,
        lane: Lane,
        plan: &SettlementPlan,
        job_id: Option<&str>,
        destination: Option<&DestinationId>,
    ) {
        self.ended.lock().rejection(EndedTransfer::rejected(lane, plan, job_id, destination), plan);
    }

    /// Records the throughput; called once a second.
    pub(super) fn tick(&self) {
        let totals = self.totals();
        self.throughput.lock().record(Instant::now(), totals);
    }

    fn totals(&self) -> TransferTotals {
        let ended = self.ended.lock().counts;
        let running = self.running.lock();
        let now: u64 = running.entries.values().map(|entry| entry.transfer.progress.bytes()).sum();
        TransferTotals { bytes: running.sent + now, ..ended }
    }

    /// Returns the age of the oldest running transfer; zero when none runs.
    pub fn oldest(&self) -> std::time::Duration {
        let oldest = self.running.lock().entries.values().map(|entry| entry.started).min();
        oldest.map(|started| started.elapsed()).unwrap_or_default()
    }

    /// Returns all running transfers, oldest first.
    pub fn list(&self) -> Vec<RunningTransfer> {
        self.running.lock().entries.iter().map(|(number, entry)| entry.shown(*number)).collect()
    }

    /// Returns the last ended attempts, newest first.
    pub fn recent(&self) -> Recent {
        self.ended.lock().recent()
    }

    /// Returns the dead letters of this worker by reason, the most frequent first.
    pub fn dead_letters(&self) -> Vec<DeadLetterCount> {
        self.ended.lock().dead_letters()
    }

    /// Returns the record of each recently used destination.
    pub fn destinations(&self) -> BTreeMap<DestinationIdentity, DestinationRecord> {
        self.ended.lock().destinations()
    }

    /// Returns the throughput of the last minutes, in steps.
    pub fn throughput(&self) -> Throughput {
        self.throughput.lock().throughput()
    }
}

impl RunningEntry {
    fn shown(&self, number: u64) -> RunningTransfer {
        let TransferEntry { job_id, destination, lane, attempt, size, progress } = &self.transfer;
        let bytes = progress.bytes();
        let (phase, expected_bytes) = match progress.length() {
            None => ("opening", None),
            Some(Length::Unknown) => ("uploading", None),
            // One request sends an object without parts: until its response nothing is accepted.
            Some(Length::Known(length)) if bytes >= length && bytes > 0 => ("finishing", Some(length)),
            Some(Length::Known(length)) => ("uploading", Some(length)),
        };
        RunningTransfer {
            number,
            job_id: job_id.clone(),
            destination: destination.id().to_string(),
            identity: destination.clone(),
            lane: lane.as_str(),
            attempt: *attempt,
            started_at: self.started_at,
            seconds: self.started.elapsed().as_secs_f64(),
            size: size.or_else(|| progress.source()),
            bytes,
            parts: progress.parts(),
            phase,
            expected_bytes,
        }
    }
}

impl Drop for ActivityGuard {
    fn drop(&mut self) {
        let mut running = self.activity.running.lock();
        // Under one lock, so that the sum never goes down.
        if let Some(entry) = running.entries.remove(&self.key) {
            running.sent += entry.transfer.progress.bytes();
        }
    }
}

#[cfg(test)]
mod tests;
