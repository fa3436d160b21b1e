//! What happened in stories, counted: a model in which nothing happens finds nothing.

use std::collections::BTreeMap;
use std::fmt;

use super::clock;
use super::world::State;

/// Counts by name.
#[derive(Debug, Default, Clone)]
pub(super) struct Tally {
    pub(super) counts: BTreeMap<&'static str, u64>,
    /// The most calls of the queue for one job.
    pub(super) calls: u64,
}

impl Tally {
    /// The counts of one story.
    pub(super) fn of(state: &State) -> Self {
        let mut tally = Self { calls: state.operations / state.records.len().max(1) as u64, ..Self::default() };
        let jobs = &state.records;
        tally.count("seeds", 1);
        tally.count("virtual hours", clock::elapsed().as_secs() / 3600);
        tally.count("workers", state.members.len() as u64);
        tally.count("jobs", jobs.len() as u64);
        tally.count("attempts", jobs.iter().map(|job| job.attempts as u64).sum());
        for kind in ["delivered", "failed", "expired", "skipped"] {
            tally.count(kind, jobs.iter().filter(|job| job.outcomes.contains_key(kind)).count() as u64);
        }
        tally.count("dead letters", state.dead.len() as u64);
        tally.count("uploads", state.buckets.uploads.len() as u64);
        tally.count("parts", state.buckets.parts);
        tally.count("parts twice", state.buckets.twice);
        tally.count("calls of the queue", state.operations);
        for (what, count) in &state.faults {
            tally.count(what, *count);
        }
        tally
    }

    fn count(&mut self, what: &'static str, times: u64) {
        *self.counts.entry(what).or_default() += times;
    }

    pub(super) fn add(&mut self, other: &Self) {
        other.counts.iter().for_each(|(what, times)| self.count(what, *times));
        self.calls = self.calls.max(other.calls);
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.counts.iter().try_for_each(|(what, times)| writeln!(f, "{times:>12} {what}"))?;
        writeln!(f, "{:>12} calls of the queue for one job at most", self.calls)
    }
}
