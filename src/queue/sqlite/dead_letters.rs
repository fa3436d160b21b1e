//! Iteration over the dead letters in the file. Each change is one transaction; iterations of
//! several commands may overlap.

use std::path::Path;

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::jobs::{self, json};
use super::retrying_store::RetryingStore;
use super::schema::JOB;
use crate::domain::headers::{Headers, belongs_to_run};
use crate::queue::{DeadLetter, DeadLetters, Publication, QueueError};
use crate::runtime::failpoints;

/// An iteration over the dead letters, as [`crate::queue::DeadLetters`].
pub(super) struct SqliteDeadLetters {
    store: RetryingStore,
    prefix: String,
    count: u64,
    /// Newest row of the iteration.
    bound: i64,
    last: i64,
    current: Option<(i64, DeadLetter)>,
}

impl SqliteDeadLetters {
    /// Opens the file and counts the dead letters.
    pub(super) async fn open(file: &Path, prefix: &str) -> Result<Self, QueueError> {
        let store = RetryingStore::open(file).await?;
        let own = prefix.to_owned();
        let (count, bound) = store.read(move |db| count_and_bound(db, &own)).await?;
        Ok(Self { store, prefix: prefix.to_owned(), count, bound, last: 0, current: None })
    }
}

#[async_trait]
impl DeadLetters for SqliteDeadLetters {
    fn count(&self) -> u64 {
        self.count
    }

    async fn next(&mut self) -> Result<Option<DeadLetter>, QueueError> {
        let (prefix, last, bound) = (self.prefix.clone(), self.last, self.bound);
        self.current = self.store.read(move |db| row_after(db, &prefix, last, bound)).await?;
        let Some((seq, letter)) = &self.current else { return Ok(None) };
        self.last = *seq;
        Ok(Some(letter.clone()))
    }

    async fn requeue(&mut self, generation: Option<u64>) -> Result<(), QueueError> {
        let (seq, letter) = self.current.take().ok_or(QueueError::Lost)?;
        let kept = letter.properties().headers.iter().filter(|(name, _)| !belongs_to_run(name));
        let kept = kept.map(|(name, value)| (name.clone(), value.clone()));
        let headers: Headers = kept.chain(letter.next_run(generation)).collect();
        let moved = self.store.write(move |db| requeue(db, seq, &headers)).await?;
        failpoints::hit("requeued");
        require_found(moved)
    }

    async fn discard(&mut self) -> Result<(), QueueError> {
        let (seq, _) = self.current.take().ok_or(QueueError::Lost)?;
        require_found(self.store.write(move |db| remove(db, seq)).await?)
    }

    async fn put(&mut self, letter: &DeadLetter) -> Result<(), QueueError> {
        let lane = letter.bound_lane()?;
        let (routing_key, body) = (letter.routing_key().to_owned(), letter.body().clone());
        let job = Publication { routing_key, body, properties: letter.properties().clone() };
        let (prefix, died_at) = (self.prefix.clone(), letter.died_at().unwrap_or_else(Timestamp::now));
        self.store.write(move |db| jobs::add(db, &prefix, lane, &job, Some(died_at))).await?;
        failpoints::hit("put_back");
        Ok(())
    }

    async fn close(self: Box<Self>) {}
}

fn require_found(found: bool) -> Result<(), QueueError> {
    let gone = || {
        QueueError::Refused("the dead letter no longer exists: another command has requeued or discarded it".to_owned())
    };
    found.then_some(()).ok_or_else(gone)
}

fn count_and_bound(db: &Connection, prefix: &str) -> rusqlite::Result<(u64, i64)> {
    let sql = "SELECT count(*), coalesce(max(seq), 0) FROM dead_letters WHERE prefix = ?1";
    db.query_row(sql, [prefix], |row| Ok((row.get::<_, i64>(0)?.unsigned_abs(), row.get(1)?)))
}

fn row_after(db: &Connection, prefix: &str, last: i64, bound: i64) -> rusqlite::Result<Option<(i64, DeadLetter)>> {
    let mut statement = db.prepare_cached(
        "SELECT seq, died_at, routing_key, content_type, message_id, reply_to, correlation_id, type, headers, body
         FROM dead_letters WHERE prefix = ?1 AND seq > ?2 AND seq <= ?3 ORDER BY seq LIMIT 1",
    )?;
    statement.query_row(params![prefix, last, bound], |row| Ok((row.get(0)?, letter(row)?))).optional()
}

fn letter(row: &Row<'_>) -> rusqlite::Result<DeadLetter> {
    let died_at: String = row.get(1)?;
    let body = Bytes::from(row.get::<_, Vec<u8>>(9)?);
    Ok(DeadLetter::new(row.get(2)?, body, jobs::properties(row, 3)?, died_at.parse().ok()))
}

fn requeue(db: &Connection, seq: i64, headers: &Headers) -> rusqlite::Result<bool> {
    let columns = JOB.replace("headers", "?2");
    let sql = format!("INSERT INTO jobs ({JOB}) SELECT {columns} FROM dead_letters WHERE seq = ?1");
    let copied = db.prepare_cached(&sql)?.execute(params![seq, json(headers)])?;
    Ok(copied > 0 && remove(db, seq)?)
}

fn remove(db: &Connection, seq: i64) -> rusqlite::Result<bool> {
    Ok(db.prepare_cached("DELETE FROM dead_letters WHERE seq = ?1")?.execute([seq])? > 0)
}
