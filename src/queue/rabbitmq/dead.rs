//! Looking through the dead letters on RabbitMQ.
//!
//! A quorum queue can't be peeked. So each letter is fetched with `basic.get` and held, unacknowledged, until the pass ends; then all
//! of them go back at once. Not with a consumer: it would have to hold everything that matches nothing, so it can have no prefetch
//! limit, and then the client would buffer every body of the queue. A get costs a round trip and holds one body at a time.
//!
//! What follows from that: `x-delivery-count` of each letter rises by one a pass (the queue's limit is a million), and two passes at
//! once would each see a part. An exclusive queue of a fixed name keeps them apart; the broker deletes it with its connection,
//! however that ends. The broker takes a channel for dead that holds a message for 30 minutes, so a long pass gives everything back
//! before that and goes on with what it has not handed out yet.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use lapin::options::{BasicGetOptions, BasicNackOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Acker, BasicProperties, Channel, Connection, ErrorKind};
use tokio::time::Instant;

use super::connection::{self, Endpoint, call};
use super::consumer::visible;
use super::declare::short;
use super::depths::depth;
use super::publish::{Message, Publisher};
use super::session::Health;
use super::topology::Names;
use super::{acknowledge, settle};
use crate::config::BrokerConfig;
use crate::metrics::Metrics;
use crate::queue::dead::names;
use crate::queue::{DeadLetter, LetterId, QueueError};
use crate::runtime::failpoints;

/// How long letters are held before they are given back and fetched anew. Far below the broker's 30 minutes: the caller may take his
/// time between two letters.
const HELD: Duration = Duration::from_mins(10);
/// How long giving back may take to show.
const RETURNED: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(20);
/// The broker's word for a queue that another connection has for itself.
const RESOURCE_LOCKED: u16 = 405;

/// As [`crate::queue::DeadLetters`].
pub struct DeadLetters {
    endpoint: Endpoint,
    names: Names,
    connection: Connection,
    /// Holds the lock.
    _alone: Channel,
    channel: Channel,
    publisher: Option<Publisher>,
    count: u64,
    removed: u64,
    /// Since the channel was opened.
    since: Instant,
    fetched: u64,
    /// Removed since the channel was opened.
    gone: u64,
    current: Option<Current>,
    /// Letters that were handed out and stay.
    passed: HashMap<LetterId, u32>,
    /// Those of them that come again after a renewal.
    again: HashMap<LetterId, u32>,
    held: Duration,
}

struct Current {
    letter: DeadLetter,
    properties: BasicProperties,
    acker: Acker,
}

impl DeadLetters {
    /// Connects and counts.
    pub(in crate::queue) async fn open(config: &BrokerConfig, name: &str) -> Result<Self, QueueError> {
        Self::open_for(HELD, config, name).await
    }

    /// As a pass whose letters are held for so long: for tests.
    #[doc(hidden)]
    pub async fn open_for(held: Duration, config: &BrokerConfig, name: &str) -> Result<Self, QueueError> {
        let endpoint = Endpoint::parse(config, name)?;
        let names = Names::new(&config.prefix);
        let connection = endpoint.connect("dead letters").await?;
        let alone = connection::open_channel(&connection).await?;
        let busy = "another `consign dead` is at work on these dead letters; wait for it, or end it";
        lock(&alone, &names.dead_lock(), busy).await?;
        let channel = connection::open_channel(&connection).await?;
        let count = depth(&channel, &names.dead()).await?;
        Ok(Self {
            endpoint,
            names,
            connection,
            _alone: alone,
            channel,
            publisher: None,
            count,
            removed: 0,
            since: Instant::now(),
            fetched: 0,
            gone: 0,
            current: None,
            passed: HashMap::new(),
            again: HashMap::new(),
            held,
        })
    }

    /// How many letters there were at the beginning.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The next letter. What came after the beginning is behind it in the queue, and is left alone.
    pub async fn next(&mut self) -> Result<Option<DeadLetter>, QueueError> {
        self.keep();
        loop {
            if self.since.elapsed() >= self.held {
                self.renew().await?;
            }
            if self.fetched >= self.count - self.removed + self.gone {
                return Ok(None);
            }
            let got = self.channel.basic_get(short(&self.names.dead())?, BasicGetOptions { no_ack: false });
            let got = call("fetching a dead letter", got).await;
            let got = got.map_err(connection::takes(format!("read on the queue `{}`", self.names.dead())))?;
            let Some(message) = got else { return Ok(None) };
            self.fetched += 1;
            let lapin::message::Delivery { routing_key, properties, data, acker, .. } = message.delivery;
            let letter = read(routing_key.as_str(), &properties, data);
            if self.was_handed_out(letter.id()) {
                continue;
            }
            self.current = Some(Current { letter: letter.clone(), properties, acker });
            return Ok(Some(letter));
        }
    }

    fn was_handed_out(&mut self, id: &LetterId) -> bool {
        match self.again.get_mut(id) {
            Some(left) if *left > 0 => {
                *left -= 1;
                true
            }
            _ => false,
        }
    }

    /// The letter that was handed out last stays.
    fn keep(&mut self) {
        if let Some(current) = self.current.take() {
            *self.passed.entry(current.letter.id().clone()).or_default() += 1;
        }
    }

    /// Publishes a copy to the job's lane, then removes the letter.
    pub async fn requeue(&mut self) -> Result<(), QueueError> {
        let current = self.current.as_ref().ok_or(QueueError::Lost)?;
        let message = settle::requeued(&self.names, &current.letter, &current.properties)?;
        self.publish(&message).await?;
        failpoints::hit("requeued");
        self.discard().await
    }

    /// Removes the letter.
    pub async fn discard(&mut self) -> Result<(), QueueError> {
        let current = self.current.take().ok_or(QueueError::Lost)?;
        acknowledge(&current.acker, true).await?;
        self.removed += 1;
        self.gone += 1;
        Ok(())
    }

    /// Publishes a letter to the dead letters.
    pub async fn put(&mut self, letter: &DeadLetter) -> Result<(), QueueError> {
        let message = settle::put_back(&self.names, letter)?;
        self.publish(&message).await?;
        failpoints::hit("put_back");
        Ok(())
    }

    /// On a connection of its own: one that the broker blocks would not take acknowledgements either.
    async fn publish(&mut self, message: &Message) -> Result<(), QueueError> {
        let publisher = if let Some(publisher) = &self.publisher {
            publisher
        } else {
            let connection = self.endpoint.connect("requeue").await?;
            let (health, metrics) = (Arc::new(Health::default()), Arc::new(Metrics::new(1)));
            self.publisher.insert(Publisher::new(connection, health, metrics))
        };
        publisher.publish(message).await
    }

    /// Gives everything back and goes on with a new channel.
    async fn renew(&mut self) -> Result<(), QueueError> {
        self.give_back().await;
        self.channel = connection::open_channel(&self.connection).await?;
        (self.since, self.fetched, self.gone) = (Instant::now(), 0, 0);
        self.again.clone_from(&self.passed);
        Ok(())
    }

    /// Returns when the queue has everything again: another look at it must not find half of it.
    async fn give_back(&mut self) {
        self.keep();
        let held = self.fetched - self.gone;
        let all = BasicNackOptions { multiple: true, requeue: true };
        if held == 0 || self.channel.basic_nack(0, all).await.is_err() {
            return;
        }
        let end = Instant::now() + RETURNED;
        while Instant::now() < end {
            match depth(&self.channel, &self.names.dead()).await {
                Ok(depth) if depth < held => tokio::time::sleep(PAUSE).await,
                _ => break,
            }
        }
    }

    /// Gives everything back and disconnects.
    pub async fn close(mut self) {
        self.give_back().await;
        if let Some(publisher) = &self.publisher {
            connection::close(publisher.connection()).await;
        }
        connection::close(&self.connection).await;
    }
}

/// One at a time has this queue, until its connection ends. The others are `Busy`, and their channel is closed.
pub(super) async fn lock(channel: &Channel, queue: &str, busy: &str) -> Result<(), QueueError> {
    let own = QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
    let declared = channel.queue_declare(short(queue)?, own, FieldTable::default());
    call(&format!("reserving {queue}"), async {
        match declared.await {
            Ok(_) => Ok(Ok(())),
            Err(error) if is_locked(&error) => Ok(Err(QueueError::Busy(busy.to_owned()))),
            Err(error) => Err(error),
        }
    })
    .await
    .map_err(connection::takes(format!("configure on `{queue}`")))?
}

fn is_locked(error: &lapin::Error) -> bool {
    matches!(error.kind(), ErrorKind::ProtocolError(refusal) if refusal.get_id() == RESOURCE_LOCKED)
}

fn read(routing_key: &str, properties: &BasicProperties, body: Vec<u8>) -> DeadLetter {
    let mut shown = visible(properties);
    let death = properties.headers().as_ref().and_then(Death::of);
    if let Some(death) = death.as_ref().filter(|_| !shown.headers.contains_key(names::REASON)) {
        shown.headers.extend(death.headers());
    }
    let key = settle::letter_key(routing_key, properties.headers().as_ref());
    DeadLetter::new(key, Bytes::from(body), shown, death.and_then(|death| death.at))
}

/// What the broker says of a message that it gave up itself.
struct Death {
    reason: String,
    queue: String,
    at: Option<Timestamp>,
}

impl Death {
    /// The newest entry of `x-death` is the first.
    fn of(headers: &FieldTable) -> Option<Self> {
        let Some(AMQPValue::FieldArray(entries)) = headers.inner().get("x-death") else { return None };
        let Some(AMQPValue::FieldTable(entry)) = entries.as_slice().first() else { return None };
        let text = |name: &str| entry.inner().get(name).and_then(super::consumer::as_text).unwrap_or_default();
        let at = match entry.inner().get(&ShortString::from("time")) {
            Some(AMQPValue::Timestamp(seconds)) => i64::try_from(*seconds).ok(),
            _ => None,
        };
        let at = at.and_then(|seconds| Timestamp::from_second(seconds).ok());
        Some(Self { reason: text("reason"), queue: text("queue"), at })
    }

    /// As a worker would have written it.
    fn headers(&self) -> impl Iterator<Item = (String, String)> {
        let often = if self.reason == "delivery_limit" { "came back too often without an end, and " } else { "" };
        let message = format!("it {often}was given up by the broker in {} ({})", self.queue, self.reason);
        let at = self.at.map(|at| (names::LAST_FAILURE.to_owned(), at.to_string()));
        let reason = (names::REASON.to_owned(), self.reason.clone());
        [reason, (names::CLASS.to_owned(), "broker".to_owned()), (names::MESSAGE.to_owned(), message)]
            .into_iter()
            .chain(at)
    }
}

#[cfg(test)]
mod tests {
    use lapin::types::FieldArray;

    use super::*;

    #[test]
    fn what_the_broker_gave_up_has_its_reason_and_time() {
        let mut entry = FieldTable::default();
        entry.insert("reason".into(), AMQPValue::LongString("delivery_limit".into()));
        entry.insert("queue".into(), AMQPValue::LongString("consign.jobs.scheduled".into()));
        entry.insert("time".into(), AMQPValue::Timestamp(1_800_000_000));
        let mut headers = FieldTable::default();
        headers.insert("x-death".into(), AMQPValue::FieldArray(FieldArray::from(vec![AMQPValue::FieldTable(entry)])));
        let properties = BasicProperties::default().with_headers(headers.clone());
        let letter = read("job.scheduled.acme", &properties, b"{}".to_vec());
        assert_eq!((letter.reason(), letter.class()), ("delivery_limit", "broker"));
        assert!(letter.message().contains("consign.jobs.scheduled"), "{}", letter.message());
        assert_eq!(letter.died_at(), Timestamp::from_second(1_800_000_000).ok());

        headers.insert("x-error-reason".into(), AMQPValue::LongString("source_not_found".into()));
        let letter = read("job.scheduled.acme", &BasicProperties::default().with_headers(headers), vec![]);
        assert_eq!((letter.reason(), letter.class()), ("source_not_found", ""), "the worker's word is the last one");
    }
}
