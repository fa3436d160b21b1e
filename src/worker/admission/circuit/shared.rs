//! Circuit breakers of a fleet. Each worker reports on the control stream when it is denied, when a
//! breaker opens or closes, and when it is about to probe; all workers apply these reports in the
//! stream's order, their own included.
//!
//! A probe is claimed: the first claim in the stream has it, and the others wait for its result. A
//! worker that is gone leaves its claim to expire. Where no claim is answered (the stream can't be
//! written or read), a worker probes by itself.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use super::breaker::{CircuitBreaker, MIN_DENIAL_SPACING, OpenCircuit, RunningProbe, probe_interval};
use super::tracked::EVIDENCE_TTL;
use super::{CircuitBreakers, CircuitProbe, CircuitState};
use crate::domain::control::{CircuitChange, Control, ControlCommand};
use crate::domain::destination::DestinationIdentity;
use crate::domain::outcome::{Failure, Reason};
use crate::queue::Queue;

/// Time in which a claim comes back on the stream.
const CLAIM_TIMEOUT: Duration = Duration::from_secs(5);
/// Age of a report that says nothing any more: no job is deferred that long.
const REPORT_TTL: Duration = Duration::from_hours(24);
/// Time after which a probe of another worker is no longer awaited.
const CLAIM_TTL: Duration = Duration::from_mins(1);

/// Claims of this worker that are not answered yet. The answer is the number of the probe; `None`
/// when another worker has it.
pub(super) type ProbeClaims = Mutex<HashMap<Uuid, oneshot::Sender<Option<u64>>>>;

/// Report of a worker, as it is read from the stream.
#[derive(Debug)]
pub(in crate::worker) struct SharedChange {
    /// Id of the control message.
    pub(in crate::worker) id: Uuid,
    pub(in crate::worker) destination: DestinationIdentity,
    pub(in crate::worker) change: CircuitChange,
    /// Time of the report, by the clock of its worker.
    pub(in crate::worker) at: Timestamp,
}

impl CircuitBreakers {
    /// Claims the probe that is due. Returns [`CircuitState::HalfOpen`] to the worker that has it.
    pub(in crate::worker::admission) async fn claim(
        self: &Arc<Self>,
        destination: &DestinationIdentity,
        queue: &dyn Queue,
        now: Timestamp,
    ) -> CircuitState {
        let command = ControlCommand::Circuit(destination.clone(), CircuitChange::Probing);
        let control = Control::new(command, now);
        let (claim, answer) = oneshot::channel();
        self.claims.lock().insert(control.id, claim);
        let claimed = timeout(CLAIM_TIMEOUT, async {
            queue.publish_control(control.render().into()).await.ok()?;
            answer.await.ok()
        });
        let answered = claimed.await.ok().flatten();
        self.claims.lock().remove(&control.id);
        match answered {
            Some(Some(number)) => CircuitState::HalfOpen(CircuitProbe {
                breakers: self.clone(),
                destination: destination.clone(),
                number,
            }),
            // Another worker has it, or nobody answers.
            Some(None) | None => self.state(destination),
        }
    }

    /// Applies the report of a worker, possibly of this one.
    pub(in crate::worker::admission) fn apply(&self, shared: SharedChange, now: Timestamp) {
        let SharedChange { id, destination, change, at } = shared;
        let age = Duration::try_from(now.duration_since(at)).unwrap_or_default();
        if age >= REPORT_TTL {
            return;
        }
        match change {
            CircuitChange::Denied { failure, key } => self.denied_elsewhere(&destination, &failure, &key, at, age),
            CircuitChange::Opened { failure, probes, next_probe } => {
                let mut breakers = self.breakers.lock();
                let Some(breaker) = self.tracked(&mut breakers, &destination) else { return };
                let before = breaker.open.take();
                if before.as_ref().is_none_or(|open| open.suspected) {
                    self.opened(&destination, &failure, age);
                }
                let since = before.as_ref().filter(|open| !open.suspected).map_or(at, |open| open.since);
                let next_probe = Instant::now() + next_probe.saturating_sub(age);
                breaker.failed_at = at;
                breaker.open = Some(OpenCircuit { probes, next_probe, ..OpenCircuit::new(&failure, since) });
            }
            CircuitChange::Probing => self.probed_elsewhere(&destination, id, age),
            CircuitChange::Closed => {
                self.close(&destination, "the destination accepted data of another worker");
            }
        }
    }

    fn denied_elsewhere(
        &self,
        destination: &DestinationIdentity,
        failure: &Failure,
        key: &str,
        at: Timestamp,
        age: Duration,
    ) {
        let mut breakers = self.breakers.lock();
        if age >= EVIDENCE_TTL {
            return;
        }
        let Some(breaker) = self.tracked(&mut breakers, destination) else { return };
        if breaker.open.is_some() {
            return;
        }
        breaker.failed_at = at;
        // Reported before a breaker opens: denials of single keys, and of STS.
        let suspected = failure.reason != Reason::AccessDenied;
        if !suspected && !breaker.trips(key, failure) {
            return;
        }
        let spacing = if suspected { MIN_DENIAL_SPACING } else { Duration::ZERO };
        let wait = probe_interval(0, failure, self.denied_for).max(spacing).saturating_sub(age);
        let next_probe = Instant::now() + wait;
        if suspected {
            breaker.first_denial = breaker.first_denial.or_else(|| Instant::now().checked_sub(age));
        } else {
            self.opened(destination, failure, age);
        }
        breaker.open = Some(OpenCircuit { next_probe, suspected, ..OpenCircuit::new(failure, at) });
    }

    /// Gives the probe that is due to the worker of this claim.
    fn probed_elsewhere(&self, destination: &DestinationIdentity, id: Uuid, age: Duration) {
        let mine = self.claims.lock().remove(&id);
        let mut breakers = self.breakers.lock();
        let open = breakers.get_mut(destination).and_then(|breaker: &mut CircuitBreaker| breaker.open.as_mut());
        let free = open.filter(|open| !open.is_probed());
        let number = free.filter(|_| age < CLAIM_TTL).map(|open| {
            let until = mine.is_none().then(|| Instant::now() + CLAIM_TTL.saturating_sub(age));
            let number = self.next_number();
            open.probe = Some(RunningProbe { number, until });
            number
        });
        drop(breakers);
        if let Some(mine) = mine {
            if number.is_some() {
                tracing::info!(
                    event = "circuit_half_open",
                    destination = %destination.id(),
                    "circuit breaker half-open"
                );
            }
            let _ = mine.send(number);
        }
    }
}

#[cfg(test)]
mod tests;
