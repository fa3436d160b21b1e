//! One key of the cache: its value or denial, and the fetch that may be under way.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use parking_lot::RwLock;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::domain::outcome::{Failure, Reason};

/// Status of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionStatus {
    /// Not requested recently, or expired.
    Absent,
    /// A value is cached.
    Cached {
        /// Age of the value.
        age: Duration,
        /// Remaining lifetime; `None` is unlimited.
        left: Option<Duration>,
    },
    /// A denial is cached.
    Denied {
        /// Reason of the denial.
        reason: Reason,
        /// Time until the next request.
        left: Duration,
    },
}

/// State of one key. `flight` is held during a fetch, `state` only for moments.
pub(super) struct CacheSlot<V> {
    /// Fetches so far, so that callers that waited for one share its failure.
    pub(super) flight: Mutex<Flights>,
    pub(super) waited_for: AtomicU64,
    state: RwLock<CacheState<V>>,
}

/// Fetches of a key.
#[derive(Default)]
pub(super) struct Flights {
    pub(super) count: u64,
    pub(super) failure: Option<Failure>,
    pub(super) next_renewal: Option<Instant>,
}

pub(super) enum CacheState<V> {
    Empty,
    Cached { value: V, since: Instant, ends: Option<Instant> },
    Denied { failure: Failure, until: Instant },
}

impl<V> Default for CacheSlot<V> {
    fn default() -> Self {
        Self { flight: Mutex::default(), waited_for: AtomicU64::new(0), state: RwLock::new(CacheState::Empty) }
    }
}

impl<V: Clone> CacheSlot<V> {
    /// Returns the cached answer: a value that is still valid after `left`, or a denial that is
    /// valid now.
    pub(super) fn answer(&self, left: Duration) -> Option<Result<V, Failure>> {
        let now = Instant::now();
        match &*self.state.read() {
            CacheState::Cached { value, ends, .. } if ends.is_none_or(|ends| ends > now + left) => {
                Some(Ok(value.clone()))
            }
            CacheState::Denied { failure, until } if *until > now => {
                Some(Err(Failure { remembered: true, ..failure.clone() }))
            }
            _ => None,
        }
    }

    pub(super) fn known(&self) -> SessionStatus {
        let now = Instant::now();
        match &*self.state.read() {
            CacheState::Cached { since, ends, .. } if ends.is_none_or(|ends| ends > now) => {
                SessionStatus::Cached { age: now - *since, left: ends.map(|ends| ends - now) }
            }
            CacheState::Denied { failure, until } if *until > now => {
                SessionStatus::Denied { reason: failure.reason, left: *until - now }
            }
            _ => SessionStatus::Absent,
        }
    }

    pub(super) fn is_cached(&self) -> bool {
        matches!(*self.state.read(), CacheState::Cached { .. })
    }

    pub(super) fn set(&self, state: CacheState<V>) {
        *self.state.write() = state;
    }

    pub(super) fn forget_refusal(&self) {
        let mut current = self.state.write();
        if matches!(*current, CacheState::Denied { .. }) {
            *current = CacheState::Empty;
        }
    }
}
