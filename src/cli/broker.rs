//! What commands that only publish do with the broker: connect, announce, and say why not.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::{Exit, complain};
use crate::config::{BrokerConfig, Config};
use crate::domain::control::{Control, ControlCommand};
use crate::metrics::Metrics;
use crate::queue::{self, JobPublisher, QueueError};

/// How long a broker is waited for.
const CONNECT_LIMIT: Duration = Duration::from_secs(30);

/// Says that a command needs a broker and none is configured, where that is so.
pub(super) fn unconfigured(config: &BrokerConfig) -> Option<Exit> {
    config.required_url().err().map(|problem| complain(&problem.to_string(), Exit::Config))
}

/// Says that a command needs a queue and there is none: it is not configured, or its file is not there.
pub(super) fn missing(config: &BrokerConfig) -> Option<Exit> {
    unconfigured(config).or_else(|| absent(config).map(|problem| complain_of(&problem)))
}

/// What is wrong where the embedded queue has no file. Only a worker and `topology apply` make one: whoever mistypes its name must
/// not publish into a new one that nobody reads.
fn absent(config: &BrokerConfig) -> Option<QueueError> {
    let file = config.embedded_file()?;
    if file.try_exists().unwrap_or(true) {
        return None;
    }
    let remedy = "check the spelling, or make the queue with `consign topology apply` or by starting its worker";
    Some(QueueError::Unusable(format!("{} is not there; {remedy}", file.display())))
}

/// What a command calls itself at the broker.
pub(super) fn name(config: &Config, word: &str) -> String {
    format!("{} {word}", config.worker.id)
}

/// The queue, connected, to publish to; `word` is the command's.
pub(super) async fn connect(config: &Config, word: &str) -> Result<Arc<dyn JobPublisher>, QueueError> {
    if let Some(problem) = absent(&config.broker) {
        return Err(problem);
    }
    let queue = queue::start(&config.broker, &name(config, word), Vec::new(), Arc::new(Metrics::new(1)))?;
    tracing::info!(seconds = CONNECT_LIMIT.as_secs(), "connecting; without a broker this gives up");
    queue.wait_connected(CONNECT_LIMIT).await?;
    Ok(queue)
}

/// Tells every worker of the fleet, confirmed. Workers that start within a week read it, too.
///
/// # Errors
/// What the broker says; then nobody was told.
pub(super) async fn announce(config: &Config, word: &str, wish: ControlCommand) -> Result<Control, QueueError> {
    let queue = connect(config, word).await?;
    let control = Control::new(wish, Timestamp::now());
    let announced = queue.publish_control(control.render().into()).await;
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
        QueueError::Denied(_) => Exit::Denied,
        QueueError::Unusable(_) => Exit::Config,
        QueueError::Refused(_) | QueueError::Topology(_) | QueueError::Busy(_) => Exit::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_queue_that_is_not_there_is_not_made_by_asking_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("typo.db");
        let config = crate::config::load_str(&format!("[broker]\nurl = \"sqlite:{}\"", file.display())).unwrap().config;
        let Err(problem) = connect(&config, "enqueue").await else { panic!("it is there") };
        assert_eq!((exit(&problem), missing(&config.broker)), (Exit::Config, Some(Exit::Config)));
        let said = problem.to_string();
        assert!(said.contains("typo.db") && said.contains("consign topology apply"), "{said}");
        assert!(!file.exists());
        std::fs::write(&file, "").unwrap();
        assert!(absent(&config.broker).is_none() && missing(&config.broker).is_none());
        let remote = crate::config::load_str("[broker]\nurl = \"amqps://mq.example\"").unwrap().config.broker;
        assert!(absent(&remote).is_none());
    }
}
