//! Pass over the dead letters on RabbitMQ.
//!
//! A quorum queue can't be peeked. So each letter is fetched with `basic.get` and held,
//! unacknowledged, until the pass ends; then all of them are requeued at once. A consumer would
//! have to hold every letter that does not match, so it could have no prefetch limit, and the
//! client would buffer every body of the queue. A get costs a round trip and holds one body at a
//! time.
//!
//! Consequences: `x-delivery-count` of each letter rises by one per pass (the queue's limit is a
//! million), and two passes at once would each see a part. An exclusive queue of a fixed name is
//! the lock; the broker deletes it with its connection, however that ends. The broker closes a
//! channel that holds a message for 30 minutes, so a long pass requeues everything before that and
//! continues with the letters that it has not returned yet.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use lapin::options::{BasicGetOptions, BasicNackOptions};
use lapin::{Acker, BasicProperties, Channel, Connection};
use tokio::time::Instant;

use super::channel::{acknowledge, depth, lock};
use super::connection::{self, Endpoint, call};
use super::copies;
use super::death;
use super::errors;
use super::fields::short;
use super::health::SessionHealth;
use super::messages;
use super::names::Names;
use super::origin;
use super::publisher::{OutgoingMessage, Publisher};
use crate::config::BrokerConfig;
use crate::metrics::Metrics;
use crate::queue::{DeadLetter, DeadLetters, LetterId, QueueError};
use crate::runtime::failpoints;

/// Time for which letters are held before they are requeued and fetched again. Far below the
/// broker's 30 minutes: the caller may pause between two letters.
const HOLD_TIME: Duration = Duration::from_mins(10);
/// Limit for requeued letters to be counted again.
const REQUEUE_TIMEOUT: Duration = Duration::from_secs(5);
/// Interval of that check.
const REQUEUE_POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Pass over the dead letters, see [`crate::queue::DeadLetters`].
pub struct RabbitMqDeadLetters {
    endpoint: Endpoint,
    names: Names,
    connection: Connection,
    /// Channel of the lock.
    _lock: Channel,
    channel: Channel,
    publisher: Option<Publisher>,
    count: u64,
    removed: u64,
    /// Time at which the channel was opened.
    opened_at: Instant,
    /// Letters fetched by this channel.
    fetched: u64,
    /// Letters removed by this channel.
    removed_here: u64,
    current: Option<CurrentLetter>,
    /// Letters that were returned to the caller and kept.
    kept: HashMap<LetterId, u32>,
    /// Those of them that this channel will fetch again.
    repeated: HashMap<LetterId, u32>,
    hold_time: Duration,
}

struct CurrentLetter {
    letter: DeadLetter,
    properties: BasicProperties,
    acker: Acker,
}

impl RabbitMqDeadLetters {
    /// Connects, takes the lock, and counts.
    pub(super) async fn open(config: &BrokerConfig, name: &str) -> Result<Self, QueueError> {
        Self::open_for(HOLD_TIME, config, name).await
    }

    /// Opens a pass with another hold time: for tests.
    #[doc(hidden)]
    pub async fn open_for(hold_time: Duration, config: &BrokerConfig, name: &str) -> Result<Self, QueueError> {
        let endpoint = Endpoint::parse(config, name)?;
        let names = Names::new(&config.prefix);
        let connection = endpoint.connect("dead letters").await?;
        let lock_channel = connection::open_channel(&connection).await?;
        let busy = "another `consign dead` is working on these dead letters; wait for it, or end it";
        lock(&lock_channel, &names.dead_lock(), busy).await?;
        let channel = connection::open_channel(&connection).await?;
        let count = depth(&channel, &names.dead()).await?;
        Ok(Self {
            endpoint,
            names,
            connection,
            _lock: lock_channel,
            channel,
            publisher: None,
            count,
            removed: 0,
            opened_at: Instant::now(),
            fetched: 0,
            removed_here: 0,
            current: None,
            kept: HashMap::new(),
            repeated: HashMap::new(),
            hold_time,
        })
    }

    fn was_returned(&mut self, id: &LetterId) -> bool {
        self.repeated.get_mut(id).filter(|left| **left > 0).map(|left| *left -= 1).is_some()
    }

    /// Keeps the letter that was returned last.
    fn keep(&mut self) {
        if let Some(current) = self.current.take() {
            *self.kept.entry(current.letter.id().clone()).or_default() += 1;
        }
    }

    /// Publishes what `copy` builds; once more if the broker names another login, on which the copy
    /// depends.
    async fn publish(&mut self, copy: impl Fn(&Self) -> Result<OutgoingMessage, QueueError>) -> Result<(), QueueError> {
        let user = self.endpoint.login.user();
        let published = self.publish_as_known(&copy(self)?).await;
        if published.is_ok() || self.endpoint.login.user() == user {
            return published;
        }
        // The broker has named the login. Its refusal has ended the connection.
        self.publisher = None;
        self.publish_as_known(&copy(self)?).await
    }

    /// Uses a connection of its own: the broker would not read acknowledgements from a blocked one.
    async fn publish_as_known(&mut self, message: &OutgoingMessage) -> Result<(), QueueError> {
        let publisher = if let Some(publisher) = &self.publisher {
            publisher
        } else {
            let connection = self.endpoint.connect("requeue").await?;
            let (health, metrics) = (Arc::new(SessionHealth::default()), Arc::new(Metrics::new(1)));
            self.publisher.insert(Publisher::new(connection, &self.endpoint.login, health, metrics))
        };
        publisher.publish(message).await
    }

    /// Requeues everything and continues with a new channel.
    async fn reopen(&mut self) -> Result<(), QueueError> {
        self.requeue_all().await;
        self.channel = connection::open_channel(&self.connection).await?;
        (self.opened_at, self.fetched, self.removed_here) = (Instant::now(), 0, 0);
        self.repeated.clone_from(&self.kept);
        Ok(())
    }

    /// Requeues everything. Returns when the queue counts it again: the next pass must not find a
    /// part.
    async fn requeue_all(&mut self) {
        self.keep();
        let held = self.fetched - self.removed_here;
        let all = BasicNackOptions { multiple: true, requeue: true };
        if held == 0 || call("requeueing dead letters", self.channel.basic_nack(0, all)).await.is_err() {
            return;
        }
        let end = Instant::now() + REQUEUE_TIMEOUT;
        while Instant::now() < end {
            match depth(&self.channel, &self.names.dead()).await {
                Ok(depth) if depth < held => tokio::time::sleep(REQUEUE_POLL_INTERVAL).await,
                _ => break,
            }
        }
    }
}

#[async_trait]
impl DeadLetters for RabbitMqDeadLetters {
    fn count(&self) -> u64 {
        self.count
    }

    // Later letters are behind those of the pass in the queue, and are not returned.
    async fn next(&mut self) -> Result<Option<DeadLetter>, QueueError> {
        self.keep();
        loop {
            if self.opened_at.elapsed() >= self.hold_time {
                self.reopen().await?;
            }
            if self.fetched >= self.count - self.removed + self.removed_here {
                return Ok(None);
            }
            let got = self.channel.basic_get(short(&self.names.dead())?, BasicGetOptions { no_ack: false });
            let got = call("fetching a dead letter", got).await;
            let got = got.map_err(errors::requires(format!("read on the queue `{}`", self.names.dead())))?;
            let Some(message) = got else { return Ok(None) };
            self.fetched += 1;
            let lapin::message::Delivery { routing_key, properties, data, acker, .. } = message.delivery;
            let letter = death::read(routing_key.as_str(), &properties, data);
            if self.was_returned(letter.id()) {
                continue;
            }
            self.current = Some(CurrentLetter { letter: letter.clone(), properties, acker });
            return Ok(Some(letter));
        }
    }

    async fn requeue(&mut self, generation: Option<u64>) -> Result<(), QueueError> {
        let current = self.current.as_ref().ok_or(QueueError::Lost)?;
        if current.letter.properties().unread.is_some() {
            return Err(QueueError::Refused("its body is too large to be read".to_owned()));
        }
        let copy = |letters: &Self| {
            let current = letters.current.as_ref().ok_or(QueueError::Lost)?;
            let original = origin::trusted(current.properties.clone(), letters.endpoint.login.user().as_ref());
            copies::requeued(&letters.names, &current.letter, &original, generation)
        };
        self.publish(copy).await?;
        failpoints::hit("requeued");
        self.discard().await
    }

    async fn discard(&mut self) -> Result<(), QueueError> {
        let current = self.current.take().ok_or(QueueError::Lost)?;
        acknowledge(&current.acker).await?;
        self.removed += 1;
        self.removed_here += 1;
        Ok(())
    }

    async fn put(&mut self, letter: &DeadLetter) -> Result<(), QueueError> {
        letter.bound_lane()?;
        self.publish(|letters| messages::imported(&letters.names, letter)).await?;
        failpoints::hit("put_back");
        Ok(())
    }

    async fn close(mut self: Box<Self>) {
        self.requeue_all().await;
        if let Some(publisher) = &self.publisher {
            connection::close(&publisher.connection).await;
        }
        connection::close(&self.connection).await;
    }
}
