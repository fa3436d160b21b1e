//! Consumer of the outcomes during the faults: they are taken off a queue of the soak's own and
//! acknowledged.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::Duration;

use futures_util::StreamExt as _;
use jiff::Timestamp;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Connection, ConnectionProperties};
use serde_json::Value;
use tokio::sync::watch;

use crate::testbed::broker::Broker;
use crate::testbed::embedded::File;

const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(300);

/// One outcome as it was published.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reported {
    pub job: String,
    /// `delivered`, `failed`, ...
    pub outcome: String,
    pub reason: String,
    /// The event's id.
    pub id: String,
    pub started: Option<Timestamp>,
    pub finished: Option<Timestamp>,
    pub resumed: bool,
}

impl Reported {
    pub fn read(event: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let time = |name: &str| event["data"][name].as_str().and_then(|time| time.parse().ok());
        Self {
            job: text(&event["subject"]),
            outcome: text(&event["type"]).split('.').nth(2).unwrap_or_default().to_owned(),
            reason: text(&event["data"]["reason"]),
            id: text(&event["id"]),
            started: time("started_at"),
            finished: time("finished_at"),
            resumed: event["data"]["resumed"] == true,
        }
    }

    /// The word, and why where it failed: one that expired also says what was wrong last, and that
    /// is chance.
    pub fn end(&self) -> (&str, &str) {
        (&self.outcome, if self.outcome == "failed" { &self.reason } else { "" })
    }

    pub fn is_end(&self) -> bool {
        self.outcome != "retrying"
    }
}

#[derive(Debug, Default)]
pub struct Inbox {
    reported: Mutex<Vec<Reported>>,
    open: watch::Sender<bool>,
}

impl Inbox {
    /// Listens for ever, over the ends of connections.
    pub async fn listen(&self, broker: &Broker) {
        loop {
            match &broker.file {
                Some(file) => self.read(file),
                None => drop(self.listen_once(&broker.url, &broker.prefix).await),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// In a file everything stays where it is.
    fn read(&self, file: &File) {
        let reported = file.outcomes().iter().map(|outcome| Reported::read(&outcome.json())).collect();
        *self.reported.lock().unwrap() = reported;
        self.open.send_replace(true);
    }

    async fn listen_once(&self, url: &str, prefix: &str) -> Option<()> {
        let queue = format!("{prefix}.test.inbox");
        let opening = async {
            let connection = Connection::connect(url, ConnectionProperties::default()).await.ok()?;
            let channel = connection.create_channel().await.ok()?;
            let mut quorum = FieldTable::default();
            quorum.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
            channel.queue_declare(queue.as_str().into(), QueueDeclareOptions::durable(), quorum).await.ok()?;
            let (exchange, options) = (format!("{prefix}.outcomes"), QueueBindOptions::default());
            let bound = channel.queue_bind(
                queue.as_str().into(),
                exchange.as_str().into(),
                "transfer.#".into(),
                options,
                FieldTable::default(),
            );
            bound.await.ok()?;
            channel.basic_qos(100, BasicQosOptions::default()).await.ok()?;
            let options = BasicConsumeOptions::default();
            let consumer = channel.basic_consume(queue.as_str().into(), "inbox".into(), options, FieldTable::default());
            Some((connection, consumer.await.ok()?))
        };
        let (_connection, mut consumer) = tokio::time::timeout(PATIENCE, opening).await.ok()??;
        self.open.send_replace(true);
        while let Some(delivery) = consumer.next().await {
            let delivery = delivery.ok()?;
            let reported = Reported::read(&serde_json::from_slice(&delivery.data).ok()?);
            self.reported.lock().unwrap().push(reported);
            delivery.acker.ack(BasicAckOptions::default()).await.ok()?;
        }
        None
    }

    /// Waits until the queue is there: what is published before that is not received.
    pub async fn opened(&self) {
        self.open.subscribe().wait_for(|open| *open).await.unwrap();
    }

    pub fn reported(&self) -> Vec<Reported> {
        self.reported.lock().unwrap().clone()
    }

    /// The jobs that have ended, one way or another.
    pub fn ended(&self) -> BTreeSet<String> {
        self.reported
            .lock()
            .unwrap()
            .iter()
            .filter(|reported| reported.is_end())
            .map(|reported| reported.job.clone())
            .collect()
    }
}
