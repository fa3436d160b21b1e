//! Outage detector: when many destinations begin to fail alike, the cause is our identity, our
//! network or S3 as a whole, and not each customer. Then no circuit breaker opens, no attempt is
//! charged, and the worker takes one job at a time until one succeeds.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::domain::destination::{Auth, Destination, DestinationId};
use crate::domain::outcome::{Failure, Reason, TransferResult};

/// Failures within this time count together.
const WINDOW: Duration = Duration::from_secs(60);
/// The same for STS: destinations with a session deliver for up to an hour, so failures come one by
/// one.
const STS_WINDOW: Duration = Duration::from_mins(10);
/// Customers that worked before and fail shared in an outage.
const MIN_WORKED_OWNERS: usize = 3;
/// The same when nothing is known of them: after a start, a few customers may each be broken on
/// their own.
const MIN_UNKNOWN_OWNERS: usize = 5;
/// Time without a failure after which an outage is over.
const IDLE_END: Duration = Duration::from_mins(10);
/// Longest outage by denials; after it they are judged one by one.
const MAX_DENIAL_OUTAGE: Duration = Duration::from_mins(30);
/// Each job deferred in a row lengthens the pause before the next one, up to the longest. With few
/// destinations, jobs would otherwise circulate between lane and wait queue as fast as the broker
/// can.
const DEFERRAL_PAUSE: Duration = Duration::from_millis(10);
const MAX_DEFERRAL_PAUSE: Duration = Duration::from_millis(250);
/// Most destinations whose last result is remembered. Inline destinations are unlimited in number;
/// beyond this, all are dropped.
const MAX_REMEMBERED: usize = 10_000;

/// Results of all destinations of this worker.
#[derive(Debug, Default)]
pub(super) struct OutageDetector {
    state: Mutex<OutageState>,
}

#[derive(Debug, Default)]
struct OutageState {
    /// True where the last result was a success.
    last: HashMap<DestinationId, bool>,
    /// Destinations that began to fail since the last success of any.
    newly_failing: Vec<NewFailure>,
    current: Option<CurrentOutage>,
}

#[derive(Debug)]
struct NewFailure {
    destination: DestinationId,
    /// Customer: failures of all buckets of one customer are no outage.
    owner: String,
    symptom: Symptom,
    at: Instant,
    worked: bool,
    /// Number of successful AssumeRole calls at that time.
    granted: u64,
}

#[derive(Debug)]
struct CurrentOutage {
    symptom: Symptom,
    since: Instant,
    granted: u64,
    last_seen: Instant,
    failed: HashMap<DestinationId, Instant>,
    /// Jobs deferred since the last attempt.
    deferred: u32,
}

/// Failure that has one cause when many destinations have it at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Symptom {
    /// S3 is unreachable or answers with errors only.
    S3,
    /// STS is unreachable or answers with errors only.
    Sts,
    /// The same denial for every destination.
    Denial(Reason),
}

impl Symptom {
    fn of(reason: Reason) -> Option<Self> {
        match reason {
            Reason::S3Unavailable | Reason::Connection | Reason::Timeout => Some(Self::S3),
            Reason::StsUnavailable => Some(Self::Sts),
            Reason::AssumeRoleDenied | Reason::AccessDenied | Reason::BucketNotFound | Reason::AccessKeyInvalid => {
                Some(Self::Denial(reason))
            }
            _ => None,
        }
    }

    /// Returns true when sessions from before hide it.
    fn is_of_sts(self) -> bool {
        matches!(self, Self::Sts | Self::Denial(Reason::AssumeRoleDenied))
    }

    fn window(self) -> Duration {
        if self.is_of_sts() { STS_WINDOW } else { WINDOW }
    }

    /// Remedy for the operator.
    fn remedy(self) -> &'static str {
        match self {
            Self::S3 => "check this worker's network, aws.s3_endpoint_url and the state of S3",
            Self::Sts => "check this worker's network, aws.sts_endpoint_url and the state of STS",
            Self::Denial(Reason::AssumeRoleDenied) => {
                "check that this worker's own role still allows sts:AssumeRole and is the one that customers trust"
            }
            Self::Denial(_) => "check aws.s3_endpoint_url, and whether this worker talks to the right S3",
        }
    }
}

/// Result of an attempt, seen beside those of all destinations.
#[derive(Debug)]
pub(super) enum ObservedResult {
    /// The result, or the outage that it is part of.
    Known(TransferResult),
    /// The outage that starts with this result. Breakers that opened within this time opened
    /// because of it.
    OutageStarted(TransferResult, Duration),
}

impl OutageDetector {
    /// Observes the result of an attempt. A failure that many destinations share becomes
    /// [`Reason::Outage`]. `granted` is the number of successful AssumeRole calls so far.
    pub(super) fn observe(&self, destination: &Destination, result: TransferResult, granted: u64) -> ObservedResult {
        match &result {
            TransferResult::Delivered(_) | TransferResult::Skipped => {
                self.succeeded(destination, granted);
                ObservedResult::Known(result)
            }
            TransferResult::Failed(failure) => match Symptom::of(failure.reason) {
                Some(symptom) => self
                    .state()
                    .failure(destination, symptom, failure, granted)
                    .unwrap_or(ObservedResult::Known(result)),
                None => ObservedResult::Known(result),
            },
            TransferResult::Expired | TransferResult::Cancelled(_) => ObservedResult::Known(result),
        }
    }

    /// Observes that a destination accepted data.
    pub(super) fn succeeded(&self, destination: &Destination, granted: u64) {
        self.state().success(&destination.id, granted);
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
    pub(super) fn defers(&self, destination: &DestinationId) -> Option<(Failure, Duration)> {
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
    fn success(&mut self, destination: &DestinationId, granted: u64) {
        // A session from before proves nothing about STS; a role that was assumed does.
        let over = |symptom: Symptom, before: u64| !symptom.is_of_sts() || granted > before;
        if self.current.take_if(|current| over(current.symptom, current.granted)).is_some() {
            tracing::info!(%destination, "the outage is over: a job was delivered");
        }
        // Failures beside a success are the destinations' own; they are observed from the start.
        self.newly_failing.retain(|new| new.destination != *destination && !over(new.symptom, new.granted));
        self.remember(destination, true);
    }

    fn failure(&mut self, to: &Destination, symptom: Symptom, cause: &Failure, granted: u64) -> Option<ObservedResult> {
        self.age();
        let destination = &to.id;
        self.newly_failing.retain(|new| new.at.elapsed() <= new.symptom.window());
        self.newly_failing.retain(|new| !new.symptom.is_of_sts() || new.granted == granted);
        let known = self.last.get(destination).copied();
        if !cause.remembered && known != Some(false) {
            let worked = known == Some(true);
            self.newly_failing.retain(|new| new.destination != *destination);
            let (destination, owner) = (destination.clone(), owner(to));
            self.newly_failing.push(NewFailure { destination, owner, symptom, at: Instant::now(), worked, granted });
            self.remember(&to.id, false);
        }
        let started = self.current.is_none() && self.is_shared(symptom);
        if started {
            let shared = self.newly_failing.iter().filter(|new| new.symptom == symptom);
            let failed: HashMap<_, _> = shared.map(|new| (new.destination.clone(), new.at)).collect();
            let since = failed.values().min().copied().unwrap_or_else(Instant::now);
            self.newly_failing.retain(|new| new.symptom != symptom);
            self.current =
                Some(CurrentOutage { symptom, since, granted, last_seen: Instant::now(), failed, deferred: 0 });
        }
        let current = self.current.as_mut().filter(|current| current.symptom == symptom)?;
        current.last_seen = Instant::now();
        current.deferred = 0;
        current.failed.insert(destination.clone(), Instant::now());
        let result = TransferResult::Failed(failure(symptom, &format!("{}: {cause}", cause.reason.as_str())));
        Some(if started {
            ObservedResult::OutageStarted(result, current.since.elapsed())
        } else {
            ObservedResult::Known(result)
        })
    }

    fn is_shared(&self, symptom: Symptom) -> bool {
        let shared = || self.newly_failing.iter().filter(|new| new.symptom == symptom);
        let owners =
            |new: &mut dyn Iterator<Item = &NewFailure>| new.map(|one| &one.owner).collect::<HashSet<_>>().len();
        owners(&mut shared()) >= MIN_UNKNOWN_OWNERS
            || owners(&mut shared().filter(|new| new.worked)) >= MIN_WORKED_OWNERS
    }

    fn remember(&mut self, destination: &DestinationId, good: bool) {
        if self.last.len() >= MAX_REMEMBERED && !self.last.contains_key(destination) {
            self.last.clear();
        }
        self.last.insert(destination.clone(), good);
    }

    fn age(&mut self) {
        let over = |current: &mut CurrentOutage| {
            let lasts = matches!(current.symptom, Symptom::Denial(_)) && current.since.elapsed() > MAX_DENIAL_OUTAGE;
            lasts || current.last_seen.elapsed() > IDLE_END
        };
        let _over = self.current.take_if(over);
    }
}

/// Customer of a destination: the account of its role, or its access key.
fn owner(destination: &Destination) -> String {
    match &destination.auth {
        Auth::IamRole { role_arn, .. } => role_arn.account().to_string(),
        Auth::AccessKey { access_key_id, .. } => access_key_id.clone(),
    }
}

fn failure(symptom: Symptom, what: &str) -> Failure {
    let message =
        format!("many destinations began to fail alike, which counts as an outage and not as their fault: {what}");
    Failure::new(Reason::Outage, message).hint(symptom.remedy())
}

#[cfg(test)]
mod tests;
