//! The wait ladder: the closed set of waits a queue offers, and which one a failure gets.

use std::time::Duration;

/// One delay of the wait ladder. A copy that enters it comes back to its lane when the time is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RetryDelay {
    /// 5 seconds.
    S5,
    /// 30 seconds.
    S30,
    /// 2 minutes.
    M2,
    /// 10 minutes.
    M10,
    /// 30 minutes.
    M30,
    /// 2 hours.
    H2,
    /// 12 hours.
    H12,
}

impl RetryDelay {
    /// All rungs, shortest first.
    pub const ALL: [Self; 7] = [Self::S5, Self::S30, Self::M2, Self::M10, Self::M30, Self::H2, Self::H12];

    /// The name used in queue names and in the `consign-wait` header.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::S5 => "5s",
            Self::S30 => "30s",
            Self::M2 => "2m",
            Self::M10 => "10m",
            Self::M30 => "30m",
            Self::H2 => "2h",
            Self::H12 => "12h",
        }
    }

    /// How long a copy stays.
    pub fn duration(self) -> Duration {
        Duration::from_secs(match self {
            Self::S5 => 5,
            Self::S30 => 30,
            Self::M2 => 120,
            Self::M10 => 600,
            Self::M30 => 1800,
            Self::H2 => 7200,
            Self::H12 => 43200,
        })
    }

    /// The wait before the next probe of a destination that has refused `probes` of them: 30 s, 2 min, then every 10 min.
    pub fn before_probe(probes: u32) -> Self {
        match probes {
            0 => Self::S30,
            1 => Self::M2,
            _ => Self::M10,
        }
    }

    /// The longest delay that is over when `wait` is; the shortest there is for less.
    pub fn within(wait: Duration) -> Self {
        at_most(wait).unwrap_or(Self::S5)
    }
}

/// The wait before the try that follows the charged attempt `attempt` (1 is the first).
pub(super) fn by_attempt(attempt: u32) -> RetryDelay {
    let index = usize::try_from(attempt).unwrap_or(usize::MAX).clamp(1, RetryDelay::ALL.len());
    RetryDelay::ALL[index - 1]
}

/// The shortest delay that lasts at least `delay`, or the longest there is.
pub(super) fn at_least(delay: Duration) -> RetryDelay {
    RetryDelay::ALL.into_iter().find(|step| step.duration() >= delay).unwrap_or(RetryDelay::H12)
}

/// The longest delay that lasts at most `delay`, if there is one.
pub(super) fn at_most(delay: Duration) -> Option<RetryDelay> {
    RetryDelay::ALL.into_iter().rev().find(|step| step.duration() <= delay)
}
