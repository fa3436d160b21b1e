//! Number of messages in the file.

use std::path::Path;

use rusqlite::{Connection, params};

use super::retrying_store::RetryingStore;
use crate::domain::lane::Lane;
use crate::domain::outcome::RetryDelay;
use crate::queue::{Depths, QueueError};

/// Counts the messages.
pub(super) async fn count(file: &Path, prefix: &str) -> Result<Depths, QueueError> {
    let prefix = prefix.to_owned();
    RetryingStore::open(file).await?.read(move |db| count_all(db, &prefix)).await
}

fn count_all(db: &Connection, prefix: &str) -> rusqlite::Result<Depths> {
    let number = |sql: &str, values: &[&dyn rusqlite::ToSql]| -> rusqlite::Result<u64> {
        Ok(db.query_row(sql, values, |row| row.get::<_, i64>(0))?.unsigned_abs())
    };
    let mut depths = Depths { lanes: Vec::new(), waiting: Vec::new(), dead: 0 };
    for lane in Lane::ALL {
        let sql = "SELECT count(*) FROM jobs WHERE prefix = ?1 AND lane = ?2 AND owner IS NULL";
        depths.lanes.push((lane, number(sql, params![prefix, lane.as_str()])?));
    }
    for delay in RetryDelay::ALL {
        let millis = i64::try_from(delay.duration().as_millis()).unwrap_or(i64::MAX);
        let sql = "SELECT count(*) FROM waiting WHERE prefix = ?1 AND rung_ms = ?2";
        depths.waiting.push((delay, number(sql, params![prefix, millis])?));
    }
    depths.dead = number("SELECT count(*) FROM dead_letters WHERE prefix = ?1", params![prefix])?;
    Ok(depths)
}
