//! Outcomes: recorded once for each id, bounded, and listened to.

use std::collections::VecDeque;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rusqlite::{Connection, params};

use super::file::Store;
use super::schema::OUTCOMES_KEPT;
use super::trouble::Trouble;
use crate::queue::{OutcomeEvent, OutcomeMessage, QueueError};

/// How late a listener may learn of an outcome.
const POLL: Duration = Duration::from_millis(50);
/// How long a file that can't be read is tried.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(250);
/// Outcomes read at once.
const PAGE: i64 = 256;

/// Records an outcome. One that is there already moves to the end, so that listeners see it, and its `repeats` counts it.
pub(super) fn record(db: &Connection, prefix: &str, event: &OutcomeEvent) -> rusqlite::Result<()> {
    let (reply_to, correlation_id) = event.reply_to.clone().unzip();
    let mut statement = db.prepare_cached(
        "INSERT INTO outcomes (recorded_at, prefix, id, routing_key, reply_to, correlation_id, body)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
         ON CONFLICT (prefix, id) DO UPDATE SET seq = (SELECT max(seq) + 1 FROM outcomes), repeats = repeats + 1,
             recorded_at = excluded.recorded_at, body = excluded.body, reply_to = coalesce(excluded.reply_to, reply_to)",
    )?;
    statement.execute(params![
        Timestamp::now().to_string(),
        prefix,
        event.id,
        event.routing_key,
        reply_to,
        correlation_id.flatten(),
        String::from_utf8_lossy(&event.body)
    ])?;
    Ok(())
}

/// Drops the oldest where there are too many.
pub(super) fn trim(db: &Connection) -> rusqlite::Result<()> {
    let sql = "DELETE FROM outcomes WHERE seq <= (SELECT max(seq) FROM outcomes) - ?1";
    db.prepare_cached(sql)?.execute([OUTCOMES_KEPT])?;
    Ok(())
}

/// A subscription to the outcomes of one prefix in the file, from the moment it was made.
pub struct Outcomes {
    store: Arc<Mutex<Store>>,
    file: PathBuf,
    prefix: String,
    last: i64,
    ready: VecDeque<OutcomeMessage>,
}

impl fmt::Debug for Outcomes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outcomes").field("file", &self.file).finish_non_exhaustive()
    }
}

impl Outcomes {
    /// Subscribes; outcomes recorded after this returns are seen. A file that is locked is tried for 30 s.
    ///
    /// # Errors
    /// `Unavailable` when the file stays locked, `Unusable` when it is no queue of ours.
    pub async fn subscribe(file: &Path, prefix: &str) -> Result<Self, QueueError> {
        let (store, last) = patiently(file, |store| {
            let last = last(store.connection())?;
            Ok((store, last))
        })
        .await?;
        let store = Arc::new(Mutex::new(store));
        let (file, prefix) = (file.to_owned(), prefix.to_owned());
        Ok(Self { store, file, prefix, last, ready: VecDeque::new() })
    }

    /// The next outcome. A file that is locked is waited for.
    ///
    /// # Errors
    /// The file can't be read any more.
    pub async fn next(&mut self) -> Result<OutcomeMessage, QueueError> {
        loop {
            if let Some(message) = self.ready.pop_front() {
                return Ok(message);
            }
            match self.read().await? {
                Ok(()) if self.ready.is_empty() => tokio::time::sleep(POLL).await,
                Ok(()) => {}
                Err(Trouble::Passing(_)) => tokio::time::sleep(PAUSE).await,
                Err(trouble) => return Err(trouble.into_error()),
            }
        }
    }

    async fn read(&mut self) -> Result<Result<(), Trouble>, QueueError> {
        let (store, file) = (Arc::clone(&self.store), self.file.clone());
        let (prefix, last) = (self.prefix.clone(), self.last);
        let page = blocking(move || {
            let store = store.lock().unwrap_or_else(PoisonError::into_inner);
            page(store.connection(), &prefix, last).map_err(|error| Trouble::of(&file, &error))
        });
        Ok(page.await?.map(|page| {
            for (seq, message) in page {
                self.last = seq;
                self.ready.push_back(message);
            }
        }))
    }
}

/// Opens the file and works on it; one that is locked is tried for 30 s.
pub(super) async fn patiently<T: Send + 'static>(
    file: &Path,
    work: impl Fn(Store) -> rusqlite::Result<T> + Clone + Send + 'static,
) -> Result<T, QueueError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (path, work) = (file.to_owned(), work.clone());
        let done = blocking(move || {
            let store = Store::open(&path)?;
            work(store).map_err(|error| Trouble::of(&path, &error))
        });
        match done.await? {
            Ok(value) => return Ok(value),
            Err(Trouble::Passing(_)) if Instant::now() + PAUSE < deadline => tokio::time::sleep(PAUSE).await,
            Err(trouble) => return Err(trouble.into_error()),
        }
    }
}

/// Gives each outcome that was to be sent to `address` to `each`, in the order in which they were recorded last; whether there
/// was any.
pub(in crate::queue) async fn replies(
    file: &Path,
    prefix: &str,
    address: &str,
    each: &mut (dyn FnMut(&[u8]) + Send),
) -> Result<bool, QueueError> {
    let mut last = None;
    loop {
        let (prefix, address) = (prefix.to_owned(), address.to_owned());
        let page = patiently(file, move |store| replied(store.connection(), &prefix, &address, last.unwrap_or(0)));
        let page = page.await?;
        let Some((newest, _)) = page.last() else { return Ok(last.is_some()) };
        last = Some(*newest);
        page.iter().for_each(|(_, body)| each(body));
    }
}

fn replied(db: &Connection, prefix: &str, address: &str, last: i64) -> rusqlite::Result<Vec<(i64, Vec<u8>)>> {
    let sql = "SELECT seq, body FROM outcomes WHERE seq > ?1 AND prefix = ?2 AND reply_to = ?3 ORDER BY seq LIMIT ?4";
    let mut statement = db.prepare_cached(sql)?;
    let rows = statement.query_map(params![last, prefix, address, 4 * PAGE], |row| {
        Ok((row.get(0)?, row.get::<_, String>(1)?.into_bytes()))
    })?;
    rows.collect()
}

pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, QueueError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| QueueError::Unavailable("reading outcomes was broken off".to_owned()))
}

fn last(db: &Connection) -> rusqlite::Result<i64> {
    db.query_row("SELECT coalesce(max(seq), 0) FROM outcomes", [], |row| row.get(0))
}

fn page(db: &Connection, prefix: &str, last: i64) -> rusqlite::Result<Vec<(i64, OutcomeMessage)>> {
    let mut statement = db.prepare_cached(
        "SELECT seq, routing_key, body FROM outcomes
         WHERE seq > ?1 AND prefix = ?2 AND routing_key LIKE 'transfer.%' ORDER BY seq LIMIT ?3",
    )?;
    let rows = statement.query_map(params![last, prefix, PAGE], |row| {
        let body: String = row.get(2)?;
        Ok((row.get(0)?, OutcomeMessage { routing_key: row.get(1)?, body: body.into_bytes() }))
    })?;
    rows.collect()
}
