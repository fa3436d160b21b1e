//! A circuit for each destination: while the customer has something to mend, one job now and then asks, and the others wait.
//!
//! Closed, jobs run and evidence is gathered. What is certain (no such bucket, a disabled key) opens it at once; a refusal of STS
//! when it was given twice at least a minute apart, as a new role takes a while to be known everywhere; refused keys when three
//! different ones were refused without a success. Open, jobs are deferred uncharged until the next probe is due, and that one
//! job decides: delivered, the circuit closes; refused again, the next probe is later. Each worker has its own circuits.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use tokio::time::Instant;

use crate::domain::destination::DestinationId;
use crate::domain::outcome::{Class, Failure, Reason, RetryDelay, TransferResult};
use crate::metrics::Metrics;
use crate::worker::history;

/// Two refusals of STS count as two when they are this far apart.
const APART: Duration = Duration::from_secs(60);
/// So many different keys refused without a success are a refusal of the bucket.
const KEYS: usize = 3;
/// After a probe that showed nothing (S3 was away, the job was cut short).
const INCONCLUSIVE: Duration = Duration::from_secs(30);
/// Destinations with evidence or an open circuit. Inline ones come without end; beyond this, new ones have no circuit.
const TRACKED: usize = 10_000;
/// The clocks of two machines may differ by this.
const CLOCKS: SignedDuration = SignedDuration::from_secs(5);
/// Evidence that nothing was added to for so long makes room.
const STALE: Duration = Duration::from_hours(1);

/// The circuits of one worker.
#[derive(Debug)]
pub(in crate::worker) struct Circuits {
    known: Mutex<HashMap<DestinationId, Circuit>>,
    /// When each destination took something last.
    worked: Mutex<HashMap<DestinationId, Timestamp>>,
    /// When somebody said last that all is well with a destination, or S3 showed it. Only to be shown.
    mended: Mutex<HashMap<DestinationId, Timestamp>>,
    probes: AtomicU64,
    denied_for: Duration,
    metrics: Arc<Metrics>,
}

#[derive(Debug)]
struct Circuit {
    touched: Instant,
    blamed_at: Timestamp,
    denied: Option<Instant>,
    refused_keys: BTreeSet<String>,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    failure: Failure,
    since: Timestamp,
    opened: Instant,
    probes: u32,
    next_probe: Instant,
    /// The probe that runs.
    probing: Option<u64>,
}

/// What a job finds at its destination.
#[derive(Debug)]
pub(in crate::worker) enum Gate {
    /// All is well, as far as is known.
    Closed,
    /// The circuit is open, and this job is to find out whether it still must be.
    Probe(Probe),
    /// The circuit is open: what was wrong, and how long it is until the next probe.
    Open(Box<Failure>, Duration),
}

/// The right to be the one that asks. Given back on drop; without a verdict the next probe is soon.
#[derive(Debug)]
pub(in crate::worker) struct Probe {
    circuits: Arc<Circuits>,
    destination: DestinationId,
    number: u64,
}

impl Probe {
    /// Tells it from every other one.
    pub(in crate::worker) fn number(&self) -> u64 {
        self.number
    }
}

/// A circuit that is not closed, as `/status` shows it.
#[derive(Debug, Clone, Serialize)]
pub struct CircuitView {
    /// `open`, or `half_open` while a probe runs.
    pub state: &'static str,
    /// Since when it is open.
    pub since: Timestamp,
    /// When the next probe is due; now, if it waits for a job to come.
    pub next_probe_at: Option<Timestamp>,
    /// Probes that failed since.
    pub probes: u32,
    /// What is wrong.
    pub reason: &'static str,
    /// In plain words.
    pub message: String,
    /// What the customer can do; may be empty.
    pub hint: String,
}

impl Circuits {
    /// All closed. `denied_for` is how long a refusal of STS is remembered: a probe must come after it.
    pub(in crate::worker) fn new(denied_for: Duration, metrics: Arc<Metrics>) -> Arc<Self> {
        let (known, worked, mended) = (Mutex::default(), Mutex::default(), Mutex::default());
        Arc::new(Self { known, worked, mended, probes: AtomicU64::new(1), denied_for, metrics })
    }

    /// Asks for a job that is about to begin.
    pub(in crate::worker) fn ask(self: &Arc<Self>, destination: &DestinationId) -> Gate {
        let mut known = self.known();
        let Some(circuit) = known.get_mut(destination) else { return Gate::Closed };
        let Some(open) = &mut circuit.open else { return Gate::Closed };
        let left = open.next_probe.saturating_duration_since(Instant::now());
        if open.probing.is_some() || !left.is_zero() {
            // While a probe runs, its answer is the soonest there is to know.
            let left = if open.probing.is_some() { INCONCLUSIVE.max(left) } else { left };
            return Gate::Open(Box::new(open.failure.clone()), left);
        }
        let number = self.probes.fetch_add(1, Ordering::Relaxed);
        open.probing = Some(number);
        tracing::info!(%destination, reason = open.failure.reason.as_str(), "a job asks whether the destination is mended");
        Gate::Probe(Probe { circuits: self.clone(), destination: destination.clone(), number })
    }

    /// Notes how an attempt ended, for which key, and which probe it was. Answers how long it is until the next probe, where the
    /// circuit is open now.
    pub(in crate::worker) fn note(
        &self,
        destination: &DestinationId,
        (key, probe): (&str, Option<u64>),
        ended: &TransferResult,
        now: Timestamp,
    ) -> Option<Duration> {
        match ended {
            TransferResult::Delivered(_) | TransferResult::Skipped => {
                self.works(destination, now);
                None
            }
            // It is this worker that may assume no roles: nobody is asked, and no probe would find it mended.
            TransferResult::Failed(failure) if failure.reason == Reason::RoleAuthOff => None,
            TransferResult::Failed(failure) if failure.class() == Class::Destination => {
                self.blame(destination, (key, probe), failure, now)
            }
            TransferResult::Failed(_) | TransferResult::Expired | TransferResult::Cancelled(_) => None,
        }
    }

    /// The destination takes what is sent to it.
    pub(in crate::worker) fn works(&self, destination: &DestinationId, now: Timestamp) {
        remember(&self.worked, destination, now);
        remember(&self.mended, destination, now);
        self.close(destination, "it takes what is sent");
    }

    /// When it took something last, as far as that is known.
    pub(in crate::worker) fn worked_at(&self, destination: &DestinationId) -> Option<Timestamp> {
        self.worked.lock().unwrap_or_else(PoisonError::into_inner).get(destination).copied()
    }

    /// Closes a circuit and forgets the evidence: somebody says that all is well. Whether there was anything to forget.
    pub(in crate::worker) fn reset(&self, destination: &DestinationId) -> bool {
        self.close(destination, "it was reset")
    }

    /// As [`Circuits::reset`], said just now by whoever mended or tested it.
    pub(in crate::worker) fn mend(&self, destination: &DestinationId, now: Timestamp) -> bool {
        let known = self.reset(destination);
        remember(&self.mended, destination, now);
        known
    }

    /// When each destination was called mended last. What failed later is not meant.
    pub(in crate::worker) fn mended(&self) -> HashMap<DestinationId, Timestamp> {
        self.mended.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// As [`Circuits::reset`], said at `at` by somebody else, perhaps a while ago: it is not for what happened since. Whether there was
    /// anything to forget.
    pub(in crate::worker) fn reset_as_of(&self, destination: &DestinationId, at: Timestamp, now: Timestamp) -> bool {
        let latest = at.checked_add(CLOCKS).unwrap_or(at);
        let older = |circuit: &Circuit| circuit.open.as_ref().map_or(circuit.blamed_at, |open| open.since) <= latest;
        let reset = self.known().get(destination).is_some_and(older);
        let forgotten = reset && self.reset(destination);
        // Whatever the clock of whoever said it shows, it was for all that is known here.
        remember(&self.mended, destination, if reset { at.max(now) } else { at });
        forgotten
    }

    /// Closes what was opened within the last `window`: it was nobody's own fault.
    pub(in crate::worker) fn forgive(&self, window: Duration) {
        let mut known = self.known();
        known.retain(|destination, circuit| {
            let forgiven = circuit.open.as_ref().is_none_or(|open| open.opened.elapsed() <= window);
            if forgiven && circuit.open.is_some() {
                self.metrics.destinations().set_circuit_open(destination, false);
                tracing::info!(%destination, "its circuit is closed again: everything fails alike");
            }
            !forgiven
        });
    }

    /// All circuits that are not closed.
    pub(in crate::worker) fn view(&self, now: Timestamp) -> HashMap<DestinationId, CircuitView> {
        let known = self.known();
        known.iter().filter_map(|(id, circuit)| Some((id.clone(), circuit.open.as_ref()?.view(now)))).collect()
    }

    fn close(&self, destination: &DestinationId, why: &str) -> bool {
        let removed = self.known().remove(destination);
        let known = removed.is_some();
        if removed.is_some_and(|circuit| circuit.open.is_some()) {
            self.metrics.destinations().set_circuit_open(destination, false);
            tracing::info!(%destination, why, "the circuit of a destination is closed");
        }
        known
    }

    fn blame(
        &self,
        destination: &DestinationId,
        (key, probe): (&str, Option<u64>),
        failure: &Failure,
        now: Timestamp,
    ) -> Option<Duration> {
        let mut known = self.known();
        if !known.contains_key(destination) {
            self.make_room(&mut known);
            if known.len() >= TRACKED {
                return None;
            }
        }
        let circuit = known.entry(destination.clone()).or_insert_with(Circuit::new);
        (circuit.touched, circuit.blamed_at) = (Instant::now(), now);
        if circuit.open.is_none() && circuit.convicts(key, failure) {
            self.metrics.destinations().set_circuit_open(destination, true);
            tracing::warn!(
                %destination, reason = failure.reason.as_str(), cause = %failure, hint = failure.hint,
                "the circuit of a destination is open: its jobs wait, and now and then one asks"
            );
            circuit.open = Some(Open::new(failure, now));
        }
        let open = circuit.open.as_mut()?;
        open.refused(failure, probe, self.denied_for);
        Some(open.next_probe.saturating_duration_since(Instant::now()))
    }

    fn make_room(&self, known: &mut HashMap<DestinationId, Circuit>) {
        if known.len() < TRACKED {
            return;
        }
        known.retain(|destination, circuit| {
            let kept = circuit.touched.elapsed() < STALE;
            if !kept && circuit.open.is_some() {
                self.metrics.destinations().set_circuit_open(destination, false);
            }
            kept
        });
    }

    fn known(&self) -> MutexGuard<'_, HashMap<DestinationId, Circuit>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bounded: beyond, all are forgotten.
fn remember(times: &Mutex<HashMap<DestinationId, Timestamp>>, destination: &DestinationId, at: Timestamp) {
    let mut times = times.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = times.get_mut(destination) {
        *known = at.max(*known);
        return;
    }
    if times.len() >= TRACKED {
        times.clear();
    }
    times.insert(destination.clone(), at);
}

impl Circuit {
    fn new() -> Self {
        Self {
            touched: Instant::now(),
            blamed_at: Timestamp::MIN,
            denied: None,
            refused_keys: BTreeSet::new(),
            open: None,
        }
    }

    /// Adds a failure to the evidence; true when it suffices.
    fn convicts(&mut self, key: &str, failure: &Failure) -> bool {
        match failure.reason {
            // What is only remembered was not asked again.
            Reason::AssumeRoleDenied if failure.remembered => false,
            Reason::AssumeRoleDenied => {
                let first = *self.denied.get_or_insert_with(Instant::now);
                first.elapsed() >= APART
            }
            Reason::AccessDenied => {
                self.refused_keys.insert(key.to_owned());
                self.refused_keys.len() >= KEYS
            }
            _ => true,
        }
    }
}

impl Open {
    fn new(failure: &Failure, now: Timestamp) -> Self {
        let opened = Instant::now();
        Self { failure: failure.clone(), since: now, opened, probes: 0, next_probe: opened, probing: None }
    }

    /// The destination has refused once more. Only a probe's refusal, or the first, moves the next probe: jobs that were under way
    /// when the circuit opened say nothing new.
    fn refused(&mut self, failure: &Failure, probe: Option<u64>, denied_for: Duration) {
        let first = self.next_probe == self.opened;
        if !first && (probe.is_none() || probe != self.probing) {
            return;
        }
        if !first {
            self.probes = self.probes.saturating_add(1);
        }
        self.probing = None;
        self.failure = failure.clone();
        let step = RetryDelay::before_probe(self.probes).duration();
        let memory =
            if failure.reason == Reason::AssumeRoleDenied { denied_for + Duration::from_secs(1) } else { step };
        self.next_probe = Instant::now() + step.max(memory);
    }

    fn view(&self, now: Timestamp) -> CircuitView {
        let left = self.next_probe.saturating_duration_since(Instant::now());
        CircuitView {
            state: if self.probing.is_some() { "half_open" } else { "open" },
            since: self.since,
            next_probe_at: history::after(now, left),
            probes: self.probes,
            reason: self.failure.reason.as_str(),
            message: self.failure.message.clone(),
            hint: self.failure.hint.clone(),
        }
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        let mut known = self.circuits.known();
        let open = known.get_mut(&self.destination).and_then(|circuit| circuit.open.as_mut());
        if let Some(open) = open.filter(|open| open.probing == Some(self.number)) {
            open.probing = None;
            open.next_probe = Instant::now() + INCONCLUSIVE;
        }
    }
}

#[cfg(test)]
mod tests;
