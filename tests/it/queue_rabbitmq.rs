//! The queue on a real RabbitMQ: the suite of all queues, and what only a broker can do to it.

mod control;
mod dead_letters;
mod kills;
mod leases;
mod release;
mod renewals;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use consign::config::BrokerConfig;
use consign::domain::lane::Lane;
use consign::domain::outcome::RetryDelay;
use consign::metrics::Metrics;
use consign::queue::rabbitmq::{RabbitMqQueue, Timing, Topology};
use consign::queue::{
    self, Delivery, JobPublisher, OutcomeEvent, Properties, Publication, Queue, QueueError, Settlement,
};
use lapin::options::{BasicGetOptions, BasicPublishOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};

use crate::queue_conformance::{self, Doomed, Fixture, Letter};
use crate::testbed::exported;
use leases::Line;

const LIMIT: Duration = Duration::from_secs(60);

/// A prefix of its own on a broker.
struct Rabbit {
    config: BrokerConfig,
    channel: Channel,
    owner_ttl: Duration,
    _connection: Connection,
}

impl Rabbit {
    /// On the broker that `tests/run` started.
    async fn new(name: &str) -> Self {
        Self::at(&exported("CONSIGN_TEST_AMQP_URL"), name).await
    }

    async fn at(url: &str, name: &str) -> Self {
        let config = config(url, &format!("{name}-{}", uuid::Uuid::new_v4().simple()));
        queue::admin(&config, "test").apply_topology().await.unwrap();
        let connection = Connection::connect(url, ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        let rabbit = Self { config, channel, owner_ttl: Duration::from_secs(60), _connection: connection };
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let seen = rabbit.name("seen");
        rabbit.channel.queue_declare(seen.as_str().into(), durable, FieldTable::default()).await.unwrap();
        let (from, bind) = (rabbit.name("outcomes"), QueueBindOptions::default());
        let everything = "transfer.#".into();
        rabbit.channel.queue_bind(seen.into(), from.into(), everything, bind, FieldTable::default()).await.unwrap();
        rabbit
    }

    fn name(&self, last: &str) -> String {
        format!("{}.{last}", self.config.prefix)
    }

    fn start(&self) -> Arc<RabbitMqQueue> {
        self.start_named("worker", &self.config)
    }

    fn start_as(config: &BrokerConfig) -> Arc<RabbitMqQueue> {
        let lanes = Lane::ALL.map(|lane| (lane, 20)).to_vec();
        RabbitMqQueue::start(config, "worker", lanes, Arc::new(Metrics::new(10))).unwrap()
    }

    fn start_named(&self, id: &str, config: &BrokerConfig) -> Arc<RabbitMqQueue> {
        let (lanes, timing) =
            (Lane::ALL.map(|lane| (lane, 20)).to_vec(), Timing { owner_ttl: self.owner_ttl, ..Timing::default() });
        RabbitMqQueue::start_with(timing, config, id, lanes, Arc::new(Metrics::new(10))).unwrap()
    }

    /// Takes one message off a queue, waiting for it.
    async fn take(&self, queue: &str) -> lapin::message::Delivery {
        let no_ack = BasicGetOptions { no_ack: true };
        let end = tokio::time::Instant::now() + LIMIT;
        loop {
            if let Some(got) = self.channel.basic_get(queue.into(), no_ack).await.unwrap() {
                return got.delivery;
            }
            assert!(tokio::time::Instant::now() < end, "nothing came to {queue}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Ends the session of a worker: the broker cancels one of its consumers.
    async fn delete(&self, last: &str) {
        self.channel.queue_delete(self.name(last).into(), QueueDeleteOptions::default()).await.unwrap();
    }
}

impl Drop for Rabbit {
    /// A node with thousands of quorum queues is a slow node.
    fn drop(&mut self) {
        let definitions = Topology::new(&self.config.prefix).definitions("/");
        let own = ["seen", "reply.answers"].map(|last| self.name(last));
        let names =
            definitions["queues"].as_array().unwrap().iter().map(|queue| queue["name"].as_str().unwrap().to_owned());
        let delete = async {
            for name in names.chain(own) {
                let _ = self.channel.queue_delete(name.into(), QueueDeleteOptions::default()).await;
            }
        };
        // On a thread of its own: on this one, it would swallow wake-ups meant for the test's other branches.
        let handle = tokio::runtime::Handle::current();
        tokio::task::block_in_place(|| {
            std::thread::scope(|scope| scope.spawn(|| handle.block_on(delete)).join().unwrap());
        });
    }
}

impl Fixture for Rabbit {
    fn config(&self) -> BrokerConfig {
        self.config.clone()
    }

    async fn open(&self) -> Arc<dyn JobPublisher> {
        let queue = self.start();
        queue.wait_connected(LIMIT).await.unwrap();
        queue
    }

    async fn outcome(&self) -> (String, Vec<u8>) {
        let got = self.take(&self.name("seen")).await;
        (got.routing_key.to_string(), got.data)
    }

    async fn dead_letter(&self) -> Letter {
        let got = self.take(&self.name("dead")).await;
        let content_type = got.properties.content_type().as_ref().map(ToString::to_string);
        Letter { headers: texts(&got.properties), content_type, body: got.data }
    }

    async fn doomed(&self) -> Doomed {
        let (line, config) = Line::before(&self.config).await;
        let queue = self.start_named("doomed", &config);
        queue.wait_connected(LIMIT).await.unwrap();
        let again = line.clone();
        Doomed { queue, cut: Box::new(move || line.cut()), mend: Box::new(move || again.mend()) }
    }

    fn lease_time(&self) -> Duration {
        leases::LEASE_TTL + self.owner_ttl + Duration::from_secs(2)
    }

    fn renewal_time(&self) -> Duration {
        leases::LEASE_TTL + Duration::from_secs(1)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rabbitmq_does_what_every_queue_must_do() {
    queue_conformance::suite(Rabbit::new).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_queue_ends_the_session_and_the_next_one_continues() {
    let rabbit = Rabbit::new("deleted").await;
    let queue = Rabbit::start_as(&BrokerConfig { declare: true, ..rabbit.config.clone() });
    queue.publish(job("job.scheduled.acme")).await.unwrap();
    let held = next(&queue, Lane::Scheduled).await;
    let generation = held.ticket.generation;
    rabbit.delete("jobs.backfill").await;
    let again = next(&queue, Lane::Scheduled).await;
    assert!(again.ticket.generation > generation);
    assert!(again.redelivered);
    assert_eq!(again.delivery_count, 1);
    // The old one: its event goes out, its copy does not, and it is lost.
    let headers = BTreeMap::new();
    let lost = queue.settle(held, Settlement::Retry { delay: RetryDelay::S5, headers }, vec![event(None)]).await;
    assert!(matches!(lost, Err(QueueError::Lost)), "{lost:?}");
    assert_eq!(rabbit.outcome().await.0, "transfer.delivered.acme");
    queue.settle(again, Settlement::Ack, vec![]).await.unwrap();
    queue.publish(job("job.backfill.acme")).await.unwrap();
    let back = next(&queue, Lane::Backfill).await;
    queue.settle(back, Settlement::Ack, vec![]).await.unwrap();
    queue.close().await;
    let waiting = rabbit.channel.basic_get(rabbit.name("wait.5s").into(), BasicGetOptions::default()).await.unwrap();
    assert!(waiting.is_none(), "a copy of a lost delivery was published");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_queue_is_named_with_its_remedy() {
    let rabbit = Rabbit::new("missing").await;
    rabbit.delete("wait.2m").await;
    rabbit.delete("jobs.continued").await;
    let queue = rabbit.start();
    let why = queue.wait_connected(Duration::from_secs(5)).await.unwrap_err().to_string();
    assert!(why.contains(&rabbit.name("wait.2m")) && why.contains(&rabbit.name("jobs.continued")), "{why}");
    assert!(why.contains("consign topology apply"), "{why}");
    assert!(queue.ready().unwrap_err().contains("wait.2m"));
    queue::admin(&rabbit.config, "test").apply_topology().await.unwrap();
    queue.wait_connected(LIMIT).await.unwrap();
    assert!(queue.ready().is_ok());
    queue.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_arguments_are_reported_and_nothing_else_breaks() {
    let rabbit = Rabbit::new("other").await;
    rabbit.delete("dead").await;
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    rabbit.channel.queue_declare(rabbit.name("dead").into(), durable, FieldTable::default()).await.unwrap();
    let why = queue::admin(&rabbit.config, "test").apply_topology().await.unwrap_err().to_string();
    assert!(why.contains(&rabbit.name("dead")) && why.contains("x-"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_control_stream_stops_no_delivery() {
    let rabbit = Rabbit::new("control").await;
    rabbit.delete("control").await;
    for declare in [false, true] {
        if declare {
            // Something else by its name: it can't be declared, either.
            let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
            rabbit.channel.queue_declare(rabbit.name("control").into(), durable, FieldTable::default()).await.unwrap();
        }
        let queue = Rabbit::start_as(&BrokerConfig { declare, ..rabbit.config.clone() });
        queue.wait_connected(LIMIT).await.unwrap();
        queue.publish(job("job.scheduled.acme")).await.unwrap();
        let got = next(&queue, Lane::Scheduled).await;
        queue.settle(got, Settlement::Ack, vec![event(None)]).await.unwrap();
        queue.close().await;
    }
    // The command that declares is asked for all of it.
    let why = queue::admin(&rabbit.config, "test").apply_topology().await.unwrap_err().to_string();
    assert!(why.contains(&rabbit.name("control")), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_absent_broker_is_awaited_and_reported_by_ready() {
    let rabbit = Rabbit::new("absent").await;
    let nobody = config("amqp://guest:s3cr3t-marker@127.0.0.1:9/%2f", &rabbit.config.prefix);
    let queue = Rabbit::start_as(&nobody);
    let why = queue.wait_connected(Duration::from_secs(1)).await.unwrap_err().to_string();
    assert!(why.contains("refused") && !why.contains("s3cr3t"), "{why}");
    assert!(queue.ready().is_err());
    queue.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outcome_without_a_subscriber_is_retained_and_a_reply_is_sent() {
    let rabbit = Rabbit::new("unrouted").await;
    let (seen, from) = (rabbit.name("seen"), rabbit.name("outcomes"));
    rabbit.channel.queue_unbind(seen.into(), from.into(), "transfer.#".into(), FieldTable::default()).await.unwrap();
    let answers = rabbit.name("reply.answers");
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    rabbit.channel.queue_declare(answers.as_str().into(), durable, FieldTable::default()).await.unwrap();
    let queue = rabbit.start();
    queue.publish(job("job.scheduled.acme")).await.unwrap();
    let got = next(&queue, Lane::Scheduled).await;
    let events = vec![event(Some(&answers)), event(Some("nobody-listens-here"))];
    queue.settle(got, Settlement::Ack, events).await.unwrap();
    rabbit.take(&rabbit.name("outcomes.unrouted")).await;
    let reply = rabbit.take(&answers).await;
    assert_eq!(reply.properties.correlation_id().as_ref().map(ToString::to_string).as_deref(), Some("c-1"));
    queue.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn direct_reply_to_works_from_a_connection_of_its_own() {
    let rabbit = Rabbit::new("direct").await;
    let queue = rabbit.start();
    queue.wait_connected(LIMIT).await.unwrap();
    let no_ack = lapin::options::BasicConsumeOptions { no_ack: true, ..Default::default() };
    let direct = "amq.rabbitmq.reply-to";
    let mut replies =
        rabbit.channel.basic_consume(direct.into(), "".into(), no_ack, FieldTable::default()).await.unwrap();
    let properties = BasicProperties::default().with_reply_to(direct.into()).with_correlation_id("c-9".into());
    let (exchange, key) = (rabbit.config.prefix.as_str().into(), "job.scheduled.acme".into());
    rabbit.channel.basic_publish(exchange, key, BasicPublishOptions::default(), b"{}", properties).await.unwrap();
    let got = next(&queue, Lane::Scheduled).await;
    let reply_to = got.properties.reply_to.clone().map(|to| (to, got.properties.correlation_id.clone()));
    let event = OutcomeEvent { reply_to, ..event(None) };
    queue.settle(got, Settlement::Ack, vec![event]).await.unwrap();
    let reply = tokio::time::timeout(LIMIT, futures_util::StreamExt::next(&mut replies)).await.unwrap().unwrap();
    let reply = reply.unwrap();
    assert_eq!(reply.properties.correlation_id().as_ref().map(ToString::to_string).as_deref(), Some("c-9"));
    queue.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn binary_headers_survive_a_delay_and_the_brokers_headers_do_not() {
    let rabbit = Rabbit::new("binary").await;
    let queue = rabbit.start();
    queue.wait_connected(LIMIT).await.unwrap();
    let mut headers = FieldTable::default();
    headers.insert("raw".into(), AMQPValue::LongString(vec![0xff, 0x00].into()));
    headers.insert("CC".into(), AMQPValue::FieldArray(vec![AMQPValue::LongString("job.backfill.x".into())].into()));
    let properties = BasicProperties::default().with_headers(headers).with_expiration("60000".into());
    let (exchange, key) = (rabbit.config.prefix.as_str().into(), "job.scheduled.acme".into());
    rabbit.channel.basic_publish(exchange, key, BasicPublishOptions::default(), b"{}", properties).await.unwrap();
    let got = next(&queue, Lane::Scheduled).await;
    let retry = Settlement::Retry { delay: RetryDelay::S5, headers: BTreeMap::new() };
    queue.settle(got, retry, vec![]).await.unwrap();
    let got = next(&queue, Lane::Scheduled).await;
    let dead = Settlement::DeadLetter { headers: BTreeMap::new() };
    queue.settle(got, dead, vec![]).await.unwrap();
    let letter = rabbit.take(&rabbit.name("dead")).await;
    let kept = letter.properties.headers().as_ref().unwrap().inner();
    assert_eq!(kept["raw"], AMQPValue::LongString(vec![0xff, 0x00].into()));
    // The count is the dead-letter queue's own.
    let names: Vec<_> = kept.keys().map(ToString::to_string).filter(|name| name != "x-delivery-count").collect();
    assert_eq!(names, ["consign-publisher", "raw", "x-original-routing-key"]);
    assert!(letter.properties.expiration().is_none());
    queue.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gauges_return_to_zero() {
    let rabbit = Rabbit::new("gauges").await;
    let metrics = Arc::new(Metrics::new(10));
    let queue =
        RabbitMqQueue::start(&rabbit.config, "worker", vec![(Lane::Scheduled, 5)], Arc::clone(&metrics)).unwrap();
    queue.publish(job("job.scheduled.acme")).await.unwrap();
    assert!(metrics.render().1.contains("consign_broker_connected 1"));
    let got = next(&queue, Lane::Scheduled).await;
    queue.settle(got, Settlement::Ack, vec![event(None)]).await.unwrap();
    queue.close().await;
    let (_, text) = metrics.render();
    for line in ["consign_broker_connected 0", "consign_broker_unconfirmed 0", "settlements_total{action=\"ack\"} 1"] {
        assert!(text.contains(line), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn outcomes_can_be_subscribed_to() {
    let rabbit = Rabbit::new("listen").await;
    let mut outcomes = queue::admin(&rabbit.config, "enqueue").subscribe().await.unwrap();
    let queue = rabbit.start();
    queue.publish(job("job.scheduled.acme")).await.unwrap();
    let got = next(&queue, Lane::Scheduled).await;
    queue.settle(got, Settlement::Ack, vec![event(None)]).await.unwrap();
    let seen = tokio::time::timeout(LIMIT, outcomes.next()).await.unwrap().unwrap();
    assert_eq!(seen.routing_key, "transfer.delivered.acme");
    outcomes.close().await;
    queue.close().await;
}

async fn next(queue: &Arc<RabbitMqQueue>, lane: Lane) -> Delivery {
    tokio::time::timeout(LIMIT, queue.next(lane)).await.expect("nothing came").expect("the queue was stopped")
}

fn config(url: &str, prefix: &str) -> BrokerConfig {
    BrokerConfig {
        url: Some(url.to_owned().into()),
        url_file: None,
        prefix: prefix.to_owned(),
        declare: false,
        lease_after: Duration::from_secs(600),
        ca_file: None,
        client_cert_file: None,
        client_key_file: None,
        allow_plaintext: false,
        reply_to: vec!["amq.rabbitmq.reply-to.*".to_owned(), format!("{prefix}.reply.*")],
        without_file: false,
    }
}

fn job(routing_key: &str) -> Publication {
    Publication {
        routing_key: routing_key.to_owned(),
        body: Bytes::from_static(b"{}"),
        properties: Properties::default(),
    }
}

fn event(reply_to: Option<&str>) -> OutcomeEvent {
    OutcomeEvent {
        routing_key: "transfer.delivered.acme".to_owned(),
        id: "e-1".to_owned(),
        body: Bytes::from_static(b"{\"type\": \"delivered\"}"),
        reply_to: reply_to.map(|queue| (queue.to_owned(), Some("c-1".to_owned()))),
    }
}

fn texts(properties: &BasicProperties) -> BTreeMap<String, String> {
    let table = properties.headers().clone().unwrap_or_default();
    let text = |value: &AMQPValue| value.as_long_string().map(ToString::to_string);
    table.into_iter().filter_map(|(name, value)| Some((name.to_string(), text(value)?))).collect()
}
