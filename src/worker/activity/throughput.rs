//! Throughput of the last minutes in steps, so that a page that was just opened shows a history.

use std::collections::VecDeque;
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

/// Length of a step.
const STEP: Duration = Duration::from_secs(5);
/// Steps that are kept: 15 minutes.
const STEPS: usize = 180;

/// Throughput per step, oldest first. All lists have the same length.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Throughput {
    /// Length of a step in seconds.
    pub step_seconds: u64,
    /// Most steps that are kept.
    pub steps: usize,
    /// Steps before the first one here, which are no longer kept.
    pub forgotten: u64,
    /// Bytes that S3 accepted, those of later failed attempts included.
    pub bytes: Vec<u64>,
    /// Transfers delivered or skipped.
    pub delivered: Vec<u64>,
    /// Transfers that failed or expired.
    pub failed: Vec<u64>,
    /// Attempts that are repeated: retried, deferred or requeued.
    pub repeated: Vec<u64>,
}

/// Totals since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct TransferTotals {
    pub(super) bytes: u64,
    pub(super) delivered: u64,
    pub(super) failed: u64,
    pub(super) repeated: u64,
}

impl TransferTotals {
    /// Combines each number with that of `other`.
    fn with(self, other: Self, combine: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            bytes: combine(self.bytes, other.bytes),
            delivered: combine(self.delivered, other.delivered),
            failed: combine(self.failed, other.failed),
            repeated: combine(self.repeated, other.repeated),
        }
    }
}

/// Divides the growing totals into steps.
#[derive(Debug)]
pub(super) struct ThroughputRecorder {
    since: Instant,
    last: TransferTotals,
    steps: VecDeque<TransferTotals>,
    forgotten: u64,
}

impl Default for ThroughputRecorder {
    fn default() -> Self {
        Self::new(Instant::now())
    }
}

impl ThroughputRecorder {
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, last: TransferTotals::default(), steps: VecDeque::with_capacity(STEPS), forgotten: 0 }
    }

    /// Records the totals. Steps that were missed (a process that was stopped) get equal shares.
    pub(super) fn record(&mut self, now: Instant, sums: TransferTotals) {
        let passed = u32::try_from(now.duration_since(self.since).as_millis() / STEP.as_millis()).unwrap_or(u32::MAX);
        if passed == 0 {
            return;
        }
        let parts = u64::from(passed);
        let share = sums.with(self.last, |sum, last| sum.saturating_sub(last) / parts);
        // What does not divide evenly stays for the next step: nothing is lost.
        self.last = self.last.with(share, |last, share| last + share * parts);
        self.since += STEP * passed;
        let fresh = (passed as usize).min(STEPS);
        let old = (self.steps.len() + fresh).saturating_sub(STEPS);
        self.forgotten += old as u64 + parts - fresh as u64;
        self.steps.drain(..old);
        self.steps.extend(std::iter::repeat_n(share, fresh));
    }

    pub(super) fn throughput(&self) -> Throughput {
        let column = |of: fn(&TransferTotals) -> u64| self.steps.iter().map(of).collect();
        Throughput {
            step_seconds: STEP.as_secs(),
            steps: STEPS,
            forgotten: self.forgotten,
            bytes: column(|step| step.bytes),
            delivered: column(|step| step.delivered),
            failed: column(|step| step.failed),
            repeated: column(|step| step.repeated),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sums(bytes: u64, delivered: u64) -> TransferTotals {
        TransferTotals { bytes, delivered, ..TransferTotals::default() }
    }

    #[test]
    fn growing_sums_become_steps() {
        let start = Instant::now();
        let mut watch = ThroughputRecorder::new(start);
        watch.record(start + Duration::from_secs(4), sums(100, 1));
        assert_eq!(watch.throughput().bytes, [] as [u64; 0]);
        watch.record(start + Duration::from_secs(6), sums(150, 1));
        watch.record(start + Duration::from_secs(9), sums(160, 1));
        watch.record(start + Duration::from_secs(10), sums(200, 3));
        assert_eq!(watch.throughput().bytes, [150, 50]);
        assert_eq!(watch.throughput().delivered, [1, 2]);
    }

    #[test]
    fn a_gap_is_shared_out_and_nothing_is_lost() {
        let start = Instant::now();
        let mut watch = ThroughputRecorder::new(start);
        watch.record(start + STEP * 3, sums(10, 1));
        watch.record(start + STEP * 4, sums(10, 1));
        let shown = watch.throughput();
        assert_eq!(shown.bytes, [3, 3, 3, 1]);
        assert_eq!(shown.delivered, [0, 0, 0, 1]);
    }

    #[test]
    fn it_keeps_fifteen_minutes_however_long_it_runs() {
        let start = Instant::now();
        let mut watch = ThroughputRecorder::new(start);
        for step in 1..=500 {
            watch.record(start + STEP * step, sums(u64::from(step), 0));
        }
        watch.record(start + STEP * 100_000, sums(500, 0));
        let shown = watch.throughput();
        assert_eq!((shown.bytes.len(), shown.failed.len()), (STEPS, STEPS));
        assert_eq!(shown.forgotten + STEPS as u64, 100_000);
        assert_eq!(shown.step_seconds * 180, 15 * 60);
    }
}
