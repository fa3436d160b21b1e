//! One budget of bytes for all buffered parts of the process.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::metrics::{GaugeGuard, Metrics};

/// Permits are counted in KiB, so that the count fits the semaphore.
const UNIT: u64 = 1024;

/// Memory budget that all buffered parts share. Back-pressure is in the type: without a
/// [`Reservation`] there is no buffer.
#[derive(Debug, Clone)]
pub(super) struct Budget {
    permits: Arc<Semaphore>,
    total: u32,
    metrics: Arc<Metrics>,
}

/// A share of the budget, given back on drop.
#[derive(Debug)]
pub(super) struct Reservation {
    _permit: Option<OwnedSemaphorePermit>,
    _held: GaugeGuard,
}

impl Budget {
    /// A budget of `bytes`.
    pub(super) fn new(bytes: u64, metrics: Arc<Metrics>) -> Self {
        let total = u32::try_from(bytes / UNIT).unwrap_or(u32::MAX).max(1);
        metrics.set_buffer_limit(bytes);
        Self { permits: Arc::new(Semaphore::new(total as usize)), total, metrics }
    }

    /// Reserves `bytes`, in order of arrival. A share larger than the whole budget waits for all of
    /// it.
    ///
    /// A caller must not wait here while it holds a share that only its own progress releases.
    pub(super) async fn reserve(&self, bytes: u64) -> Reservation {
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).clamp(1, self.total);
        // The semaphore is never closed; without a permit the guard would still count the bytes.
        let permit = self.permits.clone().acquire_many_owned(units).await.ok();
        Reservation { _permit: permit, _held: self.metrics.buffer(bytes) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_reserved_is_given_back() {
        let metrics = Arc::new(Metrics::new(1));
        let budget = Budget::new(16 * UNIT, metrics.clone());
        let first = budget.reserve(10 * UNIT).await;
        let mut second = Box::pin(budget.reserve(7 * UNIT));
        assert!(futures_util::poll!(&mut second).is_pending());
        assert!(metrics.render().1.contains("consign_buffer_bytes 10240"));
        drop(first);
        drop(second.await);
        drop(budget.reserve(1000 * UNIT).await);
        assert!(metrics.render().1.contains("consign_buffer_bytes 0"));
    }
}
