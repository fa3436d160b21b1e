//! Release of delayed copies on RabbitMQ.
//!
//! A quorum queue delivers only from its head. So a release consumes the messages of each wait
//! queue in order; publishes the wanted ones, as the broker would at the end of their delay, and
//! acknowledges them; and requeues the others by closing its channel. They then have their old
//! places, each with its own expiry. (A `nack` would not keep the order: 3.10 reorders more than 32
//! messages at once, and an expiry counts only at the head.) The bodies of the others are dropped
//! at once.
//!
//! A consumer with a large prefetch would fill the client's memory with bodies that wait to be
//! examined. So each consumer has a small prefetch, and when it holds that many messages of others,
//! it stays as it is and the next consumer continues behind it.
//!
//! Each message of others counts one more delivery, of a million that its queue allows. Two
//! releases at once would mix up the order; an exclusive queue of a fixed name is the lock, as for
//! the dead letters. A release has a connection of its own: a refusal here must not end the session
//! that delivers jobs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use lapin::message::Delivery as Waiting;
use lapin::options::BasicConsumeOptions;
use lapin::types::{FieldTable, ShortString};
use lapin::{Acker, Channel, Consumer};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::channel::{self, acknowledge, consumers, depth, lock, set_prefetch};
use super::connection::{ScopedConnection, call};
use super::context::QueueContext;
use super::fields::{self, short};
use super::names::Names;
use super::publisher::{OutgoingMessage, Publisher};
use super::{copies, errors, origin};
use crate::domain::destination::DestinationIdentity;
use crate::domain::outcome::RetryDelay;
use crate::domain::routing_key::jobs_of;
use crate::queue::{QueueError, Released};

/// Limit of one release. Far below the 30 minutes after which the broker closes a channel with
/// unacknowledged messages.
const RELEASE_TIMEOUT: Duration = Duration::from_mins(5);
/// Limit of the wait for the lock.
const LOCK_TIMEOUT: Duration = Duration::from_mins(2);
const LOCK_RETRY_INTERVAL: Duration = Duration::from_millis(500);
/// Silence after which the queue is asked for further messages: existing ones arrive at once.
const SILENCE: Duration = Duration::from_millis(500);
/// Limit for requeued messages to be back in their queue.
const REQUEUE_TIMEOUT: Duration = Duration::from_secs(5);
const REQUEUE_POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Messages of others that one consumer holds; as many bodies of up to 256 KiB may be in the
/// client.
const PREFETCH: u16 = 250;
/// Publishes in flight at once. They leave room for the settlements of the released jobs.
const MAX_PUBLISHES: usize = 8;
/// Limit for the publishes in flight when the queue closes.
const FINISH_TIMEOUT: Duration = Duration::from_secs(2);

/// Releases copies as [`crate::queue::Queue::release_delayed`]. It runs as a task, so that it
/// closes its connection however the caller ends: a remaining lock would block all others.
pub(super) async fn release_delayed(
    context: &Arc<QueueContext>,
    publisher: &Arc<Publisher>,
    destinations: BTreeSet<DestinationIdentity>,
) -> Result<Released, QueueError> {
    let cancelled = context.stop.child_token();
    let _guard = cancelled.clone().drop_guard();
    let task = tokio::spawn(release(Arc::clone(context), Arc::clone(publisher), destinations, cancelled));
    task.await.unwrap_or_else(|_| Err(QueueError::Unavailable("it was interrupted".to_owned())))
}

async fn release(
    context: Arc<QueueContext>,
    publisher: Arc<Publisher>,
    destinations: BTreeSet<DestinationIdentity>,
    cancelled: CancellationToken,
) -> Result<Released, QueueError> {
    let connection = ScopedConnection::connect(&context.endpoint, "recall").await?;
    let releasing = async {
        let scan = Scan {
            names: &context.names,
            publisher: &publisher,
            connection: &connection,
            cancelled: &cancelled,
            lock: locked_channel(&connection, &context.names).await?,
            us: context.endpoint.login.user(),
            wanted: Wanted::new(destinations),
            max_consumers: context.max_release_consumers,
            released: Released::default(),
        };
        scan.run().await
    };
    // Publishes in flight are awaited when the queue closes, though briefly.
    let too_late = async {
        cancelled.cancelled().await;
        sleep(FINISH_TIMEOUT).await;
    };
    let result = tokio::select! {
        result = timeout(RELEASE_TIMEOUT, releasing) => Some(result),
        () = too_late => None,
    };
    connection.close().await;
    match result {
        Some(Ok(result)) => result,
        Some(Err(_)) => Err(QueueError::Unavailable(format!("it took more than {} s", RELEASE_TIMEOUT.as_secs()))),
        None => Err(QueueError::closed()),
    }
}

/// Waits for the lock; returns the channel that holds it.
async fn locked_channel(connection: &ScopedConnection, names: &Names) -> Result<Channel, QueueError> {
    // Workers may declare queues of this form. It is no owner's queue: the name of an owner has a dot.
    let (queue, end) = (names.owner("recall"), Instant::now() + LOCK_TIMEOUT);
    loop {
        let channel = connection.open_channel().await?;
        match lock(&channel, &queue, "other workers are recalling jobs").await {
            Err(QueueError::Busy(_)) if Instant::now() < end => sleep(LOCK_RETRY_INTERVAL).await,
            locked => return locked.map(|()| channel),
        }
    }
}

/// Scan of all wait queues.
struct Scan<'a> {
    names: &'a Names,
    publisher: &'a Publisher,
    connection: &'a ScopedConnection,
    cancelled: &'a CancellationToken,
    /// Channel that holds the lock, and counts messages.
    lock: Channel,
    /// Login of this worker.
    us: Option<ShortString>,
    /// Copies to release.
    wanted: Wanted,
    /// Limit of the consumers of one wait queue.
    max_consumers: u16,
    released: Released,
}

/// Destinations whose copies are released, by the routing keys of their jobs.
struct Wanted(BTreeMap<String, Vec<DestinationIdentity>>);

impl Wanted {
    fn new(destinations: BTreeSet<DestinationIdentity>) -> Self {
        let mut by_key: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for destination in destinations {
            for key in jobs_of(destination.id()) {
                by_key.entry(key).or_default().push(destination.clone());
            }
        }
        Self(by_key)
    }

    /// Returns true for a copy that waits for one of them, or may: older copies do not name the
    /// identity.
    fn has(&self, waiting: &Waiting) -> bool {
        let Some(wanted) = self.0.get(waiting.routing_key.as_str()) else { return false };
        let named = copies::waits_for(&waiting.properties);
        named.is_none_or(|named| wanted.iter().any(|wanted| wanted.covers(&named)))
    }
}

/// Progress in one wait queue.
struct WaitQueueScan {
    queue: String,
    /// Number of messages at the beginning. Later ones are behind them.
    total: u64,
    examined: u64,
    ended: bool,
}

impl WaitQueueScan {
    fn is_done(&self) -> bool {
        self.ended || self.examined >= self.total
    }
}

impl Scan<'_> {
    /// Scans the shorter delays first: their copies return soon anyway, and are held for the
    /// shortest time. Skips the shortest delay.
    async fn run(mut self) -> Result<Released, QueueError> {
        for delay in RetryDelay::ALL.into_iter().skip(1) {
            let queue = self.names.wait(delay);
            let total = depth(&self.lock, &queue).await?;
            if total > 0 {
                self.scan(WaitQueueScan { queue, total, examined: 0, ended: false }).await?;
            }
        }
        Ok(self.released)
    }

    async fn scan(&mut self, mut scan: WaitQueueScan) -> Result<(), QueueError> {
        let channel = set_prefetch(self.connection.open_channel().await?, PREFETCH).await?;
        let scanned = self.consume_all(&channel, &mut scan).await;
        channel::close(&channel).await;
        self.requeued(&scan.queue).await;
        scanned
    }

    async fn consume_all(&mut self, channel: &Channel, scan: &mut WaitQueueScan) -> Result<(), QueueError> {
        for number in 0..self.max_consumers {
            let (queue, tag) = (short(&scan.queue)?, short(&format!("{number:03}"))?);
            let consumer = channel.basic_consume(queue, tag, BasicConsumeOptions::default(), FieldTable::default());
            let consumer = call(&format!("consuming from {}", scan.queue), consumer).await?;
            self.consume(consumer, scan).await?;
            if scan.is_done() {
                return Ok(());
            }
        }
        self.released.partly = true;
        Ok(())
    }

    /// Examines the messages of one consumer, until it holds its prefetch.
    async fn consume(&mut self, mut consumer: Consumer, scan: &mut WaitQueueScan) -> Result<(), QueueError> {
        let (publisher, cancelled) = (self.publisher, self.cancelled);
        let (mut held, mut publishing, mut failed) = (0, FuturesUnordered::new(), None);
        loop {
            let more = failed.is_none() && publishing.len() < MAX_PUBLISHES && held < PREFETCH && !scan.is_done();
            if !more && publishing.is_empty() {
                return failed.map_or(Ok(()), Err);
            }
            let received = tokio::select! {
                biased;
                Some(published) = publishing.next() => {
                    // Publishes in flight are always awaited: their copies would else be in the lane and wait, too.
                    match published {
                        Ok(()) => self.released.count += 1,
                        Err(error) => failed = failed.or(Some(error)),
                    }
                    continue;
                }
                () = cancelled.cancelled(), if failed.is_none() => {
                    failed = Some(QueueError::closed());
                    continue;
                }
                received = timeout(SILENCE, consumer.next()), if more => received,
            };
            match received {
                Ok(received) => match self.examine(received, scan) {
                    Ok(Some((message, acker))) => publishing.push(async move {
                        publisher.publish(&message).await?;
                        acknowledge(&acker).await
                    }),
                    Ok(None) => held += 1,
                    Err(error) => failed = Some(error),
                },
                Err(_) => scan.ended = depth(&self.lock, &scan.queue).await? == 0,
            }
        }
    }

    /// Returns the message to publish for a copy that is to be released.
    fn examine(
        &self,
        received: Option<Result<Waiting, lapin::Error>>,
        scan: &mut WaitQueueScan,
    ) -> Result<Option<(OutgoingMessage, Acker)>, QueueError> {
        let ended = || QueueError::Unavailable(format!("the broker ended the consumer of {}", scan.queue));
        let mut waiting = received.ok_or_else(ended)?.map_err(|error| errors::unavailable(&error))?;
        scan.examined += 1;
        let (origin, properties) = origin::verify(std::mem::take(&mut waiting.properties), self.us.as_ref());
        waiting.properties = properties;
        // A body that was not read can't be copied, and a copy of a forged lease would be a worker's.
        let can_copy =
            fields::unread(&waiting.properties).is_none() && !origin::is_forged_lease(origin, &waiting.properties);
        if !(can_copy && self.wanted.has(&waiting) && copies::waits_for_recovery(&waiting.properties)) {
            return Ok(None);
        }
        let acker = waiting.acker.clone();
        Ok(Some((copies::released(self.names, waiting)?, acker)))
    }

    /// Returns when the queue has all its messages again: the next release must not start before.
    async fn requeued(&self, queue: &str) {
        let end = Instant::now() + REQUEUE_TIMEOUT;
        while Instant::now() < end && consumers(&self.lock, queue).await.is_ok_and(|consumers| consumers > 0) {
            sleep(REQUEUE_POLL_INTERVAL).await;
        }
    }
}
