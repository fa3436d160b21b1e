//! A visit of a command to the file: one piece of work after the other, each tried again while the file is locked.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::{Connection, Transaction};

use super::file::Store;
use super::trouble::Trouble;
use crate::queue::QueueError;

/// How long a file that can't be read or written is tried.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(250);

/// The file, open for a command. Dropping it leaves nothing behind.
#[derive(Debug)]
pub(super) struct Visit {
    store: Arc<Mutex<Store>>,
    file: PathBuf,
}

impl Visit {
    /// Opens the file, as [`Store::open`], but makes none: a mistyped name must not look like an empty queue.
    ///
    /// # Errors
    /// `Unavailable` when the file stays locked, `Unusable` when it is not there or no queue of ours.
    pub(super) async fn begin(file: &Path) -> Result<Self, QueueError> {
        if !file.exists() {
            let name = file.display();
            return Err(QueueError::Unusable(format!(
                "{name} is not there; name the file that the workers use, or make it with `consign topology apply`"
            )));
        }
        let path = file.to_owned();
        let store = patiently(move || Store::open(&path)).await?;
        Ok(Self { store: Arc::new(Mutex::new(store)), file: file.to_owned() })
    }

    /// Reads.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        look: impl Fn(&Connection) -> rusqlite::Result<T> + Send + Sync + 'static,
    ) -> Result<T, QueueError> {
        self.with(move |store| look(store.connection())).await
    }

    /// Writes: one transaction, on the disk when this returns.
    pub(super) async fn write<T: Send + 'static>(
        &self,
        work: impl Fn(&Transaction<'_>) -> rusqlite::Result<T> + Send + Sync + 'static,
    ) -> Result<T, QueueError> {
        self.with(move |store| store.transact(true, &work)).await
    }

    async fn with<T: Send + 'static>(
        &self,
        work: impl Fn(&mut Store) -> rusqlite::Result<T> + Send + Sync + 'static,
    ) -> Result<T, QueueError> {
        let (store, file) = (Arc::clone(&self.store), self.file.clone());
        patiently(move || {
            let mut store = store.lock().unwrap_or_else(PoisonError::into_inner);
            work(&mut store).map_err(|error| Trouble::of(&file, &error))
        })
        .await
    }
}

/// SQLite blocks, so it has a thread of its own.
async fn patiently<T: Send + 'static>(
    work: impl Fn() -> Result<T, Trouble> + Send + Sync + 'static,
) -> Result<T, QueueError> {
    let (work, end) = (Arc::new(work), Instant::now() + PATIENCE);
    loop {
        let work = Arc::clone(&work);
        let done = tokio::task::spawn_blocking(move || work()).await;
        let broken_off = |_| QueueError::Unavailable("work on the queue's file was broken off".to_owned());
        match done.map_err(broken_off)? {
            Ok(value) => return Ok(value),
            Err(Trouble::Passing(_)) if Instant::now() + PAUSE < end => tokio::time::sleep(PAUSE).await,
            Err(trouble) => return Err(trouble.into_error()),
        }
    }
}
