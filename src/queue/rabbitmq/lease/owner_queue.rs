//! Queue to which the leases of this process return, for the time of one session.

use std::sync::Arc;

use lapin::options::{
    BasicCancelOptions, BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Consumer};
use tokio_util::sync::CancellationToken;

use super::context::LeaseContext;
use crate::queue::QueueError;
use crate::queue::rabbitmq::connection::call;
use crate::queue::rabbitmq::declare;
use crate::queue::rabbitmq::fields::short;
use crate::queue::rabbitmq::topology::QueueDeclaration;

/// Owner's queue under one address.
pub(super) struct OwnerQueue {
    context: Arc<LeaseContext>,
    channel: Channel,
    /// Address of this owner.
    pub(super) address: String,
    cancelled: CancellationToken,
}

impl OwnerQueue {
    /// Queue under the current address. It is declared by [`OwnerQueue::consume`].
    pub(super) fn new(context: &Arc<LeaseContext>, channel: Channel) -> Self {
        let (context, address) = (Arc::clone(context), context.owner.address());
        Self { context, channel, address, cancelled: CancellationToken::new() }
    }

    /// Declares the queue, binds it to every lease that must return to it, and consumes.
    pub(super) async fn consume(&self) -> Result<Consumer, QueueError> {
        let (bind, unbind) = self.context.table.session_started();
        if let Some(previous) = self.context.owner.previous_address() {
            // A queue that does not respond would hold the leases of all its keys.
            for key in bind.iter().chain(&unbind) {
                self.unbind_queue(&self.context.names.owner(&previous), key).await?;
            }
        }
        let (names, ttl) = (&self.context.names, self.context.owner_ttl);
        self.declare(&QueueDeclaration::owner(names, &self.address, ttl)).await?;
        // Its address, for notices.
        self.bind_queue(&self.name(), &self.name()).await?;
        for key in &bind {
            self.bind(key).await?;
        }
        for key in &unbind {
            self.unbind(key).await?;
            self.context.table.unbound(key);
        }
        let (queue, tag) = (short(&self.name())?, self.consumer_tag()?);
        let consumer = self.channel.basic_consume(queue, tag, BasicConsumeOptions::default(), FieldTable::default());
        call(&format!("consuming from {}", self.name()), consumer).await
    }

    /// Returns the name of the queue.
    pub(super) fn name(&self) -> String {
        self.context.names.owner(&self.address)
    }

    fn consumer_tag(&self) -> Result<ShortString, QueueError> {
        short(&format!("{} leases", self.address))
    }

    /// Returns true while the channel is open.
    pub(super) fn is_connected(&self) -> bool {
        self.channel.status().connected()
    }

    /// Returns true once [`OwnerQueue::retire`] has cancelled the consumer.
    pub(super) fn is_cancelled(&self) -> bool {
        self.cancelled.is_cancelled()
    }

    async fn declare(&self, queue: &QueueDeclaration) -> Result<(), QueueError> {
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let arguments = declare::table(&queue.arguments);
        let declared = self.channel.queue_declare(short(&queue.name)?, options, arguments);
        call(&format!("declaring {}", queue.name), declared).await.map(drop)
    }

    /// Routes leases of this key here.
    pub(super) async fn bind(&self, key: &str) -> Result<(), QueueError> {
        self.bind_queue(&self.name(), key).await
    }

    /// Stops routing leases of this key here. Idempotent.
    pub(super) async fn unbind(&self, key: &str) -> Result<(), QueueError> {
        self.unbind_queue(&self.name(), key).await
    }

    /// Stops routing leases of this key to a former owner. Idempotent.
    pub(super) async fn unbind_former(&self, address: &str, key: &str) -> Result<(), QueueError> {
        self.unbind_queue(&self.context.names.owner(address), key).await?;
        self.unbind_queue(&self.context.names.discarded_leases(address), key).await
    }

    async fn bind_queue(&self, queue: &str, key: &str) -> Result<(), QueueError> {
        let (queue, exchange) = (short(queue)?, short(&self.context.names.owners_exchange())?);
        let (options, arguments) = (QueueBindOptions::default(), FieldTable::default());
        let bound = self.channel.queue_bind(queue, exchange, short(key)?, options, arguments);
        call("binding a lease", bound).await
    }

    /// Succeeds also when the queue or the binding does not exist.
    async fn unbind_queue(&self, queue: &str, key: &str) -> Result<(), QueueError> {
        let (queue, exchange) = (short(queue)?, short(&self.context.names.owners_exchange())?);
        let unbound = self.channel.queue_unbind(queue, exchange, short(key)?, FieldTable::default());
        call("unbinding a lease", unbound).await
    }

    /// Closes the queue: leases of `settled` keys are discarded, and `unfinished` ones go to other
    /// workers. Deletes the queue when none is unfinished.
    pub(super) async fn retire(&self, settled: &[String], unfinished: bool) -> Result<(), QueueError> {
        self.cancelled.cancel();
        let cancelled = self.channel.basic_cancel(self.consumer_tag()?, BasicCancelOptions::default());
        call("cancelling a consumer", cancelled).await?;
        if !settled.is_empty() {
            let discard = QueueDeclaration::discarded_leases(&self.context.names, &self.address);
            self.declare(&discard).await?;
            for key in settled {
                self.bind_queue(&discard.name, key).await?;
            }
        }
        if unfinished {
            for key in settled {
                self.unbind(key).await?;
            }
            return Ok(());
        }
        // It has no message that another worker needs, and none will be routed to it.
        let deleted = self.channel.queue_delete(short(&self.name())?, QueueDeleteOptions::default());
        call("deleting a queue", deleted).await.map(drop)
    }
}
