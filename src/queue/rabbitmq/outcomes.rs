//! Listening to outcomes, for `consign enqueue --wait`.

use futures_util::StreamExt as _;
use lapin::options::{BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Connection, Consumer};

use super::connection::{self, Endpoint, call, takes};
use super::declare::short;
use super::topology::Names;
use crate::config::BrokerConfig;
use crate::queue::{OutcomeMessage, QueueError};

/// A subscription to the outcomes of one prefix, from the moment it was made. It has a queue of its own that goes with its
/// connection: an outcome of the time of a lost connection is not seen.
pub struct Outcomes {
    connection: Connection,
    consumer: Consumer,
}

impl Outcomes {
    /// Subscribes to `transfer.#`; outcomes published after this returns are seen.
    ///
    /// # Errors
    /// `Unavailable` when the broker can't be reached or has no outcomes exchange.
    pub async fn subscribe(config: &BrokerConfig, name: &str) -> Result<Self, QueueError> {
        let connection = Endpoint::parse(config, name)?.connect("outcomes").await?;
        let channel = connection::open_channel(&connection).await?;
        let own = QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
        let declared = channel.queue_declare("".into(), own, FieldTable::default());
        let declared = call("declaring a queue for outcomes", declared).await;
        let queue = declared.map_err(takes("configure on `amq.gen.*`".to_owned()))?.name().clone();
        let exchange = Names::new(&config.prefix).outcomes_exchange();
        let options = QueueBindOptions::default();
        let (of, key) = (short(&exchange)?, "transfer.#".into());
        let bound = channel.queue_bind(queue.clone(), of, key, options, FieldTable::default());
        let permission = format!("write on `amq.gen.*`, and read on `{exchange}`");
        call("binding a queue for outcomes", bound).await.map_err(takes(permission))?;
        let no_ack = BasicConsumeOptions { no_ack: true, exclusive: true, ..BasicConsumeOptions::default() };
        let consumer = channel.basic_consume(queue, "".into(), no_ack, FieldTable::default());
        let consumer = call("consuming outcomes", consumer).await.map_err(takes("read on `amq.gen.*`".to_owned()))?;
        Ok(Self { connection, consumer })
    }

    /// The next outcome.
    ///
    /// # Errors
    /// `Unavailable` when the connection is lost; there is no next one after that.
    pub async fn next(&mut self) -> Result<OutcomeMessage, QueueError> {
        match self.consumer.next().await {
            Some(Ok(delivery)) => {
                Ok(OutcomeMessage { routing_key: delivery.routing_key.to_string(), body: delivery.data })
            }
            Some(Err(error)) => Err(connection::unavailable(&error)),
            None => Err(QueueError::Unavailable("the broker ended the subscription to outcomes".to_owned())),
        }
    }

    /// Ends the subscription; its queue goes with it.
    pub async fn close(self) {
        connection::close(&self.connection).await;
    }
}
