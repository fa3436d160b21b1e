//! Replies: copies of outcomes for `reply_to`, and replies to requests.
//!
//! They have a connection, channels and time limits of their own. A reply queue that does not
//! confirm, is full, or does not exist costs its own reply only: no settlement waits for one, and
//! none ends a session. Each reply queue gets a few of the channels at once, so one that does not
//! confirm leaves the others to the other queues.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};

use super::context::QueueContext;
use super::direct_reply::{DirectReplies, is_direct};
use super::messages;
use super::publisher::OutgoingMessage;
use super::reply_addresses::ReplyAddresses;
use super::reply_connection::ReplyConnection;
use crate::metrics::ReplyResult;
use crate::queue::{OutcomeEvent, QueueError, Reply};

/// Copies of outcomes in memory. Further ones are dropped.
const MAX_COPIES: u32 = 1024;
/// Replies to one queue in memory. Further ones are dropped.
const MAX_REPLIES_PER_QUEUE: usize = 128;
/// Replies to one queue in flight at once.
const MAX_PUBLISHES_PER_QUEUE: usize = 8;
/// Limit for one copy, from its outcome on.
const COPY_TIMEOUT: Duration = Duration::from_secs(10);
/// Limit for one reply to a request. Below the publisher's limit for a confirm, which would end the
/// connection of all replies.
const REPLY_TIMEOUT: Duration = Duration::from_secs(20);
/// Pause before a reply is repeated that had no connection.
const REPLY_RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Sender of replies.
pub(super) struct Replies {
    context: Arc<QueueContext>,
    addresses: ReplyAddresses,
    copies: Semaphore,
    queues: Mutex<HashMap<String, Arc<Semaphore>>>,
    connection: ReplyConnection,
    direct: DirectReplies,
    refusal_reported: AtomicBool,
}

impl Replies {
    /// Builds a sender. It connects with its first reply.
    pub(super) fn new(context: Arc<QueueContext>, addresses: ReplyAddresses) -> Arc<Self> {
        Arc::new(Self {
            context,
            addresses,
            copies: Semaphore::new(MAX_COPIES as usize),
            queues: Mutex::default(),
            connection: ReplyConnection::default(),
            direct: DirectReplies::default(),
            refusal_reported: AtomicBool::new(false),
        })
    }

    /// Sends a copy of an outcome to its `reply_to`: best effort, and in the background, so that a
    /// settlement does not wait for it.
    pub(super) fn send_copy(self: &Arc<Self>, event: &OutcomeEvent) {
        let Some((to, _)) = &event.reply_to else { return };
        if self.refusal(to).is_some() {
            return;
        }
        let replies = Arc::clone(self);
        let Some(message) = messages::outcome_copy(event) else {
            return self.record(to, &Err(QueueError::Refused("a name is too long for AMQP".to_owned())));
        };
        let Some(turns) = self.turns(to) else { return self.record(to, &Err(too_many())) };
        tokio::spawn(async move {
            let sending = async {
                let _permit = replies.copies.try_acquire().map_err(|_| too_many())?;
                replies.publish(&message, &turns, COPY_TIMEOUT).await
            };
            let sent = timeout(COPY_TIMEOUT, sending).await.unwrap_or_else(|_| Err(no_confirm(COPY_TIMEOUT)));
            replies.record(&message.routing_key, &sent);
            drop(turns);
            replies.forget(&message.routing_key);
        });
    }

    /// Sends a reply to a request, confirmed, within [`REPLY_TIMEOUT`]. The time for which the
    /// broker blocks publishers does not count.
    ///
    /// # Errors
    /// `Refused` when the address is not permitted or the broker does not accept it; `Unavailable`
    /// when the result is unknown.
    pub(super) async fn send(&self, reply: Reply) -> Result<(), QueueError> {
        if let Some(why) = self.refusal(&reply.to) {
            return Err(QueueError::Refused(why));
        }
        let message = messages::reply(&reply)?;
        let to = &message.routing_key;
        let sent = match self.turns(to) {
            Some(turns) => self.send_within(&message, &turns).await,
            None => Err(too_many()),
        };
        self.forget(to);
        self.record(to, &sent);
        sent.map_err(|problem| match problem {
            // A repetition would not help, as with a queue that does not exist.
            QueueError::Denied(why) => QueueError::Refused(why),
            problem => problem,
        })
    }

    async fn send_within(&self, message: &OutgoingMessage, turns: &Semaphore) -> Result<(), QueueError> {
        let end = Instant::now() + REPLY_TIMEOUT;
        loop {
            let sent = self.publish(message, turns, REPLY_TIMEOUT).await;
            if !matches!(sent, Err(QueueError::Unavailable(_))) || Instant::now() + REPLY_RETRY_PAUSE >= end {
                return sent;
            }
            sleep(REPLY_RETRY_PAUSE).await;
        }
    }

    async fn publish(&self, message: &OutgoingMessage, turns: &Semaphore, limit: Duration) -> Result<(), QueueError> {
        let turn = timeout(limit, turns.acquire()).await;
        let _turn = turn.map_err(|_| no_confirm(limit))?.map_err(|_| too_many())?;
        if is_direct(&message.routing_key) {
            let sent = timeout(limit, self.direct.publish(&self.context.endpoint, message)).await;
            return sent.unwrap_or_else(|_| Err(no_confirm(limit)));
        }
        let publisher = self.connection.publisher(&self.context).await?;
        let sent = publisher.health.within(limit, publisher.publish(message)).await;
        sent.unwrap_or_else(|| Err(no_confirm(limit)))
    }

    /// Returns the reason why no reply goes to this address, and counts the refusal.
    fn refusal(&self, to: &str) -> Option<String> {
        let why = self.addresses.refusal(to)?;
        self.context.metrics.replied(ReplyResult::Refused);
        if self.refusal_reported.swap(true, Ordering::Relaxed) {
            tracing::debug!(event = "reply_refused", reply_to = to, why, "no reply is sent to this address");
        } else {
            tracing::warn!(
                event = "reply_refused",
                reply_to = to,
                why,
                next = "further refusals are logged at level debug",
                remedy = "permit the address in broker.reply_to, or use a reply queue that it permits",
                "no reply is sent to this address"
            );
        }
        Some(why)
    }

    fn record(&self, to: &str, sent: &Result<(), QueueError>) {
        let result = if sent.is_ok() { ReplyResult::Sent } else { ReplyResult::Failed };
        self.context.metrics.replied(result);
        if let Err(problem) = sent {
            tracing::debug!(event = "reply_failed", reply_to = to, %problem, "a reply was not delivered");
        }
    }

    /// Returns the permits of a reply queue; `None` when too many replies to it are in memory.
    fn turns(&self, to: &str) -> Option<Arc<Semaphore>> {
        let mut queues = self.queues.lock();
        let new = || Arc::new(Semaphore::new(MAX_PUBLISHES_PER_QUEUE));
        let turns = queues.entry(to.to_owned()).or_insert_with(new);
        (Arc::strong_count(turns) <= MAX_REPLIES_PER_QUEUE).then(|| Arc::clone(turns))
    }

    /// Removes a reply queue without replies in memory.
    fn forget(&self, to: &str) {
        let mut queues = self.queues.lock();
        if queues.get(to).is_some_and(|turns| Arc::strong_count(turns) == 1) {
            queues.remove(to);
        }
    }

    /// Waits for the copies in flight, at most `limit`, and closes the connections.
    pub(super) async fn close(&self, limit: Duration) {
        let _ = timeout(limit, self.copies.acquire_many(MAX_COPIES)).await;
        let _ = timeout(limit, self.direct.close()).await;
        let _ = timeout(limit, self.connection.close()).await;
    }
}

fn too_many() -> QueueError {
    QueueError::Unavailable("too many replies are in flight".to_owned())
}

fn no_confirm(limit: Duration) -> QueueError {
    QueueError::Unavailable(format!("no confirm within {} s", limit.as_secs()))
}
