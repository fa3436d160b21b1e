//! What the suite of all queues does not show: faults of the file, and owners that come and go.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use rusqlite::Connection;
use tempfile::TempDir;

use super::owner::{Owner, Watch};
use super::*;
use crate::outcome::Step;
use crate::queue::Properties;

/// Only keeps a broken queue from hanging a test.
const LIMIT: Duration = Duration::from_secs(60);

struct Place {
    _dir: TempDir,
    file: PathBuf,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("queue.db");
        Self { _dir: dir, file }
    }

    fn queue(&self) -> Arc<Embedded> {
        self.try_queue("p").unwrap()
    }

    /// One that gives up after a second.
    fn try_queue(&self, prefix: &str) -> Result<Arc<Embedded>, QueueError> {
        let (lanes, metrics) = (vec![(Lane::Scheduled, 5)], Arc::new(Metrics::new(10)));
        Embedded::start_with(Duration::from_secs(1), &self.file, prefix, "worker", lanes, metrics)
    }

    fn refusal(&self) -> String {
        match self.try_queue("p") {
            Err(problem @ QueueError::Unusable(_)) => problem.to_string(),
            other => panic!("not refused: {other:?}"),
        }
    }

    /// As another program would open it.
    fn other(&self) -> Connection {
        let db = Connection::open(&self.file).unwrap();
        db.busy_timeout(LIMIT).unwrap();
        db
    }

    fn count(&self, table: &str) -> i64 {
        self.other().query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
    }
}

fn job(body: impl Into<Bytes>) -> Publication {
    Publication { routing_key: "job.scheduled.acme".to_owned(), body: body.into(), properties: Properties::default() }
}

fn event(id: &str) -> Event {
    Event {
        routing_key: "transfer.delivered.acme".to_owned(),
        id: id.to_owned(),
        body: Bytes::from_static(br#"{"subject":"a/1","data":{"destination":"acme","bytes":7,"attempts":2}}"#),
        reply_to: Some(("answers".to_owned(), Some("c-1".to_owned()))),
    }
}

async fn next(queue: &Embedded) -> Delivery {
    tokio::time::timeout(LIMIT, queue.next(Lane::Scheduled)).await.expect("nothing came").expect("closed")
}

/// Waits until `ready` says this, or nothing for `None`.
async fn says(queue: &Embedded, word: Option<&str>) {
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
        assert!(Instant::now() < end, "ready says {now:?}, not {word:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn drained(queue: &Embedded, count: usize) {
    for _ in 0..count {
        let got = next(queue).await;
        queue.settle(got, Settlement::Ack, vec![]).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_said_and_when_there_is_room_it_goes_on() {
    let place = Place::new();
    let queue = place.queue();
    queue.publish(job("first")).await.unwrap();
    let held = next(&queue).await;
    place.other().execute("CREATE TABLE filler AS SELECT randomblob(400000) AS blob", []).unwrap();
    queue.send(Command::Limit(1)).unwrap();
    let refused = queue.publish(job(vec![b'x'; 100_000])).await.unwrap_err().to_string();
    assert!(refused.contains("the disk is full") && refused.contains("queue.db"), "{refused}");
    assert!(queue.ready().unwrap_err().contains("the disk is full"), "{:?}", queue.ready());
    place.other().execute("DROP TABLE filler", []).unwrap();
    queue.publish(job(vec![b'x'; 100_000])).await.unwrap();
    queue.connected(LIMIT).await.unwrap();
    queue.settle(held, Settlement::Ack, vec![event("e")]).await.unwrap();
    drained(&queue, 1).await;
    queue.close().await;
    assert_eq!((place.count("jobs"), place.count("outcomes")), (0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_settlement_that_cannot_be_written_fails_and_the_delivery_comes_again() {
    let place = Place::new();
    let queue = place.queue();
    queue.publish(job("once")).await.unwrap();
    let held = next(&queue).await;
    let other = place.other();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let headers = BTreeMap::new();
    let failed = queue.settle(held, Settlement::Dead { headers }, vec![event("e")]).await.unwrap_err();
    assert!(matches!(&failed, QueueError::Unavailable(why) if why.contains("locked by another process")), "{failed}");
    assert!(queue.ready().unwrap_err().contains("locked"));
    other.execute_batch("COMMIT").unwrap();
    let again = next(&queue).await;
    assert!(again.redelivered);
    assert_eq!(again.delivery_count, 1);
    assert_eq!((place.count("outcomes"), place.count("dead_letters")), (0, 0));
    queue.settle(again, Settlement::Ack, vec![]).await.unwrap();
    says(&queue, None).await;
    queue.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_does_not_wait_for_a_locked_file_and_still_gives_back() {
    let place = Place::new();
    let queue = place.queue();
    for body in ["one", "two"] {
        queue.publish(job(body)).await.unwrap();
    }
    let held = next(&queue).await;
    let other = place.other();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    tokio::time::timeout(LIMIT, queue.pause()).await.expect("a pause waits for the lock");
    other.execute_batch("COMMIT").unwrap();
    let second = place.queue();
    assert_eq!(next(&second).await.body, "two", "what was fetched ahead is for others");
    queue.settle(held, Settlement::Ack, vec![]).await.unwrap();
    queue.close().await;
    second.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_another_process_keeps_to_itself_is_waited_for() {
    let place = Place::new();
    place.queue().close().await;
    let other = place.other();
    other.execute_batch("PRAGMA locking_mode = exclusive; BEGIN EXCLUSIVE; COMMIT").unwrap();
    let queue = place.queue();
    let why = queue.connected(Duration::from_millis(100)).await.unwrap_err().to_string();
    assert!(why.contains("locked by another process"), "{why}");
    assert!(queue.publish(job("x")).await.is_err());
    drop(other);
    queue.connected(LIMIT).await.unwrap();
    queue.publish(job("x")).await.unwrap();
    drained(&queue, 1).await;
    queue.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_queue_that_cannot_write_is_unready_until_it_can() {
    let place = Place::new();
    let queue = place.queue();
    let other = place.other();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    says(&queue, Some("locked by another process")).await;
    let end = Instant::now() + Duration::from_secs(5);
    while Instant::now() < end {
        assert!(queue.ready().is_err(), "reading alone does not make it ready");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    other.execute_batch("COMMIT").unwrap();
    says(&queue, None).await;
    queue.close().await;
}

#[test]
fn what_is_not_ours_is_refused_and_left_alone() {
    let place = Place::new();
    for (content, word) in [
        (b"[broker]\nurl = \"sqlite:...\"\n".repeat(100), "is no SQLite database"),
        (b"x".to_vec(), "is no SQLite database"),
    ] {
        std::fs::write(&place.file, &content).unwrap();
        let why = place.refusal();
        assert!(why.contains(word) && why.contains("queue.db"), "{why}");
        assert_eq!(std::fs::read(&place.file).unwrap(), content);
    }
    std::fs::remove_file(&place.file).unwrap();
    place.other().execute_batch("CREATE TABLE photos (id INTEGER)").unwrap();
    let before = std::fs::read(&place.file).unwrap();
    assert!(place.refusal().contains("is a database of another program"), "{}", place.refusal());
    assert_eq!(std::fs::read(&place.file).unwrap(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_a_newer_version_is_refused() {
    let place = Place::new();
    place.queue().close().await;
    place.other().pragma_update(None, "user_version", 3).unwrap();
    let why = place.refusal();
    assert!(why.contains("written by a newer version of consign (format 3, this one knows 2)"), "{why}");
    let outcomes = Outcomes::subscribe(&place.file, "p").await.unwrap_err();
    assert!(matches!(outcomes, QueueError::Unusable(_)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_an_older_version_is_brought_up_to_date_and_keeps_its_jobs() {
    let place = Place::new();
    let db = place.other();
    db.execute_batch(schema::TABLES).unwrap();
    db.pragma_update(None, "application_id", schema::APPLICATION_ID).unwrap();
    db.pragma_update(None, "user_version", 1).unwrap();
    db.execute_batch(
        "INSERT INTO jobs (prefix, lane, routing_key, published_at, headers, body)
         VALUES ('p', 'scheduled', 'job.scheduled.acme', '', '{}', x'6f6c64')",
    )
    .unwrap();
    let queue = place.queue();
    assert_eq!(next(&queue).await.body, "old");
    queue.announce(Bytes::from_static(b"c")).await.unwrap();
    assert_eq!(place.count("control"), 1);
    let version: i32 = db.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
    assert_eq!(version, schema::VERSION);
    queue.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn control_messages_are_forgotten_after_a_week_and_are_each_prefixs_own() {
    let place = Place::new();
    let queue = place.queue();
    queue.announce(Bytes::from_static(b"old")).await.unwrap();
    let week = "UPDATE control SET announced_ms = announced_ms - 7 * 24 * 3600 * 1000 - 1";
    place.other().execute_batch(week).unwrap();
    place.try_queue("other").unwrap().announce(Bytes::from_static(b"theirs")).await.unwrap();
    assert_eq!(place.count("control"), 1, "the old one is gone");
    queue.announce(Bytes::from_static(b"new")).await.unwrap();
    queue.close().await;
    let queue = place.queue();
    assert_eq!(queue.next_control().await, Some(Announced::Message(Bytes::from_static(b"new"))));
    assert_eq!(queue.next_control().await, Some(Announced::UpToDate));
    queue.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_file_is_refused_with_what_to_do_and_left_alone() {
    let place = Place::new();
    let queue = place.queue();
    for n in 0..50 {
        queue.publish(job(format!("{n}").repeat(500))).await.unwrap();
    }
    queue.close().await;
    let mut content = std::fs::read(&place.file).unwrap();
    let middle = content.len() / 2;
    content[middle..middle + 8192].fill(0xa5);
    std::fs::write(&place.file, &content).unwrap();
    let why = place.refusal();
    assert!(why.contains("is damaged") && why.contains("restore a backup") && why.contains(".recover"), "{why}");
    assert_eq!(std::fs::read(&place.file).unwrap(), content);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_vanishes_is_noticed_and_a_new_one_is_begun() {
    let place = Place::new();
    let queue = place.queue();
    queue.publish(job("gone")).await.unwrap();
    let held = next(&queue).await;
    for entry in std::fs::read_dir(place.file.parent().unwrap()).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    // Not ready for moments only: too short to be seen by asking.
    let end = Instant::now() + LIMIT;
    while !queue.shared.metrics.render().1.contains("consign_broker_reconnects_total 1") {
        assert!(Instant::now() < end, "the file's absence is not noticed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    queue.connected(LIMIT).await.unwrap();
    assert!(matches!(queue.settle(held, Settlement::Ack, vec![]).await, Err(QueueError::Lost)));
    queue.publish(job("new")).await.unwrap();
    assert_eq!(next(&queue).await.body, "new");
    queue.close().await;
}

#[test]
fn a_place_that_cannot_hold_a_file_is_named() {
    let place = Place::new();
    let nowhere = Place { file: place.file.join("deeper.db"), ..Place::new() };
    assert!(nowhere.refusal().contains("there is no directory"), "{}", nowhere.refusal());
    let directory = Place { file: place.file.parent().unwrap().to_owned(), ..Place::new() };
    assert!(directory.refusal().contains("is a directory; name a file in it"), "{}", directory.refusal());
}

#[test]
fn what_the_system_says_becomes_a_remedy() {
    let said = |code| match Trouble::of(Path::new("q.db"), &sqlite(code)) {
        Trouble::Passing(why) => format!("passing: {why}"),
        Trouble::Lasting(why) => format!("lasting: {why}"),
    };
    for (code, word) in [
        (rusqlite::ffi::SQLITE_BUSY, "passing: q.db is locked"),
        (rusqlite::ffi::SQLITE_FULL, "passing: q.db can't grow: the disk is full"),
        (rusqlite::ffi::SQLITE_IOERR, "passing: q.db can't be read or written"),
        (rusqlite::ffi::SQLITE_READONLY, "lasting: q.db is read-only"),
        (rusqlite::ffi::SQLITE_CANTOPEN, "lasting: q.db can't be opened"),
        (rusqlite::ffi::SQLITE_CORRUPT, "lasting: q.db is damaged"),
        (rusqlite::ffi::SQLITE_NOTADB, "lasting: q.db is no SQLite database"),
    ] {
        assert!(said(code).starts_with(word), "{}", said(code));
    }
}

fn sqlite(code: i32) -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_file_is_for_its_owner_alone() {
    let place = Place::new();
    let queue = place.queue();
    queue.publish(job("x")).await.unwrap();
    let entries = std::fs::read_dir(place.file.parent().unwrap()).unwrap();
    let mut modes: Vec<_> = entries
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), entry.metadata().unwrap().permissions().mode() & 0o777))
        .collect();
    modes.sort();
    assert_eq!(modes.len(), 4, "{modes:?}");
    assert!(modes.iter().all(|(_, mode)| *mode == 0o600), "{modes:?}");
    queue.close().await;
    let left: Vec<_> = std::fs::read_dir(place.file.parent().unwrap()).unwrap().collect();
    assert_eq!(left.len(), 1, "only the file itself stays: {left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_process_held_comes_again_at_once() {
    let place = Place::new();
    let queue = place.queue();
    queue.publish(job("held")).await.unwrap();
    let held = next(&queue).await;
    // As if another process held it: its row is there, and nobody has its lock.
    let dead = Owner::new(&place.file).unwrap();
    dead.enter(&place.other(), "dead").unwrap();
    place.other().execute("UPDATE jobs SET owner = ?1", [dead.id()]).unwrap();
    drop(dead);
    let again = next(&queue).await;
    assert!(again.redelivered);
    assert_eq!((again.delivery_count, &again.body), (1, &held.body));
    queue.settle(again, Settlement::Ack, vec![]).await.unwrap();
    queue.close().await;
    assert_eq!(place.count("owners"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_settlement_after_the_job_went_to_others_is_lost_and_makes_no_copy() {
    let place = Place::new();
    let queue = place.queue();
    for body in ["a", "b"] {
        queue.publish(job(body)).await.unwrap();
    }
    let (first, second) = (next(&queue).await, next(&queue).await);
    place.other().execute("UPDATE jobs SET owner = 'somebody else'", []).unwrap();
    let retry = Settlement::Retry { rung: Step::S5, headers: BTreeMap::new() };
    assert!(matches!(queue.settle(first, retry, vec![event("e-1")]).await, Err(QueueError::Lost)));
    let dead = Settlement::Dead { headers: BTreeMap::new() };
    assert!(matches!(queue.settle(second, dead, vec![event("e-2")]).await, Err(QueueError::Lost)));
    queue.close().await;
    assert_eq!((place.count("jobs"), place.count("waiting"), place.count("dead_letters")), (2, 0, 0));
    assert_eq!(place.count("outcomes"), 2, "the events carry stable ids and are recorded");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_others_took_for_dead_begins_anew() {
    let place = Place::new();
    let queue = place.queue();
    queue.publish(job("x")).await.unwrap();
    let held = next(&queue).await;
    place.other().execute_batch("UPDATE jobs SET owner = NULL, redelivered = 1; DELETE FROM owners").unwrap();
    // At its next sign of life it learns of it, and takes what is free under a new name.
    let again = next(&queue).await;
    assert!(again.ticket.generation > held.ticket.generation);
    assert!(matches!(queue.settle(held, Settlement::Ack, vec![]).await, Err(QueueError::Lost)));
    queue.settle(again, Settlement::Ack, vec![]).await.unwrap();
    assert_eq!(place.count("jobs"), 0);
    queue.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_without_a_sign_of_life_is_given_up_after_seven_looks() {
    let place = Place::new();
    place.queue().close().await;
    let db = place.other();
    let (mute, live) = (Owner::new(&place.file).unwrap(), Owner::new(&place.file).unwrap());
    mute.enter(&db, "mute").unwrap();
    live.enter(&db, "live").unwrap();
    let mut watch = Watch::default();
    for _ in 0..6 {
        live.beat(&db).unwrap();
        assert_eq!(watch.look(&db, "me").unwrap(), Vec::<String>::new());
    }
    live.beat(&db).unwrap();
    assert_eq!(watch.look(&db, "me").unwrap(), [mute.id()]);
    mute.beat(&db).unwrap();
    assert_eq!(watch.look(&db, "me").unwrap(), Vec::<String>::new());
}

/// Work that stands still, and counts what it is told.
#[derive(Debug, Default)]
struct Still {
    told: std::sync::atomic::AtomicUsize,
    moved: std::sync::atomic::AtomicBool,
}

impl Still {
    fn lost(&self) -> usize {
        self.told.load(std::sync::atomic::Ordering::SeqCst)
    }

    async fn is_lost(&self) {
        let end = Instant::now() + LIMIT;
        while self.lost() == 0 {
            assert!(Instant::now() < end, "the work was not told");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl queue::Work for Still {
    fn message(&self) -> queue::LeaseMessage {
        let at = if self.moved.load(std::sync::atomic::Ordering::SeqCst) { "2" } else { "1" };
        let headers = [("at".to_owned(), at.to_owned())].into();
        queue::LeaseMessage { body: Bytes::from_static(b"lease"), content_type: "x/lease".to_owned(), headers }
    }

    fn outdated(&self, _lease: Bytes) {}

    fn lost(&self) {
        self.told.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leased_row_says_what_another_would_get_and_where_it_came_from() {
    let place = Place::new();
    let queue = place.queue();
    queue.publish(job("x")).await.unwrap();
    let got = next(&queue).await;
    queue.lease(&got, "run-1", Arc::new(Still::default())).await.unwrap();
    queue.lease(&got, "run-1", Arc::new(Still::default())).await.unwrap();
    let sql = "SELECT lane || routing_key || content_type || headers || (owner IS NOT NULL) FROM jobs WHERE body = ?1";
    let row: String = place.other().query_row(sql, [&b"lease"[..]], |row| row.get(0)).unwrap();
    assert_eq!(row, "continuedjob.scheduled.acmex/lease{\"at\":\"1\"}1");
    assert!(queue.shared.metrics.render().1.contains("settlements_total{action=\"lease\"} 1"));
    let dead = Settlement::Dead { headers: BTreeMap::new() };
    queue.settle(got, dead, vec![]).await.unwrap();
    let sql = "SELECT lane || headers FROM dead_letters WHERE body = ?1 AND content_type IS NULL";
    let row: String = place.other().query_row(sql, [&b"x"[..]], |row| row.get(0)).unwrap();
    assert_eq!(row, "scheduled{\"x-original-routing-key\":\"job.scheduled.acme\"}");
    queue.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_cannot_be_written_changes_nothing() {
    let place = Place::new();
    let queue = place.queue();
    queue.publish(job("x")).await.unwrap();
    let got = next(&queue).await;
    let other = place.other();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let failed = queue.lease(&got, "run-1", Arc::new(Still::default())).await.unwrap_err();
    assert!(matches!(&failed, QueueError::Unavailable(why) if why.contains("locked by another process")), "{failed}");
    other.execute_batch("COMMIT").unwrap();
    says(&queue, None).await;
    assert_eq!((place.count("jobs WHERE lane = 'scheduled'"), place.count("jobs")), (1, 1));
    queue.lease(&got, "run-1", Arc::new(Still::default())).await.unwrap();
    queue.settle(got, Settlement::Ack, vec![]).await.unwrap();
    assert_eq!(place.count("jobs"), 0);
    queue.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leased_job_whose_settlement_cannot_be_written_comes_again() {
    let place = Place::new();
    let lanes = Lane::ALL.map(|lane| (lane, 5)).to_vec();
    let metrics = Arc::new(Metrics::new(10));
    let queue = Embedded::start_with(Duration::from_secs(1), &place.file, "p", "worker", lanes, metrics).unwrap();
    queue.publish(job("x")).await.unwrap();
    let got = next(&queue).await;
    let still = Arc::new(Still::default());
    queue.lease(&got, "run-1", still.clone()).await.unwrap();
    let other = place.other();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    assert!(queue.settle(got, Settlement::Ack, vec![]).await.is_err());
    other.execute_batch("COMMIT").unwrap();
    let again = tokio::time::timeout(LIMIT, queue.next(Lane::Continued)).await.unwrap().unwrap();
    assert_eq!((&again.body[..], again.properties.content_type.as_deref()), (&b"lease"[..], Some("x/lease")));
    assert_eq!((again.redelivered, again.routing_key.as_str(), still.lost()), (true, "job.scheduled.acme", 0));
    queue.settle(again, Settlement::Ack, vec![]).await.unwrap();
    queue.close().await;
    assert_eq!(still.lost(), 0, "its work had ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_finds_its_row_in_other_hands_tells_the_work() {
    let place = Place::new();
    let queue = place.queue();
    let mut held = Vec::new();
    for body in ["taken", "ours"] {
        queue.publish(job(body)).await.unwrap();
        let (got, still) = (next(&queue).await, Arc::new(Still::default()));
        queue.lease(&got, body, still.clone()).await.unwrap();
        held.push((got, still));
    }
    let (ours, still) = held.pop().unwrap();
    let (taken, lost) = held.pop().unwrap();
    let sql = "UPDATE jobs SET owner = 'somebody else' WHERE seq = (SELECT min(seq) FROM jobs)";
    place.other().execute(sql, []).unwrap();
    for work in [&still, &lost] {
        work.moved.store(true, std::sync::atomic::Ordering::SeqCst);
    }
    lost.is_lost().await;
    let sql = "SELECT group_concat(headers ->> '$.at') FROM (SELECT headers FROM jobs ORDER BY seq)";
    let end = Instant::now() + LIMIT;
    while place.other().query_row(sql, [], |row| row.get::<_, String>(0)).unwrap() != "1,2" {
        assert!(Instant::now() < end, "the other's record is not written");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!((still.lost(), lost.lost()), (0, 1));
    assert!(matches!(queue.settle(taken, Settlement::Ack, vec![]).await, Err(QueueError::Lost)));
    queue.settle(ours, Settlement::Ack, vec![]).await.unwrap();
    queue.close().await;
    assert_eq!((place.count("jobs"), still.lost(), lost.lost()), (1, 0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn leased_work_is_told_when_its_file_is_gone() {
    let place = Place::new();
    let queue = place.queue();
    let mut held = Vec::new();
    for _ in 0..2 {
        queue.publish(job("x")).await.unwrap();
        let (got, still) = (next(&queue).await, Arc::new(Still::default()));
        queue.lease(&got, "run", still.clone()).await.unwrap();
        held.push((got, still));
    }
    for entry in std::fs::read_dir(place.file.parent().unwrap()).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    for (got, still) in held {
        still.is_lost().await;
        assert!(matches!(queue.lease(&got, "run", still.clone()).await, Err(QueueError::Lost)));
        assert!(matches!(queue.settle(got, Settlement::Ack, vec![]).await, Err(QueueError::Lost)));
        assert_eq!(still.lost(), 1);
    }
    queue.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn prefixes_keep_installations_apart() {
    let place = Place::new();
    let (one, two) = (place.try_queue("one").unwrap(), place.try_queue("two").unwrap());
    let mut heard = Outcomes::subscribe(&place.file, "two").await.unwrap();
    one.publish(job("of one")).await.unwrap();
    two.publish(job("of two")).await.unwrap();
    for (queue, body) in [(&one, "of one"), (&two, "of two")] {
        let got = next(queue).await;
        assert_eq!(got.body, body);
        let event = Event { body: Bytes::from(format!("{{\"from\":\"{body}\"}}")), ..event("same") };
        queue.settle(got, Settlement::Ack, vec![event]).await.unwrap();
    }
    let outcome = tokio::time::timeout(LIMIT, heard.next()).await.unwrap().unwrap();
    assert_eq!(outcome.body, b"{\"from\":\"of two\"}");
    one.close().await;
    two.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_outcome_twice_is_one_row_that_listeners_see_twice() {
    let place = Place::new();
    let queue = place.queue();
    let mut heard = Outcomes::subscribe(&place.file, "p").await.unwrap();
    for _ in 0..2 {
        queue.publish(job("x")).await.unwrap();
        let got = next(&queue).await;
        queue.settle(got, Settlement::Ack, vec![event("e-1")]).await.unwrap();
        let outcome = tokio::time::timeout(LIMIT, heard.next()).await.unwrap().unwrap();
        assert_eq!((outcome.routing_key.as_str(), outcome.body), ("transfer.delivered.acme", event("").body.to_vec()));
    }
    queue.close().await;
    let sql =
        "SELECT id || outcome || job_id || destination || bytes || attempts || repeats || reply_to || correlation_id
               FROM outcomes";
    let row: String = place.other().query_row(sql, [], |row| row.get(0)).unwrap();
    assert_eq!(row, "e-1delivereda/1acme721answersc-1");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_outcomes_are_kept() {
    let place = Place::new();
    let queue = place.queue();
    let db = place.other();
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
async fn a_dead_letter_is_readable_and_knows_the_whole_story() {
    let place = Place::new();
    let queue = place.queue();
    let properties = Properties { message_id: Some("a/1".to_owned()), ..Properties::default() };
    queue.publish(Publication { properties, ..job("body") }).await.unwrap();
    let got = next(&queue).await;
    let set =
        [("x-error-reason", "exhausted"), ("x-error-class", "transient"), ("x-attempts", "8"), ("consign-wait", "5s")];
    let headers = set.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    queue.settle(got, Settlement::Dead { headers }, vec![]).await.unwrap();
    queue.close().await;
    let sql =
        "SELECT reason || class || attempts || message_id || routing_key || lane FROM dead_letters WHERE body = ?1";
    let row: String = place.other().query_row(sql, [&b"body"[..]], |row| row.get(0)).unwrap();
    assert_eq!(row, "exhaustedtransient8a/1job.scheduled.acmescheduled");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_goes_back_prolongs_no_wait() {
    let place = Place::new();
    let queue = place.queue();
    queue.publish(job("x")).await.unwrap();
    let got = next(&queue).await;
    let retry = Settlement::Retry { rung: Step::S30, headers: BTreeMap::new() };
    queue.settle(got, retry, vec![]).await.unwrap();
    queue.close().await;
    let db = place.other();
    db.execute("UPDATE waiting SET due_ms = due_ms + 86400000", []).unwrap();
    assert_eq!(jobs::shorten_waits(&db, "other").unwrap(), 0);
    assert_eq!(jobs::shorten_waits(&db, "p").unwrap(), 1);
    let due = jobs::next_due(&db, "p").unwrap().unwrap();
    assert!(due <= jobs::now_ms() + 30_000, "{due}");
    assert_eq!(jobs::shorten_waits(&db, "p").unwrap(), 0, "a wait that is not too long stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_than_the_prefetch_is_held_and_what_was_not_handed_out_goes_back_untouched() {
    let place = Place::new();
    let queue = place.queue();
    for n in 0..8 {
        queue.publish(job(format!("{n}"))).await.unwrap();
    }
    let held = next(&queue).await;
    let owned = "jobs WHERE owner IS NOT NULL";
    assert_eq!(place.count(owned), 5);
    queue.pause().await;
    assert_eq!(place.count(owned), 1);
    assert_eq!(place.count("jobs WHERE redelivered = 1 OR delivery_count > 0"), 0);
    queue.resume().await;
    queue.settle(held, Settlement::Ack, vec![]).await.unwrap();
    drained(&queue, 7).await;
    queue.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_metrics_say_what_happens_and_come_back_to_zero() {
    let place = Place::new();
    let metrics = Arc::new(Metrics::new(10));
    let queue = Embedded::start(&place.file, "p", "worker", vec![(Lane::Scheduled, 5)], Arc::clone(&metrics)).unwrap();
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
async fn idle_queues_write_nothing_but_signs_of_life() {
    let place = Place::new();
    let queues = [place.queue(), place.queue()];
    queues[0].publish(job("x")).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let db = place.other();
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
fn only_keys_of_the_two_lanes_lead_somewhere() {
    assert_eq!(jobs::lane_of("job.scheduled.acme"), Some(Lane::Scheduled));
    assert_eq!(jobs::lane_of("job.backfill.a-b"), Some(Lane::Backfill));
    for key in ["job.continued.a", "job.scheduled", "job.scheduled.a.b", "job.scheduledx.a", "x.job.scheduled.a", ""] {
        assert_eq!(jobs::lane_of(key), None, "{key}");
    }
}

#[test]
fn whoever_opens_a_new_file_while_others_make_its_tables_gets_it_too() {
    for _ in 0..40 {
        let place = Place::new();
        std::thread::scope(|scope| {
            let opened: Vec<_> = (0..6).map(|_| scope.spawn(|| apply(&place.file))).collect();
            for one in opened {
                let made = one.join().unwrap();
                assert!(!matches!(made, Err(QueueError::Unusable(_))), "{made:?}");
            }
        });
    }
}
