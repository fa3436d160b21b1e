//! Calling copies back from the wait ladder on RabbitMQ.
//!
//! A quorum queue gives out from its head alone. So a walk takes a delay's messages into its hands, one after the other; publishes those
//! that are wanted, as the broker would when their wait is over, and acknowledges them; and gives the others back by closing its
//! channel. Then they are where they were, each with its own time, in their order (a `nack` would not keep it: of more than 32
//! messages at once 3.10 makes any order, and a time that is over counts only at the head). Of what is for others no body is kept.
//!
//! A consumer with a large prefetch would fill the client's memory with bodies that wait to be looked at. So a consumer has a small one,
//! and when it holds as many messages of others as it may, it stays as it is, and the next consumer goes on behind it.
//!
//! Each message of others counts one delivery more, of a million that its queue allows. Two walks at once would give back a mixture in
//! two pieces; an exclusive queue of a fixed name keeps them apart, as it does for the dead letters. A walk has a connection of its
//! own: what the broker refuses here must not end the session by which jobs come.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use lapin::message::Delivery as Waiting;
use lapin::options::{BasicConsumeOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Acker, Channel, Consumer};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::acknowledge;
use super::connection::{self, Line, call};
use super::dead::lock;
use super::declare::short;
use super::depths::depth;
use super::publish::{Message, Publisher};
use super::session::{Shared, prefetching};
use super::settle;
use super::topology::Names;
use crate::domain::destination::DestinationId;
use crate::domain::outcome::RetryDelay;
use crate::queue::recalled::keys;
use crate::queue::{QueueError, Released};

/// A walk that takes longer ends where it is. Far below the 30 minutes after which the broker takes a channel for dead.
const LONGEST: Duration = Duration::from_mins(5);
/// How long others may be at it.
const PATIENCE: Duration = Duration::from_mins(2);
const PAUSE: Duration = Duration::from_millis(500);
/// What is there comes at once; after a silence of this length the queue is asked whether there is more.
const SILENCE: Duration = Duration::from_millis(500);
/// How long giving back may take to show.
const RETURNED: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(20);
/// Messages of others that one consumer holds; as many bodies of up to 256 KiB may lie in the client.
const SHARE: u16 = 250;
/// Publishes under way at once. They leave room for the settlements of the jobs that they bring.
const AT_ONCE: usize = 8;
/// How long a walk that is to end may take for what it publishes.
const FINISHING: Duration = Duration::from_secs(2);

/// As [`crate::queue::Queue::release_delayed`]. The walk is a task of its own, so that it closes its connection however the caller ends: a lock
/// that was left behind would keep everybody waiting.
pub(super) async fn release_delayed(
    shared: &Arc<Shared>,
    publisher: &Arc<Publisher>,
    destinations: BTreeSet<DestinationId>,
) -> Result<Released, QueueError> {
    let over = shared.stop.child_token();
    let _guard = over.clone().drop_guard();
    let walking = tokio::spawn(walk(Arc::clone(shared), Arc::clone(publisher), destinations, over));
    walking.await.unwrap_or_else(|_| Err(QueueError::Unavailable("it was broken off".to_owned())))
}

async fn walk(
    shared: Arc<Shared>,
    publisher: Arc<Publisher>,
    destinations: BTreeSet<DestinationId>,
    over: CancellationToken,
) -> Result<Released, QueueError> {
    let line = Line::connect(&shared.endpoint, "recall").await?;
    let walk = async {
        let alone = alone(&line, &shared.names).await?;
        let (names, shares) = (&shared.names, shared.timing.recall_holds);
        let (wanted, done) = (keys(&destinations), Released::default());
        let (publisher, line, over) = (&publisher, &line, &over);
        Walk { names, publisher, line, over, alone, wanted, shares, done }.whole().await
    };
    // What is being published is waited for when the queue is closed, though not for long.
    let late = async {
        over.cancelled().await;
        sleep(FINISHING).await;
    };
    let walked = tokio::select! {
        walked = timeout(LONGEST, walk) => Some(walked),
        () = late => None,
    };
    line.close().await;
    match walked {
        Some(Ok(walked)) => walked,
        Some(Err(_)) => Err(QueueError::Unavailable(format!("it took more than {} s", LONGEST.as_secs()))),
        None => Err(closed()),
    }
}

fn closed() -> QueueError {
    QueueError::Unavailable("the queue is closed".to_owned())
}

/// The channel that has the lock.
async fn alone(line: &Line, names: &Names) -> Result<Channel, QueueError> {
    // Among the workers' own queues, as they may declare those; the name of a process has a dot.
    let (queue, end) = (names.owner("recall"), Instant::now() + PATIENCE);
    loop {
        let channel = line.open_channel().await?;
        match lock(&channel, &queue, "other workers call jobs back").await {
            Err(QueueError::Busy(_)) if Instant::now() < end => sleep(PAUSE).await,
            locked => return locked.map(|()| channel),
        }
    }
}

struct Walk<'a> {
    names: &'a Names,
    publisher: &'a Publisher,
    line: &'a Line,
    over: &'a CancellationToken,
    /// Has the lock, and counts.
    alone: Channel,
    wanted: BTreeSet<String>,
    /// Consumers of one delay, at most.
    shares: u16,
    done: Released,
}

/// One delay, as far as it was looked through.
struct Rung {
    queue: String,
    /// How many messages there were at the beginning. What came later is behind them.
    there: u64,
    seen: u64,
    ended: bool,
}

impl Rung {
    fn is_over(&self) -> bool {
        self.ended || self.seen >= self.there
    }
}

impl Walk<'_> {
    /// Shortest waits first: those come soon anyway, and are held for the shortest time. The shortest of all are left alone.
    async fn whole(mut self) -> Result<Released, QueueError> {
        for step in RetryDelay::ALL.into_iter().skip(1) {
            let queue = self.names.wait(step);
            let there = depth(&self.alone, &queue).await?;
            if there > 0 {
                self.delay(Rung { queue, there, seen: 0, ended: false }).await?;
            }
        }
        Ok(self.done)
    }

    async fn delay(&mut self, mut delay: Rung) -> Result<(), QueueError> {
        let channel = prefetching(self.line.open_channel().await?, SHARE).await?;
        let looked = self.look_through(&channel, &mut delay).await;
        if let Err(error) = channel.close(200, "OK".into()).await {
            tracing::debug!(%error, "a channel was not closed; what it holds goes back with its connection");
        }
        self.given_back(&delay.queue).await;
        looked
    }

    async fn look_through(&mut self, channel: &Channel, delay: &mut Rung) -> Result<(), QueueError> {
        for number in 0..self.shares {
            let (queue, tag) = (short(&delay.queue)?, short(&format!("{number:03}"))?);
            let consumer = channel.basic_consume(queue, tag, BasicConsumeOptions::default(), FieldTable::default());
            self.share(call(&format!("consuming from {}", delay.queue), consumer).await?, delay).await?;
            if delay.is_over() {
                return Ok(());
            }
        }
        self.done.partly = true;
        Ok(())
    }

    /// What one consumer gets, until it holds all it may.
    async fn share(&mut self, mut consumer: Consumer, delay: &mut Rung) -> Result<(), QueueError> {
        let (publisher, over) = (self.publisher, self.over);
        let (mut held, mut publishing, mut failed) = (0, FuturesUnordered::new(), None);
        loop {
            let more = failed.is_none() && publishing.len() < AT_ONCE && held < SHARE && !delay.is_over();
            if !more && publishing.is_empty() {
                return failed.map_or(Ok(()), Err);
            }
            let came = tokio::select! {
                biased;
                Some(published) = publishing.next() => {
                    // What is on its way is waited for in any case: it would else be in its lane and wait, too.
                    match published {
                        Ok(()) => self.done.count += 1,
                        Err(error) => failed = failed.or(Some(error)),
                    }
                    continue;
                }
                () = over.cancelled(), if failed.is_none() => {
                    failed = Some(closed());
                    continue;
                }
                came = timeout(SILENCE, consumer.next()), if more => came,
            };
            match came {
                Ok(came) => match self.wanted(came, delay) {
                    Ok(Some((message, acker))) => publishing.push(async move {
                        publisher.publish(&message).await?;
                        acknowledge(&acker, true).await
                    }),
                    Ok(None) => held += 1,
                    Err(error) => failed = Some(error),
                },
                Err(_) => delay.ended = depth(&self.alone, &delay.queue).await? == 0,
            }
        }
    }

    /// One that came, as it is to be published, if it is to be called back.
    fn wanted(
        &self,
        came: Option<Result<Waiting, lapin::Error>>,
        delay: &mut Rung,
    ) -> Result<Option<(Message, Acker)>, QueueError> {
        let gone = || QueueError::Unavailable(format!("the broker ended the consumer of {}", delay.queue));
        let waiting = came.ok_or_else(gone)?.map_err(|error| connection::unavailable(&error))?;
        delay.seen += 1;
        if !(self.wanted.contains(waiting.routing_key.as_str()) && settle::waits_for_repair(&waiting.properties)) {
            return Ok(None);
        }
        let acker = waiting.acker.clone();
        Ok(Some((settle::recalled(self.names, waiting)?, acker)))
    }

    /// Returns when the queue has everything again: the next walk must not come in between.
    async fn given_back(&self, queue: &str) {
        let Ok(queue) = short(queue) else { return };
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let end = Instant::now() + RETURNED;
        while Instant::now() < end {
            let declared = self.alone.queue_declare(queue.clone(), passive, FieldTable::default());
            match call("looking at a queue", declared).await {
                Ok(state) if state.consumer_count() > 0 => sleep(LOOK).await,
                _ => return,
            }
        }
    }
}
