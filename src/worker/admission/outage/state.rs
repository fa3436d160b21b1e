//! Evidence of an outage, and the outage itself.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::domain::destination::{Auth, Destination, DestinationIdentity};
use crate::domain::outcome::{Failure, Reason, Symptom, TransferResult};
use crate::worker::admission::bounds::make_room;

/// Failures within this time count together.
pub(super) const WINDOW: Duration = Duration::from_secs(60);
/// The same for STS: destinations with a session deliver for up to an hour, so failures come one by
/// one.
const STS_WINDOW: Duration = Duration::from_mins(10);
/// Customers that fail alike in an outage.
const MIN_OWNERS: usize = 3;
/// Time for which a suspicion that was not confirmed is not raised again.
pub(super) const REFUTED_FOR: Duration = Duration::from_secs(30);
/// Time without a failure after which an outage is over.
pub(super) const IDLE_END: Duration = Duration::from_mins(10);
/// Longest outage by denials; after it they are judged one by one.
const MAX_DENIAL_OUTAGE: Duration = Duration::from_mins(30);
/// Most destinations whose last result is remembered. Inline destinations are unlimited in number.
pub(super) const MAX_REMEMBERED: usize = 10_000;
/// Most destinations that count as evidence at a time, the latest.
pub(super) const MAX_NEWLY_FAILING: usize = 1000;
/// Most customers with a destination that worked lately, to be asked about an outage.
const MAX_WITNESSES: usize = 8;

/// Last results, the evidence among them, and the outage.
#[derive(Debug, Default)]
pub(super) struct OutageState {
    pub(super) last: HashMap<DestinationIdentity, LastResult>,
    /// Destinations that worked lately, the latest last; one for each customer.
    witnesses: VecDeque<Arc<Destination>>,
    /// True once any destination has worked.
    any_worked: bool,
    /// Destinations that began to fail, and whose failure counts as evidence.
    pub(super) newly_failing: Vec<NewFailure>,
    /// Suspicions that were not confirmed.
    pub(super) refuted: Vec<(Symptom, Instant)>,
    pub(super) current: Option<CurrentOutage>,
}

#[derive(Debug)]
pub(super) struct LastResult {
    worked: bool,
    at: Instant,
    owner: Arc<str>,
}

#[derive(Debug)]
pub(super) struct NewFailure {
    destination: Arc<Destination>,
    /// Customer: failures of all buckets of one customer are no outage.
    owner: Arc<str>,
    symptom: Symptom,
    at: Instant,
    /// Number of successful AssumeRole calls at that time.
    granted: u64,
}

#[derive(Debug)]
pub(super) struct CurrentOutage {
    pub(super) symptom: Symptom,
    since: Instant,
    granted: u64,
    last_seen: Instant,
    pub(super) failed: HashMap<DestinationIdentity, Instant>,
    /// Jobs deferred since the last attempt.
    pub(super) deferred: u32,
}

impl OutageState {
    pub(super) fn success(&mut self, destination: &Arc<Destination>, granted: u64) {
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

    pub(super) fn failure(&mut self, destination: &Arc<Destination>, symptom: Symptom, remembered: bool, granted: u64) {
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
    pub(super) fn is_suspicious(&self, symptom: Symptom) -> bool {
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

    pub(super) fn controls(&self, symptom: Symptom) -> Vec<Arc<Destination>> {
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
    pub(super) fn start(&mut self, symptom: Symptom) -> Duration {
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
    pub(super) fn covered(&mut self, destination: &Arc<Destination>, result: TransferResult) -> TransferResult {
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

    pub(super) fn age(&mut self) {
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

/// Returns the failure of a job that is part of an outage.
pub(super) fn failure(symptom: Symptom, what: &str) -> Failure {
    let message = format!("many destinations started to fail in the same way, which counts as an outage: {what}");
    Failure::new(Reason::Outage, message).hint(symptom.remedy())
}
