//! The time of a story: tokio's paused clock, and the calendar that goes with it.

use std::cell::Cell;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

/// When every story begins, in seconds since 1970.
const BEGINNING: i64 = 1_800_000_000;

thread_local! {
    static START: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// A story begins on this thread.
pub(super) fn start() {
    START.set(Some(Instant::now()));
}

/// How long the story of this thread goes on.
pub(super) fn elapsed() -> Duration {
    START.get().map(|start| start.elapsed()).unwrap_or_default()
}

/// The date and time of the story.
pub(super) fn now() -> Timestamp {
    at(elapsed())
}

/// The date and time at `elapsed`.
pub(super) fn at(elapsed: Duration) -> Timestamp {
    let since = jiff::SignedDuration::try_from(elapsed).unwrap_or_default();
    Timestamp::new(BEGINNING, 0).and_then(|begin| begin.checked_add(since)).unwrap_or_default()
}
