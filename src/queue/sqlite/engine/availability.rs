//! Availability of the file: what users of the queue see of it, and the time of the next try.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{EngineShared, FilePhase};
use crate::queue::QueueError;
use crate::queue::sqlite::errors::FileError;
use crate::runtime::retry::Retry;

const MIN_RETRY_DELAY: Duration = Duration::from_millis(100);
const MAX_RETRY_DELAY: Duration = Duration::from_secs(2);

/// Availability of the file.
pub(super) struct Availability {
    shared: Arc<EngineShared>,
    retry: Retry,
    /// Time of the next try; `None` while the file is usable.
    pub(super) retry_at: Option<Instant>,
    was_up: bool,
}

impl Availability {
    /// A file that was not opened yet.
    pub(super) fn new(shared: Arc<EngineShared>) -> Self {
        let retry = Retry::endless(MIN_RETRY_DELAY, MAX_RETRY_DELAY);
        Self { shared, retry, retry_at: None, was_up: false }
    }

    /// Returns the error for an operation that was not performed in time.
    pub(super) fn problem(&self) -> QueueError {
        match &*self.shared.phase.borrow() {
            FilePhase::Down(problem) => problem.clone(),
            FilePhase::Up | FilePhase::Closed => QueueError::Unavailable("the disk is too slow".to_owned()),
        }
    }

    /// Reports that the file is usable.
    pub(super) fn set_up(&mut self) {
        self.retry_at = None;
        self.retry.reset();
        if matches!(&*self.shared.phase.borrow(), FilePhase::Up) {
            return;
        }
        self.shared.metrics.set_broker_connected(true);
        if self.was_up {
            self.shared.metrics.broker_reconnected();
        }
        self.was_up = true;
        tracing::info!(event = "queue_opened", file = %self.shared.file.display(), "the queue is open");
        self.shared.phase.send_replace(FilePhase::Up);
    }

    /// Reports that the file is not usable, and sets the time of the next try.
    pub(super) fn set_down(&mut self, error: FileError) {
        self.retry_at = Some(Instant::now() + self.retry.next_wait(None).unwrap_or(MAX_RETRY_DELAY));
        let problem = error.into_queue_error();
        let text = problem.to_string();
        if !matches!(&*self.shared.phase.borrow(), FilePhase::Down(known) if known.to_string() == text) {
            tracing::warn!(
                event = "queue_unavailable",
                %problem,
                next = "opening the file is tried again",
                remedy = "check the file, its permissions and the free disk space",
                "the queue is unavailable"
            );
        }
        self.shared.metrics.set_broker_connected(false);
        self.shared.phase.send_replace(FilePhase::Down(problem));
    }
}
