//! How much is in the file.

use std::path::Path;

use rusqlite::{Connection, params};

use super::visit::Visit;
use crate::domain::lane::Lane;
use crate::domain::outcome::RetryDelay;
use crate::queue::{Depths, QueueError};

/// As [`fn@crate::queue::depths`].
pub async fn depths(file: &Path, prefix: &str) -> Result<Depths, QueueError> {
    let prefix = prefix.to_owned();
    Visit::begin(file).await?.read(move |db| count(db, &prefix)).await
}

fn count(db: &Connection, prefix: &str) -> rusqlite::Result<Depths> {
    let number = |sql: &str, values: &[&dyn rusqlite::ToSql]| -> rusqlite::Result<u64> {
        Ok(db.query_row(sql, values, |row| row.get::<_, i64>(0))?.unsigned_abs())
    };
    let mut depths = Depths { lanes: Vec::new(), waiting: Vec::new(), dead: 0 };
    for lane in Lane::ALL {
        let sql = "SELECT count(*) FROM jobs WHERE prefix = ?1 AND lane = ?2 AND owner IS NULL";
        depths.lanes.push((lane, number(sql, params![prefix, lane.as_str()])?));
    }
    for step in RetryDelay::ALL {
        let delay = i64::try_from(step.duration().as_millis()).unwrap_or(i64::MAX);
        let sql = "SELECT count(*) FROM waiting WHERE prefix = ?1 AND rung_ms = ?2";
        depths.waiting.push((step, number(sql, params![prefix, delay])?));
    }
    depths.dead = number("SELECT count(*) FROM dead_letters WHERE prefix = ?1", params![prefix])?;
    Ok(depths)
}
