//! Return of waiting copies to their lanes: when their delay is over, or their destination has
//! recovered.

use std::collections::BTreeSet;

use rusqlite::{Connection, params};

use super::jobs;
use super::schema::JOB;
use crate::domain::destination::DestinationIdentity;
use crate::domain::headers::{DEFERRED_SINCE, DESTINATION};
use crate::domain::routing_key;

/// Maximum number of copies released in one transaction.
const MAX_RELEASED_PER_COMMIT: i64 = 500;

/// Moves due copies to their lanes, up to [`MAX_RELEASED_PER_COMMIT`]. Returns their number.
pub(super) fn release_due(db: &Connection, prefix: &str) -> rusqlite::Result<usize> {
    let due = "SELECT seq FROM waiting WHERE prefix = ?1 AND due_ms <= ?2 ORDER BY due_ms, seq LIMIT ?3";
    let (now, limit) = (jobs::now_ms(), MAX_RELEASED_PER_COMMIT);
    let sql = format!("INSERT INTO jobs ({JOB}) SELECT {JOB} FROM waiting WHERE seq IN ({due}) ORDER BY due_ms, seq");
    let released = db.prepare_cached(&sql)?.execute(params![prefix, now, limit])?;
    let sql = format!("DELETE FROM waiting WHERE seq IN ({due})");
    db.prepare_cached(&sql)?.execute(params![prefix, now, limit])?;
    Ok(released)
}

/// Makes copies due that wait for the recovery of these destinations. Returns their number. A copy
/// that names no identity may wait for any destination of its id.
pub(super) fn release_delayed(
    db: &Connection,
    prefix: &str,
    destinations: &BTreeSet<DestinationIdentity>,
) -> rusqlite::Result<usize> {
    let named = |destination: &DestinationIdentity| destination.is_inline().then(|| destination.to_string());
    let wanted: Vec<_> = destinations
        .iter()
        .flat_map(|destination| routing_key::jobs_of(destination.id()).map(|key| (key, named(destination))))
        .collect();
    // A list of strings always has a JSON form.
    let wanted = serde_json::to_string(&wanted).unwrap_or_default();
    let sql = "UPDATE waiting SET due_ms = ?2
               WHERE prefix = ?1 AND due_ms > ?2 AND ifnull(headers ->> ?4, '') <> ''
                 AND EXISTS (SELECT 1 FROM json_each(?3) WHERE value ->> 0 = routing_key
                             AND (value ->> 1 IS NULL OR ifnull(headers ->> ?5, value ->> 1) = value ->> 1))";
    let header = |name: &str| format!("$.\"{name}\"");
    db.prepare_cached(sql)?.execute(params![
        prefix,
        jobs::now_ms(),
        wanted,
        header(DEFERRED_SINCE),
        header(DESTINATION)
    ])
}

/// Returns the time at which the next copy is due, in milliseconds since 1970.
pub(super) fn next_due(db: &Connection, prefix: &str) -> rusqlite::Result<Option<i64>> {
    let mut statement = db.prepare_cached("SELECT min(due_ms) FROM waiting WHERE prefix = ?1")?;
    statement.query_row([prefix], |row| row.get(0))
}

/// Caps each wait at its retry delay, after the clock was set back. Returns the number of changed
/// copies.
pub(super) fn cap_waits(db: &Connection, prefix: &str) -> rusqlite::Result<usize> {
    db.execute(
        "UPDATE waiting SET due_ms = ?2 + rung_ms WHERE prefix = ?1 AND due_ms > ?2 + rung_ms",
        params![prefix, jobs::now_ms()],
    )
}
