//! Permit to run one transfer.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;

use super::circuit::CircuitProbe;
use super::limits::DestinationPermit;
use crate::upload::RateLimiter;
use crate::worker::generations::ObjectGuard;

/// Everything that a job holds while it runs. Released on drop.
#[derive(Debug)]
pub(in crate::worker) struct Permit {
    pub(super) slot: Option<OwnedSemaphorePermit>,
    pub(super) backfill: Option<OwnedSemaphorePermit>,
    /// After a fault of the worker: the permit to be the only job.
    pub(super) sole: Option<OwnedSemaphorePermit>,
    pub(super) destination: Option<DestinationPermit>,
    pub(super) probe: Option<CircuitProbe>,
    pub(super) quarantine: Option<OwnedSemaphorePermit>,
    /// Right to be the only job of its object.
    pub(super) object: Option<ObjectGuard>,
}

impl Permit {
    /// Permit of a delivery that was just consumed.
    pub(in crate::worker) fn new(
        slot: OwnedSemaphorePermit,
        backfill: Option<OwnedSemaphorePermit>,
        sole: Option<OwnedSemaphorePermit>,
    ) -> Self {
        Self { slot: Some(slot), backfill, sole, destination: None, probe: None, quarantine: None, object: None }
    }

    /// Releases the slot for another job. The backfill permit is kept: only backfills wait for it.
    pub(super) fn release_slot(&mut self) {
        self.slot = None;
    }

    /// Rate limiter of the destination, where it has a rate.
    pub(in crate::worker) fn rate_limiter(&self) -> Option<Arc<RateLimiter>> {
        self.destination.as_ref().and_then(|permit| permit.rate_limiter().cloned())
    }

    /// Number of the circuit breaker's probe, if the job is one.
    pub(in crate::worker) fn probe_number(&self) -> Option<u64> {
        self.probe.as_ref().map(CircuitProbe::number)
    }

    /// Returns true for the only job of a worker that probes whether its fault is over.
    pub(super) fn is_sole(&self) -> bool {
        self.sole.is_some()
    }

    /// Returns true if other jobs wait for this one's first success.
    pub(in crate::worker) fn is_probe(&self) -> bool {
        self.sole.is_some() || self.probe.is_some()
    }

    /// Records a delivery that took this long.
    pub(in crate::worker) fn delivered(&mut self, took: std::time::Duration) {
        if let Some(permit) = &mut self.destination {
            permit.delivered(took);
        }
    }

    /// Releases everything but the quarantine, which lasts until the delivery is settled.
    pub(in crate::worker) fn into_quarantine(self) -> Option<OwnedSemaphorePermit> {
        self.quarantine
    }
}
