//! Back-off with full jitter. The only user of `backoff`, which is unmaintained and pinned; `backon` is the way out.

use std::time::Duration;

use backoff::ExponentialBackoff;
use backoff::backoff::Backoff as _;

/// The waits between the tries of one thing: drawn at random from zero to a bound that doubles up to `max`.
///
/// The caller sleeps; nothing here does. A delay that the server asked for beats ours, up to `max`.
#[derive(Debug)]
pub struct Retry {
    inner: ExponentialBackoff,
    tries_left: Option<u32>,
    max: Duration,
}

impl Retry {
    /// At most `tries` waits, the first around `first`, none longer than `max`.
    pub fn bounded(tries: u32, first: Duration, max: Duration) -> Self {
        Self { tries_left: Some(tries), ..Self::endless(first, max) }
    }

    /// Waits without end: for a supervisor that must not give up.
    pub fn endless(first: Duration, max: Duration) -> Self {
        // A randomisation of 1 draws from [0, 2 x interval]: full jitter with `first` as its mean.
        let inner = ExponentialBackoff {
            current_interval: first / 2,
            initial_interval: first / 2,
            randomization_factor: 1.0,
            multiplier: 2.0,
            max_interval: max / 2,
            max_elapsed_time: None,
            ..ExponentialBackoff::default()
        };
        Self { inner, tries_left: None, max }
    }

    /// How long to wait before the next try; `None` when there is no further one. `asked` is the server's own delay.
    pub fn next_wait(&mut self, asked: Option<Duration>) -> Option<Duration> {
        if let Some(left) = &mut self.tries_left {
            *left = left.checked_sub(1)?;
        }
        let drawn = self.inner.next_backoff().unwrap_or(self.max);
        Some(asked.unwrap_or(drawn).min(self.max))
    }

    /// Starts over, after a success.
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
        let waits: Vec<_> = std::iter::from_fn(|| retry.next_wait(None)).collect();
        assert_eq!(waits.len(), 5);
        assert!(waits.iter().all(|wait| *wait <= 4 * S), "{waits:?}");
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
