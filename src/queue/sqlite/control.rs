//! Control messages: a table that each consuming process reads from the start.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rusqlite::{Connection, params};
use tokio::sync::mpsc::UnboundedSender;
use tokio_util::sync::CancellationToken;

use super::errors::FileError;
use super::file::Store;
use super::jobs;
use super::retrying_store::{blocking, open_and};
use crate::domain::control::KEPT_DAYS;
use crate::queue::{ControlEvent, QueueError};

/// Interval at which [`follow_control`] looks for new messages.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
const RETENTION_MS: i64 = KEPT_DAYS.cast_signed() * 24 * 3600 * 1000;

/// Records a control message and deletes those past their retention.
pub(super) fn publish(db: &Connection, prefix: &str, body: &[u8]) -> rusqlite::Result<()> {
    let now = jobs::now_ms();
    db.prepare_cached("DELETE FROM control WHERE announced_ms < ?1")?.execute([now - RETENTION_MS])?;
    let sql = "INSERT INTO control (announced_ms, prefix, body) VALUES (?1, ?2, ?3)";
    db.prepare_cached(sql)?.execute(params![now, prefix, body])?;
    Ok(())
}

/// Returns the messages after `last`, each with its number, in the order of publication.
pub(super) fn after(db: &Connection, prefix: &str, last: i64) -> rusqlite::Result<Vec<(i64, Bytes)>> {
    let sql = "SELECT seq, body FROM control WHERE prefix = ?1 AND seq > ?2 AND announced_ms >= ?3 ORDER BY seq";
    let mut statement = db.prepare_cached(sql)?;
    let since = jobs::now_ms() - RETENTION_MS;
    let rows =
        statement.query_map(params![prefix, last, since], |row| Ok((row.get(0)?, row.get::<_, Vec<u8>>(1)?.into())))?;
    rows.collect()
}

/// Passes each message to `each`, oldest first, until `stop`.
pub(in crate::queue) async fn follow_control(
    file: &Path,
    prefix: &str,
    each: &mut (dyn FnMut(&[u8]) + Send),
    stop: &CancellationToken,
) -> Result<(), QueueError> {
    let opened = tokio::select! {
        biased;
        () = stop.cancelled() => return Ok(()),
        opened = open_and(file, Ok) => opened?,
    };
    let (store, mut last) = (Arc::new(Mutex::new(opened)), 0);
    loop {
        let (store, prefix) = (Arc::clone(&store), prefix.to_owned());
        let new = blocking(move || {
            let store = store.lock().unwrap_or_else(PoisonError::into_inner);
            store.read(|db| after(db, &prefix, last))
        });
        for (seq, body) in new.await?.map_err(FileError::into_queue_error)? {
            last = seq;
            each(&body);
        }
        if tokio::time::timeout(POLL_INTERVAL, stop.cancelled()).await.is_ok() {
            return Ok(());
        }
    }
}

/// Reader of a consuming process, which remembers its position.
pub(super) struct ControlCursor {
    inbox: UnboundedSender<ControlEvent>,
    last: i64,
    due: bool,
    caught_up: bool,
}

impl ControlCursor {
    /// A reader at the start of the table.
    pub(super) fn new(inbox: UnboundedSender<ControlEvent>) -> Self {
        Self { inbox, last: 0, due: true, caught_up: false }
    }

    /// Makes the next [`ControlCursor::read`] look for new messages.
    pub(super) fn wake(&mut self) {
        self.due = true;
    }

    /// Starts again at the first message, since the file is another one.
    pub(super) fn rewind(&mut self) {
        (self.last, self.due) = (0, true);
    }

    /// Sends new messages to the inbox, and `CaughtUp` after the first read.
    pub(super) fn read(&mut self, store: &Store, prefix: &str) -> Result<(), FileError> {
        if !std::mem::take(&mut self.due) {
            return Ok(());
        }
        let new = store.read(|db| after(db, prefix, self.last)).inspect_err(|_| self.due = true)?;
        for (seq, body) in new {
            self.last = seq;
            // The receiver may be gone.
            let _ = self.inbox.send(ControlEvent::Message(body));
        }
        if !std::mem::replace(&mut self.caught_up, true) {
            let _ = self.inbox.send(ControlEvent::CaughtUp);
        }
        Ok(())
    }
}
