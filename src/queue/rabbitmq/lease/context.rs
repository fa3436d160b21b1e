//! State of all leases of this process. Outlives the sessions.

use std::sync::Arc;
use std::time::Duration;

use super::entry::LeasedDelivery;
use super::owner::OwnerIdentity;
use super::table::LeaseTable;
use crate::domain::headers::{Headers, LEASE_EPOCH, LEASE_OWNER};
use crate::metrics::Metrics;
use crate::queue::Delivery;
use crate::queue::rabbitmq::channel::acknowledge_or_lose;
use crate::queue::rabbitmq::deliveries::Deliveries;
use crate::queue::rabbitmq::names::Names;

/// Leases of this process, its identity as their owner, and what is needed to renew them.
pub(in crate::queue::rabbitmq) struct LeaseContext {
    pub(in crate::queue::rabbitmq) names: Names,
    pub(in crate::queue::rabbitmq) owner: OwnerIdentity,
    /// Time that an expired lease waits in the owner's queue before it goes to other workers.
    pub(in crate::queue::rabbitmq) owner_ttl: Duration,
    /// Leases that may return at once: each keeps one of the deliveries that the lanes may have.
    pub(in crate::queue::rabbitmq) max_leases: u16,
    pub(in crate::queue::rabbitmq) table: LeaseTable,
    pub(in crate::queue::rabbitmq) deliveries: Arc<Deliveries>,
    pub(in crate::queue::rabbitmq) metrics: Arc<Metrics>,
}

impl LeaseContext {
    /// Returns the headers by which a copy of a leased delivery names its owner, so that the worker
    /// that takes it over can notify this one.
    pub(in crate::queue::rabbitmq) fn owner_headers(&self, leased: &LeasedDelivery) -> Headers {
        Headers::from([
            (LEASE_EPOCH.to_owned(), leased.epoch.to_string()),
            (LEASE_OWNER.to_owned(), self.owner.address()),
        ])
    }

    /// Acknowledges a leased delivery: the lease keeps the job. A closed channel redelivers it, and
    /// the worker joins the duplicate.
    pub(in crate::queue::rabbitmq) async fn acknowledge_leased(&self, delivery: &Delivery) {
        if let Some(unacked) = self.deliveries.take(delivery.ticket) {
            acknowledge_or_lose(&unacked.acker).await;
        }
    }
}
