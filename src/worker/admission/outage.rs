//! Outage detector: when many destinations begin to fail alike, the cause may be our identity, our
//! network or S3 as a whole, and not each customer.
//!
//! Evidence are only destinations that worked before: a role that somebody made up costs its own
//! job alone. They are suspicious when several customers fail alike, and more than half of those
//! tried meanwhile do. Where none ever worked, after a start, all that fail alike are. A suspicion
//! counts once calls of our own confirm it: see [`crate::transfer::Transport::confirm_outage`].
//! Then no circuit breaker opens, no attempt is charged, and the worker takes one job at a time
//! until one succeeds.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::bounds::make_room;
use crate::domain::destination::{Auth, Destination, DestinationIdentity};
use crate::domain::outcome::{Failure, Reason, Symptom, TransferResult};

/// Failures within this time count together.
const WINDOW: Duration = Duration::from_secs(60);
/// The same for STS: destinations with a session deliver for up to an hour, so failures come one by
/// one.
const STS_WINDOW: Duration = Duration::from_mins(10);
/// Customers that fail alike in an outage.
const MIN_OWNERS: usize = 3;
/// Time for which a suspicion that was not confirmed is not raised again.
const REFUTED_FOR: Duration = Duration::from_secs(30);
/// Time without a failure after which an outage is over.
const IDLE_END: Duration = Duration::from_mins(10);
/// Longest outage by denials; after it they are judged one by one.
const MAX_DENIAL_OUTAGE: Duration = Duration::from_mins(30);
/// Each job deferred in a row lengthens the pause before the next one, up to the longest. With few
/// destinations, jobs would otherwise circulate between lane and wait queue as fast as the broker
/// can.
const DEFERRAL_PAUSE: Duration = Duration::from_millis(10);
const MAX_DEFERRAL_PAUSE: Duration = Duration::from_millis(250);
/// Most destinations whose last result is remembered. Inline destinations are unlimited in number.
const MAX_REMEMBERED: usize = 10_000;
/// Most destinations that count as evidence at a time, the latest.
const MAX_NEWLY_FAILING: usize = 1000;
/// Most customers with a destination that worked lately, to be asked about an outage.
const MAX_WITNESSES: usize = 8;

/// Results of all destinations of this worker.
#[derive(Debug, Default)]
pub(super) struct OutageDetector {
    state: Mutex<OutageState>,
}

#[derive(Debug, Default)]
struct OutageState {
    last: HashMap<DestinationIdentity, LastResult>,
    /// Destinations that worked lately, the latest last; one for each customer.
    witnesses: VecDeque<Arc<Destination>>,
    /// True once any destination has worked.
    any_worked: bool,
    /// Destinations that began to fail, and whose failure counts as evidence.
    newly_failing: Vec<NewFailure>,
    /// Suspicions that were not confirmed.
    refuted: Vec<(Symptom, Instant)>,
    current: Option<CurrentOutage>,
}

#[derive(Debug)]
struct LastResult {
    worked: bool,
    at: Instant,
    owner: Arc<str>,
}

#[derive(Debug)]
struct NewFailure {
    destination: Arc<Destination>,
    /// Customer: failures of all buckets of one customer are no outage.
    owner: Arc<str>,
    symptom: Symptom,
    at: Instant,
    /// Number of successful AssumeRole calls at that time.
    granted: u64,
}

#[derive(Debug)]
struct CurrentOutage {
    symptom: Symptom,
    since: Instant,
    granted: u64,
    last_seen: Instant,
    failed: HashMap<DestinationIdentity, Instant>,
    /// Jobs deferred since the last attempt.
    deferred: u32,
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
                    let mut state = self.state();
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
        let state = self.state();
        (state.current.is_none() && state.is_suspicious(symptom)).then(|| state.controls(symptom))
    }

    /// Concludes a suspicion. Returns the age of the evidence if the outage starts: breakers that
    /// opened within this time opened because of it.
    pub(super) fn conclude(&self, symptom: Symptom, confirmed: bool) -> Option<Duration> {
        let mut state = self.state();
        if confirmed && state.current.is_none() && state.is_suspicious(symptom) {
            return Some(state.start(symptom));
        }
        state.refuted.retain(|(other, _)| *other != symptom);
        state.refuted.push((symptom, Instant::now()));
        None
    }

    /// Returns the outage that a result is part of, else the result.
    pub(super) fn covered(&self, destination: &Arc<Destination>, result: TransferResult) -> TransferResult {
        self.state().covered(destination, result)
    }

    /// Observes that a destination accepted data.
    pub(super) fn succeeded(&self, destination: &Arc<Destination>, granted: u64) {
        self.state().success(destination, granted);
    }

    /// Returns true during an outage.
    pub(super) fn is_outage(&self) -> bool {
        let mut state = self.state();
        state.age();
        state.current.is_some()
    }

    /// Returns true for a failure that is part of the current outage: it may have started while the
    /// failure was being observed.
    pub(super) fn covers(&self, result: &TransferResult) -> bool {
        let TransferResult::Failed(failure) = result else { return false };
        let symptom = Symptom::of(failure.reason);
        self.state().current.as_ref().is_some_and(|current| Some(current.symptom) == symptom)
    }

    /// During an outage: returns the failure for a job whose destination was tried within the last
    /// minute, so that the next attempt is for another one. The job is deferred after the pause.
    pub(super) fn defers(&self, destination: &DestinationIdentity) -> Option<(Failure, Duration)> {
        let mut state = self.state();
        state.age();
        let current = state.current.as_mut()?;
        current.failed.get(destination).filter(|at| at.elapsed() < WINDOW)?;
        let pause = MAX_DEFERRAL_PAUSE.min(DEFERRAL_PAUSE * current.deferred);
        current.deferred = current.deferred.saturating_add(1);
        Some((failure(current.symptom, "it failed within the last minute, like all others"), pause))
    }

    fn state(&self) -> MutexGuard<'_, OutageState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OutageState {
    fn success(&mut self, destination: &Arc<Destination>, granted: u64) {
        // A session from before proves nothing about STS; a role that was assumed does.
        let over = |symptom: Symptom, before: u64| !symptom.is_of_sts() || granted > before;
        if self.current.take_if(|current| over(current.symptom, current.granted)).is_some() {
            tracing::info!(event = "outage_ended", destination = %destination.id, "the outage is over");
        }
        if !self.any_worked {
            // What failed before any destination worked is no evidence any more.
            self.any_worked = true;
            self.newly_failing.clear();
        }
        self.newly_failing.retain(|new| {
            new.destination.identity != destination.identity
                && !(new.symptom.is_of_sts() && over(new.symptom, new.granted))
        });
        self.remember(destination, true);
        if self.witnesses.back().is_none_or(|last| last.identity != destination.identity) {
            let owner = owner(destination);
            self.witnesses.retain(|witness| self::owner(witness) != owner);
            self.witnesses.push_back(destination.clone());
            if self.witnesses.len() > MAX_WITNESSES {
                self.witnesses.pop_front();
            }
        }
    }

    fn failure(&mut self, destination: &Arc<Destination>, symptom: Symptom, remembered: bool, granted: u64) {
        self.age();
        self.newly_failing.retain(|new| new.at.elapsed() <= window(new.symptom));
        self.newly_failing.retain(|new| !new.symptom.is_of_sts() || new.granted == granted);
        let known = self.last.get(&destination.identity).map(|last| last.worked);
        if remembered || (self.any_worked && known == Some(false)) {
            return;
        }
        self.remember(destination, false);
        if !self.any_worked || known == Some(true) {
            self.newly_failing.retain(|new| new.destination.identity != destination.identity);
            let (destination, owner) = (destination.clone(), owner(destination).into());
            if self.newly_failing.len() >= MAX_NEWLY_FAILING {
                self.newly_failing.remove(0);
            }
            self.newly_failing.push(NewFailure { destination, owner, symptom, at: Instant::now(), granted });
        }
    }

    /// Returns true if several customers fail alike, more than half of those that were tried, and
    /// no call of our own has refuted it lately.
    fn is_suspicious(&self, symptom: Symptom) -> bool {
        if self.refuted.iter().any(|(other, at)| *other == symptom && at.elapsed() < REFUTED_FOR) {
            return false;
        }
        // Cheap, for the many failures that are no evidence.
        if self.newly_failing.iter().filter(|new| new.symptom == symptom).count() < MIN_OWNERS {
            return false;
        }
        let failing = self.failing(symptom);
        if failing.len() < MIN_OWNERS {
            return false;
        }
        let tried = self.newly_failing.iter().map(|new| &new.owner).chain(self.well(symptom));
        failing.len() * 2 > tried.collect::<HashSet<_>>().len()
    }

    /// Customers that fail alike and have no destination that works.
    fn failing(&self, symptom: Symptom) -> HashSet<&Arc<str>> {
        let well: HashSet<_> = self.well(symptom).collect();
        let alike = self.newly_failing.iter().filter(|new| new.symptom == symptom);
        alike.map(|new| &new.owner).filter(|owner| !well.contains(owner)).collect()
    }

    /// Customers with a destination that worked within the window. Deliveries with a session from
    /// before prove nothing about STS, and roles that it granted have ended all evidence.
    fn well(&self, symptom: Symptom) -> impl Iterator<Item = &Arc<str>> {
        let lately = move |last: &&LastResult| last.worked && last.at.elapsed() <= window(symptom);
        self.last.values().filter(move |_| !symptom.is_of_sts()).filter(lately).map(|last| &last.owner)
    }

    fn controls(&self, symptom: Symptom) -> Vec<Arc<Destination>> {
        let suited =
            |destination: &&Arc<Destination>| !symptom.is_of_sts() || matches!(destination.auth, Auth::IamRole { .. });
        let failing = self.failing(symptom);
        let beside = |witness: &&Arc<Destination>| failing.iter().all(|failing| ***failing != *owner(witness));
        // What does not answer is asked itself; who is denied may be denied rightly, so others are asked first.
        let witnesses: Vec<_> = match symptom {
            Symptom::Denial(_) => self.witnesses.iter().rev().filter(suited).filter(beside).cloned().collect(),
            Symptom::S3 | Symptom::Sts => Vec::new(),
        };
        if !witnesses.is_empty() || !self.any_worked {
            return witnesses;
        }
        let mut seen = HashSet::new();
        let alike = self.newly_failing.iter().filter(|new| new.symptom == symptom && seen.insert(&new.owner));
        alike.map(|new| &new.destination).filter(suited).cloned().collect()
    }

    /// Starts the outage. Returns the age of its evidence.
    fn start(&mut self, symptom: Symptom) -> Duration {
        let shared = self.newly_failing.extract_if(.., |new| new.symptom == symptom);
        let (mut failed, mut granted) = (HashMap::new(), 0);
        for new in shared {
            granted = granted.max(new.granted);
            failed.insert(new.destination.identity.clone(), new.at);
        }
        let since = failed.values().min().copied().unwrap_or_else(Instant::now);
        self.current = Some(CurrentOutage { symptom, since, granted, last_seen: Instant::now(), failed, deferred: 0 });
        since.elapsed()
    }

    /// Returns the outage that a result is part of, else the result.
    fn covered(&mut self, destination: &Arc<Destination>, result: TransferResult) -> TransferResult {
        let TransferResult::Failed(cause) = &result else { return result };
        let symptom = Symptom::of(cause.reason);
        let Some(current) = self.current.as_mut().filter(|current| Some(current.symptom) == symptom) else {
            return result;
        };
        current.last_seen = Instant::now();
        current.deferred = 0;
        if current.failed.len() >= MAX_REMEMBERED {
            current.failed.retain(|_, at| at.elapsed() < WINDOW);
            make_room(&mut current.failed, MAX_REMEMBERED);
        }
        current.failed.insert(destination.identity.clone(), Instant::now());
        TransferResult::Failed(failure(current.symptom, &format!("{}: {cause}", cause.reason.as_str())))
    }

    fn remember(&mut self, destination: &Destination, worked: bool) {
        let at = Instant::now();
        if let Some(last) = self.last.get_mut(&destination.identity) {
            (last.worked, last.at) = (worked, at);
            return;
        }
        make_room(&mut self.last, MAX_REMEMBERED);
        let owner = owner(destination).into();
        self.last.insert(destination.identity.clone(), LastResult { worked, at, owner });
    }

    fn age(&mut self) {
        let over = |current: &mut CurrentOutage| {
            let lasts = matches!(current.symptom, Symptom::Denial(_)) && current.since.elapsed() > MAX_DENIAL_OUTAGE;
            lasts || current.last_seen.elapsed() > IDLE_END
        };
        let _over = self.current.take_if(over);
    }
}

/// Time within which failures of a symptom count together.
fn window(symptom: Symptom) -> Duration {
    if symptom.is_of_sts() { STS_WINDOW } else { WINDOW }
}

/// Customer of a destination: the account of its role, or its access key.
fn owner(destination: &Destination) -> &str {
    match &destination.auth {
        Auth::IamRole { role_arn, .. } => role_arn.account().as_str(),
        Auth::AccessKey { access_key_id, .. } => access_key_id,
    }
}

fn failure(symptom: Symptom, what: &str) -> Failure {
    let message = format!("many destinations started to fail in the same way, which counts as an outage: {what}");
    Failure::new(Reason::Outage, message).hint(symptom.remedy())
}

#[cfg(test)]
mod tests;
