//! Consumer of one lane: moves deliveries from the lane's queue to the prefetch buffer.

use std::sync::Arc;

use futures_util::StreamExt as _;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Consumer};
use tokio_util::sync::CancellationToken;

use super::connection::call;
use super::context::QueueContext;
use super::deliveries::PrefetchedDelivery;
use super::errors;
use super::fields::short;
use super::health::SessionHealth;
use super::lease::LeaseRenewer;
use crate::domain::lane::Lane;
use crate::queue::QueueError;

/// Handle of one lane's consumer.
#[derive(Clone)]
pub(super) struct LaneConsumer {
    pub(super) lane: Lane,
    pub(super) channel: Channel,
    tag: ShortString,
    /// Distinguishes the cancellation by [`LaneConsumer::cancel`] from one by the broker.
    cancelled: CancellationToken,
}

impl LaneConsumer {
    /// Starts to consume a lane.
    pub(super) async fn start(
        context: &QueueContext,
        channel: Channel,
        lane: Lane,
    ) -> Result<(Self, Consumer), QueueError> {
        let queue = context.names.jobs(lane);
        let tag = short(&format!("{} {}", context.worker_id, lane.as_str()))?;
        let consumer =
            channel.basic_consume(short(&queue)?, tag, BasicConsumeOptions::default(), FieldTable::default());
        let consumer = call(&format!("consuming from {queue}"), consumer).await?;
        let tag = consumer.tag();
        Ok((Self { lane, channel, tag, cancelled: CancellationToken::new() }, consumer))
    }

    /// Returns true while the channel is open.
    pub(super) fn is_connected(&self) -> bool {
        self.channel.status().connected()
    }

    /// Stops the deliveries. Unacknowledged ones can still be settled.
    pub(super) async fn cancel(self) {
        self.cancelled.cancel();
        let cancelled = self.channel.basic_cancel(self.tag, BasicCancelOptions::default());
        if let Err(error) = call("cancelling a consumer", cancelled).await {
            tracing::debug!(%error, "a consumer was not cancelled; its deliveries are requeued");
        }
    }
}

/// Task that fills the prefetch buffer of one lane.
pub(super) struct PrefetchTask {
    pub(super) context: Arc<QueueContext>,
    pub(super) health: Arc<SessionHealth>,
    pub(super) renewer: Arc<LeaseRenewer>,
    pub(super) generation: u64,
}

impl PrefetchTask {
    /// Runs until the consumer ends. Any other end than a cancellation ends the session.
    pub(super) async fn run(self, mut consumer: Consumer, lane: LaneConsumer) {
        while let Some(item) = consumer.next().await {
            match item {
                Ok(delivery) => self.prefetch(lane.lane, PrefetchedDelivery::new(self.generation, delivery)).await,
                Err(error) => return self.health.end(&errors::text(&error)),
            }
        }
        if !lane.cancelled.is_cancelled() {
            let queue = self.context.names.jobs(lane.lane);
            self.health.end(&format!("the broker ended the consumer of {queue} (was the queue deleted?)"));
        }
    }

    async fn prefetch(&self, lane: Lane, delivery: PrefetchedDelivery) {
        let job = if lane == Lane::Continued { self.renewer.filter(delivery).await } else { Some(delivery) };
        let Some(job) = job else { return };
        if let Err(refused) = self.context.deliveries.prefetched().push(lane, job) {
            refused.requeue().await;
        }
    }
}
