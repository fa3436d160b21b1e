//! Keyed cache with single flight per key, early renewal, idle eviction, a capacity, and briefly
//! cached denials.

mod slot;

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use crate::domain::outcome::{Class, Failure};
pub use slot::SessionStatus;
use slot::{CacheSlot, CacheState, Flights};

/// Least remaining lifetime of a value that is used while a renewal is in progress or has failed.
const MIN_REMAINING_LIFETIME: Duration = Duration::from_secs(60);
/// Delay before the next renewal after one that failed.
const RENEWAL_RETRY_DELAY: Duration = Duration::from_secs(10);

/// Value and its lifetime; `None` is unlimited.
#[derive(Debug)]
pub(super) struct FetchedValue<V> {
    pub(super) value: V,
    pub(super) lives: Option<Duration>,
}

/// Result of a fetch.
type Fetched<V> = Result<FetchedValue<V>, Failure>;

/// Result of a lookup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CacheLookup {
    /// The value was cached.
    Hit,
    /// This caller fetched it.
    Fetched,
    /// Another caller fetched it meanwhile.
    Waited,
}

pub(super) struct Cache<K, V> {
    slots: moka::sync::Cache<K, Arc<CacheSlot<V>>>,
    refresh_before: Duration,
    denied_for: Duration,
}

impl<K, V> Cache<K, V>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    pub(super) fn new(capacity: u64, idle: Duration, refresh_before: Duration, denied_for: Duration) -> Self {
        let slots = moka::sync::Cache::builder()
            .max_capacity(capacity)
            // Every newcomer is let in: a session that is not kept would cost a call of STS for each part.
            .eviction_policy(moka::policy::EvictionPolicy::lru())
            .time_to_idle(idle)
            .build();
        Self { slots, refresh_before, denied_for }
    }

    pub(super) fn len(&self) -> u64 {
        self.slots.run_pending_tasks();
        self.slots.entry_count()
    }

    /// Returns the status of each of `keys`, in their order. This does not count as use.
    pub(super) fn status(&self, keys: &[K]) -> Vec<SessionStatus> {
        let wanted: HashMap<&K, usize> = keys.iter().enumerate().map(|(place, key)| (key, place)).collect();
        let mut found = HashMap::new();
        for (key, slot) in &self.slots {
            if wanted.contains_key(key.as_ref()) {
                found.insert(key, slot.known());
            }
        }
        keys.iter().map(|key| found.get(key).copied().unwrap_or(SessionStatus::Absent)).collect()
    }

    /// Fetches a value whatever is cached, and replaces it. If that fails, a value that is still
    /// valid stays, while a cached denial is replaced by the new one.
    pub(super) async fn refresh(
        &self,
        key: K,
        fetch: impl Future<Output = Fetched<V>>,
    ) -> (CacheLookup, Result<V, Failure>) {
        let slot = self.slot(key);
        let mut flights = slot.flight.lock().await;
        let fetched = fetch.await;
        slot.forget_refusal();
        // Until then, and after a failure, callers keep using a valid value.
        let answer = match fetched {
            Err(failure) if slot.is_cached() => {
                flights.count += 1;
                slot.waited_for.store(flights.count, Ordering::Release);
                Err(failure)
            }
            fetched => self.record(&slot, &mut flights, fetched),
        };
        (CacheLookup::Fetched, answer)
    }

    pub(super) fn forget_denial(&self, key: &K) {
        if let Some(slot) = self.slots.get(key) {
            slot.forget_refusal();
        }
    }

    pub(super) fn forget_denials(&self) {
        for (_, slot) in &self.slots {
            slot.forget_refusal();
        }
    }

    /// Returns the value of `key`, fetched at most once for all concurrent callers.
    pub(super) async fn get(
        &self,
        key: K,
        fetch: impl Future<Output = Fetched<V>>,
    ) -> (CacheLookup, Result<V, Failure>) {
        let slot = self.slot(key);
        if let Some(answer) = slot.answer(self.refresh_before) {
            return (CacheLookup::Hit, answer);
        }
        let old = slot.answer(MIN_REMAINING_LIFETIME);
        let waited_for = slot.waited_for.load(Ordering::Acquire);
        let mut flights = match (slot.flight.try_lock(), old) {
            (Ok(flights), Some(old)) if flights.next_renewal.is_some_and(|at| at > Instant::now()) => {
                return (CacheLookup::Hit, old);
            }
            (Ok(flights), _) => flights,
            // Somebody renews it; until then the old one is good.
            (Err(_), Some(old)) => return (CacheLookup::Hit, old),
            (Err(_), None) => slot.flight.lock().await,
        };
        if let Some(answer) = slot.answer(self.refresh_before) {
            return (CacheLookup::Waited, answer);
        }
        if let Some(failure) = flights.failure.clone().filter(|_| flights.count > waited_for) {
            return (CacheLookup::Waited, Err(failure));
        }
        (CacheLookup::Fetched, self.record(&slot, &mut flights, fetch.await))
    }

    /// Returns a value that is not `stale`; fetches one unless another caller already replaced it.
    /// A cached denial is returned.
    pub(super) async fn renew(
        &self,
        key: K,
        stale: impl Fn(&V) -> bool,
        fetch: impl Future<Output = Fetched<V>>,
    ) -> (CacheLookup, Result<V, Failure>) {
        let slot = self.slot(key);
        let mut flights = slot.flight.lock().await;
        match slot.answer(self.refresh_before) {
            Some(Ok(value)) if stale(&value) => {}
            Some(answer) => return (CacheLookup::Waited, answer),
            None => {}
        }
        slot.set(CacheState::Empty);
        (CacheLookup::Fetched, self.record(&slot, &mut flights, fetch.await))
    }

    fn slot(&self, key: K) -> Arc<CacheSlot<V>> {
        self.slots.get(&key).unwrap_or_else(|| self.slots.get_with(key, Arc::default))
    }

    fn record(&self, slot: &CacheSlot<V>, flights: &mut Flights, fetched: Fetched<V>) -> Result<V, Failure> {
        flights.count += 1;
        flights.failure = fetched.as_ref().err().cloned();
        flights.next_renewal = fetched.is_err().then(|| Instant::now() + RENEWAL_RETRY_DELAY);
        slot.waited_for.store(flights.count, Ordering::Release);
        match fetched {
            Ok(FetchedValue { value, lives }) => {
                let since = Instant::now();
                slot.set(CacheState::Cached { value: value.clone(), since, ends: lives.map(|lives| since + lives) });
                Ok(value)
            }
            Err(failure) if failure.class() == Class::Destination => {
                slot.set(CacheState::Denied { failure: failure.clone(), until: Instant::now() + self.denied_for });
                Err(failure)
            }
            Err(failure) => slot.answer(MIN_REMAINING_LIFETIME).unwrap_or(Err(failure)),
        }
    }
}

impl<K, V> fmt::Debug for Cache<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
