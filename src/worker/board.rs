//! What runs now, for the status endpoint and the age of the oldest transfer.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use serde::Serialize;
use tokio::time::Instant;

use crate::lane::Lane;
use crate::upload::Progress;

/// The running transfers.
#[derive(Debug, Default)]
pub struct Board {
    next: AtomicU64,
    running: Mutex<BTreeMap<u64, Entry>>,
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
    /// Bytes of the source, if the job says so.
    pub size: Option<u64>,
    /// Bytes that S3 has accepted.
    pub bytes: u64,
    /// Parts that S3 has accepted.
    pub parts: u32,
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
        self.running().insert(key, entry);
        Pin { board: self.clone(), key }
    }

    fn running(&self) -> MutexGuard<'_, BTreeMap<u64, Entry>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Seconds since the oldest running transfer began; zero when none runs.
    pub fn oldest(&self) -> std::time::Duration {
        let oldest = self.running().values().map(|entry| entry.started).min();
        oldest.map(|started| started.elapsed()).unwrap_or_default()
    }

    /// All running transfers, oldest first.
    pub fn list(&self) -> Vec<RunningTransfer> {
        let shown = |entry: &Entry| RunningTransfer {
            job_id: entry.job_id.clone(),
            destination: entry.destination.clone(),
            lane: entry.lane.as_str(),
            attempt: entry.attempt,
            started_at: entry.started_at,
            seconds: entry.started.elapsed().as_secs_f64(),
            size: entry.size,
            bytes: entry.progress.bytes(),
            parts: entry.progress.parts(),
        };
        self.running().values().map(shown).collect()
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.board.running().remove(&self.key);
    }
}
