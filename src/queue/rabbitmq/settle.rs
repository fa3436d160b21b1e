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
use super::lease::LeasedDelivery;
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
    context: Arc<QueueContext>,
    sessions: Arc<BrokerSessions>,
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

/// Owner of the job until the acknowledgement.
enum KeptBy {
    /// The unacknowledged delivery, while its channel is open.
    Channel,
    /// A lease, across sessions.
    Lease(LeasedDelivery),
}

impl KeptBy {
    fn publish_limit(&self) -> Duration {
        match self {
            Self::Channel => PUBLISH_TIMEOUT,
            Self::Lease(_) => LEASED_PUBLISH_TIMEOUT,
        }
    }
}

impl Settler {
    /// Builds a settler that publishes by the current session.
    pub(super) fn new(context: Arc<QueueContext>, sessions: Arc<BrokerSessions>, replies: Arc<Replies>) -> Self {
        Self { context, sessions, replies }
    }

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
        let kept_by = self.kept_by(delivery.ticket);
        let published = match self.publish_outcomes(&kept_by, outcomes).await {
            Ok(()) => self.publish_copy(&kept_by, &delivery, settlement).await,
            Err(problem) => Err(problem),
        };
        self.end(&kept_by, &delivery, published, end).await?;
        self.context.metrics.settled(action);
        Ok(())
    }

    fn kept_by(&self, tag: DeliveryTag) -> KeptBy {
        let leases = &self.context.leases.table;
        if let Some(leased) = leases.leased(tag) {
            return KeptBy::Lease(leased);
        }
        // The broker may have an interrupted first lease all the same; it must not be renewed.
        leases.cancel(tag);
        KeptBy::Channel
    }

    async fn publish_outcomes(&self, kept_by: &KeptBy, outcomes: &[OutcomeEvent]) -> Result<(), QueueError> {
        // A delivery is a fact even if another worker owns the job by now. Other outcomes are up to it.
        let delivered = outcomes.iter().any(|event| is_outcome(&event.routing_key, "delivered"));
        if !delivered && matches!(kept_by, KeptBy::Lease(leased) if leased.lost) {
            return Err(QueueError::Lost);
        }
        for event in outcomes {
            let outcome = messages::outcome(&self.context.names, event)?;
            self.sessions.publish(&outcome, kept_by.publish_limit()).await?;
            self.replies.send_copy(event);
            failpoints::hit("outcome");
        }
        Ok(())
    }

    async fn publish_copy(
        &self,
        kept_by: &KeptBy,
        delivery: &Delivery,
        settlement: Settlement,
    ) -> Result<(), QueueError> {
        let leases = &self.context.leases.table;
        if matches!(kept_by, KeptBy::Lease(_)) && leases.leased(delivery.ticket).is_none_or(|leased| leased.lost) {
            return Err(QueueError::Lost);
        }
        if let Some(copy) = self.copy(kept_by, delivery, settlement)? {
            self.sessions.publish(&copy, kept_by.publish_limit()).await?;
            failpoints::hit("copy");
        }
        Ok(())
    }

    /// Returns the copy that a settlement publishes. Copies of a leased delivery name its owner,
    /// except a dead letter.
    fn copy(
        &self,
        kept_by: &KeptBy,
        delivery: &Delivery,
        settlement: Settlement,
    ) -> Result<Option<OutgoingMessage>, QueueError> {
        if matches!((&settlement, kept_by), (Settlement::Ack, _) | (Settlement::Requeue, KeptBy::Channel)) {
            return Ok(None);
        }
        if delivery.properties.unread.is_some() {
            // A copy would have no body.
            let rejected = matches!(settlement, Settlement::DeadLetter { .. });
            return if rejected { Ok(None) } else { Err(QueueError::Refused("its body was not read".to_owned())) };
        }
        let (original, owner) = match kept_by {
            KeptBy::Channel => {
                let original = self.context.deliveries.properties(delivery.ticket).ok_or(QueueError::Lost)?;
                (Arc::new(original), Headers::new())
            }
            KeptBy::Lease(leased) => (Arc::clone(&leased.properties), self.context.leases.owner_headers(leased)),
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
        kept_by: &KeptBy,
        delivery: &Delivery,
        published: Result<(), QueueError>,
        end: DeliveryEnd,
    ) -> Result<(), QueueError> {
        let (tag, leases) = (delivery.ticket, &self.context.leases);
        if matches!(kept_by, KeptBy::Lease(_)) {
            // An interrupted acquisition may have left the delivery unacknowledged.
            leases.acknowledge_leased(delivery).await;
            if published.is_ok() {
                leases.table.settled(tag);
            } else {
                leases.table.released(tag);
            }
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
