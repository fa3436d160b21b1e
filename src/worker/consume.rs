//! Taking jobs: a permit first, a delivery second, lane by lane.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{HOARDING, Permits, Worker};
use crate::domain::lane::Lane;
use crate::queue::Delivery;

/// One slot in so many is for scheduled jobs alone.
const KEPT_FREE: u32 = 8;

impl Worker {
    /// Permit first, delivery second, for as long as the worker may take.
    pub(super) async fn take(self: &Arc<Self>, drain: &CancellationToken, tasks: &TaskTracker) {
        loop {
            let taken = tokio::select! {
                biased;
                () = drain.cancelled() => return,
                taken = self.next() => taken,
            };
            let Some((delivery, permits)) = taken else { return };
            tasks.spawn(self.clone().handle(delivery, permits));
        }
    }

    /// The next delivery with its permits: continued work first, then scheduled, then backfills below their ceiling.
    async fn next(&self) -> Option<(Delivery, Permits)> {
        let alone = self.health.able().await;
        let queue = &self.parts.queue;
        loop {
            let slot = self.slot().await?;
            let backfill = async {
                let permit = self.backfill_slots.clone().acquire_owned().await.ok()?;
                // Nobody else takes these while the taker sits here; it gives them up with everything else.
                let _free = self.slots.acquire_many(self.kept_free()).await.ok()?;
                queue.next(Lane::Backfill).await.map(|delivery| (delivery, Some(permit)))
            };
            let (delivery, backfill) = tokio::select! {
                biased;
                // A job that was taken already goes first; it stands in the line for what is given up here.
                () = self.wanted.notified() => continue,
                delivery = queue.next(Lane::Continued) => (delivery?, None),
                delivery = queue.next(Lane::Scheduled) => (delivery?, None),
                delivery = backfill => delivery?,
            };
            return Some((delivery, Permits { slot: Some(slot), backfill, alone, pass: None, probe: None }));
        }
    }

    /// Slots that no backfill may fill: a scheduled job that comes next must not wait for a transfer to end.
    fn kept_free(&self) -> u32 {
        self.parts.config.slots.get() / KEPT_FREE
    }

    /// A free slot. Long transfers may hold all of them for hours; what was fetched meanwhile must not wait here until the broker
    /// loses its patience, so it goes back to the queue until there is a slot again.
    async fn slot(&self) -> Option<OwnedSemaphorePermit> {
        let slots = || self.slots.clone().acquire_owned();
        if let Ok(slot) = timeout(HOARDING, slots()).await {
            return slot.ok();
        }
        tracing::info!(
            seconds = HOARDING.as_secs(),
            "every slot is busy; what was fetched ahead goes back to the queue"
        );
        self.parts.queue.pause().await;
        let slot = slots().await.ok();
        self.parts.queue.resume().await;
        slot
    }
}
