//! Control messages: a table that every process which consumes reads from the start.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rusqlite::{Connection, params};
use tokio::sync::mpsc::UnboundedSender;
use tokio_util::sync::CancellationToken;

use super::file::Store;
use super::jobs;
use super::outcomes::{blocking, patiently};
use super::trouble::Trouble;
use crate::domain::control::KEPT_DAYS;
use crate::queue::{ControlEvent, QueueError};

/// How late one who only follows learns of them.
const LOOK: Duration = Duration::from_millis(500);
const KEPT_MS: i64 = KEPT_DAYS.cast_signed() * 24 * 3600 * 1000;

/// Records a control message, and forgets those whose time is over.
pub(super) fn announce(db: &Connection, prefix: &str, body: &[u8]) -> rusqlite::Result<()> {
    let now = jobs::now_ms();
    db.prepare_cached("DELETE FROM control WHERE announced_ms < ?1")?.execute([now - KEPT_MS])?;
    let sql = "INSERT INTO control (announced_ms, prefix, body) VALUES (?1, ?2, ?3)";
    db.prepare_cached(sql)?.execute(params![now, prefix, body])?;
    Ok(())
}

/// Those after `last`, each with its number, in the order in which they were announced.
pub(super) fn after(db: &Connection, prefix: &str, last: i64) -> rusqlite::Result<Vec<(i64, Bytes)>> {
    let sql = "SELECT seq, body FROM control WHERE prefix = ?1 AND seq > ?2 AND announced_ms >= ?3 ORDER BY seq";
    let mut statement = db.prepare_cached(sql)?;
    let since = jobs::now_ms() - KEPT_MS;
    let rows =
        statement.query_map(params![prefix, last, since], |row| Ok((row.get(0)?, row.get::<_, Vec<u8>>(1)?.into())))?;
    rows.collect()
}

/// Gives each to `each`, from the oldest on, until `stop`.
pub(in crate::queue) async fn follow_control(
    file: &Path,
    prefix: &str,
    each: &mut (dyn FnMut(&[u8]) + Send),
    stop: &CancellationToken,
) -> Result<(), QueueError> {
    let opened = tokio::select! {
        biased;
        () = stop.cancelled() => return Ok(()),
        opened = patiently(file, Ok) => opened?,
    };
    let (store, mut last) = (Arc::new(Mutex::new(opened)), 0);
    loop {
        let (store, prefix) = (Arc::clone(&store), prefix.to_owned());
        let new = blocking(move || {
            let store = store.lock().unwrap_or_else(PoisonError::into_inner);
            after(store.connection(), &prefix, last)
        });
        for (seq, body) in new.await?.map_err(|error| Trouble::of(file, &error).into_error())? {
            last = seq;
            each(&body);
        }
        if tokio::time::timeout(LOOK, stop.cancelled()).await.is_ok() {
            return Ok(());
        }
    }
}

/// How far this process has read.
pub(super) struct Reader {
    inbox: UnboundedSender<ControlEvent>,
    last: i64,
    due: bool,
    up_to_date: bool,
}

impl Reader {
    /// At the start.
    pub(super) fn new(inbox: UnboundedSender<ControlEvent>) -> Self {
        Self { inbox, last: 0, due: true, up_to_date: false }
    }

    /// There may be new ones.
    pub(super) fn wake(&mut self) {
        self.due = true;
    }

    /// The file is another one.
    pub(super) fn start_over(&mut self) {
        (self.last, self.due) = (0, true);
    }

    /// Passes new ones on.
    pub(super) fn read(&mut self, store: &Store, (file, prefix): (&Path, &str)) -> Result<(), Trouble> {
        if !std::mem::take(&mut self.due) {
            return Ok(());
        }
        let new = after(store.connection(), prefix, self.last).map_err(|error| {
            self.due = true;
            Trouble::of(file, &error)
        })?;
        for (seq, body) in new {
            self.last = seq;
            // Nobody may listen any more.
            let _ = self.inbox.send(ControlEvent::Message(body));
        }
        if !std::mem::replace(&mut self.up_to_date, true) {
            let _ = self.inbox.send(ControlEvent::CaughtUp);
        }
        Ok(())
    }
}
