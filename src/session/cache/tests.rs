use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::domain::outcome::Reason;

const MINUTE: Duration = Duration::from_secs(60);

fn cache() -> Cache<u32, u32> {
    Cache::new(100, 120 * MINUTE, 5 * MINUTE, MINUTE)
}

async fn slowly(calls: &AtomicU32, answer: Result<Duration, Reason>) -> Result<FetchedValue<u32>, Failure> {
    let value = calls.fetch_add(1, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(5)).await;
    answer.map(|lives| FetchedValue { value, lives: Some(lives) }).map_err(|reason| Failure::new(reason, "no"))
}

#[tokio::test(start_paused = true)]
async fn a_thousand_callers_fetch_once() {
    let (cache, calls) = (Arc::new(cache()), Arc::new(AtomicU32::new(0)));
    let callers: Vec<_> = (0..1000)
        .map(|_| {
            let (cache, calls) = (cache.clone(), calls.clone());
            tokio::spawn(async move { cache.get(1, slowly(&calls, Ok(60 * MINUTE))).await })
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

#[tokio::test(start_paused = true)]
async fn it_is_renewed_early_and_keys_are_apart() {
    let (cache, calls) = (cache(), AtomicU32::new(0));
    for (key, value) in [(1, 0), (2, 1), (1, 0)] {
        assert_eq!(cache.get(key, slowly(&calls, Ok(60 * MINUTE))).await.1.unwrap(), value);
    }
    tokio::time::advance(54 * MINUTE).await;
    assert_eq!(cache.get(1, slowly(&calls, Ok(60 * MINUTE))).await.0, CacheLookup::Hit);
    tokio::time::advance(MINUTE).await;
    let (how, value) = cache.get(1, slowly(&calls, Ok(60 * MINUTE))).await;
    assert_eq!((how, value.unwrap()), (CacheLookup::Fetched, 2));
}

#[tokio::test(start_paused = true)]
async fn the_old_one_serves_while_a_renewal_fails() {
    let (cache, calls) = (cache(), AtomicU32::new(0));
    cache.get(1, slowly(&calls, Ok(60 * MINUTE))).await.1.unwrap();
    tokio::time::advance(57 * MINUTE).await;
    let away = cache.get(1, slowly(&calls, Err(Reason::StsUnavailable))).await;
    assert_eq!(away.1.unwrap(), 0);
    tokio::time::advance(2 * MINUTE + MINUTE / 2).await;
    let away = cache.get(1, slowly(&calls, Err(Reason::StsUnavailable))).await;
    assert_eq!(away.1.unwrap_err().reason, Reason::StsUnavailable);
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_failed_is_not_tried_at_each_use() {
    let (cache, calls) = (cache(), AtomicU32::new(0));
    cache.get(1, slowly(&calls, Ok(60 * MINUTE))).await.1.unwrap();
    tokio::time::advance(57 * MINUTE).await;
    for _ in 0..5 {
        assert_eq!(cache.get(1, slowly(&calls, Err(Reason::StsUnavailable))).await.1.unwrap(), 0);
    }
    assert_eq!(calls.load(Ordering::SeqCst), 2);
    tokio::time::advance(RENEWAL_RETRY_DELAY).await;
    assert_eq!(cache.get(1, slowly(&calls, Ok(60 * MINUTE))).await.1.unwrap(), 2);
}

#[tokio::test(start_paused = true)]
async fn who_waited_for_a_failed_flight_shares_its_failure() {
    let (cache, calls) = (Arc::new(cache()), Arc::new(AtomicU32::new(0)));
    let callers: Vec<_> = (0..20)
        .map(|_| {
            let (cache, calls) = (cache.clone(), calls.clone());
            tokio::spawn(async move { cache.get(1, slowly(&calls, Err(Reason::StsUnavailable))).await.1 })
        })
        .collect();
    for caller in callers {
        assert_eq!(caller.await.unwrap().unwrap_err().reason, Reason::StsUnavailable);
    }
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    assert_eq!(cache.get(1, slowly(&calls, Ok(60 * MINUTE))).await.1.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_known_can_be_looked_at() {
    let (cache, calls) = (cache(), AtomicU32::new(0));
    cache.get(1, slowly(&calls, Ok(60 * MINUTE))).await.1.unwrap();
    cache.get(2, slowly(&calls, Err(Reason::AssumeRoleDenied))).await.1.unwrap_err();
    tokio::time::advance(MINUTE / 2).await;
    let known = cache.status(&[3, 2, 1]);
    assert_eq!(known[0], SessionStatus::Absent);
    assert!(
        matches!(known[1], SessionStatus::Denied { reason: Reason::AssumeRoleDenied, left } if left <= MINUTE / 2),
        "{known:?}"
    );
    let SessionStatus::Cached { age, left: Some(left) } = known[2] else { panic!("{known:?}") };
    assert!(age >= MINUTE / 2 && left + MINUTE / 2 <= 60 * MINUTE, "{known:?}");
    tokio::time::advance(60 * MINUTE).await;
    assert_eq!(cache.status(&[1, 2]), [SessionStatus::Absent, SessionStatus::Absent]);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_remembered_briefly_and_a_fault_is_not() {
    let (cache, calls) = (cache(), AtomicU32::new(0));
    for _ in 0..3 {
        let (_, refused) = cache.get(1, slowly(&calls, Err(Reason::AssumeRoleDenied))).await;
        assert_eq!(refused.unwrap_err().reason, Reason::AssumeRoleDenied);
    }
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    tokio::time::advance(MINUTE).await;
    for _ in 0..2 {
        cache.get(1, slowly(&calls, Err(Reason::Throttled))).await.1.unwrap_err();
    }
    assert_eq!(calls.load(Ordering::SeqCst), 3);
    cache.get(2, slowly(&calls, Err(Reason::AssumeRoleDenied))).await.1.unwrap_err();
    cache.get(3, slowly(&calls, Err(Reason::AssumeRoleDenied))).await.1.unwrap_err();
    cache.forget_denial(&2);
    cache.get(3, slowly(&calls, Ok(MINUTE * 60))).await.1.unwrap_err();
    cache.get(2, slowly(&calls, Err(Reason::AssumeRoleDenied))).await.1.unwrap_err();
    cache.forget_denials();
    cache.get(2, slowly(&calls, Ok(MINUTE * 60))).await.1.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_refresh_replaces_a_refusal_and_never_a_good_value_by_one() {
    let (cache, calls) = (cache(), AtomicU32::new(0));
    cache.get(1, slowly(&calls, Err(Reason::AssumeRoleDenied))).await.1.unwrap_err();
    let said = cache.refresh(1, slowly(&calls, Err(Reason::StsUnavailable))).await.1.unwrap_err();
    assert_eq!(said.reason, Reason::StsUnavailable, "what is said is of now");
    assert_eq!(cache.refresh(1, slowly(&calls, Ok(60 * MINUTE))).await.1.unwrap(), 2);
    cache.refresh(1, slowly(&calls, Err(Reason::AssumeRoleDenied))).await.1.unwrap_err();
    assert_eq!(cache.get(1, slowly(&calls, Ok(60 * MINUTE))).await.1.unwrap(), 2, "the good one serves on");
    assert_eq!(cache.refresh(1, slowly(&calls, Ok(60 * MINUTE))).await.1.unwrap(), 4);
    assert_eq!(calls.load(Ordering::SeqCst), 5);
}

#[tokio::test(start_paused = true)]
async fn a_stale_one_is_replaced_once() {
    let (cache, calls) = (Arc::new(cache()), Arc::new(AtomicU32::new(0)));
    cache.get(1, slowly(&calls, Ok(60 * MINUTE))).await.1.unwrap();
    let renewals: Vec<_> = (0..50)
        .map(|_| {
            let (cache, calls) = (cache.clone(), calls.clone());
            tokio::spawn(async move {
                cache.renew(1, |value| *value == 0, slowly(&calls, Ok(60 * MINUTE))).await.1.unwrap()
            })
        })
        .collect();
    for renewal in renewals {
        assert_eq!(renewal.await.unwrap(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_caller_does_not_block_the_next() {
    let (cache, calls) = (cache(), AtomicU32::new(0));
    let mut hasty = Box::pin(cache.get(1, slowly(&calls, Ok(60 * MINUTE))));
    assert!(futures_util::poll!(&mut hasty).is_pending());
    drop(hasty);
    assert_eq!(cache.get(1, slowly(&calls, Ok(60 * MINUTE))).await.1.unwrap(), 1);
}
