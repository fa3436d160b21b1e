//! What the status page shows of the worker: what runs now, what ended lately, and how it went before.
//!
//! Everything here is bounded: [`past`] keeps the last ends and so many destinations, [`throughput`] so many minutes.

mod past;
mod throughput;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use serde::Serialize;
use tokio::time::Instant;

use super::settlement::{Case, Verdict};
use crate::domain::destination::DestinationId;
use crate::domain::job::JobId;
use crate::domain::lane::Lane;
use crate::upload::{Length, Progress};
use past::Past;
pub use past::{DestinationRecord, EndedTransfer, Recent, Trouble};
pub use throughput::Throughput;
use throughput::{Tally, Watch};

/// The running transfers, and a bounded memory of the ended ones.
#[derive(Debug)]
pub struct Board {
    next: AtomicU64,
    running: Mutex<Running>,
    past: Mutex<Past>,
    throughput: Mutex<Watch>,
}

#[derive(Debug, Default)]
struct Running {
    entries: BTreeMap<u64, Entry>,
    /// Bytes that S3 accepted of transfers that run no more.
    sent: u64,
}

#[derive(Debug)]
struct Entry {
    job_id: String,
    destination: String,
    lane: Lane,
    attempt: u32,
    started_at: Timestamp,
    started: Instant,
    size: Option<u64>,
    progress: Arc<Progress>,
}

/// One running transfer, as `/status` shows it.
#[derive(Debug, Serialize)]
pub struct RunningTransfer {
    /// The number of this attempt: it stays the same from one look to the next.
    pub number: u64,
    /// The job.
    pub job_id: String,
    /// Its destination.
    pub destination: String,
    /// The lane it came by.
    pub lane: &'static str,
    /// Which attempt this is.
    pub attempt: u32,
    /// When it began.
    pub started_at: Timestamp,
    /// How long it has been running.
    pub seconds: f64,
    /// Bytes of the source, if the job or the source itself says so.
    pub size: Option<u64>,
    /// Bytes that S3 has accepted.
    pub bytes: u64,
    /// Parts that S3 has accepted.
    pub parts: u32,
    /// `opening` (session and source), `uploading`, or `finishing`: all bytes are accepted, the object is being completed.
    pub phase: &'static str,
    /// Bytes that the object will have; `null` while that is unknown (compressed, or a source that does not say).
    pub expected_bytes: Option<u64>,
}

/// A place on the board; leaving it takes the entry off.
#[derive(Debug)]
pub(super) struct Pin {
    board: Arc<Board>,
    key: u64,
}

/// What the board shows of a transfer that begins.
#[derive(Debug)]
pub(super) struct Card<'a> {
    pub(super) job_id: &'a str,
    pub(super) destination: &'a str,
    pub(super) lane: Lane,
    pub(super) attempt: u32,
    pub(super) size: Option<u64>,
    pub(super) progress: Arc<Progress>,
}

impl Default for Board {
    fn default() -> Self {
        Self {
            next: AtomicU64::default(),
            running: Mutex::default(),
            past: Mutex::default(),
            throughput: Mutex::new(Watch::new(Instant::now())),
        }
    }
}

impl Board {
    pub(super) fn pin(self: &Arc<Self>, card: Card<'_>) -> Pin {
        let key = self.next.fetch_add(1, Ordering::Relaxed);
        let entry = Entry {
            job_id: card.job_id.to_owned(),
            destination: card.destination.to_owned(),
            lane: card.lane,
            attempt: card.attempt,
            started_at: Timestamp::now(),
            started: Instant::now(),
            size: card.size,
            progress: card.progress,
        };
        self.running().entries.insert(key, entry);
        Pin { board: self.clone(), key }
    }

    /// An attempt has ended.
    pub(super) fn ended(&self, case: &Case<'_>, verdict: &Verdict, progress: &Progress) {
        let ended = EndedTransfer::of(case, verdict, progress);
        lock(&self.past).attempt(ended, case.destination, verdict);
    }

    /// A message was refused before it was a transfer.
    pub(super) fn refused(
        &self,
        lane: Lane,
        verdict: &Verdict,
        job_id: Option<&JobId>,
        destination: Option<&DestinationId>,
    ) {
        lock(&self.past).refusal(EndedTransfer::refused(lane, verdict, job_id, destination));
    }

    /// To be called about once a second: keeps the record of the throughput.
    pub(super) fn tick(&self) {
        let tally = self.tally();
        lock(&self.throughput).look(Instant::now(), tally);
    }

    fn tally(&self) -> Tally {
        let ends = lock(&self.past).counts();
        let running = self.running();
        let now: u64 = running.entries.values().map(|entry| entry.progress.bytes()).sum();
        Tally { bytes: running.sent + now, ..ends }
    }

    fn running(&self) -> MutexGuard<'_, Running> {
        lock(&self.running)
    }

    /// Seconds since the oldest running transfer began; zero when none runs.
    pub fn oldest(&self) -> std::time::Duration {
        let oldest = self.running().entries.values().map(|entry| entry.started).min();
        oldest.map(|started| started.elapsed()).unwrap_or_default()
    }

    /// All running transfers, oldest first.
    pub fn list(&self) -> Vec<RunningTransfer> {
        self.running().entries.iter().map(|(number, entry)| entry.shown(*number)).collect()
    }

    /// The last ended attempts, newest first.
    pub fn recent(&self) -> Recent {
        lock(&self.past).recent()
    }

    /// What is remembered of each destination that was worked for lately.
    pub fn destinations(&self) -> BTreeMap<DestinationId, DestinationRecord> {
        lock(&self.past).destinations()
    }

    /// The last minutes, in steps.
    pub fn throughput(&self) -> Throughput {
        lock(&self.throughput).throughput()
    }
}

impl Entry {
    fn shown(&self, number: u64) -> RunningTransfer {
        let bytes = self.progress.bytes();
        let (phase, expected_bytes) = match self.progress.length() {
            None => ("opening", None),
            Some(Length::Unknown) => ("uploading", None),
            // One request sends an object without parts: until its answer nothing is accepted.
            Some(Length::Known(length)) if bytes >= length && bytes > 0 => ("finishing", Some(length)),
            Some(Length::Known(length)) => ("uploading", Some(length)),
        };
        RunningTransfer {
            number,
            job_id: self.job_id.clone(),
            destination: self.destination.clone(),
            lane: self.lane.as_str(),
            attempt: self.attempt,
            started_at: self.started_at,
            seconds: self.started.elapsed().as_secs_f64(),
            size: self.size.or_else(|| self.progress.source()),
            bytes,
            parts: self.progress.parts(),
            phase,
            expected_bytes,
        }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut running = self.board.running();
        // Under one lock, so that the sum never goes down.
        if let Some(entry) = running.entries.remove(&self.key) {
            running.sent += entry.progress.bytes();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
