//! Tests beyond the conformance suite of all queues: faults of the file, and owners that start and
//! stop.

mod file;
mod leases;

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rusqlite::Connection;
use tempfile::TempDir;

use super::connection::Store;
use super::errors::FileError;
use super::outcomes::SqliteOutcomes;
use super::owner::{HeartbeatMonitor, Owner};
use super::queue::SqliteQueue;
use super::write_op::EngineCommand;
use super::{jobs, limits, release, schema};
use crate::domain::lane::Lane;
use crate::domain::outcome::RetryDelay;
use crate::metrics::Metrics;
use crate::queue::{
    self, ControlEvent, Delivery, JobPublisher as _, OutcomeEvent, Outcomes as _, Properties, Publication, Queue as _,
    QueueError, Settlement,
};

/// Time limit, so that a broken queue does not hang a test.
const LIMIT: Duration = Duration::from_secs(60);

/// The queue, whose writes time out after a second.
fn impatient(mut queue: Arc<SqliteQueue>) -> Arc<SqliteQueue> {
    Arc::get_mut(&mut queue).unwrap().write_timeout = Duration::from_secs(1);
    queue
}

struct TestFile {
    _dir: TempDir,
    file: PathBuf,
}

impl TestFile {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("queue.db");
        Self { _dir: dir, file }
    }

    fn queue(&self) -> Arc<SqliteQueue> {
        self.try_queue("p").unwrap()
    }

    /// Starts a queue whose writes time out after a second.
    fn try_queue(&self, prefix: &str) -> Result<Arc<SqliteQueue>, QueueError> {
        let (lanes, metrics) = (vec![(Lane::Scheduled, 5)], Arc::new(Metrics::new(10)));
        Ok(impatient(SqliteQueue::start(&self.file, prefix, "worker", lanes, metrics)?))
    }

    fn refusal(&self) -> String {
        match self.try_queue("p") {
            Err(problem @ QueueError::Unusable(_)) => problem.to_string(),
            other => panic!("not refused: {other:?}"),
        }
    }

    /// Opens the file as another program would.
    fn connect(&self) -> Connection {
        let db = Connection::open(&self.file).unwrap();
        db.busy_timeout(LIMIT).unwrap();
        db
    }

    fn count(&self, table: &str) -> i64 {
        self.connect().query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
    }
}

fn job(body: impl Into<Bytes>) -> Publication {
    Publication { routing_key: "job.scheduled.acme".to_owned(), body: body.into(), properties: Properties::default() }
}

fn event(id: &str) -> OutcomeEvent {
    OutcomeEvent {
        routing_key: "transfer.delivered.acme".to_owned(),
        id: id.to_owned(),
        body: Bytes::from_static(br#"{"subject":"a/1","data":{"destination":"acme","bytes":7,"attempts":2}}"#),
        reply_to: Some(("answers".to_owned(), Some("c-1".to_owned()))),
    }
}

async fn next(queue: &SqliteQueue) -> Delivery {
    tokio::time::timeout(LIMIT, queue.next(Lane::Scheduled)).await.expect("nothing came").expect("closed")
}

/// Waits until `ready` returns this reason, or success for `None`.
async fn wait_for_ready(queue: &SqliteQueue, word: Option<&str>) {
    let end = Instant::now() + LIMIT;
    loop {
        let now = queue.ready();
        let matches = match (&now, word) {
            (Err(why), Some(word)) => why.contains(word),
            (Ok(()), None) => true,
            _ => false,
        };
        if matches {
            return;
        }
        assert!(Instant::now() < end, "ready returns {now:?}, not {word:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn drained(queue: &SqliteQueue, count: usize) {
    for _ in 0..count {
        let got = next(queue).await;
        queue.settle(got, Settlement::Ack, vec![]).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_of_a_crashed_process_are_redelivered_at_once() {
    let database = TestFile::new();
    let queue = database.queue();
    queue.publish(job("first")).await.unwrap();
    let first = next(&queue).await;
    // As if another process owned it: its row is there, and its lock is free.
    let dead = Owner::new(&database.file).unwrap();
    dead.register(&database.connect(), "dead").unwrap();
    database.connect().execute("UPDATE jobs SET owner = ?1", [dead.id()]).unwrap();
    drop(dead);
    let again = next(&queue).await;
    assert!(again.redelivered);
    assert_eq!((again.delivery_count, &again.body), (1, &first.body));
    queue.settle(again, Settlement::Ack, vec![]).await.unwrap();
    queue.close().await;
    assert_eq!(database.count("owners"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_settlement_of_a_job_with_another_owner_is_lost_and_makes_no_copy() {
    let database = TestFile::new();
    let queue = database.queue();
    for body in ["a", "b"] {
        queue.publish(job(body)).await.unwrap();
    }
    let (first, second) = (next(&queue).await, next(&queue).await);
    database.connect().execute("UPDATE jobs SET owner = 'another owner'", []).unwrap();
    let retry = Settlement::Retry { delay: RetryDelay::S5, headers: BTreeMap::new() };
    assert!(matches!(queue.settle(first, retry, vec![event("e-1")]).await, Err(QueueError::Lost)));
    let dead = Settlement::DeadLetter { headers: BTreeMap::new() };
    assert!(matches!(queue.settle(second, dead, vec![event("e-2")]).await, Err(QueueError::Lost)));
    queue.close().await;
    assert_eq!((database.count("jobs"), database.count("waiting"), database.count("dead_letters")), (2, 0, 0));
    assert_eq!(database.count("outcomes"), 2, "the events carry stable ids and are recorded");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_others_expired_registers_again() {
    let database = TestFile::new();
    let queue = database.queue();
    queue.publish(job("x")).await.unwrap();
    let first = next(&queue).await;
    database.connect().execute_batch("UPDATE jobs SET owner = NULL, redelivered = 1; DELETE FROM owners").unwrap();
    // Its next heartbeat fails, and it registers as a new owner.
    let again = next(&queue).await;
    assert!(again.ticket.generation > first.ticket.generation);
    assert!(matches!(queue.settle(first, Settlement::Ack, vec![]).await, Err(QueueError::Lost)));
    queue.settle(again, Settlement::Ack, vec![]).await.unwrap();
    assert_eq!(database.count("jobs"), 0);
    queue.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_without_heartbeats_expires_after_seven_checks() {
    let database = TestFile::new();
    database.queue().close().await;
    let db = database.connect();
    let (silent, live) = (Owner::new(&database.file).unwrap(), Owner::new(&database.file).unwrap());
    silent.register(&db, "silent").unwrap();
    live.register(&db, "live").unwrap();
    let mut monitor = HeartbeatMonitor::default();
    for _ in 0..6 {
        live.heartbeat(&db).unwrap();
        assert_eq!(monitor.check(&db, "me").unwrap(), Vec::<String>::new());
    }
    live.heartbeat(&db).unwrap();
    assert_eq!(monitor.check(&db, "me").unwrap(), [silent.id()]);
    silent.heartbeat(&db).unwrap();
    assert_eq!(monitor.check(&db, "me").unwrap(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn prefixes_keep_installations_apart() {
    let database = TestFile::new();
    let (one, two) = (database.try_queue("one").unwrap(), database.try_queue("two").unwrap());
    let mut subscription = SqliteOutcomes::subscribe(&database.file, "two").await.unwrap();
    one.publish(job("of one")).await.unwrap();
    two.publish(job("of two")).await.unwrap();
    for (queue, body) in [(&one, "of one"), (&two, "of two")] {
        let got = next(queue).await;
        assert_eq!(got.body, body);
        let event = OutcomeEvent { body: Bytes::from(format!("{{\"from\":\"{body}\"}}")), ..event("same") };
        queue.settle(got, Settlement::Ack, vec![event]).await.unwrap();
    }
    let outcome = tokio::time::timeout(LIMIT, subscription.next()).await.unwrap().unwrap();
    assert_eq!(outcome.body, b"{\"from\":\"of two\"}");
    one.close().await;
    two.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_outcome_twice_is_one_row_that_subscribers_see_twice() {
    let database = TestFile::new();
    let queue = database.queue();
    let mut subscription = SqliteOutcomes::subscribe(&database.file, "p").await.unwrap();
    for _ in 0..2 {
        queue.publish(job("x")).await.unwrap();
        let got = next(&queue).await;
        queue.settle(got, Settlement::Ack, vec![event("e-1")]).await.unwrap();
        let outcome = tokio::time::timeout(LIMIT, subscription.next()).await.unwrap().unwrap();
        assert_eq!((outcome.routing_key.as_str(), outcome.body), ("transfer.delivered.acme", event("").body.to_vec()));
    }
    queue.close().await;
    let sql =
        "SELECT id || outcome || job_id || destination || bytes || attempts || repeats || reply_to || correlation_id
               FROM outcomes";
    let row: String = database.connect().query_row(sql, [], |row| row.get(0)).unwrap();
    assert_eq!(row, "e-1delivereda/1acme721answersc-1");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_outcomes_are_kept() {
    let database = TestFile::new();
    let queue = database.queue();
    let db = database.connect();
    let old = "INSERT INTO outcomes (seq, recorded_at, prefix, id, routing_key, body) VALUES (?1, '', 'p', ?1, '', '')";
    for seq in [1, 2, 100_001] {
        db.execute(old, [seq]).unwrap();
    }
    queue.publish(job("x")).await.unwrap();
    let got = next(&queue).await;
    queue.settle(got, Settlement::Ack, vec![event("new")]).await.unwrap();
    let left: String = db.query_row("SELECT group_concat(id) FROM outcomes", [], |row| row.get(0)).unwrap();
    assert_eq!(left, "100001,new");
    queue.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_has_readable_columns() {
    let database = TestFile::new();
    let queue = database.queue();
    let properties = Properties { message_id: Some("a/1".to_owned()), ..Properties::default() };
    queue.publish(Publication { properties, ..job("body") }).await.unwrap();
    let got = next(&queue).await;
    let set =
        [("x-error-reason", "exhausted"), ("x-error-class", "transient"), ("x-attempts", "8"), ("consign-wait", "5s")];
    let headers = set.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    queue.settle(got, Settlement::DeadLetter { headers }, vec![]).await.unwrap();
    queue.close().await;
    let sql =
        "SELECT reason || class || attempts || message_id || routing_key || lane FROM dead_letters WHERE body = ?1";
    let row: String = database.connect().query_row(sql, [&b"body"[..]], |row| row.get(0)).unwrap();
    assert_eq!(row, "exhaustedtransient8a/1job.scheduled.acmescheduled");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_set_back_prolongs_no_wait() {
    let database = TestFile::new();
    let queue = database.queue();
    queue.publish(job("x")).await.unwrap();
    let got = next(&queue).await;
    let retry = Settlement::Retry { delay: RetryDelay::S30, headers: BTreeMap::new() };
    queue.settle(got, retry, vec![]).await.unwrap();
    queue.close().await;
    let db = database.connect();
    db.execute("UPDATE waiting SET due_ms = due_ms + 86400000", []).unwrap();
    assert_eq!(release::cap_waits(&db, "other").unwrap(), 0);
    assert_eq!(release::cap_waits(&db, "p").unwrap(), 1);
    let due = release::next_due(&db, "p").unwrap().unwrap();
    assert!(due <= jobs::now_ms() + 30_000, "{due}");
    assert_eq!(release::cap_waits(&db, "p").unwrap(), 0, "a wait that is not too long stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn at_most_the_prefetch_is_claimed_and_prefetched_jobs_are_requeued_untouched() {
    let database = TestFile::new();
    let queue = database.queue();
    for n in 0..8 {
        queue.publish(job(format!("{n}"))).await.unwrap();
    }
    let first = next(&queue).await;
    let owned = "jobs WHERE owner IS NOT NULL";
    assert_eq!(database.count(owned), 5);
    queue.pause(Lane::Scheduled).await;
    assert_eq!(database.count(owned), 1);
    assert_eq!(database.count("jobs WHERE redelivered = 1 OR delivery_count > 0"), 0);
    queue.resume(Lane::Scheduled, 2).await;
    let again = next(&queue).await;
    assert_eq!(database.count(owned), 3, "two beside the unsettled one");
    queue.settle(again, Settlement::Requeue, vec![]).await.unwrap();
    queue.resume(Lane::Scheduled, u16::MAX).await;
    queue.settle(first, Settlement::Ack, vec![]).await.unwrap();
    drained(&queue, 7).await;
    queue.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_metrics_follow_the_queue_and_return_to_zero() {
    let database = TestFile::new();
    let metrics = Arc::new(Metrics::new(10));
    let queue =
        SqliteQueue::start(&database.file, "p", "worker", vec![(Lane::Scheduled, 5)], Arc::clone(&metrics)).unwrap();
    queue.publish(job("x")).await.unwrap();
    assert!(metrics.render().1.contains("consign_broker_connected 1"));
    let got = next(&queue).await;
    queue.settle(got, Settlement::Ack, vec![]).await.unwrap();
    queue.close().await;
    assert!(queue.ready().is_err() && queue.publish(job("late")).await.is_err());
    let (_, text) = metrics.render();
    for line in ["consign_broker_connected 0", "consign_broker_unconfirmed 0", "settlements_total{action=\"ack\"} 1"] {
        assert!(text.contains(line), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_queues_write_nothing_but_heartbeats() {
    let database = TestFile::new();
    let queues = [database.queue(), database.queue()];
    queues[0].publish(job("x")).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let db = database.connect();
    let version = || db.query_row("PRAGMA data_version", [], |row| row.get::<_, i64>(0)).unwrap();
    let (mut last, mut writes) = (version(), 0);
    for _ in 0..200 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        writes += i32::from(std::mem::replace(&mut last, version()) != last);
    }
    assert!(writes <= 4, "{writes} writes in two seconds");
    for queue in queues {
        queue.close().await;
    }
}

#[test]
fn only_keys_of_the_two_lanes_are_accepted() {
    let lane = |key: &str| limits::check_publication(&Publication { routing_key: key.to_owned(), ..job("x") });
    assert_eq!(lane("job.scheduled.acme").unwrap(), Lane::Scheduled);
    assert_eq!(lane("job.backfill.a-b").unwrap(), Lane::Backfill);
    for key in ["job.continued.a", "job.scheduled", "job.scheduled.a.b", "job.scheduledx.a", "x.job.scheduled.a", ""] {
        assert!(matches!(lane(key), Err(QueueError::Refused(_))), "{key}");
    }
}
