//! Trait [`Admin`]: what commands need of a broker beside [`Queue`](super::Queue), with the
//! [`Outcomes`] and the [`DeadLetters`] that it opens.

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::dead_letter::DeadLetter;
use super::message::QueueError;
use crate::config::BrokerConfig;
use crate::domain::control::BackfillId;
use crate::domain::lane::Lane;
use crate::domain::outcome::RetryDelay;

/// Receiver of message bodies.
pub type BodyReader<'a> = dyn FnMut(&[u8]) + Send + 'a;

/// Number of messages in the queues of one `broker.prefix` at one moment. Unacknowledged messages
/// are not counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Depths {
    /// Jobs that a worker may take, by lane.
    pub lanes: Vec<(Lane, u64)>,
    /// Copies in the wait queues, by delay.
    pub waiting: Vec<(RetryDelay, u64)>,
    /// Dead letters.
    pub dead: u64,
}

/// Outcome as it was published.
#[derive(Debug, Clone)]
pub struct OutcomeMessage {
    /// `transfer.<outcome>.<dest>`.
    pub routing_key: String,
    /// Structured JSON.
    pub body: Vec<u8>,
}

/// Returns the `reply_to` under which the outcomes of a backfill are retained.
pub fn retained_address(config: &BrokerConfig, backfill: &BackfillId) -> String {
    format!("{}.backfill.{backfill}", config.prefix)
}

/// Operations of commands on the queues of one `broker.prefix`. Each connects for itself.
///
/// Every operation fails with `Unavailable` when the broker is unreachable, and with `Unusable` as
/// [`start`](super::start) does.
#[async_trait]
pub trait Admin: Send + Sync {
    /// Declares the topology on the broker, or creates the file and its tables. Idempotent. Returns
    /// a sentence for people.
    ///
    /// # Errors
    /// `Topology` names every part that exists with other arguments; `Denied` those that the login
    /// may not declare.
    async fn apply_topology(&self) -> Result<String, QueueError>;

    /// Returns one readable line for each part of the topology, or for each table of the file.
    fn topology_lines(&self) -> Vec<String>;

    /// Returns the same as JSON: RabbitMQ's definitions format for a virtual host, which is that of
    /// `broker.url` or `/` by default; or the tables of the file.
    fn topology_json(&self, vhost: Option<&str>) -> Value;

    /// Counts messages; changes nothing.
    ///
    /// # Errors
    /// `Topology` where a queue is missing.
    async fn depths(&self) -> Result<Depths, QueueError>;

    /// Returns the control messages of the last 7 days, oldest first.
    ///
    /// # Errors
    /// As [`Admin::read_retained`]; a missing stream has none.
    async fn control_messages(&self) -> Result<Vec<Bytes>, QueueError>;

    /// Passes each control message to `each`: those of the last 7 days, oldest first, then live
    /// ones, until `stop`. Reads only. A worker uses
    /// [`Queue::next_control`](super::Queue::next_control) instead.
    ///
    /// # Errors
    /// `Unavailable`, `Refused` or `Topology` when they can't be read (any more). A repeated call
    /// begins with the oldest again.
    async fn follow_control(&self, each: &mut BodyReader<'_>, stop: &CancellationToken) -> Result<(), QueueError>;

    /// Prepares that outcomes with this `reply_to` are retained
    /// ([`retained_address`](super::retained_address)). Idempotent.
    ///
    /// On RabbitMQ this declares a stream of that name (30 days). Workers copy outcomes to it best
    /// effort, so one may be missing, above all around a lost connection. The embedded queue
    /// records every outcome anyway.
    ///
    /// # Errors
    /// `Topology` when the broker refuses it: outcomes are published as usual, but not retained.
    async fn retain(&self, address: &str) -> Result<(), QueueError>;

    /// Passes each retained outcome with this `reply_to` to `each`, oldest first. Returns false
    /// where nothing was ever retained under this name. Reads only; an outcome that was published
    /// twice is passed twice.
    ///
    /// # Errors
    /// `Unavailable` when they can't be read to the end.
    async fn read_retained(&self, address: &str, each: &mut BodyReader<'_>) -> Result<bool, QueueError>;

    /// Subscribes to all outcomes published after this returns.
    ///
    /// # Errors
    /// `Unavailable` when the broker is unreachable or has no outcomes exchange.
    async fn subscribe(&self) -> Result<Box<dyn Outcomes>, QueueError>;

    /// Begins a pass over the dead letters.
    ///
    /// # Errors
    /// `Busy` while another pass is running on RabbitMQ; `Topology` without the queue of dead
    /// letters.
    async fn dead_letters(&self) -> Result<Box<dyn DeadLetters>, QueueError>;
}

/// Subscription to the outcomes of one `broker.prefix`, from its creation on.
///
/// On RabbitMQ, outcomes published during a lost connection are missed. The embedded queue stores
/// outcomes, so none is missed.
#[async_trait]
pub trait Outcomes: Send {
    /// Returns the next outcome.
    ///
    /// # Errors
    /// `Unavailable` when the broker is lost; the subscription is over then.
    async fn next(&mut self) -> Result<OutcomeMessage, QueueError>;

    /// Ends the subscription.
    async fn close(self: Box<Self>);
}

/// One pass over the dead letters of one `broker.prefix`: they are read one by one, requeued,
/// discarded, exported and imported.
///
/// The pass returns each letter that existed when it was opened once, and no later one: a job that
/// is requeued and fails again at once does not come round. On RabbitMQ a quorum queue can't be
/// peeked, so the pass holds the letters it has read until it is closed. Meanwhile a second pass is
/// refused, and the order may differ from one pass to the next. On the embedded queue letters come
/// oldest first, and passes do not hinder each other.
///
/// [`DeadLetters::requeue`] and [`DeadLetters::discard`] act on the letter that
/// [`DeadLetters::next`] returned last. All others stay, also when this is dropped.
///
/// A kill loses nothing: a letter is removed only after its replacement is confirmed. A kill in
/// between leaves the letter, and requeuing it again gives its job the same run number: the same
/// outcome, which counts once.
#[async_trait]
pub trait DeadLetters: Send {
    /// Returns the number of letters at the beginning of the pass.
    fn count(&self) -> u64;

    /// Returns the next letter; `None` after the last.
    ///
    /// # Errors
    /// `Unavailable` when the broker is lost. No letter is lost with it.
    async fn next(&mut self) -> Result<Option<DeadLetter>, QueueError>;

    /// Publishes the job of the last letter to its lane as a new run: the same identity,
    /// `consign-run` raised by one, no attempt charged. Then removes the letter. `generation`
    /// replaces the job's own.
    ///
    /// # Errors
    /// The letter stays. After `Lost` or `Unavailable` the job may be in its lane nevertheless.
    async fn requeue(&mut self, generation: Option<u64>) -> Result<(), QueueError>;

    /// Removes the last letter for good.
    ///
    /// # Errors
    /// The letter stays, or its state is unknown.
    async fn discard(&mut self) -> Result<(), QueueError>;

    /// Publishes a letter to the dead letters, confirmed. The caller checks for duplicates.
    ///
    /// # Errors
    /// `Refused` also for a routing key that no lane is bound to: the letter could never be
    /// requeued.
    async fn put(&mut self, letter: &DeadLetter) -> Result<(), QueueError>;

    /// Ends the pass: all remaining letters are available to others when this returns.
    async fn close(self: Box<Self>);
}
