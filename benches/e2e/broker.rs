//! The producer's and the platform's side of the queue: jobs in, outcomes out.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use futures_util::StreamExt;
use jiff::Timestamp;
use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeleteOptions, QueueBindOptions,
    QueueDeclareOptions, QueueDeleteOptions, QueuePurgeOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, Consumer, PublisherConfirm};
use serde::Deserialize;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use crate::Fallible;

/// Longest time without an outcome before the bench fails.
const SILENCE: Duration = Duration::from_mins(1);
/// Channels that publish at once, and confirms outstanding on each.
const CHANNELS: usize = 4;
const OUTSTANDING: usize = 64;
/// The same where jobs are published on time: only to bound what is remembered.
const MOST_OUTSTANDING: usize = 4096;

/// One message to publish.
pub struct Message {
    pub id: String,
    /// `<lane>.<destination>`.
    pub to: String,
    pub body: Vec<u8>,
}

/// Two connections, as in production: a blocked producer must not stop the reading of outcomes.
pub struct Broker {
    publisher: Connection,
    reader: Connection,
    prefix: String,
}

/// As much of an outcome as the bench looks at.
#[derive(Deserialize)]
pub struct Outcome {
    pub r#type: String,
    pub subject: String,
    pub data: Event,
}

/// Begin and end of the attempt, by the worker's clock.
#[derive(Deserialize)]
pub struct Event {
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
}

impl Outcome {
    pub fn is_delivered(&self) -> bool {
        self.r#type == "consign.transfer.delivered.v1"
    }
}

impl Broker {
    pub async fn connect(url: &str, prefix: &str) -> Fallible<Self> {
        let connect = || Connection::connect(url, ConnectionProperties::default());
        Ok(Self { publisher: connect().await?, reader: connect().await?, prefix: prefix.to_owned() })
    }

    /// Binds the bench's own queue to the outcomes and reads it. The worker must have declared the
    /// topology.
    pub async fn outcomes(&self) -> Fallible<Consumer> {
        let channel = self.reader.create_channel().await?;
        let queue = format!("{}.bench", self.prefix);
        let mut quorum = FieldTable::default();
        quorum.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        channel.queue_declare(queue.as_str().into(), QueueDeclareOptions::durable(), quorum).await?;
        let exchange = format!("{}.outcomes", self.prefix);
        let bind = QueueBindOptions::default();
        let (name, exchange) = (queue.as_str().into(), exchange.as_str().into());
        channel.queue_bind(name, exchange, "transfer.#".into(), bind, FieldTable::default()).await?;
        channel.queue_purge(queue.as_str().into(), QueuePurgeOptions::default()).await?;
        let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        Ok(channel.basic_consume(queue.as_str().into(), "".into(), options, FieldTable::default()).await?)
    }

    /// Publishes all messages; returns when the broker has confirmed every one.
    pub async fn publish(&self, messages: impl IntoIterator<Item = Message>) -> Fallible<()> {
        let mut lots: Vec<Vec<Message>> = (0..CHANNELS).map(|_| Vec::new()).collect();
        for (index, message) in messages.into_iter().enumerate() {
            lots[index % CHANNELS].push(message);
        }
        let mut running = JoinSet::new();
        for lot in lots.into_iter().filter(|lot| !lot.is_empty()) {
            running.spawn(publish_lot(self.confirming().await?, self.prefix.clone(), lot));
        }
        while let Some(published) = running.join_next().await {
            published??;
        }
        Ok(())
    }

    /// Publishes each message when it is due, whether or not those before it are done.
    pub async fn publish_on_time(&self, messages: impl IntoIterator<Item = (Instant, Message)>) -> Fallible<()> {
        let channel = self.confirming().await?;
        let mut outstanding: VecDeque<PublisherConfirm> = VecDeque::new();
        for (due, message) in messages {
            sleep_until(due).await;
            if outstanding.len() == MOST_OUTSTANDING {
                confirmed(outstanding.pop_front()).await?;
            }
            outstanding.push_back(publish_one(&channel, &self.prefix, &message).await?);
        }
        while !outstanding.is_empty() {
            confirmed(outstanding.pop_front()).await?;
        }
        Ok(())
    }

    /// Publishes control messages; returns when the broker has confirmed every one.
    pub async fn publish_control(&self, bodies: impl IntoIterator<Item = Vec<u8>>) -> Fallible<()> {
        let channel = self.confirming().await?;
        let (stream, options) = (format!("{}.control", self.prefix), BasicPublishOptions::default());
        let mut outstanding: VecDeque<PublisherConfirm> = VecDeque::new();
        for body in bodies {
            if outstanding.len() == MOST_OUTSTANDING {
                confirmed(outstanding.pop_front()).await?;
            }
            let properties = BasicProperties::default().with_delivery_mode(2);
            let published = channel.basic_publish("".into(), stream.as_str().into(), options, &body, properties);
            outstanding.push_back(published.await?);
        }
        while !outstanding.is_empty() {
            confirmed(outstanding.pop_front()).await?;
        }
        Ok(())
    }

    async fn confirming(&self) -> Fallible<Channel> {
        let channel = self.publisher.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(channel)
    }

    /// Number of ready messages in a queue of this prefix.
    pub async fn depth(&self, queue: &str) -> Fallible<u32> {
        let channel = self.reader.create_channel().await?;
        let (name, passive) = (format!("{}.{queue}", self.prefix), QueueDeclareOptions::default().passive());
        let queue = channel.queue_declare(name.as_str().into(), passive, FieldTable::default()).await?;
        Ok(queue.message_count())
    }

    /// Deletes what a worker with this prefix declares, as far as its names are known beforehand.
    pub async fn delete_topology(&self) -> Fallible<()> {
        let channel = self.reader.create_channel().await?;
        let waits = ["5s", "30s", "2m", "10m", "30m", "2h", "12h"].map(|rung| format!(".wait.{rung}"));
        let names = "bench jobs.scheduled jobs.backfill jobs.continued wait lease owners orphans dlx dead outcomes \
                     outcomes.unrouted control";
        let names = names.split_whitespace().map(|name| format!(".{name}")).chain(waits).chain([String::new()]);
        for name in names.map(|name| format!("{}{name}", self.prefix)) {
            channel.queue_delete(name.as_str().into(), QueueDeleteOptions::default()).await?;
            channel.exchange_delete(name.as_str().into(), ExchangeDeleteOptions::default()).await?;
        }
        Ok(())
    }
}

async fn publish_lot(channel: Channel, prefix: String, lot: Vec<Message>) -> Fallible<()> {
    let mut outstanding: VecDeque<PublisherConfirm> = VecDeque::with_capacity(OUTSTANDING);
    for message in lot {
        if outstanding.len() == OUTSTANDING {
            confirmed(outstanding.pop_front()).await?;
        }
        outstanding.push_back(publish_one(&channel, &prefix, &message).await?);
    }
    while !outstanding.is_empty() {
        confirmed(outstanding.pop_front()).await?;
    }
    Ok(())
}

async fn publish_one(channel: &Channel, exchange: &str, message: &Message) -> Fallible<PublisherConfirm> {
    let properties = BasicProperties::default()
        .with_content_type("application/json".into())
        .with_delivery_mode(2)
        .with_message_id(message.id.as_str().into());
    let (key, options) = (format!("job.{}", message.to), BasicPublishOptions::default());
    Ok(channel.basic_publish(exchange.into(), key.as_str().into(), options, &message.body, properties).await?)
}

async fn confirmed(confirm: Option<PublisherConfirm>) -> Fallible<()> {
    let Some(confirm) = confirm else { return Ok(()) };
    match confirm.await? {
        Confirmation::Ack(None) => Ok(()),
        _ => Err("the broker did not take a job".into()),
    }
}

/// Reads until `expected` jobs have been delivered; anything else than a delivery ends the bench
/// with its text.
pub async fn await_delivered(outcomes: &mut Consumer, expected: u64) -> Fallible<()> {
    let mut delivered = HashSet::new();
    while (delivered.len() as u64) < expected {
        let next = timeout(SILENCE, outcomes.next()).await;
        let silent = || format!("{} of {expected} outcomes, then none for {SILENCE:?}", delivered.len());
        let message = next.map_err(|_| silent())?.ok_or("the broker ended the reading of outcomes")??;
        let outcome: Outcome = serde_json::from_slice(&message.data)?;
        if !outcome.is_delivered() {
            return Err(format!("not delivered: {}", String::from_utf8_lossy(&message.data)).into());
        }
        delivered.insert(outcome.subject);
    }
    Ok(())
}
