//! Publishing of reports about generations. Unlike other reports they are not dropped while the
//! broker is unavailable, and many are published at once.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, oneshot};
use tokio::time::Instant;

use crate::domain::control::{Control, ControlCommand, GenerationChange};
use crate::domain::generation::ObjectDigest;
use crate::metrics::{GenerationLoss, Metrics};
use crate::queue::{DeliveryTag, Queue, QueueError};
use crate::worker::parts::{WorkerClock, WorkerParts};

/// Reports that are published at once, or wait for the broker. Further ones are lost, and counted.
const MAX_UNPUBLISHED: usize = 10_000;
/// Time after which a report counts as lost.
const REPORT_LIFETIME: Duration = Duration::from_mins(10);
/// Interval of the first repetition. It doubles up to [`MAX_RETRY_INTERVAL`].
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
const MAX_RETRY_INTERVAL: Duration = Duration::from_secs(8);

/// Publisher of reports.
#[derive(Debug)]
pub(super) struct GenerationReporter {
    queue: Arc<dyn Queue>,
    clock: WorkerClock,
    metrics: Arc<Metrics>,
    places: Arc<Semaphore>,
}

impl GenerationReporter {
    pub(super) fn new(parts: &WorkerParts) -> Self {
        Self {
            queue: parts.queue.clone(),
            clock: parts.clock,
            metrics: parts.metrics.clone(),
            places: Arc::new(Semaphore::new(MAX_UNPUBLISHED)),
        }
    }

    /// Returns false when a delivery is known to be lost.
    pub(super) fn can_settle(&self, ticket: DeliveryTag) -> bool {
        self.queue.can_settle(ticket)
    }

    /// Counts a write that could not be reported, and was made all the same.
    pub(super) fn count_unordered(&self) {
        self.metrics.generation_lost(GenerationLoss::Unordered);
    }

    /// Publishes a report after `wait`.
    pub(super) fn report_after(&self, wait: Duration, object: ObjectDigest, change: GenerationChange) {
        drop(self.publish(wait, object, [change]));
    }

    /// Publishes a report in the background. The receiver resolves with true when the broker has
    /// it.
    pub(super) fn report(&self, object: ObjectDigest, change: GenerationChange) -> oneshot::Receiver<bool> {
        self.publish(Duration::ZERO, object, [change])
    }

    /// As [`GenerationReporter::report`], for several reports in this order.
    pub(super) fn report_in_order(
        &self,
        object: ObjectDigest,
        changes: impl IntoIterator<Item = GenerationChange>,
    ) -> oneshot::Receiver<bool> {
        self.publish(Duration::ZERO, object, changes)
    }

    fn publish(
        &self,
        wait: Duration,
        object: ObjectDigest,
        changes: impl IntoIterator<Item = GenerationChange>,
    ) -> oneshot::Receiver<bool> {
        let (confirmed, receiver) = oneshot::channel();
        let place = self.places.clone().try_acquire_owned();
        let (Ok(place), Ok(runtime)) = (place, tokio::runtime::Handle::try_current()) else {
            self.metrics.generation_lost(GenerationLoss::Unreported);
            return receiver;
        };
        let render = |change| Control::new(ControlCommand::Generation(object, change), (self.clock)()).render();
        let bodies: Vec<_> = changes.into_iter().map(render).collect();
        let (queue, metrics) = (self.queue.clone(), self.metrics.clone());
        runtime.spawn(async move {
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
            let mut all_published = true;
            for body in bodies {
                let published = publish(&*queue, &body).await;
                if !published {
                    metrics.generation_lost(GenerationLoss::Unreported);
                }
                all_published &= published;
            }
            let _ = confirmed.send(all_published);
            drop(place);
        });
        receiver
    }
}

async fn publish(queue: &dyn Queue, body: &[u8]) -> bool {
    let until = Instant::now() + REPORT_LIFETIME;
    let mut interval = RETRY_INTERVAL;
    loop {
        match queue.publish_control(body.to_vec().into()).await {
            Ok(()) => return true,
            Err(QueueError::Unavailable(_) | QueueError::Busy(_)) if Instant::now() < until => {}
            Err(error) => {
                tracing::debug!(
                    event = "generation_not_reported",
                    %error,
                    "a report about a generation did not reach the other workers"
                );
                return false;
            }
        }
        tokio::time::sleep(interval).await;
        interval = (interval * 2).min(MAX_RETRY_INTERVAL);
    }
}
