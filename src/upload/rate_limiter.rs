//! Rate limit of one destination, shared by all its transfers.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Longest idle time that is credited: after a pause this much of a second may be sent at once.
const MAX_BURST: Duration = Duration::from_secs(1);

/// Limits all transfers into one destination, together, to `max_bytes_per_second`.
///
/// Every part asks before it is read, in order of arrival. A part larger than one second of the
/// rate starts once the earlier ones are paid for, and the next one waits accordingly longer. So
/// the rate holds over any period longer than one part takes. A part that is retried is not charged
/// again.
#[derive(Debug)]
pub struct RateLimiter {
    /// Bytes a second; never 0.
    rate: AtomicU64,
    /// Time at which all admitted bytes are paid for.
    paid: Mutex<Instant>,
}

impl RateLimiter {
    /// `rate` bytes a second.
    pub fn new(rate: NonZeroU64) -> Arc<Self> {
        let start = Instant::now().checked_sub(MAX_BURST).unwrap_or_else(Instant::now);
        Arc::new(Self { rate: AtomicU64::new(rate.get()), paid: Mutex::new(start) })
    }

    /// Changes the rate, for bytes that ask from now on.
    pub fn set_rate(&self, rate: NonZeroU64) {
        self.rate.store(rate.get(), Ordering::Relaxed);
    }

    /// Returns the wait of a part that asks now.
    pub fn debt(&self) -> Duration {
        let paid = *self.paid.lock();
        paid.saturating_duration_since(Instant::now())
    }

    /// Waits until `bytes` may be sent. If the future is dropped, the bytes still count as sent.
    pub async fn take(&self, bytes: u64) {
        let turn = self.book(bytes);
        tokio::time::sleep_until(turn).await;
    }

    /// Refunds bytes that were charged and not used.
    fn refund(&self, bytes: u64) {
        let mut paid = self.paid.lock();
        *paid = paid.checked_sub(self.lasts(bytes)).unwrap_or(*paid);
    }

    #[expect(clippy::cast_precision_loss, reason = "a rate needs no more digits")]
    fn lasts(&self, bytes: u64) -> Duration {
        Duration::try_from_secs_f64(bytes as f64 / self.rate.load(Ordering::Relaxed) as f64).unwrap_or(Duration::MAX)
    }

    fn book(&self, bytes: u64) -> Instant {
        let now = Instant::now();
        let mut paid = self.paid.lock();
        let turn = now.checked_sub(MAX_BURST).map_or(*paid, |earliest| earliest.max(*paid));
        *paid = turn.checked_add(self.lasts(bytes)).unwrap_or(turn);
        turn
    }
}

/// Waits until the rate limit admits `bytes`. Called before they are read, so that a waiting part
/// holds no buffer.
pub(super) async fn wait_for_rate(rate_limiter: Option<&Arc<RateLimiter>>, bytes: u64) {
    if let Some(rate_limiter) = rate_limiter {
        rate_limiter.take(bytes).await;
    }
}

/// Refunds the unused part of a charge.
pub(super) fn return_unused(rate_limiter: Option<&Arc<RateLimiter>>, booked: u64, needed: u64) {
    if let Some(rate_limiter) = rate_limiter {
        rate_limiter.refund(booked.saturating_sub(needed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate_limiter(rate: u64) -> Arc<RateLimiter> {
        RateLimiter::new(NonZeroU64::new(rate).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn the_rate_holds_over_many_parts_and_transfers() {
        let rate_limiter = rate_limiter(1000);
        let begun = Instant::now();
        let transfers: Vec<_> = (0..4)
            .map(|_| {
                let rate_limiter = rate_limiter.clone();
                tokio::spawn(async move {
                    for _ in 0..25 {
                        rate_limiter.take(500).await;
                    }
                })
            })
            .collect();
        for transfer in transfers {
            transfer.await.unwrap();
        }
        // 100 parts of half a second each; a second was saved up, and the last part is not waited for.
        let took = begun.elapsed().as_secs_f64();
        assert!((48.0..=49.0).contains(&took), "{took}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_part_larger_than_a_second_goes_at_once_and_is_paid_for_later() {
        let rate_limiter = rate_limiter(1000);
        rate_limiter.take(10_000).await;
        assert_eq!(rate_limiter.debt(), Duration::from_secs(9));
        let begun = Instant::now();
        rate_limiter.take(1).await;
        assert_eq!(begun.elapsed(), Duration::from_secs(9));
    }

    #[tokio::test(start_paused = true)]
    async fn a_changed_rate_holds_for_running_transfers() {
        let rate_limiter = rate_limiter(1000);
        rate_limiter.take(1000).await;
        rate_limiter.set_rate(NonZeroU64::new(100).unwrap());
        rate_limiter.take(1000).await;
        assert_eq!(rate_limiter.debt(), Duration::from_secs(10));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_booked_and_not_needed_costs_nothing() {
        let rate_limiter = rate_limiter(1000);
        rate_limiter.take(8000).await;
        return_unused(Some(&rate_limiter), 8000, 500);
        rate_limiter.take(8000).await;
        return_unused(Some(&rate_limiter), 8000, 400);
        assert!(rate_limiter.debt().is_zero(), "{:?}", rate_limiter.debt());
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_than_a_second_is_saved_up() {
        let rate_limiter = rate_limiter(1000);
        tokio::time::sleep(Duration::from_secs(3600)).await;
        rate_limiter.take(2000).await;
        assert_eq!(rate_limiter.debt(), Duration::from_secs(1));
    }
}
