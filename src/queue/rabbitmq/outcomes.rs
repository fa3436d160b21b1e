//! Outcomes for commands: the retained ones of a backfill, in a stream of its own, and the
//! subscription to all from now on.

use async_trait::async_trait;
use futures_util::StreamExt as _;
use lapin::options::{BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Connection, Consumer};

use super::connection::{self, Endpoint, ScopedConnection, call};
use super::declare::declare_queue;
use super::errors::{self, requires};
use super::fields::short;
use super::names::Names;
use super::topology::QueueDeclaration;
use crate::config::BrokerConfig;
use crate::queue::{OutcomeMessage, Outcomes, QueueError};

/// Binding of all outcomes.
const ALL_OUTCOMES: &str = "transfer.#";

/// Declares the stream of this name.
pub(super) async fn retain(config: &BrokerConfig, client: &str, name: &str) -> Result<(), QueueError> {
    let connection = ScopedConnection::connect(&Endpoint::parse(config, client)?, "outcomes").await?;
    let declared = declare_queue(&connection, &QueueDeclaration::backfill_outcomes(name)).await;
    connection.close().await;
    declared
}

/// Subscription to the outcomes of one prefix, from its creation on. Its queue is deleted with its
/// connection, so outcomes published during a lost connection are missed.
pub(super) struct RabbitMqOutcomes {
    connection: Connection,
    consumer: Consumer,
}

impl RabbitMqOutcomes {
    /// Subscribes to all outcomes published after this returns.
    pub(super) async fn subscribe(config: &BrokerConfig, name: &str) -> Result<Self, QueueError> {
        let connection = Endpoint::parse(config, name)?.connect("outcomes").await?;
        let channel = connection::open_channel(&connection).await?;
        let own = QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
        let declared = channel.queue_declare("".into(), own, FieldTable::default());
        let declared = call("declaring a queue for outcomes", declared).await;
        let queue = declared.map_err(requires("configure on `amq.gen.*`".to_owned()))?.name().clone();
        let exchange = Names::new(&config.prefix).outcomes_exchange();
        let options = QueueBindOptions::default();
        let (source, key) = (short(&exchange)?, ALL_OUTCOMES.into());
        let bound = channel.queue_bind(queue.clone(), source, key, options, FieldTable::default());
        let permission = format!("write on `amq.gen.*`, and read on `{exchange}`");
        call("binding a queue for outcomes", bound).await.map_err(requires(permission))?;
        let no_ack = BasicConsumeOptions { no_ack: true, exclusive: true, ..BasicConsumeOptions::default() };
        let consumer = channel.basic_consume(queue, "".into(), no_ack, FieldTable::default());
        let consumer =
            call("consuming outcomes", consumer).await.map_err(requires("read on `amq.gen.*`".to_owned()))?;
        Ok(Self { connection, consumer })
    }
}

#[async_trait]
impl Outcomes for RabbitMqOutcomes {
    async fn next(&mut self) -> Result<OutcomeMessage, QueueError> {
        match connection::while_connected(&self.connection, self.consumer.next()).await? {
            Some(Ok(delivery)) => {
                Ok(OutcomeMessage { routing_key: delivery.routing_key.to_string(), body: delivery.data })
            }
            Some(Err(error)) => Err(errors::unavailable(&error)),
            None => Err(QueueError::Unavailable("the broker ended the subscription to outcomes".to_owned())),
        }
    }

    async fn close(self: Box<Self>) {
        connection::close(&self.connection).await;
    }
}
