use super::*;
use crate::worker::sample;

fn id(name: &str) -> DestinationIdentity {
    DestinationIdentity::parse(name).unwrap()
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

fn set(names: &[&str]) -> BTreeSet<DestinationIdentity> {
    names.iter().map(|name| id(name)).collect()
}

/// One that was started long ago.
async fn old() -> DelayedJobs {
    let delayed = DelayedJobs::new();
    tokio::time::advance(MAX_DELAY).await;
    delayed
}

#[tokio::test(start_paused = true)]
async fn jobs_may_wait_until_the_last_one_has_returned() {
    let delayed = old().await;
    assert!(!delayed.may_have(&id("acme")), "a nightly test of all destinations must not look through the wait queues");
    delayed.record(&id("acme"), Duration::from_secs(600));
    delayed.record(&id("acme"), Duration::from_secs(30));
    tokio::time::advance(Duration::from_secs(599)).await;
    assert!(delayed.may_have(&id("acme")) && !delayed.may_have(&id("beta")));
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(!delayed.may_have(&id("acme")));
    delayed.record(&id("acme"), Duration::from_secs(600));
    let taken = delayed.take(&set(&["acme"]));
    assert!(!delayed.may_have(&id("acme")), "jobs deferred from now on are recorded apart");
    delayed.restore(&taken);
    assert!(delayed.may_have(&id("acme")), "they were not released after all");
}

#[tokio::test(start_paused = true)]
async fn delayed_jobs_are_counted_until_they_return_or_are_released() {
    let delayed = old().await;
    for (name, wait) in [("acme", 30), ("acme", 30), ("acme", 600), ("beta", 30)] {
        delayed.record(&id(name), Duration::from_secs(wait));
    }
    let counts = |expected: &[(&str, u32)]| {
        let expected = expected.iter().map(|(name, count)| (id(name), *count)).collect();
        assert_eq!(delayed.counts(), expected);
    };
    counts(&[("acme", 3), ("beta", 1)]);
    tokio::time::advance(Duration::from_secs(30)).await;
    counts(&[("acme", 1)]);
    let taken = delayed.take(&set(&["acme"]));
    counts(&[]);
    delayed.record(&id("acme"), Duration::from_secs(600));
    delayed.restore(&taken);
    counts(&[("acme", 2)]);
    tokio::time::advance(Duration::from_secs(600)).await;
    counts(&[]);
    assert!(delayed.delayed.lock().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_has_just_started_does_not_know_what_waits() {
    let delayed = DelayedJobs::new();
    tokio::time::advance(Duration::from_secs(599)).await;
    assert!(delayed.may_have(&id("acme")));
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(!delayed.may_have(&id("acme")));
}

#[tokio::test(start_paused = true)]
async fn destinations_reset_together_are_released_together_when_every_worker_knows() {
    let delayed = DelayedJobs::new();
    let begun = Instant::now();
    for name in ["acme", "beta", "acme"] {
        delayed.request(&id(name), DestinationReset { known: true, at: at(0), now: at(0) });
    }
    assert_eq!(delayed.next_request().await, set(&["acme", "beta"]));
    assert_eq!(begun.elapsed(), RESET_PROPAGATION);
    assert!(futures_util::FutureExt::now_or_never(delayed.next_request()).is_none(), "once");
    delayed.request(&id("acme"), DestinationReset { known: true, at: at(0), now: at(0) });
    assert_eq!(delayed.next_request().await, set(&["acme"]));
}

#[tokio::test(start_paused = true)]
async fn only_a_reset_after_which_jobs_may_wait_releases_any() {
    let delayed = old().await;
    delayed.record(&id("away"), Duration::from_secs(600));
    let releases = |name: &str, known, age| {
        delayed.request(&id(name), DestinationReset { known, at: at(0), now: at(age) });
        !std::mem::take(&mut *delayed.requested.lock()).is_empty()
    };
    assert!(!releases("acme", false, 0), "nothing is known of it: a nightly test");
    assert!(releases("acme", true, 0), "its circuit was open");
    assert!(releases("away", false, 0), "a probe has closed its circuit, and jobs still wait");
    assert!(releases("away", false, -3), "clocks differ");
    assert!(!releases("away", false, 301), "the stream replays old ones");
}

#[test]
fn releases_take_a_tenth_of_the_time_at_most() {
    let seconds = Duration::from_secs;
    assert_eq!([0, 1, 3, 300].map(|took| pause(seconds(took))), [seconds(5), seconds(10), seconds(30), seconds(120)]);
}

#[tokio::test(start_paused = true)]
async fn tracked_destinations_are_bounded_and_returned_jobs_make_room() {
    let delayed = old().await;
    for n in 0..MAX_TRACKED {
        delayed.record(&id(&format!("d{n}")), Duration::from_secs(5));
    }
    delayed.record(&id("acme"), Duration::from_secs(600));
    assert!(!delayed.may_have(&id("acme")));
    tokio::time::advance(Duration::from_secs(5)).await;
    delayed.record(&id("acme"), Duration::from_secs(600));
    assert!(delayed.may_have(&id("acme")));
    assert_eq!(delayed.delayed.lock().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_hundred_thousand_made_up_tenants_make_room_for_a_configured_destination() {
    let delayed = old().await;
    for n in 0..100_000 {
        delayed.record(&sample::made_up(n), Duration::from_secs(600));
    }
    assert_eq!(delayed.delayed.lock().len(), MAX_TRACKED);
    delayed.record(&id("acme"), Duration::from_secs(600));
    assert!(delayed.may_have(&id("acme")));
}
