//! What the queue keeps for those who ask later: the outcomes of one backfill, and the control messages.

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::{QueueError, rabbitmq, sqlite};
use crate::config::BrokerConfig;
use crate::domain::control::BackfillId;

/// The outcomes of one backfill, kept for whoever asks: its jobs name it as their `reply_to`.
///
/// On RabbitMQ it is a stream that the publisher declares (`<prefix>.backfill.<id>`, 30 days); a worker's copies to it are best
/// effort, so one may be missing, above all at the time of a lost connection. The embedded queue records every outcome anyway.
#[derive(Debug, Clone)]
pub struct BackfillOutcomes {
    broker: BrokerConfig,
    client: String,
    address: String,
}

impl BackfillOutcomes {
    /// Those of `backfill`; `client` names the connection.
    pub fn new(broker: &BrokerConfig, client: &str, backfill: &BackfillId) -> Self {
        let address = format!("{}.backfill.{backfill}", broker.prefix);
        Self { broker: broker.clone(), client: client.to_owned(), address }
    }

    /// What the jobs name as `reply_to`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Makes room for them. Safe to repeat.
    ///
    /// # Errors
    /// `Topology` when the broker refuses it: outcomes go on as ever, and only this copy of them is not kept.
    pub async fn prepare(&self) -> Result<(), QueueError> {
        match self.broker.embedded_file() {
            Some(_) => Ok(()),
            None => rabbitmq::kept::prepare(&self.broker, &self.client, &self.address).await,
        }
    }

    /// Gives each outcome that is kept to `each`, oldest first; false where nothing was ever kept under this name. Reads only; an
    /// outcome that was told twice comes twice.
    ///
    /// # Errors
    /// `Unavailable` when they can't be read to the end; `Unusable` as [`super::start`].
    pub async fn read(&self, each: &mut (dyn FnMut(&[u8]) + Send)) -> Result<bool, QueueError> {
        match self.broker.embedded_file() {
            Some(file) => sqlite::replies(&file, &self.broker.prefix, &self.address, each).await,
            None => rabbitmq::kept::read(&self.broker, &self.client, &self.address, each).await,
        }
    }
}

/// The control messages of the last 7 days, oldest first.
///
/// # Errors
/// As [`BackfillOutcomes::read`]; a missing stream has none.
pub async fn control_messages(broker: &BrokerConfig, client: &str) -> Result<Vec<Bytes>, QueueError> {
    match broker.embedded_file() {
        Some(file) => sqlite::control_messages(&file, &broker.prefix).await,
        None => rabbitmq::kept::control_messages(broker, client).await,
    }
}

/// Gives each control message to `each`: those of the last 7 days, oldest first, then live, until `stop`. Reads only; for those who do
/// not consume (a worker has [`super::Queue::next_control`]).
///
/// # Errors
/// `Unavailable`, `Refused` or `Topology` when they can't be read (any more). Called again, it begins with the oldest again.
pub async fn follow_control(
    broker: &BrokerConfig,
    client: &str,
    each: &mut (dyn FnMut(&[u8]) + Send),
    stop: &CancellationToken,
) -> Result<(), QueueError> {
    match broker.embedded_file() {
        Some(file) => sqlite::follow_control(&file, &broker.prefix, each, stop).await,
        None => rabbitmq::kept::follow_control(broker, client, each, stop).await,
    }
}
