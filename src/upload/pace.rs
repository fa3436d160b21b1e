//! Bytes a second into one destination, whatever the number of transfers that share it.

use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// So much of a second may be sent at once after a pause.
const BURST: Duration = Duration::from_secs(1);

/// Holds all transfers into one destination, together, to `max_bytes_per_second`.
///
/// Every part asks before it is read, in the order of asking; a part that is larger than a second's worth goes when those before
/// it are paid for, and whoever comes after it waits the longer. So the rate holds over any stretch longer than a part takes.
/// A part that is sent again was paid for once.
#[derive(Debug)]
pub struct RateLimiter {
    rate: NonZeroU64,
    /// When all that was asked for is paid for.
    paid: Mutex<Instant>,
}

impl RateLimiter {
    /// `rate` bytes a second.
    pub fn new(rate: NonZeroU64) -> Arc<Self> {
        let start = Instant::now().checked_sub(BURST).unwrap_or_else(Instant::now);
        Arc::new(Self { rate, paid: Mutex::new(start) })
    }

    /// Bytes a second.
    pub fn rate(&self) -> NonZeroU64 {
        self.rate
    }

    /// How long a part that asks now would wait.
    pub fn debt(&self) -> Duration {
        let paid = *self.paid.lock().unwrap_or_else(PoisonError::into_inner);
        paid.saturating_duration_since(Instant::now())
    }

    /// Returns when `bytes` may be sent. What drop does: the bytes count as sent.
    pub async fn take(&self, bytes: u64) {
        let turn = self.book(bytes);
        tokio::time::sleep_until(turn).await;
    }

    /// Fewer bytes were needed than were booked.
    fn give_back(&self, bytes: u64) {
        let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
        *paid = paid.checked_sub(self.lasts(bytes)).unwrap_or(*paid);
    }

    #[expect(clippy::cast_precision_loss, reason = "a rate needs no more digits")]
    fn lasts(&self, bytes: u64) -> Duration {
        Duration::try_from_secs_f64(bytes as f64 / self.rate.get() as f64).unwrap_or(Duration::MAX)
    }

    fn book(&self, bytes: u64) -> Instant {
        let now = Instant::now();
        let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = now.checked_sub(BURST).map_or(*paid, |earliest| earliest.max(*paid));
        *paid = turn.checked_add(self.lasts(bytes)).unwrap_or(turn);
        turn
    }
}

/// Returns when the destination may have so many bytes more. Asked before they are read: who waits holds no buffer.
pub(super) async fn paced(pace: Option<&Arc<RateLimiter>>, bytes: u64) {
    if let Some(pace) = pace {
        pace.take(bytes).await;
    }
}

/// Of what was booked only so much was needed: the rest is given back.
pub(super) fn not_needed(pace: Option<&Arc<RateLimiter>>, booked: u64, needed: u64) {
    if let Some(pace) = pace {
        pace.give_back(booked.saturating_sub(needed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace(rate: u64) -> Arc<RateLimiter> {
        RateLimiter::new(NonZeroU64::new(rate).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn the_rate_holds_over_many_parts_and_transfers() {
        let pace = pace(1000);
        let begun = Instant::now();
        let transfers: Vec<_> = (0..4)
            .map(|_| {
                let pace = pace.clone();
                tokio::spawn(async move {
                    for _ in 0..25 {
                        pace.take(500).await;
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
        let pace = pace(1000);
        pace.take(10_000).await;
        assert_eq!(pace.debt(), Duration::from_secs(9));
        let begun = Instant::now();
        pace.take(1).await;
        assert_eq!(begun.elapsed(), Duration::from_secs(9));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_booked_and_not_needed_costs_nothing() {
        let pace = pace(1000);
        pace.take(8000).await;
        not_needed(Some(&pace), 8000, 500);
        pace.take(8000).await;
        not_needed(Some(&pace), 8000, 400);
        assert!(pace.debt().is_zero(), "{:?}", pace.debt());
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_than_a_second_is_saved_up() {
        let pace = pace(1000);
        tokio::time::sleep(Duration::from_secs(3600)).await;
        pace.take(2000).await;
        assert_eq!(pace.debt(), Duration::from_secs(1));
    }
}
