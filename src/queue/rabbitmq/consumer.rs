//! Consumer of one lane: moves deliveries from the lane's queue to the prefetch buffer.

use std::sync::Arc;

use futures_util::StreamExt as _;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Consumer};
use tokio_util::sync::CancellationToken;

use super::channel::set_prefetch;
use super::connection::call;
use super::context::QueueContext;
use super::copies;
use super::deliveries::PrefetchedDelivery;
use super::errors;
use super::fields::{delivery_count, short};
use super::health::SessionHealth;
use super::lease::LeaseRenewer;
use super::publisher::Publisher;
use crate::domain::lane::Lane;
use crate::queue::QueueError;

/// Redeliveries after which a message that has not begun is replaced by a copy. The delivery limit
/// is twice as high.
const RENEWED_COUNT: u64 = 500;

/// Handle of one lane's consumer.
#[derive(Clone)]
pub(super) struct LaneConsumer {
    pub(super) lane: Lane,
    channel: Channel,
    tag: ShortString,
    number: u64,
    /// Distinguishes the cancellation by [`LaneConsumer::cancel`] from one by the broker.
    cancelled: CancellationToken,
}

impl LaneConsumer {
    /// Consumer of a lane on its channel, not started yet. Each has its number there.
    pub(super) fn new(context: &QueueContext, channel: Channel, lane: Lane, number: u64) -> Result<Self, QueueError> {
        let tag = short(&format!("{} {} {number}", context.worker_id, lane.as_str()))?;
        Ok(Self { lane, channel, tag, number, cancelled: CancellationToken::new() })
    }

    /// Consumer that replaces this one. It has a tag of its own: a quorum queue counts what the old
    /// one has not acknowledged towards the limit of a new one with the same tag.
    pub(super) fn successor(&self, context: &QueueContext) -> Result<Self, QueueError> {
        Self::new(context, self.channel.clone(), self.lane, self.number + 1)
    }

    /// Starts to consume the lane, with at most `room` unacknowledged deliveries.
    pub(super) async fn start(&self, context: &QueueContext, room: u16) -> Result<Consumer, QueueError> {
        let channel = set_prefetch(self.channel.clone(), room).await?;
        let (queue, tag) = (context.names.jobs(self.lane), self.tag.clone());
        let consumer =
            channel.basic_consume(short(&queue)?, tag, BasicConsumeOptions::default(), FieldTable::default());
        call(&format!("consuming from {queue}"), consumer).await
    }

    /// Returns true while the channel is open.
    pub(super) fn is_connected(&self) -> bool {
        self.channel.status().connected()
    }

    /// Returns true for a consumer that was cancelled or never started.
    pub(super) fn is_cancelled(&self) -> bool {
        self.cancelled.is_cancelled()
    }

    /// Records that the lane is not consumed: its successor starts.
    pub(super) fn skip(&self) {
        self.cancelled.cancel();
    }

    /// Stops the deliveries. Unacknowledged ones can still be settled.
    pub(super) async fn cancel(&self) {
        if !self.is_cancelled() {
            self.skip();
            self.cancel_now().await;
        }
    }

    async fn cancel_now(&self) {
        let cancelled = self.channel.basic_cancel(self.tag.clone(), BasicCancelOptions::default());
        if let Err(error) = call("cancelling a consumer", cancelled).await {
            tracing::debug!(
                event = "cancel_failed",
                %error,
                "a consumer was not cancelled; its deliveries are requeued"
            );
        }
    }
}

/// Task that fills the prefetch buffer of one lane.
pub(super) struct PrefetchTask {
    pub(super) context: Arc<QueueContext>,
    pub(super) health: Arc<SessionHealth>,
    pub(super) renewer: Arc<LeaseRenewer>,
    pub(super) publisher: Arc<Publisher>,
    pub(super) generation: u64,
}

impl PrefetchTask {
    /// Starts the consumer, and runs until it ends. A refusal ends the session, and the next one
    /// consumes.
    pub(super) async fn start(self, lane: LaneConsumer, room: u16) {
        match lane.start(&self.context, room).await {
            Ok(consumer) => {
                if lane.is_cancelled() {
                    // Before the broker knew it.
                    lane.cancel_now().await;
                }
                self.run(consumer, lane).await;
            }
            Err(error) => self.health.end(&error.to_string()),
        }
    }

    /// Runs until the consumer ends. Any other end than a cancellation ends the session.
    pub(super) async fn run(self, mut consumer: Consumer, lane: LaneConsumer) {
        while let Some(item) = consumer.next().await {
            match item {
                Ok(delivery) => {
                    let us = self.context.endpoint.login.user();
                    let delivery = PrefetchedDelivery::new(self.generation, lane.lane, us.as_ref(), delivery);
                    self.prefetch(lane.lane, delivery).await;
                }
                Err(error) => return self.health.end(&errors::text(&error)),
            }
        }
        if !lane.is_cancelled() {
            let queue = self.context.names.jobs(lane.lane);
            self.health.end(&format!("the broker ended the consumer of {queue} (was the queue deleted?)"));
        }
    }

    async fn prefetch(&self, lane: Lane, delivery: PrefetchedDelivery) {
        let job = if lane == Lane::Continued { self.renewer.filter(delivery).await } else { Some(delivery) };
        let Some(job) = job else { return };
        let Some(job) = self.with_low_count(lane, job).await else { return };
        if let Err(refused) = self.context.deliveries.prefetched.push(lane, job) {
            refused.requeue().await;
        }
    }

    /// Replaces a message that was requeued very often by a copy whose count starts again: at its
    /// delivery limit the broker would drop a job that never began. Returns a delivery that could
    /// not be replaced; its next redelivery is.
    async fn with_low_count(&self, lane: Lane, delivery: PrefetchedDelivery) -> Option<PrefetchedDelivery> {
        let message = &delivery.inner;
        let count = delivery_count(message.properties.headers().as_ref());
        if count < RENEWED_COUNT || delivery.is_forged_lease() {
            return Some(delivery);
        }
        let copied = match copies::renewed(&self.context.names, lane, message) {
            Ok(copy) => self.publisher.publish(&copy).await,
            Err(error) => Err(error),
        };
        if let Err(error) = copied {
            tracing::warn!(
                event = "message_not_replaced",
                %error,
                count,
                next = "the next redelivery is replaced instead",
                remedy = "check the broker if this repeats",
                "a frequently requeued message could not be replaced by a copy"
            );
            return Some(delivery);
        }
        tracing::info!(event = "message_replaced", count, "a frequently requeued message is replaced by a copy");
        delivery.acknowledge().await;
        None
    }
}
