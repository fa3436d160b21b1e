//! Messages in the simulated broker.

use bytes::Bytes;

use crate::domain::headers::Headers;
use crate::domain::lane::Lane;
use crate::domain::{headers, routing_key};
use crate::queue::{Delivery, DeliveryOrigin, DeliveryTag, Properties};

/// A message in a queue.
#[derive(Debug, Clone)]
pub(super) struct SimMessage {
    /// Job that the message belongs to.
    pub(super) job: usize,
    pub(super) body: Bytes,
    pub(super) properties: Properties,
    pub(super) routing_key: String,
    pub(super) redelivered: bool,
    pub(super) delivery_count: u64,
}

impl SimMessage {
    /// Lane that the routing key leads to.
    pub(super) fn lane(&self) -> Lane {
        routing_key::published_lane(&self.routing_key)
    }

    /// Unfinished upload that the message resumes.
    pub(super) fn upload(&self) -> Option<String> {
        super::lease::checkpoint(self.properties.content_type.as_deref(), &self.body)
    }

    /// Returns a copy with the delivery's body and these headers set.
    pub(super) fn copy(&self, delivery: &Delivery, headers: Headers) -> Self {
        let mut copy = Self { body: delivery.body.clone(), redelivered: false, delivery_count: 0, ..self.clone() };
        copy.properties.content_type.clone_from(&delivery.properties.content_type);
        copy.properties.headers.extend(headers);
        copy
    }

    pub(super) fn delivery(&self, lane: Lane, ticket: DeliveryTag) -> Delivery {
        Delivery {
            lane,
            body: self.body.clone(),
            properties: self.properties.clone(),
            routing_key: self.routing_key.clone(),
            origin: DeliveryOrigin::Worker,
            publisher: String::new(),
            redelivered: self.redelivered,
            delivery_count: self.delivery_count,
            ticket,
        }
    }

    /// Returns the message as it is redelivered after a requeue.
    pub(super) fn into_redelivery(mut self) -> Self {
        self.redelivered = true;
        self.delivery_count += 1;
        self
    }
}

/// Counter in the headers; zero if absent.
pub(super) fn counter(headers: &Headers, name: &str) -> u32 {
    headers::parsed(headers, name).unwrap_or(0)
}

/// Index of a lane in a per-lane table.
pub(super) fn index(lane: Lane) -> usize {
    match lane {
        Lane::Continued => 0,
        Lane::Scheduled => 1,
        Lane::Backfill => 2,
    }
}
