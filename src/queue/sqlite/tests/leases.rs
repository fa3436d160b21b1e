//! Work under a lease, and what becomes of it when the file or others get in its way.

use super::*;

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

impl queue::LeaseHolder for Still {
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
    let dead = Settlement::DeadLetter { headers: BTreeMap::new() };
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
    let queue = SqliteQueue::start_with(Duration::from_secs(1), &place.file, "p", "worker", lanes, metrics).unwrap();
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
