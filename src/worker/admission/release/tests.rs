use super::*;

fn id(name: &str) -> DestinationId {
    DestinationId::parse(name).unwrap()
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

fn set(names: &[&str]) -> BTreeSet<DestinationId> {
    names.iter().map(|name| id(name)).collect()
}

/// One that was started long ago.
async fn old() -> Recalls {
    let recalls = Recalls::new();
    tokio::time::advance(LONGEST).await;
    recalls
}

#[tokio::test(start_paused = true)]
async fn jobs_may_wait_until_the_last_one_is_back() {
    let recalls = old().await;
    assert!(
        !recalls.may_wait(&id("acme")),
        "a check of everybody each night must not look through what waits for others"
    );
    recalls.sent_away(&id("acme"), Duration::from_secs(600));
    recalls.sent_away(&id("acme"), Duration::from_secs(30));
    tokio::time::advance(Duration::from_secs(599)).await;
    assert!(recalls.may_wait(&id("acme")) && !recalls.may_wait(&id("beta")));
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(!recalls.may_wait(&id("acme")));
    recalls.sent_away(&id("acme"), Duration::from_secs(600));
    let taken = recalls.take(&set(&["acme"]));
    assert!(!recalls.may_wait(&id("acme")), "what is sent away from now on is known anew");
    recalls.put_back(taken);
    assert!(recalls.may_wait(&id("acme")), "it was not called back after all");
}

#[tokio::test(start_paused = true)]
async fn what_was_sent_away_is_counted_until_it_is_back_or_called_back() {
    let recalls = old().await;
    for (name, wait) in [("acme", 30), ("acme", 30), ("acme", 600), ("beta", 30)] {
        recalls.sent_away(&id(name), Duration::from_secs(wait));
    }
    let counts = |expected: &[(&str, u32)]| {
        let expected = expected.iter().map(|(name, count)| (id(name), *count)).collect();
        assert_eq!(recalls.counts(), expected);
    };
    counts(&[("acme", 3), ("beta", 1)]);
    tokio::time::advance(Duration::from_secs(30)).await;
    counts(&[("acme", 1)]);
    let taken = recalls.take(&set(&["acme"]));
    counts(&[]);
    recalls.sent_away(&id("acme"), Duration::from_secs(600));
    recalls.put_back(taken);
    counts(&[("acme", 2)]);
    tokio::time::advance(Duration::from_secs(600)).await;
    counts(&[]);
    assert!(recalls.away().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_has_just_started_does_not_know_what_waits() {
    let recalls = Recalls::new();
    tokio::time::advance(Duration::from_secs(599)).await;
    assert!(recalls.may_wait(&id("acme")));
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(!recalls.may_wait(&id("acme")));
}

#[tokio::test(start_paused = true)]
async fn those_that_are_reset_together_are_called_back_together_when_every_worker_knows() {
    let recalls = Recalls::new();
    let begun = Instant::now();
    for name in ["acme", "beta", "acme"] {
        recalls.reset(&id(name), true, (at(0), at(0)));
    }
    assert_eq!(recalls.next().await, set(&["acme", "beta"]));
    assert_eq!(begun.elapsed(), READ);
    assert!(futures_util::FutureExt::now_or_never(recalls.next()).is_none(), "once");
    recalls.reset(&id("acme"), true, (at(0), at(0)));
    assert_eq!(recalls.next().await, set(&["acme"]));
}

#[tokio::test(start_paused = true)]
async fn only_a_reset_after_which_jobs_may_wait_calls_any_back() {
    let recalls = old().await;
    recalls.sent_away(&id("away"), Duration::from_secs(600));
    let wanted = |name: &str, known, age| {
        recalls.reset(&id(name), known, (at(0), at(age)));
        !std::mem::take(&mut *recalls.wanted()).is_empty()
    };
    assert!(!wanted("acme", false, 0), "nothing is known of it: somebody checks everybody");
    assert!(wanted("acme", true, 0), "its circuit was open");
    assert!(wanted("away", false, 0), "a probe has closed its circuit, and jobs still wait");
    assert!(wanted("away", false, -3), "clocks differ");
    assert!(!wanted("away", false, 301), "the stream gives old ones again");
}

#[test]
fn recalls_take_a_tenth_of_the_time_at_most() {
    let seconds = Duration::from_secs;
    assert_eq!([0, 1, 3, 300].map(|took| rest(seconds(took))), [seconds(5), seconds(10), seconds(30), seconds(120)]);
}

#[tokio::test(start_paused = true)]
async fn what_is_remembered_is_bounded_and_what_is_over_makes_room() {
    let recalls = old().await;
    for n in 0..TRACKED {
        recalls.sent_away(&id(&format!("d{n}")), Duration::from_secs(5));
    }
    recalls.sent_away(&id("acme"), Duration::from_secs(600));
    assert!(!recalls.may_wait(&id("acme")));
    tokio::time::advance(Duration::from_secs(5)).await;
    recalls.sent_away(&id("acme"), Duration::from_secs(600));
    assert!(recalls.may_wait(&id("acme")));
    assert_eq!(recalls.away().len(), 1);
}
