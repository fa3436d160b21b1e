//! Slots of the worker: the permits without which nothing runs.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use futures_util::poll;
use tokio::sync::{AcquireError, Notify, OwnedSemaphorePermit, Semaphore, SemaphorePermit};

use crate::config::WorkerConfig;
use crate::domain::lane::Lane;

/// One slot in so many is for scheduled jobs alone.
const RESERVED_SHARE: u32 = 8;

/// Slots for all transfers, and those among them that backfills may hold.
#[derive(Debug)]
pub(in crate::worker) struct Slots {
    all: Arc<Semaphore>,
    backfill: Arc<Semaphore>,
    reserved: u32,
    count: u16,
    backfill_count: u16,
    /// Notified when a job waits for a slot that the consumer holds while it waits for a delivery.
    wanted: Notify,
}

impl Slots {
    pub(super) fn new(config: &WorkerConfig) -> Self {
        let slots = config.slots.get();
        Self {
            all: Arc::new(Semaphore::new(slots as usize)),
            backfill: Arc::new(Semaphore::new(config.backfill_slots.min(slots) as usize)),
            reserved: slots / RESERVED_SHARE,
            count: u16::try_from(slots).unwrap_or(u16::MAX),
            backfill_count: u16::try_from(config.backfill_slots.min(slots)).unwrap_or(u16::MAX),
            wanted: Notify::new(),
        }
    }

    /// Waits for a slot for the next delivery.
    pub(in crate::worker) fn slot(&self) -> impl Future<Output = Result<OwnedSemaphorePermit, AcquireError>> + use<> {
        self.all.clone().acquire_owned()
    }

    /// Waits until a backfill may start: a backfill permit is free, and so are the slots that
    /// backfills must not fill. A scheduled job that arrives next must not wait for a transfer to
    /// end. The second permit holds those slots while the consumer waits for the backfill's
    /// delivery.
    pub(in crate::worker) async fn backfill(&self) -> Option<(OwnedSemaphorePermit, SemaphorePermit<'_>)> {
        let permit = self.backfill.clone().acquire_owned().await.ok()?;
        let reserved = self.all.acquire_many(self.reserved).await.ok()?;
        Some((permit, reserved))
    }

    /// Resolves when a job that was consumed already wants a slot. It has joined the queue of the
    /// semaphore, so it gets the slot that the consumer then releases.
    pub(in crate::worker) async fn wanted(&self) {
        self.wanted.notified().await;
    }

    /// Claims a slot for a job that waits without one, even if the consumer holds the last one.
    pub(super) async fn claim_slot(&self) -> Option<OwnedSemaphorePermit> {
        self.claim(&self.all).await
    }

    /// Claims a backfill permit, likewise.
    pub(super) async fn claim_backfill(&self) -> Option<OwnedSemaphorePermit> {
        self.claim(&self.backfill).await
    }

    async fn claim(&self, permits: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
        let mut claim = pin!(permits.clone().acquire_owned());
        // Joins the queue first: what the consumer releases then goes to this job.
        if let Poll::Ready(permit) = poll!(&mut claim) {
            return permit.ok();
        }
        self.wanted.notify_one();
        claim.await.ok()
    }

    /// Number of jobs of a lane that could start now beside the next one.
    pub(in crate::worker) fn free_for(&self, lane: Lane) -> u16 {
        let all = self.all.available_permits();
        let free = if lane == Lane::Backfill { all.min(self.backfill.available_permits()) } else { all };
        u16::try_from(free).unwrap_or(u16::MAX)
    }

    /// Number of jobs of a lane that can run at the same time.
    pub(in crate::worker) fn count(&self, lane: Lane) -> u16 {
        if lane == Lane::Backfill { self.backfill_count } else { self.count }
    }

    /// Returns a backfill permit if one is free.
    pub(in crate::worker) fn try_backfill(&self) -> Option<OwnedSemaphorePermit> {
        self.backfill.clone().try_acquire_owned().ok()
    }

    /// Free slots and free backfill permits.
    #[cfg(test)]
    pub(super) fn free(&self) -> (usize, usize) {
        (self.all.available_permits(), self.backfill.available_permits())
    }
}
