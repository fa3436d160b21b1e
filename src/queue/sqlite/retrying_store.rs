//! Access to the file for commands: each operation is retried while the file is locked.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rusqlite::{Connection, Transaction};

use super::connection::Store;
use super::errors::FileError;
use crate::queue::QueueError;

/// Time for which a file that can't be read or written is retried.
const RETRY_TIMEOUT: Duration = Duration::from_secs(30);
pub(super) const RETRY_INTERVAL: Duration = Duration::from_millis(250);

/// The file, opened by a command. Dropping it closes the file.
#[derive(Debug)]
pub(super) struct RetryingStore {
    store: Arc<Mutex<Store>>,
}

impl RetryingStore {
    /// Opens the file as [`Store::open`] does, but never creates one: a mistyped name must not look
    /// like an empty queue.
    ///
    /// # Errors
    /// `Unavailable` if the file stays locked, `Unusable` if it is missing or not a queue.
    pub(super) async fn open(file: &Path) -> Result<Self, QueueError> {
        if !file.exists() {
            let name = file.display();
            return Err(QueueError::Unusable(format!(
                "{name} does not exist; name the file that the workers use, or create it with `consign topology apply`"
            )));
        }
        Self::create(file).await
    }

    /// Opens the file as [`Store::open`] does.
    ///
    /// # Errors
    /// `Unavailable` if the file stays locked, `Unusable` if it is not a queue.
    pub(super) async fn create(file: &Path) -> Result<Self, QueueError> {
        let file = file.to_owned();
        let store = retry_while_locked(move || Store::open(&file)).await?;
        Ok(Self { store: Arc::new(Mutex::new(store)) })
    }

    /// Reads. Retries while the file is locked.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        query: impl Fn(&Connection) -> rusqlite::Result<T> + Send + Sync + 'static,
    ) -> Result<T, QueueError> {
        self.with(move |store| store.read(&query)).await
    }

    /// Reads once: a locked file is not retried.
    pub(super) async fn try_read<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<Result<T, FileError>, QueueError> {
        let store = Arc::clone(&self.store);
        blocking(move || store.lock().read(query)).await
    }

    /// Writes in one transaction, which is on the disk when this returns.
    pub(super) async fn write<T: Send + 'static>(
        &self,
        op: impl Fn(&Transaction<'_>) -> rusqlite::Result<T> + Send + Sync + 'static,
    ) -> Result<T, QueueError> {
        self.with(move |store| store.transact(true, &op)).await
    }

    async fn with<T: Send + 'static>(
        &self,
        op: impl Fn(&mut Store) -> Result<T, FileError> + Send + Sync + 'static,
    ) -> Result<T, QueueError> {
        let store = Arc::clone(&self.store);
        retry_while_locked(move || op(&mut store.lock())).await
    }
}

/// Performs `op`, and repeats it while the file is locked, for up to [`RETRY_TIMEOUT`].
async fn retry_while_locked<T: Send + 'static>(
    op: impl Fn() -> Result<T, FileError> + Send + Sync + 'static,
) -> Result<T, QueueError> {
    let (op, deadline) = (Arc::new(op), Instant::now() + RETRY_TIMEOUT);
    loop {
        let op = Arc::clone(&op);
        match blocking(move || op()).await? {
            Ok(value) => return Ok(value),
            Err(FileError::Transient(_)) if Instant::now() + RETRY_INTERVAL < deadline => {
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
            Err(error) => return Err(error.into_queue_error()),
        }
    }
}

/// Runs `op` on a thread of its own, since SQLite blocks.
async fn blocking<T: Send + 'static>(op: impl FnOnce() -> T + Send + 'static) -> Result<T, QueueError> {
    let done = tokio::task::spawn_blocking(op).await;
    done.map_err(|_| QueueError::Unavailable("the operation on the queue's file was cancelled".to_owned()))
}
