//! How much is in a queue, whichever it is.

use super::{QueueError, rabbitmq, sqlite};
use crate::config::BrokerConfig;
use crate::domain::lane::Lane;
use crate::domain::outcome::RetryDelay;

/// What waits in the queues of one `broker.prefix` at one moment. What workers have in hand is not in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Depths {
    /// Jobs that a worker may take, by lane.
    pub lanes: Vec<(Lane, u64)>,
    /// Copies on the wait ladder, by delay.
    pub waiting: Vec<(RetryDelay, u64)>,
    /// Dead letters.
    pub dead: u64,
}

/// Counts, and changes nothing. `name` names the connection.
///
/// # Errors
/// `Topology` where a queue is missing; `Unavailable` when the broker can't be reached; `Unusable` as [`super::start`].
pub async fn depths(config: &BrokerConfig, name: &str) -> Result<Depths, QueueError> {
    match config.embedded_file() {
        Some(file) => sqlite::depths(&file, &config.prefix).await,
        None => rabbitmq::depths(config, name).await,
    }
}
