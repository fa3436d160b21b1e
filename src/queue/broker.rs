//! Choice of the broker that `broker.url` names. The only place that distinguishes RabbitMQ from
//! SQLite: operations of commands are functions here, each with one row per broker.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::dead_letter::DeadLetter;
use super::message::{Depths, OutcomeMessage, QueueError};
use super::port::JobPublisher;
use super::{rabbitmq, sqlite};
use crate::config::BrokerConfig;
use crate::domain::control::BackfillId;
use crate::domain::lane::Lane;
use crate::metrics::Metrics;

/// Broker, or one part of it on either broker.
enum Broker<R, S> {
    RabbitMq(R),
    Sqlite(S),
}

/// Broker that the configuration names, with the file of the embedded one.
fn configured(config: &BrokerConfig) -> Broker<(), PathBuf> {
    config.embedded_file().map_or(Broker::RabbitMq(()), Broker::Sqlite)
}

/// Evaluates one expression for the part of whichever broker it is.
macro_rules! on_either {
    ($broker:expr, $part:ident => $result:expr) => {
        match $broker {
            Broker::RabbitMq($part) => $result,
            Broker::Sqlite($part) => $result,
        }
    };
}

/// Starts the queue that `broker.url` names: RabbitMQ, or the embedded one for `sqlite:PATH`.
///
/// `worker_id` names the process; `lanes` gives each lane's prefetch. Without lanes it only
/// publishes. An unreachable broker, or a locked file, is retried in the background: see
/// [`Queue::wait_connected`](super::Queue::wait_connected) and
/// [`Queue::ready`](super::Queue::ready). Must be called within a tokio runtime.
///
/// # Errors
/// Errors that waiting does not resolve: an invalid URL, or a file that is damaged or not a queue
/// of consign.
pub fn start(
    config: &BrokerConfig,
    worker_id: &str,
    lanes: Vec<(Lane, u16)>,
    metrics: Arc<Metrics>,
) -> Result<Arc<dyn JobPublisher>, QueueError> {
    Ok(match configured(config) {
        Broker::RabbitMq(()) => rabbitmq::RabbitMqQueue::start(config, worker_id, lanes, metrics)?,
        Broker::Sqlite(file) => sqlite::SqliteQueue::start(&file, &config.prefix, worker_id, lanes, metrics)?,
    })
}

/// Counts messages; changes nothing. `name` names the connection.
///
/// # Errors
/// `Topology` where a queue is missing; `Unavailable` when the broker is unreachable; `Unusable` as
/// [`start`].
pub async fn depths(config: &BrokerConfig, name: &str) -> Result<Depths, QueueError> {
    match configured(config) {
        Broker::RabbitMq(()) => rabbitmq::depths(config, name).await,
        Broker::Sqlite(file) => sqlite::depths(&file, &config.prefix).await,
    }
}

/// Returns the control messages of the last 7 days, oldest first.
///
/// # Errors
/// As [`BackfillOutcomes::read`]; a missing stream has none.
pub async fn control_messages(broker: &BrokerConfig, client: &str) -> Result<Vec<Bytes>, QueueError> {
    match configured(broker) {
        Broker::RabbitMq(()) => rabbitmq::control_messages(broker, client).await,
        Broker::Sqlite(file) => sqlite::control_messages(&file, &broker.prefix).await,
    }
}

/// Passes each control message to `each`: those of the last 7 days, oldest first, then live ones,
/// until `stop`. Reads only. A worker uses [`Queue::next_control`](super::Queue::next_control)
/// instead.
///
/// # Errors
/// `Unavailable`, `Refused` or `Topology` when they can't be read (any more). A repeated call
/// begins with the oldest again.
pub async fn follow_control(
    broker: &BrokerConfig,
    client: &str,
    each: &mut (dyn FnMut(&[u8]) + Send),
    stop: &CancellationToken,
) -> Result<(), QueueError> {
    match configured(broker) {
        Broker::RabbitMq(()) => rabbitmq::follow_control(broker, client, each, stop).await,
        Broker::Sqlite(file) => sqlite::follow_control(&file, &broker.prefix, each, stop).await,
    }
}

/// Retained outcomes of one backfill: its jobs name their address as `reply_to`.
///
/// On RabbitMQ this is a stream that the publisher declares (`<prefix>.backfill.<id>`, 30 days).
/// Workers copy outcomes to it best effort, so one may be missing, above all around a lost
/// connection. The embedded queue records every outcome anyway.
#[derive(Debug, Clone)]
pub struct BackfillOutcomes {
    broker: BrokerConfig,
    client: String,
    address: String,
}

impl BackfillOutcomes {
    /// Outcomes of `backfill`; `client` names the connection.
    pub fn new(broker: &BrokerConfig, client: &str, backfill: &BackfillId) -> Self {
        let address = format!("{}.backfill.{backfill}", broker.prefix);
        Self { broker: broker.clone(), client: client.to_owned(), address }
    }

    /// Returns the `reply_to` of the jobs.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Declares the stream. Idempotent.
    ///
    /// # Errors
    /// `Topology` when the broker refuses it: outcomes are published as usual, but not retained
    /// here.
    pub async fn prepare(&self) -> Result<(), QueueError> {
        match configured(&self.broker) {
            Broker::RabbitMq(()) => rabbitmq::declare_outcomes(&self.broker, &self.client, &self.address).await,
            Broker::Sqlite(_) => Ok(()),
        }
    }

    /// Passes each retained outcome to `each`, oldest first. Returns false where nothing was ever
    /// retained under this name. Reads only; an outcome that was published twice is passed twice.
    ///
    /// # Errors
    /// `Unavailable` when they can't be read to the end; `Unusable` as [`start`].
    pub async fn read(&self, each: &mut (dyn FnMut(&[u8]) + Send)) -> Result<bool, QueueError> {
        match configured(&self.broker) {
            Broker::RabbitMq(()) => rabbitmq::read_outcomes(&self.broker, &self.client, &self.address, each).await,
            Broker::Sqlite(file) => sqlite::replies(&file, &self.broker.prefix, &self.address, each).await,
        }
    }
}

/// Subscription to the outcomes of one `broker.prefix`, from its creation on.
///
/// On RabbitMQ, outcomes published during a lost connection are missed. The embedded queue stores
/// outcomes, so none is missed.
pub struct Outcomes(Broker<Box<rabbitmq::RabbitMqOutcomes>, sqlite::SqliteOutcomes>);

impl Outcomes {
    /// Subscribes to all outcomes published after this returns. `name` names the connection.
    ///
    /// # Errors
    /// `Unavailable` when the broker is unreachable or has no outcomes exchange; `Unusable` as
    /// [`start`].
    pub async fn subscribe(config: &BrokerConfig, name: &str) -> Result<Self, QueueError> {
        Ok(Self(match configured(config) {
            Broker::RabbitMq(()) => {
                Broker::RabbitMq(Box::new(rabbitmq::RabbitMqOutcomes::subscribe(config, name).await?))
            }
            Broker::Sqlite(file) => Broker::Sqlite(sqlite::SqliteOutcomes::subscribe(&file, &config.prefix).await?),
        }))
    }

    /// Returns the next outcome.
    ///
    /// # Errors
    /// `Unavailable` when the broker is lost; the subscription is over then.
    pub async fn next(&mut self) -> Result<OutcomeMessage, QueueError> {
        on_either!(&mut self.0, outcomes => outcomes.next().await)
    }

    /// Ends the subscription.
    pub async fn close(self) {
        match self.0 {
            Broker::RabbitMq(outcomes) => outcomes.close().await,
            Broker::Sqlite(outcomes) => drop(outcomes),
        }
    }
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
pub struct DeadLetters(Broker<Box<rabbitmq::RabbitMqDeadLetters>, Box<sqlite::SqliteDeadLetters>>);

impl DeadLetters {
    /// Begins a pass. `name` names the connection.
    ///
    /// # Errors
    /// `Busy` while another pass is running on RabbitMQ; `Topology` without the queue of dead
    /// letters; `Unavailable` when the broker is unreachable; `Unusable` as [`start`].
    pub async fn open(config: &BrokerConfig, name: &str) -> Result<Self, QueueError> {
        Ok(Self(match configured(config) {
            Broker::RabbitMq(()) => {
                Broker::RabbitMq(Box::new(rabbitmq::RabbitMqDeadLetters::open(config, name).await?))
            }
            Broker::Sqlite(file) => {
                Broker::Sqlite(Box::new(sqlite::SqliteDeadLetters::open(&file, &config.prefix).await?))
            }
        }))
    }

    /// Returns the number of letters at the beginning of the pass.
    pub fn count(&self) -> u64 {
        on_either!(&self.0, letters => letters.count())
    }

    /// Returns the next letter; `None` after the last.
    ///
    /// # Errors
    /// `Unavailable` when the broker is lost. No letter is lost with it.
    pub async fn next(&mut self) -> Result<Option<DeadLetter>, QueueError> {
        on_either!(&mut self.0, letters => letters.next().await)
    }

    /// Publishes the job of the last letter to its lane as a new run: the same identity,
    /// `consign-run` raised by one, no attempt charged. Then removes the letter. `generation`
    /// replaces the job's own.
    ///
    /// # Errors
    /// The letter stays. After `Lost` or `Unavailable` the job may be in its lane nevertheless.
    pub async fn requeue(&mut self, generation: Option<u64>) -> Result<(), QueueError> {
        on_either!(&mut self.0, letters => letters.requeue(generation).await)
    }

    /// Removes the last letter for good.
    ///
    /// # Errors
    /// The letter stays, or its state is unknown.
    pub async fn discard(&mut self) -> Result<(), QueueError> {
        on_either!(&mut self.0, letters => letters.discard().await)
    }

    /// Publishes a letter to the dead letters, confirmed. The caller checks for duplicates.
    ///
    /// # Errors
    /// `Refused` also for a routing key that no lane is bound to: the letter could never be
    /// requeued. `Unavailable`.
    pub async fn put(&mut self, letter: &DeadLetter) -> Result<(), QueueError> {
        if !letter.can_be_requeued() {
            let key = letter.routing_key();
            let remedy = "use `job.scheduled.DEST` or `job.backfill.DEST`";
            return Err(QueueError::Refused(format!("no queue takes the routing key `{key}`; {remedy}")));
        }
        on_either!(&mut self.0, letters => letters.put(letter).await)
    }

    /// Ends the pass: all remaining letters are available to others when this returns.
    pub async fn close(self) {
        match self.0 {
            Broker::RabbitMq(letters) => letters.close().await,
            Broker::Sqlite(letters) => drop(letters),
        }
    }
}
