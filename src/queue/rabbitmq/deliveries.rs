//! Deliveries of all lanes: prefetched ones, and unacknowledged ones that the worker has.

use std::collections::HashMap;

use bytes::Bytes;
use lapin::types::ShortString;
use lapin::{Acker, BasicProperties};
use parking_lot::Mutex;

use super::channel::{acknowledge_or_lose, requeue_or_lose};
use super::copies;
use super::fields::{delivery_count, visible};
use super::origin;
use crate::domain::headers::PUBLISHER;
use crate::domain::lane::Lane;
use crate::queue::prefetch::PrefetchBuffer;
use crate::queue::{Delivery, DeliveryOrigin, DeliveryTag};

/// Delivery that the worker has not asked for yet.
#[derive(Debug)]
pub(super) struct PrefetchedDelivery {
    generation: u64,
    origin: DeliveryOrigin,
    /// Message as it was received, without what its producer may not claim.
    pub(super) inner: lapin::message::Delivery,
}

impl PrefetchedDelivery {
    /// Wraps a delivery of a session, and verifies its publisher. `us` is the login of the session.
    /// Producers publish to the lanes that the exchange binds; the other one has workers' messages.
    pub(super) fn new(
        generation: u64,
        lane: Lane,
        us: Option<&ShortString>,
        mut inner: lapin::message::Delivery,
    ) -> Self {
        let properties = std::mem::take(&mut inner.properties);
        let (origin, properties) = match lane {
            Lane::Continued => (DeliveryOrigin::Worker, origin::trusted(properties, us)),
            Lane::Scheduled | Lane::Backfill => origin::verify(properties, us),
        };
        let body = std::mem::take(&mut inner.data);
        (inner.properties, inner.data) = origin::without_forged_lease(origin, properties, body);
        Self { generation, origin, inner }
    }

    /// Returns true for a lease that no worker has published, and that has no job in it.
    pub(super) fn is_forged_lease(&self) -> bool {
        origin::is_forged_lease(self.origin, &self.inner.properties)
    }

    /// Requeues the delivery unchanged.
    pub(super) async fn requeue(self) {
        requeue_or_lose(&self.inner.acker).await;
    }

    /// Acknowledges the delivery: a copy has replaced it. A closed channel redelivers it, and the
    /// worker joins the duplicate.
    pub(super) async fn acknowledge(self) {
        acknowledge_or_lose(&self.inner.acker).await;
    }

    /// Splits into the worker's part, and the part that settles it.
    fn hand_out(self, lane: Lane) -> (Delivery, UnackedDelivery) {
        let lapin::message::Delivery { delivery_tag, routing_key, redelivered, properties, data, acker, .. } =
            self.inner;
        let headers = properties.headers().as_ref();
        let mut shown = visible(&properties);
        let delivery = Delivery {
            lane,
            body: Bytes::from(data),
            routing_key: copies::job_key(routing_key.as_str(), lane, headers),
            origin: self.origin,
            redelivered,
            delivery_count: delivery_count(headers),
            publisher: shown.headers.remove(PUBLISHER).unwrap_or_default(),
            properties: shown,
            ticket: DeliveryTag { generation: self.generation, lane, tag: delivery_tag },
        };
        (delivery, UnackedDelivery { acker, properties })
    }
}

/// Delivery that the worker has: its acker, and its properties as received, so that a copy loses
/// none.
#[derive(Debug)]
pub(super) struct UnackedDelivery {
    pub(super) acker: Acker,
    properties: BasicProperties,
}

/// Prefetched and unacknowledged deliveries. Outlives the sessions.
#[derive(Debug, Default)]
pub(super) struct Deliveries {
    /// Buffer of prefetched deliveries.
    pub(super) prefetched: PrefetchBuffer<PrefetchedDelivery>,
    unacked: Mutex<HashMap<DeliveryTag, UnackedDelivery>>,
}

impl Deliveries {
    /// Returns the next delivery of a lane, unacknowledged from now on; `None` once closed. Cancel
    /// safe.
    pub(super) async fn next(&self, lane: Lane) -> Option<Delivery> {
        let hand_out = |prefetched: PrefetchedDelivery| {
            let (delivery, unacked) = prefetched.hand_out(lane);
            self.unacked.lock().insert(delivery.ticket, unacked);
            delivery
        };
        self.prefetched.next(lane, hand_out).await
    }

    /// Returns the properties of an unacknowledged delivery as received; `None` after its session.
    pub(super) fn properties(&self, tag: DeliveryTag) -> Option<BasicProperties> {
        self.unacked.lock().get(&tag).map(|unacked| unacked.properties.clone())
    }

    /// Returns true while a delivery is unacknowledged and its session lasts.
    pub(super) fn is_unacked(&self, tag: DeliveryTag) -> bool {
        self.unacked.lock().contains_key(&tag)
    }

    /// Removes an unacknowledged delivery, to acknowledge or requeue it; `None` after its session.
    pub(super) fn take(&self, tag: DeliveryTag) -> Option<UnackedDelivery> {
        self.unacked.lock().remove(&tag)
    }

    /// Drops everything: the session ended. The broker redelivers all of it, and deliveries that
    /// the worker has can't be settled any more.
    pub(super) fn clear(&self) {
        self.prefetched.clear();
        self.unacked.lock().clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefetched(generation: u64, tag: u64) -> PrefetchedDelivery {
        let inner =
            lapin::message::Delivery::mock(tag, "consign".into(), "job.scheduled.a".into(), false, b"{}".to_vec());
        PrefetchedDelivery::new(generation, Lane::Scheduled, None, inner)
    }

    #[tokio::test]
    async fn a_new_session_has_none_of_the_deliveries_of_the_old_one() {
        let deliveries = Deliveries::default();
        deliveries.prefetched.push(Lane::Scheduled, prefetched(1, 1)).unwrap();
        deliveries.prefetched.push(Lane::Scheduled, prefetched(1, 2)).unwrap();
        let old = deliveries.next(Lane::Scheduled).await.unwrap();
        deliveries.clear();
        deliveries.prefetched.push(Lane::Scheduled, prefetched(2, 1)).unwrap();
        assert!(deliveries.take(old.ticket).is_none());
        let next = deliveries.next(Lane::Scheduled).await.unwrap();
        assert_eq!((next.ticket.generation, next.ticket.tag), (2, 1));
        assert!(deliveries.take(next.ticket).is_some());
    }
}
