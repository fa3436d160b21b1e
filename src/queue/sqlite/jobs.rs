//! Rows of jobs: published, claimed, requeued, and with new content under a lease.

use bytes::Bytes;
use jiff::Timestamp;
use rusqlite::{Connection, Row, params};

use super::schema::JOB;
use crate::domain::headers::{Headers, WAIT};
use crate::domain::lane::Lane;
use crate::queue::{Delivery, DeliveryOrigin, DeliveryTag, Properties, Publication};

/// Adds a job to its lane, or to the dead letters if `died_at` is given.
pub(super) fn add(
    db: &Connection,
    prefix: &str,
    lane: Lane,
    job: &Publication,
    died_at: Option<Timestamp>,
) -> rusqlite::Result<()> {
    let p = &job.properties;
    let (table, last) = if died_at.is_some() { ("dead_letters", "died_at") } else { ("jobs", "owner") };
    let sql = format!("INSERT INTO {table} ({JOB}, {last}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)");
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
        &job.body[..],
        died_at.map(|at| at.to_string())
    ])?;
    Ok(())
}

/// Request for jobs of one lane.
#[derive(Clone, Copy)]
pub(super) struct JobClaim<'a> {
    pub(super) prefix: &'a str,
    pub(super) lane: Lane,
    pub(super) owner: &'a str,
    pub(super) generation: u64,
    pub(super) limit: usize,
}

/// Claims up to `limit` jobs, oldest first; none if other processes have expired this owner.
pub(super) fn claim(db: &Connection, claim: JobClaim<'_>) -> rusqlite::Result<Vec<Delivery>> {
    let JobClaim { prefix, lane, owner, generation, limit } = claim;
    let mut statement = db.prepare_cached(
        "UPDATE jobs SET owner = ?1 WHERE seq IN
             (SELECT seq FROM jobs WHERE prefix = ?2 AND lane = ?3 AND owner IS NULL ORDER BY seq LIMIT ?4)
             AND EXISTS (SELECT 1 FROM owners WHERE id = ?1)
         RETURNING seq, routing_key, redelivered, delivery_count, content_type, message_id, reply_to, correlation_id, type,
             headers, body",
    )?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let rows =
        statement.query_map(params![owner, prefix, lane.as_str(), limit], |row| delivery(row, lane, generation))?;
    let mut claimed = rows.collect::<rusqlite::Result<Vec<_>>>()?;
    // RETURNING promises no order.
    claimed.sort_unstable_by_key(|delivery| delivery.ticket.tag);
    Ok(claimed)
}

/// Reads the six columns `content_type`, `message_id`, `reply_to`, `correlation_id`, `type` and
/// `headers`, of which `first` is the first.
pub(super) fn properties(row: &Row<'_>, first: usize) -> rusqlite::Result<Properties> {
    let headers: String = row.get(first + 5)?;
    Ok(Properties {
        content_type: row.get(first)?,
        message_id: row.get(first + 1)?,
        reply_to: row.get(first + 2)?,
        correlation_id: row.get(first + 3)?,
        kind: row.get(first + 4)?,
        headers: serde_json::from_str(&headers).unwrap_or_default(),
        ..Properties::default()
    })
}

fn delivery(row: &Row<'_>, lane: Lane, generation: u64) -> rusqlite::Result<Delivery> {
    Ok(Delivery {
        lane,
        routing_key: row.get(1)?,
        // Who can write the file needs no message to do so.
        origin: DeliveryOrigin::Worker,
        publisher: String::new(),
        redelivered: row.get(2)?,
        delivery_count: row.get::<_, i64>(3)?.unsigned_abs(),
        properties: properties(row, 4)?,
        body: Bytes::from(row.get::<_, Vec<u8>>(10)?),
        ticket: DeliveryTag { generation, lane, tag: row.get::<_, i64>(0)?.unsigned_abs() },
    })
}

/// Requeues a job at its old position. `delivered`: it was handed out, so it counts as a
/// redelivery.
pub(super) fn requeue(db: &Connection, seq: i64, owner: &str, delivered: bool) -> rusqlite::Result<bool> {
    let mut statement = db.prepare_cached(
        "UPDATE jobs SET owner = NULL, redelivered = max(redelivered, ?3), delivery_count = delivery_count + ?3
         WHERE seq = ?1 AND owner = ?2",
    )?;
    Ok(statement.execute(params![seq, owner, delivered])? > 0)
}

const REDELIVER: &str = "UPDATE jobs SET owner = NULL, redelivered = 1, delivery_count = delivery_count + 1 WHERE";

/// Requeues all jobs of an owner as redeliveries. Returns their number.
pub(super) fn requeue_all_of(db: &Connection, owner: &str) -> rusqlite::Result<usize> {
    db.execute(&format!("{REDELIVER} owner = ?1"), [owner])
}

/// Requeues all jobs whose owner is not registered, as redeliveries. Returns their number.
pub(super) fn requeue_orphans(db: &Connection) -> rusqlite::Result<usize> {
    db.execute(&format!("{REDELIVER} owner IS NOT NULL AND owner NOT IN (SELECT id FROM owners)"), [])
}

/// New content of a job.
pub(super) struct JobContent<'a> {
    pub(super) body: &'a [u8],
    pub(super) content_type: Option<&'a str>,
    pub(super) headers: Headers,
}

impl<'a> JobContent<'a> {
    /// Content of the delivery as it is settled, with `set` added to its headers.
    pub(super) fn of(delivery: &'a Delivery, set: &Headers) -> Self {
        let properties = &delivery.properties;
        let content_type = properties.content_type.as_deref();
        Self { body: &delivery.body, content_type, headers: copied_headers(&properties.headers, set) }
    }
}

/// Writes the content of a lease, which another worker gets if `owner` is gone. The job keeps its
/// owner. Returns false if `owner` does not own it any more.
pub(super) fn lease(db: &Connection, seq: i64, owner: &str, content: &JobContent<'_>) -> rusqlite::Result<bool> {
    let mut statement = db.prepare_cached(
        "UPDATE jobs SET lane = ?3, body = ?4, content_type = ?5, headers = ?6 WHERE seq = ?1 AND owner = ?2",
    )?;
    let (lane, headers) = (Lane::Continued.as_str(), json(&content.headers));
    Ok(statement.execute(params![seq, owner, lane, content.body, content.content_type, headers])? > 0)
}

pub(super) fn now_ms() -> i64 {
    Timestamp::now().as_millisecond()
}

/// Returns the headers of a copy: the original ones without the retry delay, and `set`.
pub(super) fn copied_headers(original: &Headers, set: &Headers) -> Headers {
    let kept = original.iter().filter(|(name, _)| *name != WAIT);
    kept.chain(set).map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// Returns the row of a delivery.
pub(super) fn seq_of(ticket: DeliveryTag) -> i64 {
    i64::try_from(ticket.tag).unwrap_or_default()
}

/// Returns headers as JSON. A map of strings always has a JSON form.
pub(super) fn json(headers: &Headers) -> String {
    serde_json::to_string(headers).unwrap_or_else(|_| "{}".to_owned())
}
