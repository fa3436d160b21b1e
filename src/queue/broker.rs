//! Choice of the broker that `broker.url` names: RabbitMQ, or the embedded queue for `sqlite:PATH`.

use std::sync::Arc;

use super::admin::Admin;
use super::message::QueueError;
use super::port::JobPublisher;
use super::rabbitmq::{RabbitMqAdmin, RabbitMqQueue};
use super::sqlite::{SqliteAdmin, SqliteQueue};
use crate::config::BrokerConfig;
use crate::domain::lane::Lane;
use crate::metrics::Metrics;

/// Starts the queue that `broker.url` names.
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
    Ok(match config.embedded_file() {
        None => RabbitMqQueue::start(config, worker_id, lanes, metrics)?,
        Some(file) => SqliteQueue::start(&file, &config.prefix, worker_id, lanes, metrics)?,
    })
}

/// Returns the operations of commands on the queue that `broker.url` names. `client` names their
/// connections.
pub fn admin(config: &BrokerConfig, client: &str) -> Arc<dyn Admin> {
    match config.embedded_file() {
        None => Arc::new(RabbitMqAdmin { config: config.clone(), client: client.to_owned() }),
        Some(file) => Arc::new(SqliteAdmin { file, prefix: config.prefix.clone() }),
    }
}
