//! Broker of the commands: connecting, control messages and errors.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::CommandError;
use crate::config::{BrokerConfig, Config};
use crate::domain::control::{Control, ControlCommand};
use crate::metrics::Metrics;
use crate::queue::{self, Admin, JobPublisher, QueueError};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// Requires `broker.url`, and the file of the embedded queue.
pub(super) fn require(config: &BrokerConfig) -> Result<(), CommandError> {
    config.required_url().map_err(|problem| CommandError::Config(problem.to_string()))?;
    missing_file(config).map_or(Ok(()), |problem| Err(problem.into()))
}

/// Error of an embedded queue without a file. Only a worker and `topology apply` create the file:
/// with a mistyped name, jobs must not be published into a new queue that nobody reads.
fn missing_file(config: &BrokerConfig) -> Option<QueueError> {
    let file = config.embedded_file()?;
    if file.try_exists().unwrap_or(true) {
        return None;
    }
    let remedy = "check the spelling, or create the queue with `consign topology apply` or by starting its worker";
    Some(QueueError::Unusable(format!("{} does not exist; {remedy}", file.display())))
}

/// Returns the name of a command's connections.
fn client_name(config: &Config, command: &str) -> String {
    format!("{} {command}", config.worker.id)
}

/// Returns the operations of a command on the broker.
pub(super) fn admin(config: &Config, command: &str) -> Arc<dyn Admin> {
    queue::admin(&config.broker, &client_name(config, command))
}

/// Connects to the queue for publishing.
///
/// # Errors
/// The queue is missing, unreachable or unusable.
pub(super) async fn connect(config: &Config, command: &str) -> Result<Arc<dyn JobPublisher>, QueueError> {
    if let Some(problem) = missing_file(&config.broker) {
        return Err(problem);
    }
    let queue = queue::start(&config.broker, &client_name(config, command), Vec::new(), Arc::new(Metrics::new(1)))?;
    tracing::info!(event = "broker_connecting", seconds = CONNECT_TIMEOUT.as_secs(), "connecting to the broker");
    queue.wait_connected(CONNECT_TIMEOUT).await?;
    Ok(queue)
}

/// Publishes a control message to all workers, confirmed. Workers that start within 7 days receive
/// it, too.
///
/// # Errors
/// The error of the broker. The message was not published then.
pub(super) async fn announce(config: &Config, command: &str, control: ControlCommand) -> Result<Control, QueueError> {
    let queue = connect(config, command).await?;
    let control = Control::new(control, Timestamp::now());
    let announced = queue.publish_control(control.render().into()).await;
    queue.close().await;
    announced.map(|()| control)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Exit;

    #[tokio::test]
    async fn a_missing_queue_is_not_created_by_connecting() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("typo.db");
        let config = crate::config::load_str(&format!("[broker]\nurl = \"sqlite:{}\"", file.display())).unwrap().config;
        let Err(problem) = connect(&config, "enqueue").await else { panic!("it exists") };
        assert_eq!((Exit::of(&problem), require(&config.broker).unwrap_err().report()), (Exit::Config, Exit::Config));
        let text = problem.to_string();
        assert!(text.contains("typo.db") && text.contains("consign topology apply"), "{text}");
        assert!(!file.exists());
        std::fs::write(&file, "").unwrap();
        assert!(missing_file(&config.broker).is_none() && require(&config.broker).is_ok());
        let remote = crate::config::load_str("[broker]\nurl = \"amqps://mq.example\"").unwrap().config.broker;
        assert!(missing_file(&remote).is_none());
    }
}
