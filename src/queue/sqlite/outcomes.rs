//! Outcomes: each recorded once per id, limited in number, and read by subscribers.

use std::collections::VecDeque;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use rusqlite::{Connection, Row, params};

use super::errors::FileError;
use super::retrying_store::{RETRY_INTERVAL, RetryingStore};
use super::schema::OUTCOMES_KEPT;
use crate::queue::{BodyReader, OutcomeEvent, OutcomeMessage, Outcomes, QueueError};

/// Interval at which a subscriber looks for new outcomes.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
const PAGE_SIZE: i64 = 256;

/// Records an outcome. An outcome that exists already moves to the end, so that subscribers see it
/// again, and its `repeats` is incremented.
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

/// Deletes the oldest outcomes beyond [`OUTCOMES_KEPT`].
pub(super) fn trim(db: &Connection) -> rusqlite::Result<()> {
    let sql = "DELETE FROM outcomes WHERE seq <= (SELECT max(seq) FROM outcomes) - ?1";
    db.prepare_cached(sql)?.execute([OUTCOMES_KEPT])?;
    Ok(())
}

/// A subscription to the outcomes of one prefix in the file, from the moment it was made.
#[derive(Debug)]
pub(super) struct SqliteOutcomes {
    store: RetryingStore,
    prefix: String,
    last: i64,
    ready: VecDeque<OutcomeMessage>,
}

impl SqliteOutcomes {
    /// Subscribes to all outcomes recorded after this returns. Retries a locked file for 30 s.
    pub(super) async fn subscribe(file: &Path, prefix: &str) -> Result<Self, QueueError> {
        let store = RetryingStore::create(file).await?;
        let last = store.read(last).await?;
        Ok(Self { store, prefix: prefix.to_owned(), last, ready: VecDeque::new() })
    }

    async fn read(&mut self) -> Result<Result<(), FileError>, QueueError> {
        let (prefix, last) = (self.prefix.clone(), self.last);
        Ok(self.store.try_read(move |db| page(db, &prefix, last)).await?.map(|page| {
            for (seq, message) in page {
                self.last = seq;
                self.ready.push_back(message);
            }
        }))
    }
}

#[async_trait]
impl Outcomes for SqliteOutcomes {
    async fn next(&mut self) -> Result<OutcomeMessage, QueueError> {
        loop {
            if let Some(message) = self.ready.pop_front() {
                return Ok(message);
            }
            match self.read().await? {
                Ok(()) if self.ready.is_empty() => tokio::time::sleep(POLL_INTERVAL).await,
                Ok(()) => {}
                Err(FileError::Transient(_)) => tokio::time::sleep(RETRY_INTERVAL).await,
                Err(error) => return Err(error.into_queue_error()),
            }
        }
    }

    async fn close(self: Box<Self>) {}
}

/// Passes each outcome whose `reply_to` is `address` to `each`, in the order in which they were
/// last recorded. Returns true if there was any.
pub(super) async fn read_retained(
    file: &Path,
    prefix: &str,
    address: &str,
    each: &mut BodyReader<'_>,
) -> Result<bool, QueueError> {
    let (store, mut last) = (RetryingStore::create(file).await?, None);
    loop {
        let (prefix, address) = (prefix.to_owned(), address.to_owned());
        let page = store.read(move |db| reply_page(db, &prefix, &address, last.unwrap_or(0))).await?;
        let Some((newest, _)) = page.last() else { return Ok(last.is_some()) };
        last = Some(*newest);
        page.iter().for_each(|(_, body)| each(body));
    }
}

fn reply_page(db: &Connection, prefix: &str, address: &str, last: i64) -> rusqlite::Result<Vec<(i64, Vec<u8>)>> {
    let sql = "SELECT seq, body FROM outcomes WHERE seq > ?1 AND prefix = ?2 AND reply_to = ?3 ORDER BY seq LIMIT ?4";
    let row = |row: &Row<'_>| Ok((row.get(0)?, row.get::<_, String>(1)?.into_bytes()));
    db.prepare_cached(sql)?.query_map(params![last, prefix, address, 4 * PAGE_SIZE], row)?.collect()
}

fn last(db: &Connection) -> rusqlite::Result<i64> {
    db.query_row("SELECT coalesce(max(seq), 0) FROM outcomes", [], |row| row.get(0))
}

fn page(db: &Connection, prefix: &str, last: i64) -> rusqlite::Result<Vec<(i64, OutcomeMessage)>> {
    let sql = "SELECT seq, routing_key, body FROM outcomes
               WHERE seq > ?1 AND prefix = ?2 AND routing_key LIKE 'transfer.%' ORDER BY seq LIMIT ?3";
    let row = |row: &Row<'_>| {
        let body: String = row.get(2)?;
        Ok((row.get(0)?, OutcomeMessage { routing_key: row.get(1)?, body: body.into_bytes() }))
    };
    db.prepare_cached(sql)?.query_map(params![last, prefix, PAGE_SIZE], row)?.collect()
}
