//! The file: full, locked, damaged, foreign, gone, new.

use super::*;

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
    queue.wait_connected(LIMIT).await.unwrap();
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
    let failed = queue.settle(held, Settlement::DeadLetter { headers }, vec![event("e")]).await.unwrap_err();
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
    queue.publish_control(Bytes::from_static(b"c")).await.unwrap();
    assert_eq!(place.count("control"), 1);
    let version: i32 = db.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
    assert_eq!(version, schema::VERSION);
    queue.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn control_messages_are_forgotten_after_a_week_and_are_each_prefixs_own() {
    let place = Place::new();
    let queue = place.queue();
    queue.publish_control(Bytes::from_static(b"old")).await.unwrap();
    let week = "UPDATE control SET announced_ms = announced_ms - 7 * 24 * 3600 * 1000 - 1";
    place.other().execute_batch(week).unwrap();
    place.try_queue("other").unwrap().publish_control(Bytes::from_static(b"theirs")).await.unwrap();
    assert_eq!(place.count("control"), 1, "the old one is gone");
    queue.publish_control(Bytes::from_static(b"new")).await.unwrap();
    queue.close().await;
    let queue = place.queue();
    assert_eq!(queue.next_control().await, Some(ControlEvent::Message(Bytes::from_static(b"new"))));
    assert_eq!(queue.next_control().await, Some(ControlEvent::CaughtUp));
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
    queue.wait_connected(LIMIT).await.unwrap();
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
