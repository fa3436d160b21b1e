//! Messages as the broker keeps them.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::domain::lane::Lane;
use crate::queue::{Delivery, DeliveryTag, Properties};

/// A message in a queue.
#[derive(Debug, Clone)]
pub(super) struct Message {
    /// Which job of the story it is about.
    pub(super) job: usize,
    pub(super) body: Bytes,
    pub(super) properties: Properties,
    pub(super) routing_key: String,
    pub(super) redelivered: bool,
    pub(super) delivery_count: u64,
}

impl Message {
    /// The lane that its routing key leads to.
    pub(super) fn home(&self) -> Lane {
        if self.routing_key.starts_with("job.backfill.") { Lane::Backfill } else { Lane::Scheduled }
    }

    /// The unfinished upload that it carries on.
    pub(super) fn upload(&self) -> Option<String> {
        super::held::checkpoint(self.properties.content_type.as_deref(), &self.body)
    }

    /// A fresh message with the delivery's body and these headers set.
    pub(super) fn copy(&self, delivery: &Delivery, headers: BTreeMap<String, String>) -> Self {
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
            redelivered: self.redelivered,
            delivery_count: self.delivery_count,
            ticket,
        }
    }

    /// It comes back without a settlement.
    pub(super) fn returned(mut self) -> Self {
        self.redelivered = true;
        self.delivery_count += 1;
        self
    }
}

/// A counter in the headers; zero where there is none.
pub(super) fn counter(headers: &BTreeMap<String, String>, name: &str) -> u32 {
    headers.get(name).and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// The place of a lane in a table of all.
pub(super) fn index(lane: Lane) -> usize {
    match lane {
        Lane::Continued => 0,
        Lane::Scheduled => 1,
        Lane::Backfill => 2,
    }
}
