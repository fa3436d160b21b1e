//! What commands that only publish do with the broker: connect, announce, and say why not.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::{Exit, complain};
use crate::config::{BrokerConfig, Config};
use crate::control::{Control, Wish};
use crate::metrics::Metrics;
use crate::queue::{self, Queue, QueueError};

/// How long a broker is waited for.
const CONNECT_LIMIT: Duration = Duration::from_secs(30);

/// Says that a command needs a broker and has none, where it has none.
pub(super) fn missing(config: &BrokerConfig) -> Option<Exit> {
    config.required_url().err().map(|problem| complain(&problem.to_string(), Exit::Config))
}

/// What a command calls itself at the broker.
pub(super) fn name(config: &Config, word: &str) -> String {
    format!("{} {word}", config.worker.id)
}

/// The queue, connected, to publish to; `word` is the command's.
pub(super) async fn connect(config: &Config, word: &str) -> Result<Arc<dyn Queue>, QueueError> {
    let queue = queue::start(&config.broker, &name(config, word), Vec::new(), Arc::new(Metrics::new(1)))?;
    tracing::info!(seconds = CONNECT_LIMIT.as_secs(), "connecting; without a broker this gives up");
    queue.connected(CONNECT_LIMIT).await?;
    Ok(queue)
}

/// Tells every worker of the fleet, confirmed. Workers that start within a week read it, too.
///
/// # Errors
/// What the broker says; then nobody was told.
pub(super) async fn announce(config: &Config, word: &str, wish: Wish) -> Result<Control, QueueError> {
    let queue = connect(config, word).await?;
    let control = Control::new(wish, Timestamp::now());
    let announced = queue.announce(control.render().into()).await;
    queue.close().await;
    announced.map(|()| control)
}

/// Says why the queue could not be used.
pub(super) fn complain_of(problem: &QueueError) -> Exit {
    let exit = exit(problem);
    let named = if exit == Exit::Config { "broker.url: " } else { "" };
    complain(&format!("{named}{problem}"), exit)
}

/// What a command ends with that could not use the queue.
pub(super) fn exit(problem: &QueueError) -> Exit {
    match problem {
        QueueError::Unavailable(_) | QueueError::Lost => Exit::Unavailable,
        QueueError::Unusable(_) => Exit::Config,
        QueueError::Refused(_) | QueueError::Topology(_) | QueueError::Busy(_) => Exit::Failed,
    }
}
