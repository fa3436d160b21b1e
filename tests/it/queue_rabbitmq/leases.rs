//! Leases on RabbitMQ: the round of their messages, and what becomes of them when queues, workers
//! and the broker go.

use std::net::SocketAddr;
use std::sync::Mutex;

use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::queue_conformance::leases::{LEASE, Steps, body, nothing_arrives};
use crate::queue_conformance::{pause, resume};
use crate::testbed;

/// What a lease lasts in these tests.
pub(super) const LEASE_TTL: Duration = Duration::from_secs(2);
pub(super) const OWNER_TTL: Duration = Duration::from_secs(1);

impl Rabbit {
    /// Leases are over soon.
    pub(super) async fn leasing(name: &str) -> Self {
        Self::new(name).await.with_short_leases().await
    }

    pub(super) async fn leasing_at(url: &str, name: &str) -> Self {
        Self::at(url, name).await.with_short_leases().await
    }

    pub(super) async fn with_short_leases(mut self) -> Self {
        self.delete("lease").await;
        let mut arguments = FieldTable::default();
        let ttl = i64::try_from(LEASE_TTL.as_millis()).unwrap();
        for (name, text) in [
            ("x-queue-type", "quorum"),
            ("x-dead-letter-exchange", &self.name("owners")),
            ("x-dead-letter-strategy", "at-least-once"),
            ("x-overflow", "reject-publish"),
        ] {
            arguments.insert(name.into(), AMQPValue::LongString(text.into()));
        }
        arguments.insert("x-message-ttl".into(), AMQPValue::LongLongInt(ttl));
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let (queue, exchange) = (self.name("lease"), self.name("lease"));
        self.channel.queue_declare(queue.as_str().into(), durable, arguments).await.unwrap();
        let (options, arguments) = (QueueBindOptions::default(), FieldTable::default());
        self.channel.queue_bind(queue.into(), exchange.into(), "".into(), options, arguments).await.unwrap();
        self.owner_ttl = OWNER_TTL;
        self
    }

    pub(super) async fn worker(&self, id: &str) -> Arc<RabbitMqQueue> {
        let queue = self.start_named(id, &self.config);
        queue.wait_connected(LIMIT).await.unwrap();
        queue
    }

    /// Publishes a job and leases it.
    pub(super) async fn leased(&self, queue: &Arc<RabbitMqQueue>, key: &str) -> (Delivery, Arc<Steps>) {
        queue.publish(job("job.scheduled.acme")).await.unwrap();
        let got = next(queue, Lane::Scheduled).await;
        let steps = Steps::at("1");
        queue.lease(&got, key, steps.clone()).await.unwrap();
        (got, steps)
    }

    /// Publishes to one of the exchanges, or by its name to a queue.
    async fn send(&self, exchange: &str, key: &str, headers: &[(&str, &str)], body: &[u8]) {
        let exchange = if exchange.is_empty() { String::new() } else { self.name(exchange) };
        let mut table = FieldTable::default();
        for (name, value) in headers {
            table.insert((*name).into(), AMQPValue::LongString((*value).into()));
        }
        let properties = BasicProperties::default().with_headers(table).with_delivery_mode(2);
        let options = BasicPublishOptions::default();
        let sent = self.channel.basic_publish(exchange.into(), key.into(), options, body, properties);
        sent.await.unwrap().await.unwrap();
    }

    /// How many consumers a queue has; `None` without a queue.
    async fn consumers(&self, queue: &str) -> Option<u32> {
        let connection = Connection::connect(&url_of(&self.config), ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let declared = channel.queue_declare(queue.into(), passive, FieldTable::default()).await;
        declared.ok().map(|queue| queue.consumer_count())
    }
}

pub(super) fn url_of(config: &BrokerConfig) -> String {
    use secrecy::ExposeSecret as _;
    config.url.as_ref().unwrap().expose_secret().to_owned()
}

fn header(got: &Delivery, name: &str) -> String {
    got.properties.headers.get(name).cloned().unwrap_or_default()
}

/// The process that a message names as the owner of a job.
fn owner(got: &Delivery) -> String {
    header(got, "consign-lease-owner")
}

/// A way to the broker that can be cut.
#[derive(Debug, Clone)]
pub(super) struct Line(Arc<Mutex<Option<CancellationToken>>>);

impl Line {
    /// A line, and the configuration by which it is used.
    pub(super) async fn before(config: &BrokerConfig) -> (Self, BrokerConfig) {
        let mut url: url::Url = url_of(config).parse().unwrap();
        let upstream = SocketAddr::from(([127, 0, 0, 1], url.port().unwrap()));
        let (listener, address) = testbed::listener().await;
        url.set_port(Some(address.port())).unwrap();
        let line = Self(Arc::new(Mutex::new(Some(CancellationToken::new()))));
        let up = line.clone();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let Some(cut) = up.0.lock().unwrap().clone() else { continue };
                tokio::spawn(async move {
                    let mut server = TcpStream::connect(upstream).await.unwrap();
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                        () = cut.cancelled() => {}
                    }
                });
            }
        });
        (line, BrokerConfig { url: Some(url.to_string().into()), ..config.clone() })
    }

    /// Both ends see their connections closed; there are no new ones.
    pub(super) fn cut(&self) {
        self.0.lock().unwrap().take().unwrap().cancel();
    }

    pub(super) fn mend(&self) {
        *self.0.lock().unwrap() = Some(CancellationToken::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rabbitmq_leases_as_every_queue_must() {
    queue_conformance::leases::suite(Rabbit::leasing).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_names_its_owner_and_returns_to_it() {
    let rabbit = Rabbit::leasing("marked").await;
    let queue = rabbit.worker("worker").await;
    let (got, steps) = rabbit.leased(&queue, "run-1").await;
    let lease = rabbit.take(&rabbit.name("lease")).await;
    let headers = texts(&lease.properties);
    assert_eq!((lease.routing_key.as_str(), lease.data), ("run-1", body("1").to_vec()));
    assert_eq!(lease.properties.content_type().as_ref().unwrap().as_str(), LEASE);
    for (name, value) in [
        ("consign-lease-epoch", "1"),
        ("consign-lease-seq", "1"),
        ("x-original-routing-key", "job.scheduled.acme"),
        ("at-step", "1"),
    ] {
        assert_eq!(headers.get(name).map(String::as_str), Some(value), "{name}");
    }
    let process = &headers["consign-lease-owner"];
    assert!(process.starts_with("worker."), "{process}");
    // The one that was taken off is replaced by hand: it comes back as its owner's, and is renewed.
    let pairs: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    rabbit.send("owners", "run-1", &pairs, b"as it was").await;
    let renewed = rabbit.take(&rabbit.name("lease")).await;
    assert_eq!(texts(&renewed.properties)["consign-lease-seq"], "2");
    assert_eq!((renewed.data, steps.asked()), (body("1").to_vec(), 2));
    queue.settle(got, Settlement::Ack, vec![]).await.unwrap();
    queue.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_unknown_to_its_owner_is_handed_to_others() {
    let rabbit = Rabbit::leasing("unknown").await;
    let queue = rabbit.worker("worker").await;
    let (got, _) = rabbit.leased(&queue, "run-1").await;
    let lease = rabbit.take(&rabbit.name("lease")).await;
    let process = texts(&lease.properties)["consign-lease-owner"].clone();
    let address = rabbit.name(&format!("owner.{process}"));
    let mark = [
        ("consign-lease-epoch", "4"),
        ("consign-lease-owner", process.as_str()),
        ("consign-lease-seq", "9"),
        ("x-original-routing-key", "job.backfill.acme"),
    ];
    rabbit.send("", &address, &mark, b"nobody's").await;
    rabbit.send("", &address, &[], b"no lease at all").await;
    // They are forwarded at the same time.
    let mut came = BTreeMap::new();
    for _ in 0..2 {
        let got = next(&queue, Lane::Continued).await;
        assert_eq!(header(&got, "consign-lease-seq"), "", "a number belongs to one message");
        came.insert(got.body.to_vec(), got.routing_key.clone());
        queue.settle(got, Settlement::Ack, vec![]).await.unwrap();
    }
    let expected = [("nobody's", "job.backfill.acme"), ("no lease at all", "job.scheduled._direct")];
    assert_eq!(came, expected.map(|(body, key)| (body.into(), key.to_owned())).into());
    queue.settle(got, Settlement::Ack, vec![]).await.unwrap();
    queue.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_take_over_raises_the_epoch_and_notifies_the_former_owner_at_once() {
    let rabbit = Rabbit::leasing("epochs").await;
    let old = rabbit.worker("old").await;
    let (got, steps) = rabbit.leased(&old, "run-1").await;
    pause(&*old).await;
    let new = rabbit.worker("new").await;
    let lease = rabbit.take(&rabbit.name("lease")).await;
    // As if it had come out while the old one was out of reach, which it is not.
    let headers = texts(&lease.properties);
    let pairs: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    rabbit.send("orphans", "run-1", &pairs, &lease.data).await;
    let taken = next(&new, Lane::Continued).await;
    assert!(owner(&taken).starts_with("old."));
    let theirs = Steps::at("2");
    let begun = tokio::time::Instant::now();
    new.lease(&taken, "run-1", theirs.clone()).await.unwrap();
    steps.is_lost().await;
    assert!(begun.elapsed() < LEASE_TTL, "it heard by an expired lease after {:?}", begun.elapsed());
    let late =
        old.settle(got, Settlement::Retry { delay: RetryDelay::S5, headers: [].into() }, vec![event(None)]).await;
    assert!(matches!(late, Err(QueueError::Lost)), "{late:?}");
    assert_eq!(rabbit.outcome().await.0, "transfer.delivered.acme", "events carry stable ids and go out");
    let mut given = taken;
    given.body = body("3");
    new.settle(given, Settlement::HandOff { headers: [].into() }, vec![]).await.unwrap();
    resume(&*old).await;
    let third = tokio::select! { got = old.next(Lane::Continued) => got, got = new.next(Lane::Continued) => got };
    let third = third.unwrap();
    assert_eq!((third.body.clone(), header(&third, "consign-lease-epoch").as_str()), (body("3"), "2"));
    assert!(owner(&third).starts_with("new."));
    nothing_arrives(&*old, 2 * LEASE_TTL + OWNER_TTL).await;
    assert_eq!((steps.lost(), theirs.lost()), (1, 0));
    old.close().await;
    new.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn work_that_takes_over_from_its_own_process_is_told_of_the_other_lease_at_once() {
    let rabbit = Rabbit::leasing("same").await;
    let queue = rabbit.worker("one").await;
    let (former, theirs) = rabbit.leased(&queue, "run").await;
    theirs.go("2");
    let (taken, ours) = rabbit.leased(&queue, "run").await;
    assert_eq!((theirs.lost(), ours.lost()), (1, 0));
    assert_eq!(ours.outdated(), [body("2")], "the message comes back when there may be no work to be told");
    assert!(matches!(queue.settle(former, Settlement::Requeue, vec![]).await, Err(QueueError::Lost)));
    queue.settle(taken, Settlement::Ack, vec![]).await.unwrap();
    queue.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_owners_queue_brings_no_copies_of_the_new_owners_leases() {
    let rabbit = Rabbit::leasing("dead").await;
    let Doomed { queue, cut, .. } = rabbit.doomed().await;
    queue.publish(job("job.scheduled.acme")).await.unwrap();
    let got = next_of(&*queue, Lane::Scheduled).await;
    queue.lease(&got, "run-1", Steps::at("1")).await.unwrap();
    let new = rabbit.worker("new").await;
    cut();
    let taken = next(&new, Lane::Continued).await;
    let address = rabbit.name(&format!("owner.{}", owner(&taken)));
    assert_eq!(rabbit.consumers(&address).await, Some(0), "the dead one's queue is there");
    let theirs = Steps::at("2");
    new.lease(&taken, "run-1", theirs.clone()).await.unwrap();
    let third = rabbit.worker("third").await;
    nothing_arrives(&*third, 3 * (LEASE_TTL + OWNER_TTL)).await;
    assert!(theirs.asked() >= 3, "renewed {} times", theirs.asked());
    assert_eq!(theirs.lost(), 0);
    new.settle(taken, Settlement::Ack, vec![]).await.unwrap();
    new.close().await;
    nothing_arrives(&*third, LEASE_TTL + OWNER_TTL).await;
    third.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_left_by_a_drain_ends_with_the_current_owner() {
    let rabbit = Rabbit::leasing("behind").await;
    let Doomed { queue, cut, .. } = rabbit.doomed().await;
    queue.publish(job("job.scheduled.acme")).await.unwrap();
    let got = next_of(&*queue, Lane::Scheduled).await;
    queue.lease(&got, "run-1", Steps::at("1")).await.unwrap();
    pause(&*queue).await;
    let new = rabbit.worker("new").await;
    queue.settle(got, Settlement::HandOff { headers: [].into() }, vec![]).await.unwrap();
    let taken = next(&new, Lane::Continued).await;
    // It could not even say goodbye: its last lease is still on its way.
    cut();
    new.lease(&taken, "run-1", Steps::at("2")).await.unwrap();
    let third = rabbit.worker("third").await;
    nothing_arrives(&*third, 2 * (LEASE_TTL + OWNER_TTL)).await;
    new.settle(taken, Settlement::Ack, vec![]).await.unwrap();
    new.close().await;
    third.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_closes_leaves_no_leases_of_settled_jobs() {
    let rabbit = Rabbit::leasing("ghosts").await;
    let (queue, other) = (rabbit.worker("worker").await, rabbit.worker("other").await);
    pause(&*other).await;
    let (delivered, _) = rabbit.leased(&queue, "run-1").await;
    let (drained, _) = rabbit.leased(&queue, "run-2").await;
    let (retried, _) = rabbit.leased(&queue, "run-3").await;
    let lease = rabbit.channel.basic_get(rabbit.name("lease").into(), BasicGetOptions::default()).await.unwrap();
    let lease = lease.unwrap();
    let process = texts(&lease.delivery.properties)["consign-lease-owner"].clone();
    lease.delivery.acker.nack(lapin::options::BasicNackOptions { requeue: true, multiple: false }).await.unwrap();
    queue.settle(delivered, Settlement::Ack, vec![]).await.unwrap();
    queue.settle(drained, Settlement::HandOff { headers: [].into() }, vec![]).await.unwrap();
    queue.settle(retried, Settlement::Retry { delay: RetryDelay::S5, headers: [].into() }, vec![]).await.unwrap();
    queue.close().await;
    assert_eq!(rabbit.consumers(&rabbit.name(&format!("owner.{process}"))).await, None, "its queue goes with it");
    resume(&*other).await;
    let drained = next(&other, Lane::Continued).await;
    let retried = next(&other, Lane::Scheduled).await;
    // The one of its jobs that is still to be done may be leased at once, and its lease is not led to nothing.
    other.lease(&drained, "run-2", Steps::at("2")).await.unwrap();
    nothing_arrives(&*other, 2 * (LEASE_TTL + OWNER_TTL)).await;
    for got in [drained, retried] {
        other.settle(got, Settlement::Ack, vec![]).await.unwrap();
    }
    other.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_outlives_its_session_and_is_settled_in_another() {
    let rabbit = Rabbit::leasing("sessions").await;
    let queue = rabbit.worker("worker").await;
    let (got, steps) = rabbit.leased(&queue, "run-1").await;
    let other = rabbit.worker("other").await;
    let lease = rabbit.channel.basic_get(rabbit.name("lease").into(), BasicGetOptions::default()).await.unwrap();
    let lease = lease.unwrap();
    let process = texts(&lease.delivery.properties)["consign-lease-owner"].clone();
    lease.delivery.acker.nack(lapin::options::BasicNackOptions { requeue: true, multiple: false }).await.unwrap();
    // Its queue, and with it every binding, is gone: the next session makes them anew.
    rabbit.delete(&format!("owner.{process}")).await;
    let asked = steps.asked();
    nothing_arrives(&*other, 2 * (LEASE_TTL + OWNER_TTL)).await;
    assert!(steps.asked() >= asked + 2, "renewed {} times", steps.asked() - asked);
    let retry = Settlement::Retry { delay: RetryDelay::S5, headers: [].into() };
    queue.settle(got, retry, vec![event(None)]).await.unwrap();
    assert_eq!(rabbit.outcome().await.0, "transfer.delivered.acme");
    let again =
        tokio::select! { got = queue.next(Lane::Scheduled) => got, got = other.next(Lane::Scheduled) => got }.unwrap();
    assert_eq!((header(&again, "consign-lease-epoch").as_str(), owner(&again)), ("1", process));
    assert_eq!(steps.lost(), 0);
    nothing_arrives(&*other, LEASE_TTL + OWNER_TTL).await;
    queue.close().await;
    other.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_expires_while_its_owner_is_disconnected_returns_to_it() {
    let rabbit = Rabbit::leasing("away").await;
    let Doomed { queue, cut, mend } = rabbit.doomed().await;
    queue.publish(job("job.scheduled.acme")).await.unwrap();
    let got = next_of(&*queue, Lane::Scheduled).await;
    let steps = Steps::at("1");
    queue.lease(&got, "run-1", steps.clone()).await.unwrap();
    cut();
    tokio::time::sleep(2 * (LEASE_TTL + OWNER_TTL)).await;
    let waiting = rabbit.channel.basic_get(rabbit.name("jobs.continued").into(), BasicGetOptions::default()).await;
    let waiting = waiting.unwrap().expect("nobody else took it");
    waiting.delivery.acker.nack(lapin::options::BasicNackOptions { requeue: true, multiple: false }).await.unwrap();
    let asked = steps.asked();
    mend();
    queue.wait_connected(LIMIT).await.unwrap();
    nothing_arrives(&*queue, 2 * (LEASE_TTL + OWNER_TTL)).await;
    assert!(steps.asked() >= asked + 2, "renewed {} times", steps.asked() - asked);
    queue.settle(got, Settlement::Ack, vec![]).await.unwrap();
    nothing_arrives(&*queue, LEASE_TTL + OWNER_TTL).await;
    queue.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_lease_changes_nothing() {
    let rabbit = Rabbit::leasing("refused").await;
    let queue = rabbit.worker("worker").await;
    queue.publish(job("job.scheduled.acme")).await.unwrap();
    let got = next(&queue, Lane::Scheduled).await;
    let unbound = || async {
        let (queue, exchange) = (rabbit.name("lease"), rabbit.name("lease"));
        rabbit.channel.queue_unbind(queue.into(), exchange.into(), "".into(), FieldTable::default()).await.unwrap();
    };
    unbound().await;
    for key in ["run-1", &"x".repeat(256)] {
        let refused = queue.lease(&got, key, Steps::at("1")).await;
        assert!(matches!(refused, Err(QueueError::Refused(_))), "{refused:?}");
    }
    let (name, bind) = (rabbit.name("lease"), QueueBindOptions::default());
    let (from, to) = (name.as_str().into(), name.as_str().into());
    rabbit.channel.queue_bind(from, to, "".into(), bind, FieldTable::default()).await.unwrap();
    queue.lease(&got, "run-1", Steps::at("2")).await.unwrap();
    queue.settle(got, Settlement::Ack, vec![]).await.unwrap();
    nothing_arrives(&*queue, LEASE_TTL + OWNER_TTL).await;
    queue.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leased_job_that_can_not_be_settled_goes_to_others() {
    let rabbit = Rabbit::leasing("unsettled").await;
    let queue = rabbit.worker("worker").await;
    let (got, steps) = rabbit.leased(&queue, "run-1").await;
    let retry = Settlement::Retry { delay: RetryDelay::S5, headers: [("x".repeat(256), String::new())].into() };
    let refused = queue.settle(got, retry, vec![event(None)]).await;
    assert!(matches!(refused, Err(QueueError::Refused(_))), "{refused:?}");
    let again = next(&queue, Lane::Continued).await;
    assert_eq!((&again.body, header(&again, "consign-lease-epoch").as_str()), (&body("1"), "1"));
    assert_eq!(steps.lost(), 0, "it has ended by itself");
    queue.lease(&again, "run-1", Steps::at("2")).await.unwrap();
    queue.settle(again, Settlement::Ack, vec![]).await.unwrap();
    nothing_arrives(&*queue, LEASE_TTL + OWNER_TTL).await;
    queue.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledgements_of_leases_are_counted() {
    let rabbit = Rabbit::leasing("counted").await;
    let metrics = Arc::new(Metrics::new(10));
    let queue =
        RabbitMqQueue::start(&rabbit.config, "worker", vec![(Lane::Scheduled, 5)], Arc::clone(&metrics)).unwrap();
    let (got, _) = rabbit.leased(&queue, "run-1").await;
    queue.lease(&got, "run-1", Steps::at("2")).await.unwrap();
    queue.settle(got, Settlement::Ack, vec![]).await.unwrap();
    let (got, _) = rabbit.leased(&queue, "run-2").await;
    queue.settle(got, Settlement::HandOff { headers: [].into() }, vec![]).await.unwrap();
    queue.close().await;
    let (_, text) = metrics.render();
    for line in
        ["settlements_total{action=\"lease\"} 3", "settlements_total{action=\"ack\"} 1", "consign_broker_unconfirmed 0"]
    {
        assert!(text.contains(line), "{line}");
    }
}

async fn next_of(queue: &dyn Queue, lane: Lane) -> Delivery {
    tokio::time::timeout(LIMIT, queue.next(lane)).await.expect("nothing came").expect("the queue was stopped")
}
