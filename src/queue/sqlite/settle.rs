//! Settlement of a delivery: outcomes, copy and acknowledgement, in one transaction.

use jiff::Timestamp;
use rusqlite::{Connection, ToSql, params};

use super::jobs::{self, JobContent, seq_of};
use super::outcomes;
use super::schema::JOB;
use crate::domain::headers::{Headers, ORIGINAL_ROUTING_KEY, WAIT};
use crate::domain::outcome::RetryDelay;
use crate::domain::routing_key;
use crate::queue::{Delivery, DeliveryTag, OutcomeEvent, Settlement};

/// Owner on whose behalf a transaction runs.
#[derive(Clone, Copy)]
pub(super) struct WriteContext<'a> {
    pub(super) prefix: &'a str,
    pub(super) owner: &'a str,
    pub(super) generation: u64,
    /// Returns true if a job of this generation is under a lease.
    pub(super) is_leased: &'a dyn Fn(DeliveryTag) -> bool,
}

/// Performs a settlement: records its outcomes, then acknowledges or requeues the job, or moves it
/// to where its copy belongs. Returns false if the owner does not own the job any more; then only
/// the outcomes are recorded.
pub(super) fn settle(
    db: &Connection,
    context: WriteContext<'_>,
    delivery: &Delivery,
    settlement: &Settlement,
    outcomes: &[OutcomeEvent],
) -> rusqlite::Result<bool> {
    let WriteContext { prefix, owner, generation, is_leased } = context;
    for outcome in outcomes {
        outcomes::record(db, prefix, outcome)?;
    }
    if delivery.ticket.generation != generation {
        return Ok(false);
    }
    let seq = seq_of(delivery.ticket);
    match settlement {
        Settlement::Ack => acknowledge(db, seq, owner),
        Settlement::Requeue if is_leased(delivery.ticket) => {
            hand_off(db, seq, owner, &JobContent::of(delivery, &Headers::new()))
        }
        Settlement::Requeue => jobs::requeue(db, seq, owner, true),
        Settlement::HandOff { headers } => hand_off(db, seq, owner, &JobContent::of(delivery, headers)),
        Settlement::Retry { delay: time, headers } | Settlement::Defer { delay: time, headers } => {
            delay(db, delivery, owner, *time, headers)
        }
        Settlement::DeadLetter { headers } => dead_letter(db, delivery, owner, headers),
    }
}

fn acknowledge(db: &Connection, seq: i64, owner: &str) -> rusqlite::Result<bool> {
    let removed = db.prepare_cached("DELETE FROM jobs WHERE seq = ?1 AND owner = ?2")?.execute(params![seq, owner])?;
    Ok(removed > 0)
}

/// Hands a job off to the next free worker, with its delivery count reset.
fn hand_off(db: &Connection, seq: i64, owner: &str, content: &JobContent<'_>) -> rusqlite::Result<bool> {
    if !jobs::lease(db, seq, owner, content)? {
        return Ok(false);
    }
    let sql = "UPDATE jobs SET owner = NULL, redelivered = 0, delivery_count = 0 WHERE seq = ?1 AND owner = ?2";
    Ok(db.prepare_cached(sql)?.execute(params![seq, owner])? > 0)
}

/// Moves a job to the waiting copies, from which it returns to its lane after `delay`.
fn delay(
    db: &Connection,
    delivery: &Delivery,
    owner: &str,
    delay: RetryDelay,
    set: &Headers,
) -> rusqlite::Result<bool> {
    let mut content = JobContent::of(delivery, set);
    content.headers.insert(WAIT.to_owned(), delay.as_str().to_owned());
    let millis = i64::try_from(delay.duration().as_millis()).unwrap_or(i64::MAX);
    let due = jobs::now_ms().saturating_add(millis);
    let target = MoveTarget { table: "waiting", columns: "due_ms, rung_ms", values: params![due, millis] };
    move_to(db, delivery, owner, &content, &target)
}

fn dead_letter(db: &Connection, delivery: &Delivery, owner: &str, set: &Headers) -> rusqlite::Result<bool> {
    let mut content = JobContent::of(delivery, set);
    content.headers.insert(ORIGINAL_ROUTING_KEY.to_owned(), delivery.routing_key.clone());
    let now = Timestamp::now().to_string();
    let target = MoveTarget { table: "dead_letters", columns: "died_at", values: params![now] };
    move_to(db, delivery, owner, &content, &target)
}

/// Table that a job is moved to, with the columns that only this table has.
struct MoveTarget<'a> {
    table: &'a str,
    columns: &'a str,
    values: &'a [&'a dyn ToSql],
}

/// Moves a job to another table, with new content and the lane of its routing key.
fn move_to(
    db: &Connection,
    delivery: &Delivery,
    owner: &str,
    content: &JobContent<'_>,
    target: &MoveTarget<'_>,
) -> rusqlite::Result<bool> {
    let MoveTarget { table, columns, values } = target;
    let seq = seq_of(delivery.ticket);
    let lane = routing_key::bound_lane(&delivery.routing_key).unwrap_or(delivery.lane).as_str();
    let headers = jobs::json(&content.headers);
    let own: [&dyn ToSql; 6] = [&seq, &owner, &lane, &content.content_type, &headers, &content.body];
    let more: Vec<_> = (1..=values.len()).map(|n| format!("?{}", own.len() + n)).collect();
    let sql = format!(
        "INSERT INTO {table} ({JOB}, {columns})
             SELECT prefix, ?3, routing_key, published_at, ?4, message_id, reply_to, correlation_id, type, ?5, ?6, {}
             FROM jobs WHERE seq = ?1 AND owner = ?2",
        more.join(", ")
    );
    let copied = db.prepare_cached(&sql)?.execute(&[&own, *values].concat()[..])?;
    Ok(copied > 0 && acknowledge(db, seq, owner)?)
}
