//! Acquisition of a lease for a delivery, and the end of all leases on close.

use std::sync::Arc;
use std::time::Duration;

use lapin::BasicProperties;

use super::context::LeaseContext;
use super::renewer::LeaseRenewer;
use super::table::{LeaseRequest, LeasedDelivery};
use crate::queue::rabbitmq::channel::acknowledge;
use crate::queue::{Delivery, LeaseHolder, QueueError};
use crate::runtime::failpoints;

/// Limit for discarding settled leases on close.
const RETIRE_TIMEOUT: Duration = Duration::from_secs(2);

impl LeaseRenewer {
    /// Acquires a lease: binds the key, publishes the first lease (confirmed), acknowledges the
    /// delivery, and notifies a former owner. After an error the delivery still keeps the job.
    pub(in crate::queue::rabbitmq) async fn acquire(
        &self,
        delivery: &Delivery,
        properties: BasicProperties,
        key: &str,
        holder: Arc<dyn LeaseHolder>,
    ) -> Result<(), QueueError> {
        let (tag, context) = (delivery.ticket, &self.context);
        let request =
            LeaseRequest { ticket: tag, key, properties, job_key: &delivery.routing_key, holder: Arc::clone(&holder) };
        if let Some(previous) = context.table.insert(context.owner.name(), request)? {
            // Its lease returns outdated, possibly when no transfer is running that could be notified.
            holder.outdated(previous.message().body);
            previous.lost();
        }
        if let Err(error) = self.publish_first(key).await {
            context.table.cancel(tag);
            self.unbind_unwanted(key).await;
            return Err(if context.deliveries.is_unacked(tag) { error } else { QueueError::Lost });
        }
        failpoints::hit("lease_written");
        context.acknowledge_leased(delivery).await;
        context.metrics.settled("lease");
        self.notify_former_owner(key).await;
        Ok(())
    }

    /// Binds before it publishes, so that the lease can't miss its owner.
    async fn publish_first(&self, key: &str) -> Result<(), QueueError> {
        self.queue.bind(key).await?;
        // False when the queue was closed meanwhile, or another delivery replaced this one: nothing was published.
        if self.publish_renewal(key).await? { Ok(()) } else { Err(QueueError::Lost) }
    }

    /// Renews the lease of a delivery at once, with a new holder.
    pub(in crate::queue::rabbitmq) async fn renew_now(&self, leased: &LeasedDelivery) -> Result<(), QueueError> {
        if self.publish_renewal(&leased.key).await? { Ok(()) } else { Err(QueueError::Lost) }
    }
}

impl LeaseContext {
    /// Acknowledges a leased delivery: the lease keeps the job. A closed channel redelivers it, and
    /// the worker joins the duplicate.
    pub(in crate::queue::rabbitmq) async fn acknowledge_leased(&self, delivery: &Delivery) {
        let Some(unacked) = self.deliveries.take(delivery.ticket) else { return };
        if acknowledge(&unacked.acker).await.is_err() {
            tracing::debug!(
                event = "acknowledge_failed",
                "a leased delivery will be redelivered; its channel is closed"
            );
        }
    }

    /// Ends all leases: none is renewed any more, and running transfers are notified. Then retires
    /// the owner's queue, if connected.
    pub(in crate::queue::rabbitmq) async fn close(&self, renewer: Option<&LeaseRenewer>) {
        let closed = self.table.close();
        for holder in closed.holders {
            holder.lost();
        }
        let Some(renewer) = renewer else { return };
        let retired = tokio::time::timeout(RETIRE_TIMEOUT, renewer.queue.retire(&closed.ended, closed.unfinished));
        if !matches!(retired.await, Ok(Ok(()))) {
            tracing::debug!(event = "leases_not_retired", "leases of settled jobs may be redelivered to other workers");
        }
    }
}
