use std::num::NonZeroU32;

use tokio::time::advance;

use super::*;

const PART: u64 = 8 << 20;

fn adaptive() -> PartConcurrency {
    PartConcurrency::new(ConcurrencyLimits::new(&UploadConfig::default()))
}

fn fixed(parts: u32) -> PartConcurrency {
    let config = UploadConfig { part_concurrency: NonZeroU32::new(parts), ..UploadConfig::default() };
    PartConcurrency::new(ConcurrencyLimits::new(&config))
}

fn limit(concurrency: &PartConcurrency) -> usize {
    concurrency.state.lock().limit
}

/// Sends parts for a while as one upload does. Each connection carries a part in 100 ms, and all
/// together carry no more than `knee` connections could.
async fn send(concurrency: &PartConcurrency, knee: usize, time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        let limit = limit(concurrency);
        let slower = u32::try_from(limit.div_ceil(knee).max(1)).unwrap();
        let each = Duration::from_millis(100) * slower / u32::try_from(limit).unwrap();
        // Not rounded to milliseconds, as a sleep is.
        advance(each).await;
        concurrency.accepted(PART, limit);
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_with_high_latency_gets_the_most_connections_within_two_seconds() {
    let concurrency = adaptive();
    send(&concurrency, usize::MAX, Duration::from_secs(2)).await;
    assert_eq!(limit(&concurrency), MOST);
}

#[tokio::test(start_paused = true)]
async fn an_increase_without_more_throughput_is_reverted_and_tried_again_later() {
    let concurrency = adaptive();
    send(&concurrency, FIRST, Duration::from_secs(5)).await;
    assert_eq!(limit(&concurrency), FIRST);
    // The network got faster.
    send(&concurrency, usize::MAX, TRIAL_PAUSE * 6).await;
    assert_eq!(limit(&concurrency), MOST);
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_is_slower_than_its_connections_gets_no_more_of_them() {
    let concurrency = adaptive();
    for _ in 0..1000 {
        advance(Duration::from_millis(50)).await;
        concurrency.accepted(PART, FIRST / 2);
    }
    assert_eq!(limit(&concurrency), FIRST);
}

#[tokio::test(start_paused = true)]
async fn a_throttled_destination_gets_half_the_connections_once_and_later_more_again() {
    let concurrency = adaptive();
    send(&concurrency, usize::MAX, Duration::from_secs(2)).await;
    for _ in 0..MOST {
        concurrency.throttled();
    }
    assert_eq!(limit(&concurrency), MOST / 2);
    send(&concurrency, usize::MAX, THROTTLE_PAUSE / 2).await;
    assert_eq!(limit(&concurrency), MOST / 2);
    send(&concurrency, usize::MAX, Duration::from_secs(10)).await;
    assert_eq!(limit(&concurrency), MOST);
    for _ in 0..10 {
        advance(THROTTLE_PAUSE).await;
        concurrency.throttled();
    }
    assert_eq!(limit(&concurrency), 1);
    assert!(concurrency.try_start(0).is_some() && concurrency.try_start(1).is_none());
}

#[tokio::test(start_paused = true)]
async fn short_uploads_get_the_initial_number_back_after_a_throttling_response() {
    let concurrency = adaptive();
    for _ in 0..3 {
        advance(THROTTLE_PAUSE).await;
        concurrency.throttled();
    }
    assert_eq!(limit(&concurrency), 1);
    for second in 1..10 {
        advance(THROTTLE_PAUSE).await;
        concurrency.upload_begins();
        assert!(concurrency.try_start(0).is_some());
        assert_eq!(limit(&concurrency), FIRST.min(1 + second));
    }
}

#[tokio::test(start_paused = true)]
async fn the_time_between_two_uploads_is_no_low_throughput() {
    let concurrency = adaptive();
    for _ in 0..4 {
        concurrency.upload_begins();
        for _ in 0..FIRST + FIRST / 2 {
            advance(Duration::from_millis(100) / 8).await;
            concurrency.accepted(PART, FIRST);
        }
        advance(Duration::from_secs(3600)).await;
    }
    assert_eq!(limit(&concurrency), FIRST, "no window was complete");
}

#[tokio::test(start_paused = true)]
async fn an_increase_that_is_being_tried_is_reverted_when_another_upload_begins() {
    let concurrency = adaptive();
    send(&concurrency, usize::MAX, Duration::from_millis(300)).await;
    assert_eq!(limit(&concurrency), 2 * FIRST, "the first increase is being tried");
    concurrency.upload_begins();
    assert_eq!(limit(&concurrency), FIRST);
    send(&concurrency, usize::MAX, Duration::from_secs(2)).await;
    concurrency.upload_begins();
    assert_eq!(limit(&concurrency), MOST, "what was found stays");
}

#[tokio::test(start_paused = true)]
async fn a_configured_number_is_never_exceeded() {
    let concurrency = fixed(3);
    send(&concurrency, usize::MAX, Duration::from_secs(60)).await;
    assert_eq!(limit(&concurrency), 3);
    assert!(concurrency.try_start(2).is_some() && concurrency.try_start(3).is_none());
    concurrency.throttled();
    assert_eq!(limit(&concurrency), 1);
    send(&concurrency, usize::MAX, Duration::from_secs(60)).await;
    assert_eq!(limit(&concurrency), 3);
}

#[tokio::test(start_paused = true)]
async fn the_uploads_of_a_worker_share_the_connections_beyond_the_first_ones() {
    let limits = ConcurrencyLimits::new(&UploadConfig::default());
    let (one, other) = (PartConcurrency::new(limits.clone()), PartConcurrency::new(limits));
    for concurrency in [&one, &other] {
        send(concurrency, usize::MAX, Duration::from_secs(2)).await;
    }
    let mut held: Vec<_> = (0..MAX_EXTRA).map(|_| one.try_start(FIRST).unwrap()).collect();
    assert!(other.try_start(FIRST).is_none());
    assert!(other.try_start(FIRST - 1).is_some());
    held.pop();
    assert!(other.try_start(FIRST).is_some());
}
