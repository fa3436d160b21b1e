//! Control messages: a table, to which workers and commands publish, and which commands read.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use rusqlite::{Connection, Row, params};
use tokio_util::sync::CancellationToken;

use super::errors::FileError;
use super::jobs;
use super::retrying_store::RetryingStore;
use crate::domain::control::KEPT_DAYS;
use crate::queue::{BodyReader, QueueError};

/// Interval at which [`follow`] looks for new messages.
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
    let since = jobs::now_ms() - RETENTION_MS;
    let row = |row: &Row<'_>| Ok((row.get(0)?, row.get::<_, Vec<u8>>(1)?.into()));
    db.prepare_cached(sql)?.query_map(params![prefix, last, since], row)?.collect()
}

/// Returns the control messages of the last 7 days, oldest first.
pub(super) async fn messages(file: &Path, prefix: &str) -> Result<Vec<Bytes>, QueueError> {
    let prefix = prefix.to_owned();
    let messages = RetryingStore::create(file).await?.read(move |db| after(db, &prefix, 0)).await?;
    Ok(messages.into_iter().map(|(_, body)| body).collect())
}

/// Passes each message to `each`, oldest first, until `stop`.
pub(super) async fn follow(
    file: &Path,
    prefix: &str,
    each: &mut BodyReader<'_>,
    stop: &CancellationToken,
) -> Result<(), QueueError> {
    let store = tokio::select! {
        biased;
        () = stop.cancelled() => return Ok(()),
        opened = RetryingStore::create(file) => opened?,
    };
    let mut last = 0;
    loop {
        let prefix = prefix.to_owned();
        let new = store.try_read(move |db| after(db, &prefix, last)).await?;
        for (seq, body) in new.map_err(FileError::into_queue_error)? {
            last = seq;
            each(&body);
        }
        if tokio::time::timeout(POLL_INTERVAL, stop.cancelled()).await.is_ok() {
            return Ok(());
        }
    }
}
