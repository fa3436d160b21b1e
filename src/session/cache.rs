//! Keyed cache with single flight per key, early renewal, idle eviction, a capacity, and briefly
//! cached denials.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::domain::outcome::{Class, Failure, Reason};

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

pub(super) struct Cache<K, V> {
    slots: moka::sync::Cache<K, Arc<CacheSlot<V>>>,
    refresh_before: Duration,
    denied_for: Duration,
    clock: Clock,
}

/// Clock that tests can advance.
#[derive(Debug, Default)]
struct Clock {
    #[cfg(test)]
    ahead: std::sync::Mutex<Duration>,
}

impl Clock {
    #[cfg(not(test))]
    #[expect(clippy::unused_self, reason = "tests put it forward")]
    fn now(&self) -> Instant {
        Instant::now()
    }

    #[cfg(test)]
    fn now(&self) -> Instant {
        Instant::now() + *self.ahead.lock().unwrap()
    }

    #[cfg(test)]
    fn advance(&self, by: Duration) {
        *self.ahead.lock().unwrap() += by;
    }
}

/// State of one key. `flight` is held during a fetch, `state` only for moments.
struct CacheSlot<V> {
    /// Fetches so far, so that callers that waited for one share its failure.
    flight: Mutex<Flights>,
    waited_for: AtomicU64,
    state: RwLock<CacheState<V>>,
}

#[derive(Default)]
struct Flights {
    count: u64,
    failure: Option<Failure>,
    next_renewal: Option<Instant>,
}

enum CacheState<V> {
    Empty,
    Cached { value: V, since: Instant, ends: Option<Instant> },
    Denied { failure: Failure, until: Instant },
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
        Self { slots, refresh_before, denied_for, clock: Clock::default() }
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
                found.insert(key, slot.known(self.clock.now()));
            }
        }
        keys.iter().map(|key| found.get(key).copied().unwrap_or(SessionStatus::Absent)).collect()
    }

    /// Fetches a value whatever is cached, and replaces it. If that fails, a value that is still
    /// valid stays, while a cached denial is replaced by the new one.
    pub(super) async fn refresh<F, Fut>(&self, key: K, fetch: F) -> (CacheLookup, Result<V, Failure>)
    where
        F: FnOnce() -> Fut,
        Fut: Future<Output = Result<FetchedValue<V>, Failure>>,
    {
        let slot = self.slot(key);
        let mut flights = slot.flight.lock().await;
        let fetched = fetch().await;
        slot.forget_refusal();
        // Until then, and after a failure, callers keep using a valid value.
        let answer = match fetched {
            Err(failure) if slot.is_cached() => {
                flights.count += 1;
                slot.waited_for.store(flights.count, Ordering::Release);
                Err(failure)
            }
            fetched => self.fetch_into(&slot, &mut flights, || std::future::ready(fetched)).await,
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
    pub(super) async fn get<F, Fut>(&self, key: K, fetch: F) -> (CacheLookup, Result<V, Failure>)
    where
        F: FnOnce() -> Fut,
        Fut: Future<Output = Result<FetchedValue<V>, Failure>>,
    {
        let slot = self.slot(key);
        if let Some(answer) = slot.answer(self.clock.now() + self.refresh_before, self.clock.now()) {
            return (CacheLookup::Hit, answer);
        }
        let old = slot.answer(self.clock.now() + MIN_REMAINING_LIFETIME, self.clock.now());
        let waited_for = slot.waited_for.load(Ordering::Acquire);
        let mut flights = match (slot.flight.try_lock(), old) {
            (Ok(flights), Some(old)) if flights.next_renewal.is_some_and(|at| at > self.clock.now()) => {
                return (CacheLookup::Hit, old);
            }
            (Ok(flights), _) => flights,
            // Somebody renews it; until then the old one is good.
            (Err(_), Some(old)) => return (CacheLookup::Hit, old),
            (Err(_), None) => slot.flight.lock().await,
        };
        if let Some(answer) = slot.answer(self.clock.now() + self.refresh_before, self.clock.now()) {
            return (CacheLookup::Waited, answer);
        }
        if let Some(failure) = flights.failure.clone().filter(|_| flights.count > waited_for) {
            return (CacheLookup::Waited, Err(failure));
        }
        (CacheLookup::Fetched, self.fetch_into(&slot, &mut flights, fetch).await)
    }

    /// Returns a value that is not `stale`; fetches one unless another caller already replaced it.
    /// A cached denial is returned.
    pub(super) async fn renew<F, Fut>(
        &self,
        key: K,
        stale: impl Fn(&V) -> bool,
        fetch: F,
    ) -> (CacheLookup, Result<V, Failure>)
    where
        F: FnOnce() -> Fut,
        Fut: Future<Output = Result<FetchedValue<V>, Failure>>,
    {
        let slot = self.slot(key);
        let mut flights = slot.flight.lock().await;
        match slot.answer(self.clock.now() + self.refresh_before, self.clock.now()) {
            Some(Ok(value)) if stale(&value) => {}
            Some(answer) => return (CacheLookup::Waited, answer),
            None => {}
        }
        slot.set(CacheState::Empty);
        (CacheLookup::Fetched, self.fetch_into(&slot, &mut flights, fetch).await)
    }

    fn slot(&self, key: K) -> Arc<CacheSlot<V>> {
        self.slots.get(&key).unwrap_or_else(|| {
            self.slots.get_with(key, || {
                Arc::new(CacheSlot {
                    flight: Mutex::default(),
                    waited_for: AtomicU64::new(0),
                    state: RwLock::new(CacheState::Empty),
                })
            })
        })
    }

    async fn fetch_into<F, Fut>(&self, slot: &CacheSlot<V>, flights: &mut Flights, fetch: F) -> Result<V, Failure>
    where
        F: FnOnce() -> Fut,
        Fut: Future<Output = Result<FetchedValue<V>, Failure>>,
    {
        let fetched = fetch().await;
        flights.count += 1;
        flights.failure = fetched.as_ref().err().cloned();
        flights.next_renewal = fetched.is_err().then(|| self.clock.now() + RENEWAL_RETRY_DELAY);
        slot.waited_for.store(flights.count, Ordering::Release);
        match fetched {
            Ok(FetchedValue { value, lives }) => {
                let since = self.clock.now();
                slot.set(CacheState::Cached { value: value.clone(), since, ends: lives.map(|lives| since + lives) });
                Ok(value)
            }
            Err(failure) if failure.class() == Class::Destination => {
                slot.set(CacheState::Denied { failure: failure.clone(), until: self.clock.now() + self.denied_for });
                Err(failure)
            }
            Err(failure) => {
                slot.answer(self.clock.now() + MIN_REMAINING_LIFETIME, self.clock.now()).unwrap_or(Err(failure))
            }
        }
    }
}

impl<V: Clone> CacheSlot<V> {
    /// Returns the cached answer: a value that is still valid at `good_until`, or a denial that is
    /// valid `now`.
    fn answer(&self, good_until: Instant, now: Instant) -> Option<Result<V, Failure>> {
        match &*self.state.read().ok()? {
            CacheState::Cached { value, ends, .. } if ends.is_none_or(|ends| ends > good_until) => {
                Some(Ok(value.clone()))
            }
            CacheState::Denied { failure, until } if *until > now => {
                Some(Err(Failure { remembered: true, ..failure.clone() }))
            }
            _ => None,
        }
    }

    fn known(&self, now: Instant) -> SessionStatus {
        match self.state.read().as_deref() {
            Ok(CacheState::Cached { since, ends, .. }) if ends.is_none_or(|ends| ends > now) => {
                SessionStatus::Cached { age: now - *since, left: ends.map(|ends| ends - now) }
            }
            Ok(CacheState::Denied { failure, until }) if *until > now => {
                SessionStatus::Denied { reason: failure.reason, left: *until - now }
            }
            _ => SessionStatus::Absent,
        }
    }

    fn is_cached(&self) -> bool {
        self.state.read().is_ok_and(|state| matches!(*state, CacheState::Cached { .. }))
    }

    fn set(&self, state: CacheState<V>) {
        if let Ok(mut current) = self.state.write() {
            *current = state;
        }
    }

    fn forget_refusal(&self) {
        if let Ok(mut current) = self.state.write()
            && matches!(*current, CacheState::Denied { .. })
        {
            *current = CacheState::Empty;
        }
    }
}

impl<K, V> fmt::Debug for Cache<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn cache() -> Cache<u32, u32> {
        Cache::new(100, 120 * MINUTE, 5 * MINUTE, MINUTE)
    }

    async fn slowly(calls: &AtomicU32, answer: Result<Duration, Reason>) -> Result<FetchedValue<u32>, Failure> {
        let value = calls.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(5)).await;
        answer.map(|lives| FetchedValue { value, lives: Some(lives) }).map_err(|reason| Failure::new(reason, "no"))
    }

    #[tokio::test]
    async fn a_thousand_callers_fetch_once() {
        let (cache, calls) = (Arc::new(cache()), Arc::new(AtomicU32::new(0)));
        let callers: Vec<_> = (0..1000)
            .map(|_| {
                let (cache, calls) = (cache.clone(), calls.clone());
                tokio::spawn(async move { cache.get(1, || slowly(&calls, Ok(60 * MINUTE))).await })
            })
            .collect();
        let mut fetched = 0;
        for caller in callers {
            let (how, value) = caller.await.unwrap();
            assert_eq!(value.unwrap(), 0);
            fetched += u32::from(how == CacheLookup::Fetched);
        }
        assert_eq!((calls.load(Ordering::SeqCst), fetched), (1, 1));
    }

    #[tokio::test]
    async fn it_is_renewed_early_and_keys_are_apart() {
        let (cache, calls) = (cache(), AtomicU32::new(0));
        for (key, value) in [(1, 0), (2, 1), (1, 0)] {
            assert_eq!(cache.get(key, || slowly(&calls, Ok(60 * MINUTE))).await.1.unwrap(), value);
        }
        cache.clock.advance(54 * MINUTE);
        assert_eq!(cache.get(1, || slowly(&calls, Ok(60 * MINUTE))).await.0, CacheLookup::Hit);
        cache.clock.advance(MINUTE);
        let (how, value) = cache.get(1, || slowly(&calls, Ok(60 * MINUTE))).await;
        assert_eq!((how, value.unwrap()), (CacheLookup::Fetched, 2));
    }

    #[tokio::test]
    async fn the_old_one_serves_while_a_renewal_fails() {
        let (cache, calls) = (cache(), AtomicU32::new(0));
        cache.get(1, || slowly(&calls, Ok(60 * MINUTE))).await.1.unwrap();
        cache.clock.advance(57 * MINUTE);
        let away = cache.get(1, || slowly(&calls, Err(Reason::StsUnavailable))).await;
        assert_eq!(away.1.unwrap(), 0);
        cache.clock.advance(2 * MINUTE + MINUTE / 2);
        let away = cache.get(1, || slowly(&calls, Err(Reason::StsUnavailable))).await;
        assert_eq!(away.1.unwrap_err().reason, Reason::StsUnavailable);
    }

    #[tokio::test]
    async fn a_renewal_that_failed_is_not_tried_at_each_use() {
        let (cache, calls) = (cache(), AtomicU32::new(0));
        cache.get(1, || slowly(&calls, Ok(60 * MINUTE))).await.1.unwrap();
        cache.clock.advance(57 * MINUTE);
        for _ in 0..5 {
            assert_eq!(cache.get(1, || slowly(&calls, Err(Reason::StsUnavailable))).await.1.unwrap(), 0);
        }
        assert_eq!(calls.load(Ordering::SeqCst), 2);
        cache.clock.advance(RENEWAL_RETRY_DELAY);
        assert_eq!(cache.get(1, || slowly(&calls, Ok(60 * MINUTE))).await.1.unwrap(), 2);
    }

    #[tokio::test]
    async fn who_waited_for_a_failed_flight_shares_its_failure() {
        let (cache, calls) = (Arc::new(cache()), Arc::new(AtomicU32::new(0)));
        let callers: Vec<_> = (0..20)
            .map(|_| {
                let (cache, calls) = (cache.clone(), calls.clone());
                tokio::spawn(async move { cache.get(1, || slowly(&calls, Err(Reason::StsUnavailable))).await.1 })
            })
            .collect();
        for caller in callers {
            assert_eq!(caller.await.unwrap().unwrap_err().reason, Reason::StsUnavailable);
        }
        assert_eq!(calls.load(Ordering::SeqCst), 1);
        assert_eq!(cache.get(1, || slowly(&calls, Ok(60 * MINUTE))).await.1.unwrap(), 1);
    }

    #[tokio::test]
    async fn what_is_known_can_be_looked_at() {
        let (cache, calls) = (cache(), AtomicU32::new(0));
        cache.get(1, || slowly(&calls, Ok(60 * MINUTE))).await.1.unwrap();
        cache.get(2, || slowly(&calls, Err(Reason::AssumeRoleDenied))).await.1.unwrap_err();
        cache.clock.advance(MINUTE / 2);
        let known = cache.status(&[3, 2, 1]);
        assert_eq!(known[0], SessionStatus::Absent);
        assert!(
            matches!(known[1], SessionStatus::Denied { reason: Reason::AssumeRoleDenied, left } if left <= MINUTE / 2),
            "{known:?}"
        );
        let SessionStatus::Cached { age, left: Some(left) } = known[2] else { panic!("{known:?}") };
        assert!(age >= MINUTE / 2 && left + MINUTE / 2 <= 60 * MINUTE, "{known:?}");
        cache.clock.advance(60 * MINUTE);
        assert_eq!(cache.status(&[1, 2]), [SessionStatus::Absent, SessionStatus::Absent]);
    }

    #[tokio::test]
    async fn a_refusal_is_remembered_briefly_and_a_fault_is_not() {
        let (cache, calls) = (cache(), AtomicU32::new(0));
        for _ in 0..3 {
            let (_, refused) = cache.get(1, || slowly(&calls, Err(Reason::AssumeRoleDenied))).await;
            assert_eq!(refused.unwrap_err().reason, Reason::AssumeRoleDenied);
        }
        assert_eq!(calls.load(Ordering::SeqCst), 1);
        cache.clock.advance(MINUTE);
        for _ in 0..2 {
            cache.get(1, || slowly(&calls, Err(Reason::Throttled))).await.1.unwrap_err();
        }
        assert_eq!(calls.load(Ordering::SeqCst), 3);
        cache.get(2, || slowly(&calls, Err(Reason::AssumeRoleDenied))).await.1.unwrap_err();
        cache.get(3, || slowly(&calls, Err(Reason::AssumeRoleDenied))).await.1.unwrap_err();
        cache.forget_denial(&2);
        cache.get(3, || slowly(&calls, Ok(MINUTE * 60))).await.1.unwrap_err();
        cache.get(2, || slowly(&calls, Err(Reason::AssumeRoleDenied))).await.1.unwrap_err();
        cache.forget_denials();
        cache.get(2, || slowly(&calls, Ok(MINUTE * 60))).await.1.unwrap();
    }

    #[tokio::test]
    async fn a_refresh_replaces_a_refusal_and_never_a_good_value_by_one() {
        let (cache, calls) = (cache(), AtomicU32::new(0));
        cache.get(1, || slowly(&calls, Err(Reason::AssumeRoleDenied))).await.1.unwrap_err();
        let said = cache.refresh(1, || slowly(&calls, Err(Reason::StsUnavailable))).await.1.unwrap_err();
        assert_eq!(said.reason, Reason::StsUnavailable, "what is said is of now");
        assert_eq!(cache.refresh(1, || slowly(&calls, Ok(60 * MINUTE))).await.1.unwrap(), 2);
        cache.refresh(1, || slowly(&calls, Err(Reason::AssumeRoleDenied))).await.1.unwrap_err();
        assert_eq!(cache.get(1, || slowly(&calls, Ok(60 * MINUTE))).await.1.unwrap(), 2, "the good one serves on");
        assert_eq!(cache.refresh(1, || slowly(&calls, Ok(60 * MINUTE))).await.1.unwrap(), 4);
        assert_eq!(calls.load(Ordering::SeqCst), 5);
    }

    #[tokio::test]
    async fn a_stale_one_is_replaced_once() {
        let (cache, calls) = (Arc::new(cache()), Arc::new(AtomicU32::new(0)));
        cache.get(1, || slowly(&calls, Ok(60 * MINUTE))).await.1.unwrap();
        let renewals: Vec<_> = (0..50)
            .map(|_| {
                let (cache, calls) = (cache.clone(), calls.clone());
                tokio::spawn(async move {
                    cache.renew(1, |value| *value == 0, || slowly(&calls, Ok(60 * MINUTE))).await.1.unwrap()
                })
            })
            .collect();
        for renewal in renewals {
            assert_eq!(renewal.await.unwrap(), 1);
        }
    }

    #[tokio::test]
    async fn a_cancelled_caller_does_not_block_the_next() {
        let (cache, calls) = (cache(), AtomicU32::new(0));
        let mut hasty = Box::pin(cache.get(1, || slowly(&calls, Ok(60 * MINUTE))));
        assert!(futures_util::poll!(&mut hasty).is_pending());
        drop(hasty);
        assert_eq!(cache.get(1, || slowly(&calls, Ok(60 * MINUTE))).await.1.unwrap(), 1);
    }
}
