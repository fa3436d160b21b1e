//! Counts of what happened in scenarios: a simulation in which nothing happens finds nothing.

use std::collections::BTreeMap;
use std::fmt;

use super::clock;
use super::world::SimState;

/// Counts by name.
#[derive(Debug, Default, Clone)]
pub(super) struct Statistics {
    pub(super) counts: BTreeMap<&'static str, u64>,
    /// Maximum number of queue calls per job.
    pub(super) calls: u64,
}

impl Statistics {
    /// Counts of one scenario.
    pub(super) fn of(state: &SimState) -> Self {
        let mut statistics = Self { calls: state.operations / state.records.len().max(1) as u64, ..Self::default() };
        let jobs = &state.records;
        statistics.count("seeds", 1);
        statistics.count("simulated hours", clock::elapsed().as_secs() / 3600);
        statistics.count("workers", state.workers.len() as u64);
        statistics.count("jobs", jobs.len() as u64);
        statistics.count("attempts", jobs.iter().map(|job| job.attempts as u64).sum());
        for kind in ["delivered", "failed", "expired", "skipped"] {
            statistics.count(kind, jobs.iter().filter(|job| job.outcomes.contains_key(kind)).count() as u64);
        }
        statistics.count("dead letters", state.dead.len() as u64);
        statistics.count("uploads", state.s3.uploads.len() as u64);
        statistics.count("parts", state.s3.parts);
        statistics.count("repeated parts", state.s3.repeated_parts);
        statistics.count("queue calls", state.operations);
        for (what, count) in &state.faults {
            statistics.count(what, *count);
        }
        statistics
    }

    fn count(&mut self, what: &'static str, times: u64) {
        *self.counts.entry(what).or_default() += times;
    }

    pub(super) fn add(&mut self, other: &Self) {
        other.counts.iter().for_each(|(what, times)| self.count(what, *times));
        self.calls = self.calls.max(other.calls);
    }
}

impl fmt::Display for Statistics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.counts.iter().try_for_each(|(what, times)| writeln!(f, "{times:>12} {what}"))?;
        writeln!(f, "{:>12} queue calls per job at most", self.calls)
    }
}
