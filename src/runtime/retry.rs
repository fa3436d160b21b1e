//! Exponential backoff with full jitter. The only module that uses the crate `backoff`, which is
//! unmaintained and pinned; `backon` would replace it.

use std::time::Duration;

use backoff::ExponentialBackoff;
use backoff::backoff::Backoff as _;

/// The delays between the attempts of one operation: random between zero and a bound that doubles
/// up to `max`.
///
/// The caller sleeps. A delay requested by the server takes precedence, up to `max`.
#[derive(Debug)]
pub struct Retry {
    inner: ExponentialBackoff,
    delays_left: Option<u32>,
    max: Duration,
}

impl Retry {
    /// Returns `count` delays, the first up to `first`, none longer than `max`.
    pub fn bounded(count: u32, first: Duration, max: Duration) -> Self {
        Self { delays_left: Some(count), ..Self::endless(first, max) }
    }

    /// Returns an unlimited number of delays, for a loop that must never stop.
    pub fn endless(first: Duration, max: Duration) -> Self {
        // A randomization factor of 1 draws from [0, 2 x interval]: with half of `first`, from [0,
        // first].
        let inner = ExponentialBackoff {
            current_interval: first / 2,
            initial_interval: first / 2,
            randomization_factor: 1.0,
            multiplier: 2.0,
            max_interval: max / 2,
            max_elapsed_time: None,
            ..ExponentialBackoff::default()
        };
        Self { inner, delays_left: None, max }
    }

    /// Returns the delay before the next attempt; `None` if there is no further attempt.
    /// `requested` is the delay that the server asked for.
    pub fn next_wait(&mut self, requested: Option<Duration>) -> Option<Duration> {
        if let Some(left) = &mut self.delays_left {
            *left = left.checked_sub(1)?;
        }
        let drawn = self.inner.next_backoff().unwrap_or(self.max);
        Some(requested.unwrap_or(drawn).min(self.max))
    }

    /// Starts again with the first delay, after a success.
    pub fn reset(&mut self) {
        self.inner.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn waits_are_bounded_in_number_and_length() {
        let mut retry = Retry::bounded(5, S, 4 * S);
        let delays: Vec<_> = std::iter::from_fn(|| retry.next_wait(None)).collect();
        assert_eq!(delays.len(), 5);
        assert!(delays.iter().all(|delay| *delay <= 4 * S), "{delays:?}");
    }

    #[test]
    fn waits_are_spread_over_the_whole_range() {
        let firsts: Vec<_> = (0..400).filter_map(|_| Retry::endless(S, 9 * S).next_wait(None)).collect();
        assert!(firsts.iter().any(|w| *w < S / 5) && firsts.iter().any(|w| *w > S * 4 / 5));
        assert!(firsts.iter().all(|w| *w <= S));
    }

    #[test]
    fn the_servers_delay_wins_up_to_the_bound() {
        let mut retry = Retry::endless(S, 9 * S);
        assert_eq!(retry.next_wait(Some(3 * S)), Some(3 * S));
        assert_eq!(retry.next_wait(Some(300 * S)), Some(9 * S));
    }
}
