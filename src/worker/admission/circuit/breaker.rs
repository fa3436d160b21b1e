//! Circuit breaker of one destination: the evidence, and when it suffices.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use tokio::time::Instant;

use crate::domain::control::CircuitChange;
use crate::domain::outcome::{Failure, Reason, RetryDelay};
use crate::worker::history::time_after;

/// Least time between two denials of STS that count as two.
pub(super) const MIN_DENIAL_SPACING: Duration = Duration::from_secs(60);
/// Different keys denied without a success that count as a denial of the bucket.
const DENIED_KEYS_TO_TRIP: usize = 3;

/// Evidence against one destination, and its breaker while that is open.
#[derive(Debug)]
pub(super) struct CircuitBreaker {
    pub(super) touched: Instant,
    pub(super) failed_at: Timestamp,
    /// Time at which the first transfer that the evidence needs ended; `None` if all ran in other
    /// workers.
    pub(super) evidence_since: Option<Instant>,
    pub(super) first_denial: Option<Instant>,
    denied_keys: BTreeSet<String>,
    pub(super) open: Option<OpenCircuit>,
}

/// Breaker that is open, half-open or suspected to be open.
#[derive(Debug)]
pub(super) struct OpenCircuit {
    pub(super) failure: Failure,
    pub(super) since: Timestamp,
    pub(super) opened: Instant,
    /// Failed probes.
    pub(super) probes: u32,
    pub(super) next_probe: Instant,
    /// Probe that runs.
    pub(super) probe: Option<RunningProbe>,
    /// True while the evidence does not suffice: another worker was denied once, and the next
    /// answer decides. Not shown as open.
    pub(super) suspected: bool,
}

/// Probe of this worker or of another one.
#[derive(Debug, Clone, Copy)]
pub(super) struct RunningProbe {
    pub(super) number: u64,
    /// Time until which its result is awaited; `None` for a probe of this worker.
    pub(super) until: Option<Instant>,
}

/// Open circuit breaker, as `/status` shows it.
#[derive(Debug, Clone, Serialize)]
pub struct CircuitView {
    /// `open`, or `half_open` while a probe runs.
    pub state: &'static str,
    /// Time at which it opened.
    pub since: Timestamp,
    /// Time of the next probe; now, when it waits for a job.
    pub next_probe_at: Option<Timestamp>,
    /// Failed probes since then.
    pub probes: u32,
    /// Reason of the failure.
    pub reason: &'static str,
    /// Failure in plain words.
    pub message: String,
    /// Remedy for the customer; may be empty.
    pub hint: String,
}

impl CircuitBreaker {
    pub(super) fn new() -> Self {
        Self {
            touched: Instant::now(),
            failed_at: Timestamp::MIN,
            evidence_since: None,
            first_denial: None,
            denied_keys: BTreeSet::new(),
            open: None,
        }
    }

    /// Returns true unless it is closed, or only suspected to be open.
    pub(super) fn is_open(&self) -> bool {
        self.open.as_ref().is_some_and(|open| !open.suspected)
    }

    /// Returns true for a denial that tells other workers something.
    pub(super) fn is_new_evidence(&self, key: &str, failure: &Failure) -> bool {
        match failure.reason {
            _ if failure.is_denied_by_sts() => !failure.remembered && self.first_denial.is_none(),
            Reason::AccessDenied => !self.denied_keys.contains(key),
            _ => false,
        }
    }

    /// Records the time of a failure. One that suffices by itself needs no earlier ones.
    pub(super) fn record_time(&mut self, failure: &Failure, ended_at: Instant, is_probe: bool) {
        let suffices = is_probe || !failure.is_denied_by_sts() && failure.reason != Reason::AccessDenied;
        let known = self.evidence_since.get_or_insert(ended_at);
        if suffices {
            *known = ended_at.max(*known);
        }
    }

    /// Adds a failure to the evidence. Returns true when it suffices.
    pub(super) fn trips(&mut self, key: &str, failure: &Failure) -> bool {
        match failure.reason {
            // A cached denial is no new answer.
            _ if failure.is_denied_by_sts() && failure.remembered => false,
            _ if failure.is_denied_by_sts() => {
                let first = *self.first_denial.get_or_insert_with(Instant::now);
                first.elapsed() >= MIN_DENIAL_SPACING
            }
            Reason::AccessDenied => {
                self.denied_keys.insert(key.to_owned());
                self.denied_keys.len() >= DENIED_KEYS_TO_TRIP
            }
            _ => true,
        }
    }
}

impl OpenCircuit {
    pub(super) fn new(failure: &Failure, since: Timestamp) -> Self {
        let opened = Instant::now();
        let failure = failure.clone();
        Self { failure, since, opened, probes: 0, next_probe: opened, probe: None, suspected: false }
    }

    /// Returns the time until the next probe.
    pub(super) fn next_probe_in(&self) -> Duration {
        self.next_probe.saturating_duration_since(Instant::now())
    }

    /// Returns true while a probe runs whose result is awaited.
    pub(super) fn is_probed(&self) -> bool {
        self.probe.is_some_and(|probe| probe.until.is_none_or(|until| until > Instant::now()))
    }

    pub(super) fn is_probed_by(&self, number: Option<u64>) -> bool {
        number.is_some() && self.probe.map(|probe| probe.number) == number
    }

    /// The destination failed once more. Only the first failure and that of a probe move the next
    /// probe, and then this returns true: jobs that were in flight when the breaker opened are no
    /// new evidence.
    pub(super) fn failed(&mut self, failure: &Failure, probe: Option<u64>, denied_for: Duration) -> bool {
        let first = self.next_probe == self.opened;
        if !first && !self.is_probed_by(probe) {
            return false;
        }
        if !first {
            self.probes = self.probes.saturating_add(1);
        }
        self.probe = None;
        self.failure = failure.clone();
        self.next_probe = Instant::now() + probe_interval(self.probes, failure, denied_for);
        true
    }

    /// State for other workers.
    pub(super) fn change(&self) -> CircuitChange {
        let (failure, probes) = (Box::new(self.failure.clone()), self.probes);
        CircuitChange::Opened { failure, probes, next_probe: self.next_probe_in() }
    }

    pub(super) fn view(&self, now: Timestamp) -> CircuitView {
        CircuitView {
            state: if self.is_probed() { "half_open" } else { "open" },
            since: self.since,
            next_probe_at: time_after(now, self.next_probe_in()),
            probes: self.probes,
            reason: self.failure.reason.as_str(),
            message: self.failure.message.clone(),
            hint: self.failure.hint.clone(),
        }
    }
}

/// Returns the time until the next probe after `probes` failed ones. It comes after a cached
/// denial.
pub(super) fn probe_interval(probes: u32, failure: &Failure, denied_for: Duration) -> Duration {
    let interval = RetryDelay::probe_interval(probes).duration();
    if failure.is_denied_by_sts() { interval.max(denied_for + Duration::from_secs(1)) } else { interval }
}
