//! Settlement of a delivery: outcomes, then the copy, then the acknowledgement.
//!
//! All messages are confirmed and mandatory. While the broker blocks publishers (an alarm), a
//! settlement waits; otherwise it publishes for up to 30 s, or 10 min under a lease.
//!
//! A message whose body was too large to be read is dead-lettered by the broker, which has the
//! body.

use std::sync::Arc;
use std::time::Duration;

use super::channel::{acknowledge, reject, requeue, requeue_or_lose};
use super::context::QueueContext;
use super::copies::{self, JobCopy};
use super::lease::{LeaseState, LeasedDelivery};
use super::messages;
use super::publisher::OutgoingMessage;
use super::replies::Replies;
use super::sessions::{BrokerSessions, PUBLISH_TIMEOUT};
use crate::domain::headers::Headers;
use crate::domain::routing_key::is_outcome;
use crate::queue::{Delivery, DeliveryTag, OutcomeEvent, QueueError, Settlement};
use crate::runtime::failpoints;

/// Limit of each publish of a settlement under a lease. The lease keeps the job meanwhile.
const LEASED_PUBLISH_TIMEOUT: Duration = Duration::from_mins(10);

/// Performs settlements.
pub(super) struct Settler {
    pub(super) context: Arc<QueueContext>,
    /// The current one publishes.
    pub(super) sessions: Arc<BrokerSessions>,
    /// Sender of replies.
    pub(super) replies: Arc<Replies>,
}

/// End of an unacknowledged delivery.
enum DeliveryEnd {
    Ack,
    Requeue,
    /// The broker dead-letters it.
    Reject,
}

impl DeliveryEnd {
    fn of(delivery: &Delivery, settlement: &Settlement) -> Self {
        match settlement {
            Settlement::Requeue => Self::Requeue,
            Settlement::DeadLetter { .. } if delivery.properties.unread.is_some() => Self::Reject,
            _ => Self::Ack,
        }
    }
}

fn publish_limit(lease: Option<&LeasedDelivery>) -> Duration {
    if lease.is_some() { LEASED_PUBLISH_TIMEOUT } else { PUBLISH_TIMEOUT }
}

impl Settler {
    /// Settles a delivery, under a lease or not. The order of every settlement is stated here only:
    /// the outcomes are published and confirmed, then the copy is published and confirmed, and only
    /// then is the delivery acknowledged. An error on the way leaves the job to a redelivery, or
    /// releases its lease.
    pub(super) async fn settle(
        &self,
        delivery: Delivery,
        settlement: Settlement,
        outcomes: &[OutcomeEvent],
    ) -> Result<(), QueueError> {
        let (action, end) = (settlement.action(), DeliveryEnd::of(&delivery, &settlement));
        let lease = self.lease(delivery.ticket);
        let lease = lease.as_ref();
        let published = match self.publish_outcomes(lease, outcomes).await {
            Ok(()) => self.publish_copy(lease, &delivery, settlement).await,
            Err(problem) => Err(problem),
        };
        self.end(lease, &delivery, published, end).await?;
        self.context.metrics.settled(action);
        Ok(())
    }

    /// Returns the lease that keeps the job until the acknowledgement, across sessions. Without one
    /// the unacknowledged delivery keeps it, while its channel is open.
    fn lease(&self, tag: DeliveryTag) -> Option<LeasedDelivery> {
        let leases = &self.context.leases.table;
        let leased = leases.leased(tag);
        if leased.is_none() {
            // The broker may have an interrupted first lease all the same; it must not be renewed.
            leases.finish(tag, LeaseState::Unconfirmed);
        }
        leased
    }

    async fn publish_outcomes(
        &self,
        lease: Option<&LeasedDelivery>,
        outcomes: &[OutcomeEvent],
    ) -> Result<(), QueueError> {
        // A delivery is a fact even if another worker owns the job by now. Other outcomes are up to it.
        let delivered = outcomes.iter().any(|event| is_outcome(&event.routing_key, "delivered"));
        if !delivered && lease.is_some_and(|leased| leased.lost) {
            return Err(QueueError::Lost);
        }
        for event in outcomes {
            let outcome = messages::outcome(&self.context.names, event)?;
            self.sessions.publish(&outcome, publish_limit(lease)).await?;
            self.replies.send_copy(event);
            failpoints::hit("outcome");
        }
        Ok(())
    }

    async fn publish_copy(
        &self,
        lease: Option<&LeasedDelivery>,
        delivery: &Delivery,
        settlement: Settlement,
    ) -> Result<(), QueueError> {
        let leases = &self.context.leases.table;
        if lease.is_some() && leases.leased(delivery.ticket).is_none_or(|leased| leased.lost) {
            return Err(QueueError::Lost);
        }
        if let Some(copy) = self.copy(lease, delivery, settlement)? {
            self.sessions.publish(&copy, publish_limit(lease)).await?;
            failpoints::hit("copy");
        }
        Ok(())
    }

    /// Returns the copy that a settlement publishes. Copies of a leased delivery name its owner,
    /// except a dead letter.
    fn copy(
        &self,
        lease: Option<&LeasedDelivery>,
        delivery: &Delivery,
        settlement: Settlement,
    ) -> Result<Option<OutgoingMessage>, QueueError> {
        if matches!((&settlement, lease), (Settlement::Ack, _) | (Settlement::Requeue, None)) {
            return Ok(None);
        }
        if delivery.properties.unread.is_some() {
            // A copy would have no body.
            let rejected = matches!(settlement, Settlement::DeadLetter { .. });
            return if rejected { Ok(None) } else { Err(QueueError::Refused("its body was not read".to_owned())) };
        }
        let (original, owner) = match lease {
            None => {
                let original = self.context.deliveries.properties(delivery.ticket).ok_or(QueueError::Lost)?;
                (Arc::new(original), Headers::new())
            }
            Some(leased) => (Arc::clone(&leased.properties), self.context.leases.owner_headers(leased)),
        };
        let names = &self.context.names;
        let owned_copy = |mut headers: Headers| {
            headers.extend(owner);
            JobCopy::of(delivery, &original, headers)
        };
        match settlement {
            Settlement::Ack => return Ok(None),
            Settlement::Requeue => copies::handed_off(names, owned_copy(Headers::new())),
            Settlement::HandOff { headers } => copies::handed_off(names, owned_copy(headers)),
            Settlement::Retry { delay, headers } | Settlement::Defer { delay, headers } => {
                copies::waiting(names, delay, owned_copy(headers))
            }
            Settlement::DeadLetter { headers } => copies::dead_letter(names, JobCopy::of(delivery, &original, headers)),
        }
        .map(Some)
    }

    /// Acknowledges, requeues or rejects the delivery, or ends its lease, by the result of the
    /// publishes.
    async fn end(
        &self,
        lease: Option<&LeasedDelivery>,
        delivery: &Delivery,
        published: Result<(), QueueError>,
        end: DeliveryEnd,
    ) -> Result<(), QueueError> {
        let (tag, leases) = (delivery.ticket, &self.context.leases);
        if lease.is_some() {
            // An interrupted acquisition may have left the delivery unacknowledged.
            leases.acknowledge_leased(delivery).await;
            leases.table.finish(tag, if published.is_ok() { LeaseState::Settled } else { LeaseState::Released });
            return published;
        }
        let unacked = self.context.deliveries.take(tag).ok_or(QueueError::Lost)?;
        if published.is_err() {
            requeue_or_lose(&unacked.acker).await;
            return published;
        }
        match end {
            DeliveryEnd::Ack => acknowledge(&unacked.acker).await,
            DeliveryEnd::Requeue => requeue(&unacked.acker).await,
            DeliveryEnd::Reject => reject(&unacked.acker).await,
        }
    }
}
