//! Jobs, copies that wait, and dead letters: every statement about them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use rusqlite::{Connection, Row, ToSql, params};

use super::schema::JOB;
use crate::domain::lane::Lane;
use crate::queue::{DEFERRED_SINCE, Delivery, DeliveryTag, Properties, Publication};

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

/// `content_type`, `message_id`, `reply_to`, `correlation_id`, `type` and `headers`, six columns from `first` on.
pub(super) fn properties(row: &Row<'_>, first: usize) -> rusqlite::Result<Properties> {
    let headers: String = row.get(first + 5)?;
    Ok(Properties {
        content_type: row.get(first)?,
        message_id: row.get(first + 1)?,
        reply_to: row.get(first + 2)?,
        correlation_id: row.get(first + 3)?,
        kind: row.get(first + 4)?,
        headers: serde_json::from_str(&headers).unwrap_or_default(),
    })
}

fn delivery(row: &Row<'_>, lane: Lane, generation: u64) -> rusqlite::Result<Delivery> {
    Ok(Delivery {
        lane,
        routing_key: row.get(1)?,
        redelivered: row.get(2)?,
        delivery_count: row.get::<_, i64>(3)?.unsigned_abs(),
        properties: properties(row, 4)?,
        body: Bytes::from(row.get::<_, Vec<u8>>(10)?),
        ticket: DeliveryTag { generation, lane, tag: row.get::<_, i64>(0)?.unsigned_abs() },
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

/// What a job carries from now on.
pub(super) struct JobContent<'a> {
    pub(super) body: &'a [u8],
    pub(super) content_type: Option<&'a str>,
    pub(super) headers: BTreeMap<String, String>,
}

impl<'a> JobContent<'a> {
    /// As the delivery has it when it is settled, with `set` beside its headers.
    pub(super) fn of(delivery: &'a Delivery, set: &BTreeMap<String, String>) -> Self {
        let properties = &delivery.properties;
        let content_type = properties.content_type.as_deref();
        Self { body: &delivery.body, content_type, headers: merged(&properties.headers, set) }
    }
}

/// Records what another worker gets when `owner` is gone. It keeps its owner. False where the job is not `owner`'s any more.
pub(super) fn lease(db: &Connection, seq: i64, owner: &str, content: &JobContent<'_>) -> rusqlite::Result<bool> {
    let mut statement = db.prepare_cached(
        "UPDATE jobs SET lane = ?3, body = ?4, content_type = ?5, headers = ?6 WHERE seq = ?1 AND owner = ?2",
    )?;
    let (lane, headers) = (Lane::Continued.as_str(), json(&content.headers));
    Ok(statement.execute(params![seq, owner, lane, content.body, content.content_type, headers])? > 0)
}

/// To whoever is free next, as a job that nobody has failed at. False where it is not `owner`'s any more.
pub(super) fn hand_off(db: &Connection, seq: i64, owner: &str, content: &JobContent<'_>) -> rusqlite::Result<bool> {
    if !lease(db, seq, owner, content)? {
        return Ok(false);
    }
    let sql = "UPDATE jobs SET owner = NULL, redelivered = 0, delivery_count = 0 WHERE seq = ?1 AND owner = ?2";
    Ok(db.prepare_cached(sql)?.execute(params![seq, owner])? > 0)
}

/// A copy that waits for `rung` and then comes back to its lane. False where the job is not `owner`'s any more.
pub(super) fn wait(
    db: &Connection,
    delivery: &Delivery,
    owner: &str,
    (rung, name): (Duration, &str),
    set: &BTreeMap<String, String>,
) -> rusqlite::Result<bool> {
    let mut content = JobContent::of(delivery, set);
    content.headers.insert(WAIT_HEADER.to_owned(), name.to_owned());
    let rung = i64::try_from(rung.as_millis()).unwrap_or(i64::MAX);
    let due = now_ms().saturating_add(rung);
    move_copy(db, delivery, owner, &content, ("waiting", "due_ms, rung_ms", params![due, rung]))
}

/// A copy for the dead letters. False where the job is not `owner`'s any more.
pub(super) fn bury(
    db: &Connection,
    delivery: &Delivery,
    owner: &str,
    set: &BTreeMap<String, String>,
) -> rusqlite::Result<bool> {
    let mut content = JobContent::of(delivery, set);
    content.headers.insert(ORIGINAL_KEY.to_owned(), delivery.routing_key.clone());
    let now = Timestamp::now().to_string();
    move_copy(db, delivery, owner, &content, ("dead_letters", "died_at", params![now]))
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

/// The wait of copies with one of these routing keys that wait for a repair is over. How many there were.
pub(super) fn release_delayed(db: &Connection, prefix: &str, keys: &BTreeSet<String>) -> rusqlite::Result<usize> {
    // A list of texts always has a JSON form.
    let keys = serde_json::to_string(keys).unwrap_or_default();
    let sql = "UPDATE waiting SET due_ms = ?2
               WHERE prefix = ?1 AND due_ms > ?2 AND routing_key IN (SELECT value FROM json_each(?3))
                 AND ifnull(headers ->> ?4, '') <> ''";
    let header = format!("$.\"{DEFERRED_SINCE}\"");
    db.prepare_cached(sql)?.execute(params![prefix, now_ms(), keys, header])
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

/// From `jobs` to another table, with the content and the lane that are the job's own.
fn move_copy(
    db: &Connection,
    delivery: &Delivery,
    owner: &str,
    content: &JobContent<'_>,
    (table, columns, values): (&str, &str, &[&dyn ToSql]),
) -> rusqlite::Result<bool> {
    let seq = seq_of(delivery.ticket);
    let lane = lane_of(&delivery.routing_key).unwrap_or(delivery.lane).as_str();
    let headers = json(&content.headers);
    let own: [&dyn ToSql; 6] = [&seq, &owner, &lane, &content.content_type, &headers, &content.body];
    let more: Vec<_> = (1..=values.len()).map(|n| format!("?{}", own.len() + n)).collect();
    let sql = format!(
        "INSERT INTO {table} ({JOB}, {columns})
             SELECT prefix, ?3, routing_key, published_at, ?4, message_id, reply_to, correlation_id, type, ?5, ?6, {}
             FROM jobs WHERE seq = ?1 AND owner = ?2",
        more.join(", ")
    );
    let copied = db.prepare_cached(&sql)?.execute(&[&own, values].concat()[..])?;
    Ok(copied > 0 && remove(db, seq, owner)?)
}

/// The headers of a copy.
pub(super) fn merged(original: &BTreeMap<String, String>, set: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let kept = original.iter().filter(|(name, _)| *name != WAIT_HEADER);
    kept.chain(set).map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// The row of a delivery.
pub(super) fn seq_of(ticket: DeliveryTag) -> i64 {
    i64::try_from(ticket.tag).unwrap_or_default()
}

/// A map of texts always has a JSON form.
pub(super) fn json(headers: &BTreeMap<String, String>) -> String {
    serde_json::to_string(headers).unwrap_or_else(|_| "{}".to_owned())
}
