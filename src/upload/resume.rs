//! How far an upload has come: written by the upload, read by whoever keeps the lease of its job.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::job::lease::{Checkpoint, PartDone};

/// The checkpoint of one attempt's upload. Empty until an upload that can be continued is open, and again when it is completed or
/// given up. What is in it after a failed attempt is still open on S3: whoever does not hand it on must abandon it.
#[derive(Debug, Default)]
pub struct Journal {
    checkpoint: Mutex<Option<Checkpoint>>,
    begun: Notify,
}

impl Journal {
    /// The checkpoint as of now, its parts in order.
    pub fn checkpoint(&self) -> Option<Checkpoint> {
        self.lock().clone()
    }

    /// Resolves when an upload is on record: the moment to write its id down.
    pub async fn begun(&self) {
        loop {
            let begun = self.begun.notified();
            if self.lock().is_some() {
                return;
            }
            begun.await;
        }
    }

    /// Whether an upload is on record.
    pub fn is_open(&self) -> bool {
        self.lock().is_some()
    }

    /// An upload is open on S3.
    pub fn open(&self, checkpoint: Checkpoint) {
        *self.lock() = Some(checkpoint);
        self.begun.notify_waiters();
    }

    /// S3 has accepted a part; a second one of the same number takes the place of the first.
    pub fn part(&self, part: PartDone) {
        if let Some(checkpoint) = self.lock().as_mut() {
            match checkpoint.parts.binary_search_by_key(&part.number, |known| known.number) {
                Ok(at) => checkpoint.parts[at] = part,
                Err(at) => checkpoint.parts.insert(at, part),
            }
        }
    }

    /// The upload is completed or given up.
    pub fn close(&self) {
        *self.lock() = None;
    }

    fn lock(&self) -> MutexGuard<'_, Option<Checkpoint>> {
        self.checkpoint.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
