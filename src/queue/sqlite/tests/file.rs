//! The file: full, locked, damaged, foreign, deleted, new.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_reported_and_work_continues_when_there_is_space() {
    let database = TestFile::new();
    let queue = database.queue();
    queue.publish(job("first")).await.unwrap();
    let delivery = next(&queue).await;
    database.connect().execute("CREATE TABLE filler AS SELECT randomblob(400000) AS blob", []).unwrap();
    queue.send(EngineCommand::LimitPages(1)).unwrap();
    let refused = queue.publish(job(vec![b'x'; 100_000])).await.unwrap_err().to_string();
    assert!(refused.contains("the disk is full") && refused.contains("queue.db"), "{refused}");
    assert!(queue.ready().unwrap_err().contains("the disk is full"), "{:?}", queue.ready());
    database.connect().execute("DROP TABLE filler", []).unwrap();
    queue.publish(job(vec![b'x'; 100_000])).await.unwrap();
    queue.wait_connected(LIMIT).await.unwrap();
    queue.settle(delivery, Settlement::Ack, vec![event("e")]).await.unwrap();
    drained(&queue, 1).await;
    queue.close().await;
    assert_eq!((database.count("jobs"), database.count("outcomes")), (0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_settlement_that_cannot_be_written_fails_and_the_delivery_is_redelivered() {
    let database = TestFile::new();
    let queue = database.queue();
    queue.publish(job("once")).await.unwrap();
    let delivery = next(&queue).await;
    let other = database.connect();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let headers = BTreeMap::new();
    let failed = queue.settle(delivery, Settlement::DeadLetter { headers }, vec![event("e")]).await.unwrap_err();
    assert!(matches!(&failed, QueueError::Unavailable(why) if why.contains("locked by another process")), "{failed}");
    assert!(queue.ready().unwrap_err().contains("locked"));
    other.execute_batch("COMMIT").unwrap();
    let again = next(&queue).await;
    assert!(again.redelivered);
    assert_eq!(again.delivery_count, 1);
    assert_eq!((database.count("outcomes"), database.count("dead_letters")), (0, 0));
    queue.settle(again, Settlement::Ack, vec![]).await.unwrap();
    wait_for_ready(&queue, None).await;
    queue.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_does_not_wait_for_a_locked_file_and_still_requeues() {
    let database = TestFile::new();
    let queue = database.queue();
    for body in ["one", "two"] {
        queue.publish(job(body)).await.unwrap();
    }
    let delivery = next(&queue).await;
    let other = database.connect();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    tokio::time::timeout(LIMIT, queue.pause(Lane::Scheduled)).await.expect("a pause waits for the lock");
    other.execute_batch("COMMIT").unwrap();
    let second = database.queue();
    assert_eq!(next(&second).await.body, "two", "prefetched jobs are requeued for other workers");
    queue.settle(delivery, Settlement::Ack, vec![]).await.unwrap();
    queue.close().await;
    second.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_another_process_locks_exclusively_is_retried() {
    let database = TestFile::new();
    database.queue().close().await;
    let other = database.connect();
    other.execute_batch("PRAGMA locking_mode = exclusive; BEGIN EXCLUSIVE; COMMIT").unwrap();
    let queue = database.queue();
    let why = queue.wait_connected(Duration::from_millis(100)).await.unwrap_err().to_string();
    assert!(why.contains("locked by another process"), "{why}");
    assert!(queue.publish(job("x")).await.is_err());
    drop(other);
    queue.wait_connected(LIMIT).await.unwrap();
    queue.publish(job("x")).await.unwrap();
    drained(&queue, 1).await;
    queue.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_queue_that_cannot_write_is_unready_until_it_can() {
    let database = TestFile::new();
    let queue = database.queue();
    let other = database.connect();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    wait_for_ready(&queue, Some("locked by another process")).await;
    let end = Instant::now() + Duration::from_secs(5);
    while Instant::now() < end {
        assert!(queue.ready().is_err(), "reading alone does not make it ready");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    other.execute_batch("COMMIT").unwrap();
    wait_for_ready(&queue, None).await;
    queue.close().await;
}

#[test]
fn a_foreign_file_is_refused_and_not_changed() {
    let database = TestFile::new();
    for (content, word) in [
        (b"[broker]\nurl = \"sqlite:...\"\n".repeat(100), "is not a SQLite database"),
        (b"x".to_vec(), "is not a SQLite database"),
    ] {
        std::fs::write(&database.file, &content).unwrap();
        let why = database.refusal();
        assert!(why.contains(word) && why.contains("queue.db"), "{why}");
        assert_eq!(std::fs::read(&database.file).unwrap(), content);
    }
    std::fs::remove_file(&database.file).unwrap();
    database.connect().execute_batch("CREATE TABLE photos (id INTEGER)").unwrap();
    let before = std::fs::read(&database.file).unwrap();
    assert!(database.refusal().contains("is a database of another program"), "{}", database.refusal());
    assert_eq!(std::fs::read(&database.file).unwrap(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_a_newer_version_is_refused() {
    let database = TestFile::new();
    database.queue().close().await;
    database.connect().pragma_update(None, "user_version", 3).unwrap();
    let why = database.refusal();
    assert!(why.contains("written by a newer version of consign (format 3, this one knows 2)"), "{why}");
    let outcomes = SqliteOutcomes::subscribe(&database.file, "p").await.unwrap_err();
    assert!(matches!(outcomes, QueueError::Unusable(_)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_an_older_version_is_upgraded_and_keeps_its_jobs() {
    let database = TestFile::new();
    let db = database.connect();
    db.execute_batch(schema::VERSION_1).unwrap();
    db.pragma_update(None, "application_id", schema::APPLICATION_ID).unwrap();
    db.pragma_update(None, "user_version", 1).unwrap();
    db.execute_batch(
        "INSERT INTO jobs (prefix, lane, routing_key, published_at, headers, body)
         VALUES ('p', 'scheduled', 'job.scheduled.acme', '', '{}', x'6f6c64')",
    )
    .unwrap();
    let queue = database.queue();
    assert_eq!(next(&queue).await.body, "old");
    queue.publish_control(Bytes::from_static(b"c")).await.unwrap();
    assert_eq!(database.count("control"), 1);
    let version: i32 = db.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
    assert_eq!(version, schema::VERSION);
    queue.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn control_messages_are_deleted_after_a_week_and_belong_to_one_prefix() {
    let database = TestFile::new();
    let queue = database.queue();
    queue.publish_control(Bytes::from_static(b"old")).await.unwrap();
    let week = "UPDATE control SET announced_ms = announced_ms - 7 * 24 * 3600 * 1000 - 1";
    database.connect().execute_batch(week).unwrap();
    database.try_queue("other").unwrap().publish_control(Bytes::from_static(b"theirs")).await.unwrap();
    assert_eq!(database.count("control"), 1, "the old one is gone");
    queue.publish_control(Bytes::from_static(b"new")).await.unwrap();
    queue.close().await;
    let queue = database.queue();
    assert_eq!(queue.next_control().await, Some(ControlEvent::Message(Bytes::from_static(b"new"))));
    assert_eq!(queue.next_control().await, Some(ControlEvent::CaughtUp));
    queue.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_file_is_refused_with_a_remedy_and_not_changed() {
    let database = TestFile::new();
    let queue = database.queue();
    for n in 0..50 {
        queue.publish(job(format!("{n}").repeat(500))).await.unwrap();
    }
    queue.close().await;
    let mut content = std::fs::read(&database.file).unwrap();
    let middle = content.len() / 2;
    content[middle..middle + 8192].fill(0xa5);
    std::fs::write(&database.file, &content).unwrap();
    let why = database.refusal();
    assert!(why.contains("is damaged") && why.contains("restore a backup") && why.contains(".recover"), "{why}");
    assert_eq!(std::fs::read(&database.file).unwrap(), content);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_file_is_detected_and_a_new_one_is_created() {
    let database = TestFile::new();
    let queue = database.queue();
    queue.publish(job("gone")).await.unwrap();
    let delivery = next(&queue).await;
    for entry in std::fs::read_dir(database.file.parent().unwrap()).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    // The queue is unready too briefly for polling to see it.
    let end = Instant::now() + LIMIT;
    while !queue.shared.metrics.render().1.contains("consign_broker_reconnects_total 1") {
        assert!(Instant::now() < end, "the file's absence is not noticed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    queue.wait_connected(LIMIT).await.unwrap();
    assert!(matches!(queue.settle(delivery, Settlement::Ack, vec![]).await, Err(QueueError::Lost)));
    queue.publish(job("new")).await.unwrap();
    assert_eq!(next(&queue).await.body, "new");
    queue.close().await;
}

#[test]
fn a_path_that_cannot_hold_a_file_is_named() {
    let database = TestFile::new();
    let nowhere = TestFile { file: database.file.join("deeper.db"), ..TestFile::new() };
    assert!(nowhere.refusal().contains("there is no directory"), "{}", nowhere.refusal());
    let directory = TestFile { file: database.file.parent().unwrap().to_owned(), ..TestFile::new() };
    assert!(directory.refusal().contains("is a directory; name a file in it"), "{}", directory.refusal());
}

#[test]
fn errors_of_sqlite_become_remedies() {
    let message = |code| match FileError::from_sqlite(Path::new("q.db"), &sqlite(code)) {
        FileError::Transient(why) => format!("transient: {why}"),
        FileError::Permanent(why) => format!("permanent: {why}"),
    };
    for (code, word) in [
        (rusqlite::ffi::SQLITE_BUSY, "transient: q.db is locked"),
        (rusqlite::ffi::SQLITE_FULL, "transient: q.db can't grow: the disk is full"),
        (rusqlite::ffi::SQLITE_IOERR, "transient: q.db can't be read or written"),
        (rusqlite::ffi::SQLITE_READONLY, "permanent: q.db is read-only"),
        (rusqlite::ffi::SQLITE_CANTOPEN, "permanent: q.db can't be opened"),
        (rusqlite::ffi::SQLITE_CORRUPT, "permanent: q.db is damaged"),
        (rusqlite::ffi::SQLITE_NOTADB, "permanent: q.db is not a SQLite database"),
    ] {
        assert!(message(code).starts_with(word), "{}", message(code));
    }
}

fn sqlite(code: i32) -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_file_is_accessible_to_its_user_only() {
    let database = TestFile::new();
    let queue = database.queue();
    queue.publish(job("x")).await.unwrap();
    let entries = std::fs::read_dir(database.file.parent().unwrap()).unwrap();
    let mut modes: Vec<_> = entries
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), entry.metadata().unwrap().permissions().mode() & 0o777))
        .collect();
    modes.sort();
    assert_eq!(modes.len(), 4, "{modes:?}");
    assert!(modes.iter().all(|(_, mode)| *mode == 0o600), "{modes:?}");
    queue.close().await;
    let left: Vec<_> = std::fs::read_dir(database.file.parent().unwrap()).unwrap().collect();
    assert_eq!(left.len(), 1, "only the file itself stays: {left:?}");
}

#[test]
fn a_new_file_can_be_opened_while_others_create_its_tables() {
    for _ in 0..40 {
        let database = TestFile::new();
        std::thread::scope(|scope| {
            let opened: Vec<_> = (0..6).map(|_| scope.spawn(|| Store::open(&database.file).map(drop))).collect();
            for one in opened {
                let made = one.join().unwrap();
                assert!(!matches!(made, Err(FileError::Permanent(_))), "{made:?}");
            }
        });
    }
}
