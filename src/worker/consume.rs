//! Consumes deliveries: a permit first, a delivery second, lane by lane.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::admission::{Admission, Permit};
use crate::domain::lane::Lane;
use crate::queue::{Delivery, Queue};

/// Time that prefetched deliveries wait for a free slot.
const PREFETCH_TIMEOUT: Duration = Duration::from_secs(60);

/// Chooses the lane that is asked next, and pauses consumption while no slot is free.
#[derive(Debug)]
pub(super) struct Consumer {
    queue: Arc<dyn Queue>,
    admission: Arc<Admission>,
}

impl Consumer {
    pub(super) fn new(queue: Arc<dyn Queue>, admission: Arc<Admission>) -> Self {
        Self { queue, admission }
    }

    /// Returns the next delivery with its permit: handed-off work first, then scheduled jobs, then
    /// backfills below their ceiling. `None` when the queue consumes no more. Cancel safe.
    pub(super) async fn next(&self) -> Option<(Delivery, Permit)> {
        let sole = self.admission.ready_for_job().await;
        let (queue, slots) = (&self.queue, self.admission.slots());
        loop {
            let slot = self.slot().await?;
            let backfill = async {
                let (permit, _reserved) = slots.backfill().await?;
                queue.next(Lane::Backfill).await.map(|delivery| (delivery, Some(permit)))
            };
            let (delivery, backfill) = tokio::select! {
                biased;
                // A job that was consumed already goes first.
                () = slots.wanted() => continue,
                delivery = queue.next(Lane::Continued) => (delivery?, None),
                delivery = queue.next(Lane::Scheduled) => (delivery?, None),
                delivery = backfill => delivery?,
            };
            return Some((delivery, Permit::new(slot, backfill, sole)));
        }
    }

    /// Waits for a free slot. Long transfers may hold all slots for hours, and a prefetched
    /// delivery must not wait here until the broker's acknowledgement time-out: it is requeued, and
    /// consumption pauses until a slot is free.
    async fn slot(&self) -> Option<OwnedSemaphorePermit> {
        let slots = self.admission.slots();
        if let Ok(slot) = timeout(PREFETCH_TIMEOUT, slots.slot()).await {
            return slot.ok();
        }
        tracing::info!(seconds = PREFETCH_TIMEOUT.as_secs(), "every slot is busy; prefetched deliveries are requeued");
        self.queue.pause().await;
        let slot = slots.slot().await.ok();
        self.queue.resume().await;
        slot
    }
}
