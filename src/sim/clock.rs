//! Simulated time: tokio's paused clock and the matching calendar.

use std::cell::Cell;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

/// Start of every scenario, in seconds since 1970.
const EPOCH_SECONDS: i64 = 1_800_000_000;

thread_local! {
    static START: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Starts the clock of this thread's scenario.
pub(super) fn start() {
    START.set(Some(Instant::now()));
}

/// Time since the start of this thread's scenario.
pub(super) fn elapsed() -> Duration {
    START.get().map(|start| start.elapsed()).unwrap_or_default()
}

/// Simulated date and time.
pub(super) fn now() -> Timestamp {
    at(elapsed())
}

/// Clocks that differ by minutes.
pub(super) const SKEWED: [fn() -> Timestamp; 3] = [now, || skewed(-240), || skewed(240)];

fn skewed(seconds: i64) -> Timestamp {
    now().checked_add(jiff::SignedDuration::from_secs(seconds)).unwrap_or_default()
}

/// Date and time after `elapsed`.
pub(super) fn at(elapsed: Duration) -> Timestamp {
    let since = jiff::SignedDuration::try_from(elapsed).unwrap_or_default();
    Timestamp::new(EPOCH_SECONDS, 0).and_then(|begin| begin.checked_add(since)).unwrap_or_default()
}
