//! Outage detector: when many destinations begin to fail alike, the cause may be our identity, our
//! network or S3 as a whole, and not each customer.
//!
//! Evidence are only destinations that worked before: a role that somebody made up costs its own
//! job alone. They are suspicious when several customers fail alike, and more than half of those
//! tried meanwhile do. Where none ever worked, after a start, all that fail alike are. A suspicion
//! counts once calls of our own confirm it: see [`crate::transfer::Transport::confirm_outage`].
//! Then no circuit breaker opens, no attempt is charged, and the worker takes one job at a time
//! until one succeeds.

mod state;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::domain::destination::{Destination, DestinationIdentity};
use crate::domain::outcome::{Failure, Symptom, TransferResult};
use state::{OutageState, WINDOW, failure};

/// Each job deferred in a row lengthens the pause before the next one, up to the longest. With few
/// destinations, jobs would otherwise circulate between lane and wait queue as fast as the broker
/// can.
const DEFERRAL_PAUSE: Duration = Duration::from_millis(10);
const MAX_DEFERRAL_PAUSE: Duration = Duration::from_millis(250);

/// Results of all destinations of this worker.
#[derive(Debug, Default)]
pub(super) struct OutageDetector {
    state: Mutex<OutageState>,
}

/// Result of an attempt, seen beside those of all destinations.
#[derive(Debug)]
pub(super) enum ObservedResult {
    /// The result, or the outage that it is part of.
    Known(TransferResult),
    /// The result, which may be part of an outage: a call of our own must confirm it.
    Suspicious(TransferResult, Symptom),
}

impl OutageDetector {
    /// Observes the result of an attempt. A failure that is part of the current outage becomes
    /// [`Reason::Outage`]. `granted` is the number of successful AssumeRole calls so far.
    pub(super) fn observe(
        &self,
        destination: &Arc<Destination>,
        result: TransferResult,
        granted: u64,
    ) -> ObservedResult {
        match &result {
            TransferResult::Delivered(_) | TransferResult::Skipped => self.succeeded(destination, granted),
            TransferResult::Failed(failure) => {
                if let Some(symptom) = Symptom::of(failure.reason) {
                    let mut state = self.state.lock();
                    state.failure(destination, symptom, failure.remembered, granted);
                    if state.current.is_none() && state.is_suspicious(symptom) {
                        return ObservedResult::Suspicious(result, symptom);
                    }
                    return ObservedResult::Known(state.covered(destination, result));
                }
            }
            TransferResult::Expired
            | TransferResult::Cancelled(_)
            | TransferResult::Superseded(_)
            | TransferResult::ObjectBusy => {}
        }
        ObservedResult::Known(result)
    }

    /// Returns the destinations to ask about a suspicion: some that worked and don't share it, else
    /// those that worked before it, else none. `None` if the suspicion is over or decided.
    pub(super) fn controls(&self, symptom: Symptom) -> Option<Vec<Arc<Destination>>> {
        let state = self.state.lock();
        (state.current.is_none() && state.is_suspicious(symptom)).then(|| state.controls(symptom))
    }

    /// Concludes a suspicion. Returns the age of the evidence if the outage starts: breakers that
    /// opened within this time opened because of it.
    pub(super) fn conclude(&self, symptom: Symptom, confirmed: bool) -> Option<Duration> {
        let mut state = self.state.lock();
        if confirmed && state.current.is_none() && state.is_suspicious(symptom) {
            return Some(state.start(symptom));
        }
        state.refuted.retain(|(other, _)| *other != symptom);
        state.refuted.push((symptom, Instant::now()));
        None
    }

    /// Returns the outage that a result is part of, else the result.
    pub(super) fn covered(&self, destination: &Arc<Destination>, result: TransferResult) -> TransferResult {
        self.state.lock().covered(destination, result)
    }

    /// Observes that a destination accepted data.
    pub(super) fn succeeded(&self, destination: &Arc<Destination>, granted: u64) {
        self.state.lock().success(destination, granted);
    }

    /// Returns true during an outage.
    pub(super) fn is_outage(&self) -> bool {
        let mut state = self.state.lock();
        state.age();
        state.current.is_some()
    }

    /// Returns true for a failure that is part of the current outage: it may have started while the
    /// failure was being observed.
    pub(super) fn covers(&self, result: &TransferResult) -> bool {
        let TransferResult::Failed(failure) = result else { return false };
        let symptom = Symptom::of(failure.reason);
        self.state.lock().current.as_ref().is_some_and(|current| Some(current.symptom) == symptom)
    }

    /// During an outage: returns the failure for a job whose destination was tried within the last
    /// minute, so that the next attempt is for another one. The job is deferred after the pause.
    pub(super) fn defers(&self, destination: &DestinationIdentity) -> Option<(Failure, Duration)> {
        let mut state = self.state.lock();
        state.age();
        let current = state.current.as_mut()?;
        current.failed.get(destination).filter(|at| at.elapsed() < WINDOW)?;
        let pause = MAX_DEFERRAL_PAUSE.min(DEFERRAL_PAUSE * current.deferred);
        current.deferred = current.deferred.saturating_add(1);
        Some((failure(current.symptom, "it failed within the last minute, like all others"), pause))
    }
}

#[cfg(test)]
mod tests;
