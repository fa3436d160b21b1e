//! Circuit breaker of each destination: while the customer has something to fix, one job now and
//! then probes, and the others wait.
//!
//! Closed: jobs run, and evidence is collected. Certain failures (no such bucket, a disabled key)
//! trip the breaker at once; a denial of STS does when it was given twice at least a minute apart,
//! as a new role takes a while to propagate; denied keys do when three different ones were denied
//! without a success. Open: jobs are deferred uncharged until the next probe is due. Half-open:
//! that one job decides. Delivered, the breaker closes; denied again, the next probe is later.
//!
//! The workers of a fleet share their breakers ([`shared`]), so that a broken destination is asked
//! as often by many workers as by one.

mod breaker;
mod probe;
mod shared;
mod tracked;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::domain::control::{CircuitChange, ControlCommand};
use crate::domain::destination::DestinationIdentity;
use crate::domain::outcome::{Class, Failure, Reason, TransferResult};
use crate::metrics::Metrics;
use crate::worker::admission::bounds::Sweeps;
use crate::worker::reports::FleetReports;
pub use breaker::CircuitView;
use breaker::{CircuitBreaker, OpenCircuit, RunningProbe};
pub(super) use probe::CircuitProbe;
use shared::ProbeClaims;
pub(in crate::worker) use shared::SharedChange;
use tracked::record_time;

/// Interval to the next probe after one that ended without an answer (S3 was down, the job was
/// interrupted).
const INCONCLUSIVE_PROBE_INTERVAL: Duration = Duration::from_secs(30);
/// Greatest difference of two machines' clocks.
const MAX_CLOCK_SKEW: SignedDuration = SignedDuration::from_secs(5);
/// Age from which a report of another worker is one of the past.
const PAST: Duration = Duration::from_secs(60);
/// Cause of closing a breaker that opened in an outage.
const PART_OF_OUTAGE: &str = "the failure is part of an outage";

/// Circuit breakers of one worker.
#[derive(Debug)]
pub(super) struct CircuitBreakers {
    breakers: Mutex<HashMap<DestinationIdentity, CircuitBreaker>>,
    last_success: Mutex<HashMap<DestinationIdentity, Timestamp>>,
    /// The same by a clock without steps, to compare it with failures.
    accepted: Mutex<HashMap<DestinationIdentity, Instant>>,
    /// Last reset, passed connection test or success of each destination. For display only.
    recovered: Mutex<HashMap<DestinationIdentity, Timestamp>>,
    sweeps: Sweeps,
    next_probe_number: AtomicU64,
    claims: ProbeClaims,
    reports: FleetReports,
    denied_for: Duration,
    metrics: Arc<Metrics>,
}

/// Answer of a circuit breaker to a job that is about to start.
#[derive(Debug)]
pub(super) enum CircuitState {
    /// The job may start.
    Closed,
    /// The job may start, and its result decides whether the breaker closes.
    HalfOpen(CircuitProbe),
    /// The job waits.
    Open {
        /// Failure that opened the breaker.
        failure: Box<Failure>,
        /// Time until the next probe.
        next_probe: Duration,
    },
}

/// Attempt whose result a breaker observes.
#[derive(Debug, Clone, Copy)]
pub(super) struct ObservedAttempt<'a> {
    pub(super) destination: &'a DestinationIdentity,
    /// Key of the object, below the destination's prefix.
    pub(super) key: &'a str,
    /// Time at which its transfer ended.
    pub(super) ended_at: Instant,
    /// Number of the probe, when the attempt was one.
    pub(super) probe: Option<u64>,
}

impl CircuitBreakers {
    /// `denied_for` is the lifetime of a cached denial of STS: a probe must come after it.
    pub(super) fn new(denied_for: Duration, metrics: Arc<Metrics>, reports: FleetReports) -> Arc<Self> {
        Arc::new(Self {
            breakers: Mutex::default(),
            last_success: Mutex::default(),
            accepted: Mutex::default(),
            recovered: Mutex::default(),
            sweeps: Sweeps::default(),
            next_probe_number: AtomicU64::new(1),
            claims: ProbeClaims::default(),
            reports,
            denied_for,
            metrics,
        })
    }

    /// Returns true when the next job probes the destination. Fleets claim the probe first.
    pub(super) fn is_probe_due(&self, destination: &DestinationIdentity) -> bool {
        let breakers = self.breakers.lock();
        let open = breakers.get(destination).and_then(|breaker| breaker.open.as_ref());
        open.is_some_and(|open| !open.is_probed() && open.next_probe <= Instant::now())
    }

    /// Returns the state for a job that is about to start. When a probe is due, the job becomes it.
    pub(super) fn state(self: &Arc<Self>, destination: &DestinationIdentity) -> CircuitState {
        let mut breakers = self.breakers.lock();
        let Some(breaker) = breakers.get_mut(destination) else { return CircuitState::Closed };
        let Some(open) = &mut breaker.open else { return CircuitState::Closed };
        let left = open.next_probe_in();
        if open.is_probed() || !left.is_zero() {
            // While a probe runs, its answer comes first.
            let next_probe = if open.is_probed() { INCONCLUSIVE_PROBE_INTERVAL.max(left) } else { left };
            return CircuitState::Open { failure: Box::new(open.failure.clone()), next_probe };
        }
        let number = self.next_number();
        open.probe = Some(RunningProbe { number, until: None });
        tracing::info!(
            event = "circuit_half_open",
            destination = %destination.id(),
            reason = open.failure.reason.as_str(),
            "circuit breaker half-open"
        );
        CircuitState::HalfOpen(CircuitProbe { breakers: self.clone(), destination: destination.clone(), number })
    }

    fn next_number(&self) -> u64 {
        self.next_probe_number.fetch_add(1, Ordering::Relaxed)
    }

    /// Observes the result of an attempt. Returns the time until the next probe when the breaker is
    /// open now.
    pub(super) fn observe(
        &self,
        attempt: ObservedAttempt<'_>,
        result: &TransferResult,
        now: Timestamp,
    ) -> Option<Duration> {
        match result {
            TransferResult::Delivered(_) | TransferResult::Skipped => {
                self.succeeded(attempt.destination, attempt.ended_at, now);
                None
            }
            // The worker's own setting refuses roles: no request was made, and no probe would succeed.
            TransferResult::Failed(failure) if failure.reason == Reason::RoleAuthOff => None,
            TransferResult::Failed(failure) if failure.class() == Class::Destination => {
                self.failed(attempt, failure, now)
            }
            _ => None,
        }
    }

    /// Closes the breaker: the destination accepted data, and not before the evidence.
    pub(super) fn succeeded(&self, destination: &DestinationIdentity, accepted_at: Instant, now: Timestamp) {
        record_time(&self.accepted, destination, accepted_at);
        record_time(&self.last_success, destination, now);
        record_time(&self.recovered, destination, now);
        let is_older = |breaker: &CircuitBreaker| breaker.evidence_since.is_some_and(|since| accepted_at < since);
        if self.breakers.lock().get(destination).is_some_and(is_older) {
            return;
        }
        if self.close(destination, "the destination accepted data") {
            self.report(destination, CircuitChange::Closed);
        }
    }

    /// Returns the last success of a destination, as far as it is known.
    pub(super) fn last_success_at(&self, destination: &DestinationIdentity) -> Option<Timestamp> {
        self.last_success.lock().get(destination).copied()
    }

    /// Closes a breaker whose evidence is part of an outage.
    pub(super) fn clear(&self, destination: &DestinationIdentity) {
        if self.close(destination, PART_OF_OUTAGE) {
            self.report(destination, CircuitChange::Closed);
        }
    }

    /// Resets a breaker now: an operator asked for it, or a connection test passed. Returns true if
    /// there was any evidence.
    pub(super) fn reset(&self, destination: &DestinationIdentity, now: Timestamp) -> bool {
        let known = self.close(destination, "reset");
        record_time(&self.recovered, destination, now);
        known
    }

    /// Returns when each destination recovered last.
    pub(super) fn recovered(&self) -> HashMap<DestinationIdentity, Timestamp> {
        self.recovered.lock().clone()
    }

    /// As [`CircuitBreakers::reset`], for a reset that was requested at `at`, perhaps a while ago:
    /// it does not cover later failures. Returns true if there was any evidence.
    pub(super) fn reset_as_of(&self, destination: &DestinationIdentity, at: Timestamp, now: Timestamp) -> bool {
        let latest = at.checked_add(MAX_CLOCK_SKEW).unwrap_or(at);
        let older =
            |breaker: &CircuitBreaker| breaker.open.as_ref().map_or(breaker.failed_at, |open| open.since) <= latest;
        let covered = self.breakers.lock().get(destination).is_some_and(older);
        let known = covered && self.close(destination, "reset");
        // Whatever the requester's clock shows, the reset covers everything that is known here.
        record_time(&self.recovered, destination, if covered { at.max(now) } else { at });
        known
    }

    /// Closes every breaker that opened within the last `window`: an outage was the cause, and not
    /// its destination.
    pub(super) fn close_recent(&self, window: Duration) {
        let mut breakers = self.breakers.lock();
        let is_recent =
            |breaker: &CircuitBreaker| breaker.open.as_ref().is_none_or(|open| open.opened.elapsed() <= window);
        let recent: Vec<_> = breakers.extract_if(|_, breaker| is_recent(breaker)).collect();
        for (destination, _) in recent.iter().filter(|(_, breaker)| breaker.open.is_some()) {
            self.closed(&breakers, destination, PART_OF_OUTAGE);
            self.report(destination, CircuitChange::Closed);
        }
    }

    /// Returns all breakers that are not closed.
    pub(super) fn view(&self, now: Timestamp) -> HashMap<DestinationIdentity, CircuitView> {
        let breakers = self.breakers.lock();
        let open = |breaker: &CircuitBreaker| Some(breaker.open.as_ref().filter(|open| !open.suspected)?.view(now));
        breakers.iter().filter_map(|(id, breaker)| Some((id.clone(), open(breaker)?))).collect()
    }

    fn close(&self, destination: &DestinationIdentity, why: &str) -> bool {
        let mut breakers = self.breakers.lock();
        let removed = breakers.remove(destination);
        let known = removed.is_some();
        if removed.is_some_and(|breaker| breaker.is_open()) {
            self.closed(&breakers, destination, why);
        }
        known
    }

    /// Records that an open breaker was removed.
    fn closed(&self, breakers: &HashMap<DestinationIdentity, CircuitBreaker>, closed: &DestinationIdentity, why: &str) {
        self.show(breakers, closed);
        tracing::info!(event = "circuit_closed", destination = %closed.id(), why, "circuit breaker closed");
    }

    /// Sets the gauge of a breaker that closed. It is that of all destinations with the same id.
    fn show(&self, breakers: &HashMap<DestinationIdentity, CircuitBreaker>, closed: &DestinationIdentity) {
        let open = breakers.iter().any(|(other, breaker)| other.id() == closed.id() && breaker.is_open());
        self.metrics.destinations().set_circuit_open(closed.id(), open);
    }

    /// Returns the destinations that a command for `named` is meant for.
    pub(super) fn covered(&self, named: &DestinationIdentity) -> Vec<DestinationIdentity> {
        self.breakers.lock().keys().filter(|known| named.covers(known)).cloned().collect()
    }

    fn failed(&self, attempt: ObservedAttempt<'_>, failure: &Failure, now: Timestamp) -> Option<Duration> {
        let destination = attempt.destination;
        let mut breakers = self.breakers.lock();
        if self.accepted.lock().get(destination).is_some_and(|accepted| *accepted > attempt.ended_at) {
            // The destination has accepted data since: the failure proves nothing any more.
            return breakers.get(destination)?.open.as_ref().map(OpenCircuit::next_probe_in);
        }
        let breaker = self.tracked(&mut breakers, destination)?;
        breaker.failed_at = now;
        breaker.record_time(failure, attempt.ended_at, attempt.probe.is_some());
        let is_open = breaker.is_open();
        let is_new = breaker.is_new_evidence(attempt.key, failure);
        if !is_open && breaker.trips(attempt.key, failure) {
            self.opened(destination, failure, Duration::ZERO);
            breaker.open = Some(OpenCircuit::new(failure, now));
        } else if !is_open && is_new {
            let (failure, key) = (Box::new(failure.clone()), attempt.key.to_owned());
            self.report(destination, CircuitChange::Denied { failure, key });
        }
        let open = breaker.open.as_mut()?;
        if open.failed(failure, attempt.probe, self.denied_for) && !open.suspected {
            self.report(destination, open.change());
        }
        Some(open.next_probe_in())
    }

    fn report(&self, destination: &DestinationIdentity, change: CircuitChange) {
        self.reports.send(ControlCommand::Circuit(destination.clone(), change));
    }

    /// Records that a breaker opened `age` ago. A worker that starts reads of many, which may have
    /// closed since.
    fn opened(&self, destination: &DestinationIdentity, failure: &Failure, age: Duration) {
        self.metrics.destinations().set_circuit_open(destination.id(), true);
        if age >= PAST {
            tracing::debug!(
                event = "circuit_opened",
                destination = %destination.id(),
                reason = failure.reason.as_str(),
                "circuit breaker open"
            );
            return;
        }
        tracing::warn!(
            event = "circuit_opened",
            destination = %destination.id(),
            reason = failure.reason.as_str(),
            cause = %failure,
            remedy = failure.hint,
            next = "jobs of this destination wait, and one at a time probes it",
            "circuit breaker open"
        );
    }
}

#[cfg(test)]
mod tests;
