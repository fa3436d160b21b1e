//! Published jobs and their last outcomes.

use std::collections::{BTreeSet, HashMap};

use super::counts::OutcomeCounts;
use super::outcome::OutcomeDetails;
use super::pending::PendingJobs;
use crate::domain::outcome::OutcomeKind;

/// Jobs whose outcomes are waited for.
#[derive(Debug, Default)]
pub struct OutcomeTracker {
    /// By id and destination: an id of another customer's job is another job.
    by_id: HashMap<(String, String), TrackedJob>,
    counts: OutcomeCounts,
}

/// A job and its last outcome, if any. `delivered` overrides every other outcome, and a terminal
/// outcome overrides `retrying`.
#[derive(Debug, Default)]
struct TrackedJob {
    destination: String,
    kind: Option<OutcomeKind>,
    /// Details of `retrying`, while the job has not ended.
    retrying: Option<OutcomeDetails>,
}

impl TrackedJob {
    fn pending(&self) -> Option<PendingJobs<'_>> {
        let ended = self.kind.is_some_and(OutcomeKind::is_terminal);
        (!ended).then_some(PendingJobs { jobs: 1, destination: Some(&self.destination), last: self.retrying.as_ref() })
    }
}

impl OutcomeTracker {
    /// Returns the jobs counted by outcome.
    pub fn counts(&self) -> OutcomeCounts {
        self.counts
    }

    /// Adds a job that is about to be published.
    pub fn expect(&mut self, id: &str, destination: &str) {
        let job = TrackedJob { destination: destination.to_owned(), ..TrackedJob::default() };
        if self.by_id.insert(key(id, destination), job).is_none() {
            self.counts.left += 1;
        }
    }

    /// Removes a job that was not published.
    pub fn forget(&mut self, id: &str, destination: &str) {
        if let Some(job) = self.by_id.remove(&key(id, destination)) {
            *self.counts.of(job.kind) -= 1;
        }
    }

    /// Records an outcome. Returns true unless a terminal outcome of the job came before; `None`
    /// for a job that is not tracked.
    pub fn record(&mut self, id: &str, kind: OutcomeKind, details: &OutcomeDetails) -> Option<bool> {
        let job = self.by_id.get_mut(&key(id, details.destination.as_deref().unwrap_or_default()))?;
        let first = job.kind.is_none_or(|known| !known.is_terminal());
        if job.kind != Some(OutcomeKind::Delivered) && (first || kind.is_terminal()) {
            *self.counts.of(job.kind) -= 1;
            job.kind = Some(kind);
            job.retrying = (!kind.is_terminal()).then(|| details.clone());
            *self.counts.of(job.kind) += 1;
        }
        Some(first)
    }

    /// Returns the jobs that have not ended.
    pub fn pending(&self) -> impl Iterator<Item = PendingJobs<'_>> {
        self.by_id.values().filter_map(TrackedJob::pending)
    }

    /// Returns the destinations of the jobs that have not ended.
    pub fn pending_destinations(&self) -> BTreeSet<String> {
        self.pending().filter_map(|job| job.destination).map(str::to_owned).collect()
    }
}

fn key(id: &str, destination: &str) -> (String, String) {
    (id.to_owned(), destination.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delivered_overrides_every_other_outcome() {
        let mut tracker = OutcomeTracker::default();
        let of = |to: &str| OutcomeDetails { destination: Some(to.to_owned()), ..OutcomeDetails::default() };
        let (nothing, others) = (of("acme"), of("beta"));
        tracker.expect("a", "acme");
        tracker.expect("a", "acme");
        let mut counts = Vec::new();
        assert_eq!(tracker.record("b", OutcomeKind::Delivered, &nothing), None);
        assert_eq!(tracker.record("a", OutcomeKind::Delivered, &others), None, "another customer's job");
        for (kind, first) in [
            (OutcomeKind::Retrying, true),
            (OutcomeKind::Failed, true),
            (OutcomeKind::Retrying, false),
            (OutcomeKind::Delivered, false),
            (OutcomeKind::Failed, false),
        ] {
            assert_eq!(tracker.record("a", kind, &nothing), Some(first));
            counts.push(tracker.counts().to_string());
        }
        let failed = "0 delivered, 1 failed";
        assert_eq!(counts, ["0 delivered, 1 retrying", failed, failed, "1 delivered", "1 delivered"]);
        tracker.forget("a", "acme");
        assert_eq!(tracker.counts(), OutcomeCounts::default());
    }
}
