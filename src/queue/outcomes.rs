//! Listening to outcomes, whichever queue they are on.

use super::{QueueError, rabbitmq, sqlite};
use crate::config::BrokerConfig;

/// An outcome as it was published.
#[derive(Debug, Clone)]
pub struct OutcomeMessage {
    /// `transfer.<outcome>.<dest>`.
    pub routing_key: String,
    /// Structured JSON.
    pub body: Vec<u8>,
}

/// A subscription to the outcomes of one `broker.prefix`, from the moment it was made.
///
/// On RabbitMQ, an outcome of the time of a lost connection is not seen. The embedded queue keeps outcomes, so none is missed.
pub struct Outcomes(Source);

enum Source {
    RabbitMqQueue(Box<rabbitmq::Outcomes>),
    SqliteQueue(sqlite::Outcomes),
}

impl Outcomes {
    /// Subscribes to all outcomes; those published after this returns are seen. `name` names the connection.
    ///
    /// # Errors
    /// `Unavailable` when the broker can't be reached or has no outcomes exchange; `Unusable` as [`super::start`].
    pub async fn subscribe(config: &BrokerConfig, name: &str) -> Result<Self, QueueError> {
        Ok(Self(match config.embedded_file() {
            Some(file) => Source::SqliteQueue(sqlite::Outcomes::subscribe(&file, &config.prefix).await?),
            None => Source::RabbitMqQueue(Box::new(rabbitmq::Outcomes::subscribe(config, name).await?)),
        }))
    }

    /// The next outcome.
    ///
    /// # Errors
    /// `Unavailable` when the broker is lost; there is no next one after that.
    pub async fn next(&mut self) -> Result<OutcomeMessage, QueueError> {
        match &mut self.0 {
            Source::RabbitMqQueue(outcomes) => outcomes.next().await,
            Source::SqliteQueue(outcomes) => outcomes.next().await,
        }
    }

    /// Ends the subscription.
    pub async fn close(self) {
        match self.0 {
            Source::RabbitMqQueue(outcomes) => outcomes.close().await,
            Source::SqliteQueue(outcomes) => drop(outcomes),
        }
    }
}
