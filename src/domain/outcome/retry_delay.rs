//! Retry delays: the closed set that the wait queues offer, and the one function that chooses among
//! them.

use std::time::Duration;

use crate::domain::text_enum::text_enum;

text_enum! {
    /// Delay of a wait queue. A copy that enters one returns to its lane when the delay is over.
    /// The texts stand in queue names and in the `consign-wait` header; the shortest delay is the
    /// first.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
    pub enum RetryDelay {
        /// 5 seconds.
        S5 = "5s",
        /// 30 seconds.
        S30 = "30s",
        /// 2 minutes.
        M2 = "2m",
        /// 10 minutes.
        M10 = "10m",
        /// 30 minutes.
        M30 = "30m",
        /// 2 hours.
        H2 = "2h",
        /// 12 hours.
        H12 = "12h",
    }
}

/// Situation for which a retry delay is chosen.
#[derive(Debug, Clone, Copy)]
pub enum Wait {
    /// A charged attempt failed. `retry_after` is the server's own delay, which only lengthens
    /// ours: a server that always asks for a second must not use up all attempts within a minute.
    Attempt {
        /// Number of the attempt; 1 is the first.
        number: u32,
        /// Delay that the server asked for.
        retry_after: Option<Duration>,
    },
    /// The first defect of a job.
    Defect,
    /// The destination failed, and its circuit breaker is not open.
    Destination {
        /// Deferrals so far.
        deferrals: u32,
        /// Lifetime of the cached denial that caused the failure: an earlier try would meet it
        /// again.
        denied_for: Option<Duration>,
    },
    /// The circuit breaker is open; the next probe is due after this time.
    Probe(Duration),
    /// A permit is expected after this time.
    Permit(Duration),
    /// Another job, another delivery or an outage is in the way.
    Other,
}

/// Shortest wait for a probe that another job makes. With the quarter that is added, a job returns
/// up to a quarter after the probe rather than many times before it.
const MIN_PROBE_WAIT: Duration = Duration::from_secs(30);

/// Chooses the retry delay for `wait`. No delay is longer than `time_left` (until `expires_at`);
/// `None` when even the shortest is.
pub fn choose(wait: Wait, time_left: Option<Duration>) -> Option<RetryDelay> {
    let delay = match wait {
        Wait::Attempt { number, retry_after } => {
            by_attempt(number).max(retry_after.map_or(RetryDelay::S5, RetryDelay::at_least))
        }
        Wait::Defect => by_attempt(2),
        Wait::Destination { deferrals, denied_for } => {
            let interval = RetryDelay::probe_interval(deferrals);
            match denied_for.filter(|denied_for| interval.duration() <= *denied_for) {
                Some(denied_for) => RetryDelay::at_least(denied_for + Duration::from_secs(1)),
                None => interval,
            }
        }
        Wait::Probe(next) => RetryDelay::within(next.max(MIN_PROBE_WAIT) * 5 / 4),
        Wait::Permit(expected) => RetryDelay::within(expected),
        Wait::Other => RetryDelay::S30,
    };
    match time_left {
        Some(left) if delay.duration() > left => RetryDelay::at_most(left),
        _ => Some(delay),
    }
}

impl RetryDelay {
    /// Time that a copy waits.
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

    /// Interval before the next probe of a destination that failed `probes` of them: 30 s, 2 min,
    /// then 10 min.
    pub fn probe_interval(probes: u32) -> Self {
        match probes {
            0 => Self::S30,
            1 => Self::M2,
            _ => Self::M10,
        }
    }

    /// Longest delay that is over within `wait`; the shortest there is for less.
    pub fn within(wait: Duration) -> Self {
        Self::at_most(wait).unwrap_or(Self::S5)
    }

    /// Shortest delay that lasts at least `wait`; the longest there is for more.
    fn at_least(wait: Duration) -> Self {
        Self::ALL.into_iter().find(|delay| delay.duration() >= wait).unwrap_or(Self::H12)
    }

    /// Longest delay that lasts at most `wait`, if there is one.
    fn at_most(wait: Duration) -> Option<Self> {
        Self::ALL.into_iter().rev().find(|delay| delay.duration() <= wait)
    }
}

fn by_attempt(number: u32) -> RetryDelay {
    let index = usize::try_from(number).unwrap_or(usize::MAX).clamp(1, RetryDelay::ALL.len());
    RetryDelay::ALL[index - 1]
}
