//! The correlation guard: when many destinations begin to fail alike, it is our identity, our network or S3 as a whole, and no
//! customer is to blame. Then no circuit opens, no attempt is charged, and the worker takes one job at a time until one succeeds.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::domain::destination::{Auth, Destination, DestinationId};
use crate::domain::outcome::{Failure, Reason, TransferResult};

/// Failures that are this close together are seen together.
const WINDOW: Duration = Duration::from_secs(60);
/// Refusals of STS: whoever has a session delivers for up to an hour, so they come one by one.
const WINDOW_OF_STS: Duration = Duration::from_mins(10);
/// So many customers for whom it worked before.
const WORKED: usize = 3;
/// So many, when it is not known how they did before: after a start, a few customers may be broken each on their own.
const UNKNOWN: usize = 5;
/// An outage that nobody met for so long is over.
const OVER: Duration = Duration::from_mins(10);
/// Refusals that last longer are judged one by one after all.
const LONGEST: Duration = Duration::from_mins(30);
/// Each job that is sent away in a row makes the next one wait so much longer, up to the longest: with few destinations they would else
/// go round between the queue and the ladder as fast as the broker can.
const PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);
/// Destinations whose last answer is remembered. Inline ones come without end; beyond this, all are forgotten.
const REMEMBERED: usize = 10_000;

/// What this worker knows about everybody at once.
#[derive(Debug, Default)]
pub(in crate::worker) struct Outage {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Whether the last answer was good.
    last: HashMap<DestinationId, bool>,
    /// Those that began to fail since the last good answer of anybody.
    turned: Vec<Turned>,
    declared: Option<Declared>,
}

#[derive(Debug)]
struct Turned {
    destination: DestinationId,
    /// Whose it is: what one customer does to all his buckets is no outage.
    owner: String,
    kind: Kind,
    at: Instant,
    worked: bool,
    /// How often roles had been assumed until then.
    granted: u64,
}

#[derive(Debug)]
struct Declared {
    kind: Kind,
    since: Instant,
    granted: u64,
    met: Instant,
    failed: HashMap<DestinationId, Instant>,
    /// Jobs that were sent away since one was tried.
    spared: u32,
}

/// Failures that have one cause, if many have them at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// S3 can't be reached, or answers nothing but errors.
    S3,
    /// So it is with STS.
    Sts,
    /// A refusal: the same for everybody.
    Refusal(Reason),
}

impl Kind {
    fn of(reason: Reason) -> Option<Self> {
        match reason {
            Reason::S3Unavailable | Reason::Connection | Reason::Timeout => Some(Self::S3),
            Reason::StsUnavailable => Some(Self::Sts),
            Reason::AssumeRoleDenied | Reason::AccessDenied | Reason::BucketNotFound | Reason::AccessKeyInvalid => {
                Some(Self::Refusal(reason))
            }
            _ => None,
        }
    }

    /// Whether sessions from before hide it.
    fn is_of_sts(self) -> bool {
        matches!(self, Self::Sts | Self::Refusal(Reason::AssumeRoleDenied))
    }

    fn window(self) -> Duration {
        if self.is_of_sts() { WINDOW_OF_STS } else { WINDOW }
    }

    /// What an operator looks at first.
    fn remedy(self) -> &'static str {
        match self {
            Self::S3 => "check this worker's network, aws.s3_endpoint_url and the state of S3",
            Self::Sts => "check this worker's network, aws.sts_endpoint_url and the state of STS",
            Self::Refusal(Reason::AssumeRoleDenied) => {
                "check that this worker's own role still allows sts:AssumeRole and is the one that customers trust"
            }
            Self::Refusal(_) => "check aws.s3_endpoint_url, and whether this worker talks to the right S3",
        }
    }
}

/// What an attempt's end means beside the others'.
#[derive(Debug)]
pub(in crate::worker) enum Seen {
    /// What it says.
    AsIs(TransferResult),
    /// Everything fails alike, as is seen now for the first time: what happened within this time was nobody's own fault.
    Begun(TransferResult, Duration),
}

impl Outage {
    /// Judges the end of an attempt by those of all destinations. A failure that all have becomes [`Reason::Outage`]. `granted` is how
    /// often roles were assumed so far.
    pub(in crate::worker) fn see(&self, destination: &Destination, ended: TransferResult, granted: u64) -> Seen {
        match &ended {
            TransferResult::Delivered(_) | TransferResult::Skipped => {
                self.works(destination, granted);
                Seen::AsIs(ended)
            }
            TransferResult::Failed(failure) => match Kind::of(failure.reason) {
                Some(kind) => self.state().bad(destination, (kind, failure), granted).unwrap_or(Seen::AsIs(ended)),
                None => Seen::AsIs(ended),
            },
            TransferResult::Expired | TransferResult::Cancelled(_) => Seen::AsIs(ended),
        }
    }

    /// This destination takes what is sent to it.
    pub(in crate::worker) fn works(&self, destination: &Destination, granted: u64) {
        self.state().good(&destination.id, granted);
    }

    /// Whether everything fails alike.
    pub(in crate::worker) fn is_declared(&self) -> bool {
        let mut state = self.state();
        state.age();
        state.declared.is_some()
    }

    /// Whether this is what everybody has now: it may have become so while it was judged.
    pub(in crate::worker) fn covers(&self, ended: &TransferResult) -> bool {
        let TransferResult::Failed(failure) = ended else { return false };
        let kind = Kind::of(failure.reason);
        self.state().declared.as_ref().is_some_and(|declared| Some(declared.kind) == kind)
    }

    /// During an outage: whether this destination was asked already, so that the next one to ask should be another. The job is sent
    /// away after a pause.
    pub(in crate::worker) fn spares(&self, destination: &DestinationId) -> Option<(Failure, Duration)> {
        let mut state = self.state();
        state.age();
        let declared = state.declared.as_mut()?;
        declared.failed.get(destination).filter(|at| at.elapsed() < WINDOW)?;
        let pause = LONGEST_PAUSE.min(PAUSE * declared.spared);
        declared.spared = declared.spared.saturating_add(1);
        Some((failure(declared.kind, "it failed within the last minute, like all others"), pause))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn good(&mut self, destination: &DestinationId, granted: u64) {
        // A session from before proves nothing about STS; a role that was assumed does.
        let over = |kind: Kind, before: u64| !kind.is_of_sts() || granted > before;
        if self.declared.take_if(|declared| over(declared.kind, declared.granted)).is_some() {
            tracing::info!(%destination, "a job was delivered: not everything fails any more");
        }
        // What failed beside it is their own, whatever it is; they are looked at anew.
        self.turned.retain(|turned| turned.destination != *destination && !over(turned.kind, turned.granted));
        self.remember(destination, true);
    }

    fn bad(&mut self, to: &Destination, (kind, met): (Kind, &Failure), granted: u64) -> Option<Seen> {
        self.age();
        let destination = &to.id;
        self.turned.retain(|turned| turned.at.elapsed() <= turned.kind.window());
        self.turned.retain(|turned| !turned.kind.is_of_sts() || turned.granted == granted);
        let known = self.last.get(destination).copied();
        if !met.remembered && known != Some(false) {
            let worked = known == Some(true);
            self.turned.retain(|turned| turned.destination != *destination);
            let (destination, owner) = (destination.clone(), owner(to));
            self.turned.push(Turned { destination, owner, kind, at: Instant::now(), worked, granted });
            self.remember(&to.id, false);
        }
        let begun = self.declared.is_none() && self.is_alike(kind);
        if begun {
            let alike = self.turned.iter().filter(|turned| turned.kind == kind);
            let failed: HashMap<_, _> = alike.map(|turned| (turned.destination.clone(), turned.at)).collect();
            let since = failed.values().min().copied().unwrap_or_else(Instant::now);
            self.turned.retain(|turned| turned.kind != kind);
            self.declared = Some(Declared { kind, since, granted, met: Instant::now(), failed, spared: 0 });
        }
        let declared = self.declared.as_mut().filter(|declared| declared.kind == kind)?;
        declared.met = Instant::now();
        declared.spared = 0;
        declared.failed.insert(destination.clone(), Instant::now());
        let ended = TransferResult::Failed(failure(kind, &format!("{}: {met}", met.reason.as_str())));
        Some(if begun { Seen::Begun(ended, declared.since.elapsed()) } else { Seen::AsIs(ended) })
    }

    fn is_alike(&self, kind: Kind) -> bool {
        let alike = || self.turned.iter().filter(|turned| turned.kind == kind);
        let owners =
            |turned: &mut dyn Iterator<Item = &Turned>| turned.map(|one| &one.owner).collect::<HashSet<_>>().len();
        owners(&mut alike()) >= UNKNOWN || owners(&mut alike().filter(|turned| turned.worked)) >= WORKED
    }

    fn remember(&mut self, destination: &DestinationId, good: bool) {
        if self.last.len() >= REMEMBERED && !self.last.contains_key(destination) {
            self.last.clear();
        }
        self.last.insert(destination.clone(), good);
    }

    fn age(&mut self) {
        let over = |declared: &mut Declared| {
            let lasts = matches!(declared.kind, Kind::Refusal(_)) && declared.since.elapsed() > LONGEST;
            lasts || declared.met.elapsed() > OVER
        };
        let _over = self.declared.take_if(over);
    }
}

/// The customer: the account of the role, or the access key.
fn owner(destination: &Destination) -> String {
    match &destination.auth {
        Auth::IamRole { role_arn, .. } => role_arn.account().to_string(),
        Auth::AccessKey { access_key_id, .. } => access_key_id.clone(),
    }
}

fn failure(kind: Kind, what: &str) -> Failure {
    let message =
        format!("many destinations began to fail alike, which is taken for an outage and not for their fault: {what}");
    Failure::new(Reason::Outage, message).hint(kind.remedy())
}

#[cfg(test)]
mod tests;
