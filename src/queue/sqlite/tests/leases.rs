//! Jobs under a lease, with faults of the file and with other owners.

use super::*;

/// Lease holder that counts notifications of a loss.
#[derive(Debug, Default)]
struct TestHolder {
    losses: std::sync::atomic::AtomicUsize,
    moved: std::sync::atomic::AtomicBool,
}

impl TestHolder {
    fn lost(&self) -> usize {
        self.losses.load(std::sync::atomic::Ordering::SeqCst)
    }

    async fn wait_until_lost(&self) {
        let end = Instant::now() + LIMIT;
        while self.lost() == 0 {
            assert!(Instant::now() < end, "the holder was not notified");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl queue::LeaseHolder for TestHolder {
    fn message(&self) -> queue::LeaseMessage {
        let at = if self.moved.load(std::sync::atomic::Ordering::SeqCst) { "2" } else { "1" };
        let headers = [("at".to_owned(), at.to_owned())].into();
        queue::LeaseMessage { body: Bytes::from_static(b"lease"), content_type: "x/lease".to_owned(), headers }
    }

    fn outdated(&self, _lease: Bytes) {}

    fn lost(&self) {
        self.losses.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leased_row_holds_the_message_for_another_worker_and_its_origin() {
    let database = TestFile::new();
    let queue = database.queue();
    queue.publish(job("x")).await.unwrap();
    let got = next(&queue).await;
    queue.lease(&got, "run-1", Arc::new(TestHolder::default())).await.unwrap();
    queue.lease(&got, "run-1", Arc::new(TestHolder::default())).await.unwrap();
    let sql = "SELECT lane || routing_key || content_type || headers || (owner IS NOT NULL) FROM jobs WHERE body = ?1";
    let row: String = database.connect().query_row(sql, [&b"lease"[..]], |row| row.get(0)).unwrap();
    assert_eq!(row, "continuedjob.scheduled.acmex/lease{\"at\":\"1\"}1");
    assert!(queue.shared.metrics.render().1.contains("settlements_total{action=\"lease\"} 1"));
    let dead = Settlement::DeadLetter { headers: BTreeMap::new() };
    queue.settle(got, dead, vec![]).await.unwrap();
    let sql = "SELECT lane || headers FROM dead_letters WHERE body = ?1 AND content_type IS NULL";
    let row: String = database.connect().query_row(sql, [&b"x"[..]], |row| row.get(0)).unwrap();
    assert_eq!(row, "scheduled{\"x-original-routing-key\":\"job.scheduled.acme\"}");
    queue.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_cannot_be_written_changes_nothing() {
    let database = TestFile::new();
    let queue = database.queue();
    queue.publish(job("x")).await.unwrap();
    let got = next(&queue).await;
    let other = database.connect();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let failed = queue.lease(&got, "run-1", Arc::new(TestHolder::default())).await.unwrap_err();
    assert!(matches!(&failed, QueueError::Unavailable(why) if why.contains("locked by another process")), "{failed}");
    other.execute_batch("COMMIT").unwrap();
    wait_for_ready(&queue, None).await;
    assert_eq!((database.count("jobs WHERE lane = 'scheduled'"), database.count("jobs")), (1, 1));
    queue.lease(&got, "run-1", Arc::new(TestHolder::default())).await.unwrap();
    queue.settle(got, Settlement::Ack, vec![]).await.unwrap();
    assert_eq!(database.count("jobs"), 0);
    queue.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leased_job_whose_settlement_cannot_be_written_is_redelivered() {
    let database = TestFile::new();
    let lanes = Lane::ALL.map(|lane| (lane, 5)).to_vec();
    let metrics = Arc::new(Metrics::new(10));
    let queue = impatient(SqliteQueue::start(&database.file, "p", "worker", lanes, metrics).unwrap());
    queue.publish(job("x")).await.unwrap();
    let got = next(&queue).await;
    let holder = Arc::new(TestHolder::default());
    queue.lease(&got, "run-1", holder.clone()).await.unwrap();
    let other = database.connect();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    assert!(queue.settle(got, Settlement::Ack, vec![]).await.is_err());
    other.execute_batch("COMMIT").unwrap();
    let again = tokio::time::timeout(LIMIT, queue.next(Lane::Continued)).await.unwrap().unwrap();
    assert_eq!((&again.body[..], again.properties.content_type.as_deref()), (&b"lease"[..], Some("x/lease")));
    assert_eq!((again.redelivered, again.routing_key.as_str(), holder.lost()), (true, "job.scheduled.acme", 0));
    queue.settle(again, Settlement::Ack, vec![]).await.unwrap();
    queue.close().await;
    assert_eq!(holder.lost(), 0, "its attempt had ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewal_of_a_row_with_another_owner_notifies_the_holder() {
    let database = TestFile::new();
    let queue = database.queue();
    let mut leased = Vec::new();
    for body in ["taken", "ours"] {
        queue.publish(job(body)).await.unwrap();
        let (got, holder) = (next(&queue).await, Arc::new(TestHolder::default()));
        queue.lease(&got, body, holder.clone()).await.unwrap();
        leased.push((got, holder));
    }
    let (ours, holder) = leased.pop().unwrap();
    let (taken, lost) = leased.pop().unwrap();
    let sql = "UPDATE jobs SET owner = 'another owner' WHERE seq = (SELECT min(seq) FROM jobs)";
    database.connect().execute(sql, []).unwrap();
    for work in [&holder, &lost] {
        work.moved.store(true, std::sync::atomic::Ordering::SeqCst);
    }
    lost.wait_until_lost().await;
    let sql = "SELECT group_concat(headers ->> '$.at') FROM (SELECT headers FROM jobs ORDER BY seq)";
    let end = Instant::now() + LIMIT;
    while database.connect().query_row(sql, [], |row| row.get::<_, String>(0)).unwrap() != "1,2" {
        assert!(Instant::now() < end, "the other lease is not renewed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!((holder.lost(), lost.lost()), (0, 1));
    assert!(matches!(queue.settle(taken, Settlement::Ack, vec![]).await, Err(QueueError::Lost)));
    queue.settle(ours, Settlement::Ack, vec![]).await.unwrap();
    queue.close().await;
    assert_eq!((database.count("jobs"), holder.lost(), lost.lost()), (1, 0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn lease_holders_are_notified_when_the_file_is_deleted() {
    let database = TestFile::new();
    let queue = database.queue();
    let mut leased = Vec::new();
    for _ in 0..2 {
        queue.publish(job("x")).await.unwrap();
        let (got, holder) = (next(&queue).await, Arc::new(TestHolder::default()));
        queue.lease(&got, "run", holder.clone()).await.unwrap();
        leased.push((got, holder));
    }
    for entry in std::fs::read_dir(database.file.parent().unwrap()).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    for (got, holder) in leased {
        holder.wait_until_lost().await;
        assert!(matches!(queue.lease(&got, "run", holder.clone()).await, Err(QueueError::Lost)));
        assert!(matches!(queue.settle(got, Settlement::Ack, vec![]).await, Err(QueueError::Lost)));
        assert_eq!(holder.lost(), 1);
    }
    queue.close().await;
}
