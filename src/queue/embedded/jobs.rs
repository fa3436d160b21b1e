//! Jobs, copies that wait, and dead letters: every statement about them.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use rusqlite::{Connection, Row, params};

use super::schema::JOB;
use crate::lane::Lane;
use crate::queue::{Delivery, Properties, Publication, Ticket};

const WAIT_HEADER: &str = "consign-wait";
const ORIGINAL_KEY: &str = "x-original-routing-key";
/// Copies that come back in one transaction.
const DUE_AT_ONCE: i64 = 500;

/// The lane of `job.scheduled.<one word>` or `job.backfill.<one word>`; nothing else leads to a queue.
pub(super) fn lane_of(routing_key: &str) -> Option<Lane> {
    let lead = |lane: Lane| routing_key.strip_prefix("job.")?.strip_prefix(lane.as_str())?.strip_prefix('.');
    [Lane::Scheduled, Lane::Backfill].into_iter().find(|lane| lead(*lane).is_some_and(|word| !word.contains('.')))
}

pub(super) fn publish(db: &Connection, prefix: &str, lane: Lane, job: &Publication) -> rusqlite::Result<()> {
    let p = &job.properties;
    let sql = format!("INSERT INTO jobs ({JOB}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)");
    db.prepare_cached(&sql)?.execute(params![
        prefix,
        lane.as_str(),
        job.routing_key,
        Timestamp::now().to_string(),
        p.content_type,
        p.message_id,
        p.reply_to,
        p.correlation_id,
        p.kind,
        json(&p.headers),
        &job.body[..]
    ])?;
    Ok(())
}

/// Takes up to `limit` jobs of a lane for `owner`, oldest first; none where others have called this owner gone.
pub(super) fn claim(
    db: &Connection,
    prefix: &str,
    lane: Lane,
    owner: (&str, u64),
    limit: usize,
) -> rusqlite::Result<Vec<Delivery>> {
    let mut statement = db.prepare_cached(
        "UPDATE jobs SET owner = ?1 WHERE seq IN
             (SELECT seq FROM jobs WHERE prefix = ?2 AND lane = ?3 AND owner IS NULL ORDER BY seq LIMIT ?4)
             AND EXISTS (SELECT 1 FROM owners WHERE id = ?1)
         RETURNING seq, routing_key, redelivered, delivery_count, content_type, message_id, reply_to, correlation_id, type,
             headers, body",
    )?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let rows =
        statement.query_map(params![owner.0, prefix, lane.as_str(), limit], |row| delivery(row, lane, owner.1))?;
    let mut taken = rows.collect::<rusqlite::Result<Vec<_>>>()?;
    // RETURNING promises no order.
    taken.sort_unstable_by_key(|delivery| delivery.ticket.tag);
    Ok(taken)
}

fn delivery(row: &Row<'_>, lane: Lane, generation: u64) -> rusqlite::Result<Delivery> {
    let headers: String = row.get(9)?;
    Ok(Delivery {
        lane,
        routing_key: row.get(1)?,
        redelivered: row.get(2)?,
        delivery_count: row.get::<_, i64>(3)?.unsigned_abs(),
        properties: Properties {
            content_type: row.get(4)?,
            message_id: row.get(5)?,
            reply_to: row.get(6)?,
            correlation_id: row.get(7)?,
            kind: row.get(8)?,
            headers: serde_json::from_str(&headers).unwrap_or_default(),
        },
        body: Bytes::from(row.get::<_, Vec<u8>>(10)?),
        ticket: Ticket { generation, lane, tag: row.get::<_, i64>(0)?.unsigned_abs() },
    })
}

/// Acknowledges. False where the job is not `owner`'s any more.
pub(super) fn remove(db: &Connection, seq: i64, owner: &str) -> rusqlite::Result<bool> {
    let removed = db.prepare_cached("DELETE FROM jobs WHERE seq = ?1 AND owner = ?2")?.execute(params![seq, owner])?;
    Ok(removed > 0)
}

/// Back to the queue, at its old place. `counted`: it was in somebody's hands, so it comes as a redelivery.
pub(super) fn release(db: &Connection, seq: i64, owner: &str, counted: bool) -> rusqlite::Result<bool> {
    let mut statement = db.prepare_cached(
        "UPDATE jobs SET owner = NULL, redelivered = max(redelivered, ?3), delivery_count = delivery_count + ?3
         WHERE seq = ?1 AND owner = ?2",
    )?;
    Ok(statement.execute(params![seq, owner, counted])? > 0)
}

/// Everything of an owner that is gone, back to the queue as redeliveries; how many.
pub(super) fn release_all_of(db: &Connection, owner: &str) -> rusqlite::Result<usize> {
    db.execute(
        "UPDATE jobs SET owner = NULL, redelivered = 1, delivery_count = delivery_count + 1 WHERE owner = ?1",
        [owner],
    )
}

/// What is held in the name of nobody who is known, back to the queue as redeliveries.
pub(super) fn release_orphans(db: &Connection) -> rusqlite::Result<usize> {
    db.execute(
        "UPDATE jobs SET owner = NULL, redelivered = 1, delivery_count = delivery_count + 1
         WHERE owner IS NOT NULL AND owner NOT IN (SELECT id FROM owners)",
        [],
    )
}

/// A copy that waits for `rung` and then comes back to its lane. False where the job is not `owner`'s any more.
pub(super) fn wait(
    db: &Connection,
    delivery: &Delivery,
    owner: &str,
    (rung, name): (Duration, &str),
    set: &BTreeMap<String, String>,
) -> rusqlite::Result<bool> {
    let mut headers = merged(&delivery.properties.headers, set);
    headers.insert(WAIT_HEADER.to_owned(), name.to_owned());
    let rung = i64::try_from(rung.as_millis()).unwrap_or(i64::MAX);
    let sql = format!(
        "INSERT INTO waiting (due_ms, rung_ms, {JOB}) SELECT ?3, ?4, {} FROM jobs WHERE seq = ?1 AND owner = ?2",
        with_headers("?5")
    );
    let due = now_ms().saturating_add(rung);
    let copied =
        db.prepare_cached(&sql)?.execute(params![seq_of(delivery.ticket), owner, due, rung, json(&headers)])?;
    Ok(copied > 0 && remove(db, seq_of(delivery.ticket), owner)?)
}

/// A copy to the dead letters. False where the job is not `owner`'s any more.
pub(super) fn bury(
    db: &Connection,
    delivery: &Delivery,
    owner: &str,
    set: &BTreeMap<String, String>,
) -> rusqlite::Result<bool> {
    let mut headers = merged(&delivery.properties.headers, set);
    headers.insert(ORIGINAL_KEY.to_owned(), delivery.routing_key.clone());
    let sql = format!(
        "INSERT INTO dead_letters (died_at, {JOB}) SELECT ?3, {} FROM jobs WHERE seq = ?1 AND owner = ?2",
        with_headers("?4")
    );
    let now = Timestamp::now().to_string();
    let copied = db.prepare_cached(&sql)?.execute(params![seq_of(delivery.ticket), owner, now, json(&headers)])?;
    Ok(copied > 0 && remove(db, seq_of(delivery.ticket), owner)?)
}

/// Copies whose time has come arrive in their lanes. How many there were.
pub(super) fn arrive(db: &Connection, prefix: &str) -> rusqlite::Result<usize> {
    let due = "SELECT seq FROM waiting WHERE prefix = ?1 AND due_ms <= ?2 ORDER BY due_ms, seq LIMIT ?3";
    let (now, most) = (now_ms(), DUE_AT_ONCE);
    let sql = format!("INSERT INTO jobs ({JOB}) SELECT {JOB} FROM waiting WHERE seq IN ({due}) ORDER BY due_ms, seq");
    let arrived = db.prepare_cached(&sql)?.execute(params![prefix, now, most])?;
    let sql = format!("DELETE FROM waiting WHERE seq IN ({due})");
    db.prepare_cached(&sql)?.execute(params![prefix, now, most])?;
    Ok(arrived)
}

/// When the next copy comes back, in milliseconds since 1970.
pub(super) fn next_due(db: &Connection, prefix: &str) -> rusqlite::Result<Option<i64>> {
    let mut statement = db.prepare_cached("SELECT min(due_ms) FROM waiting WHERE prefix = ?1")?;
    statement.query_row([prefix], |row| row.get(0))
}

/// After the clock went back: no copy waits longer than its rung.
pub(super) fn shorten_waits(db: &Connection, prefix: &str) -> rusqlite::Result<usize> {
    db.execute(
        "UPDATE waiting SET due_ms = ?2 + rung_ms WHERE prefix = ?1 AND due_ms > ?2 + rung_ms",
        params![prefix, now_ms()],
    )
}

pub(super) fn now_ms() -> i64 {
    Timestamp::now().as_millisecond()
}

fn with_headers(parameter: &str) -> String {
    JOB.replace("headers", parameter)
}

fn merged(original: &BTreeMap<String, String>, set: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let kept = original.iter().filter(|(name, _)| *name != WAIT_HEADER);
    kept.chain(set).map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// The row of a delivery.
pub(super) fn seq_of(ticket: Ticket) -> i64 {
    i64::try_from(ticket.tag).unwrap_or_default()
}

/// A map of texts always has a JSON form.
fn json(headers: &BTreeMap<String, String>) -> String {
    serde_json::to_string(headers).unwrap_or_else(|_| "{}".to_owned())
}
