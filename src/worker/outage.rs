//! The correlation guard: when many destinations begin to fail alike, it is our identity, our network or S3 as a whole, and no
//! customer is to blame. Then no circuit opens, no attempt is charged, and the worker takes one job at a time until one succeeds.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::destination::DestinationId;
use crate::outcome::{Ended, Failure, Reason};

/// Failures that are this close together are seen together.
pub(super) const WINDOW: Duration = Duration::from_secs(60);
/// So many destinations that worked before.
const WORKED: usize = 3;
/// So many, when it is not known how they did before: after a start, a few customers may be broken each on their own.
const UNKNOWN: usize = 5;
/// An outage that nobody met for so long is over.
const OVER: Duration = Duration::from_mins(10);
/// Destinations whose last answer is remembered. Inline ones come without end; beyond this, all are forgotten.
const REMEMBERED: usize = 10_000;

/// What this worker knows about everybody at once.
#[derive(Debug, Default)]
pub(super) struct Outage {
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
    kind: Kind,
    at: Instant,
    worked: bool,
}

#[derive(Debug)]
struct Declared {
    kind: Kind,
    met: Instant,
    failed: HashMap<DestinationId, Instant>,
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
pub(super) enum Seen {
    /// What it says.
    AsIs(Ended),
    /// Everything fails alike, as is seen now for the first time: what happened within the [`WINDOW`] was nobody's own fault.
    Begun(Ended),
}

impl Outage {
    /// Judges the end of an attempt by those of all destinations. A failure that all have becomes [`Reason::Outage`].
    pub(super) fn see(&self, destination: &DestinationId, ended: Ended) -> Seen {
        match &ended {
            Ended::Delivered(_) | Ended::Skipped => {
                self.state().good(destination);
                Seen::AsIs(ended)
            }
            Ended::Failed(failure) => match Kind::of(failure.reason) {
                Some(kind) => self.state().bad(destination, kind, failure).unwrap_or(Seen::AsIs(ended)),
                None => Seen::AsIs(ended),
            },
            Ended::Expired | Ended::Cancelled(_) => Seen::AsIs(ended),
        }
    }

    /// During an outage: whether this destination was asked already, so that the next one to ask should be another.
    pub(super) fn spares(&self, destination: &DestinationId) -> Option<Failure> {
        let mut state = self.state();
        state.age();
        let declared = state.declared.as_ref()?;
        let asked = declared.failed.get(destination).is_some_and(|at| at.elapsed() < WINDOW);
        asked.then(|| failure(declared.kind, "it failed within the last minute, like all others"))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn good(&mut self, destination: &DestinationId) {
        if self.declared.take().is_some() {
            tracing::info!(%destination, "a job was delivered: not everything fails any more");
        }
        // What failed beside it is their own, whatever it is; they are looked at anew.
        self.turned.clear();
        self.remember(destination, true);
    }

    fn bad(&mut self, destination: &DestinationId, kind: Kind, met: &Failure) -> Option<Seen> {
        self.age();
        let known = self.last.get(destination).copied();
        if !met.remembered && known != Some(false) {
            let worked = known == Some(true);
            self.turned.retain(|turned| turned.at.elapsed() <= WINDOW && turned.destination != *destination);
            self.turned.push(Turned { destination: destination.clone(), kind, at: Instant::now(), worked });
            self.remember(destination, false);
        }
        let begun = self.declared.is_none() && self.is_alike(kind);
        if begun {
            let alike = self.turned.drain(..).filter(|turned| turned.kind == kind);
            let failed = alike.map(|turned| (turned.destination, turned.at)).collect();
            self.declared = Some(Declared { kind, met: Instant::now(), failed });
        }
        let declared = self.declared.as_mut().filter(|declared| declared.kind == kind)?;
        declared.met = Instant::now();
        declared.failed.insert(destination.clone(), Instant::now());
        let ended = Ended::Failed(failure(kind, &format!("{}: {met}", met.reason.as_str())));
        Some(if begun { Seen::Begun(ended) } else { Seen::AsIs(ended) })
    }

    fn is_alike(&self, kind: Kind) -> bool {
        let alike = || self.turned.iter().filter(|turned| turned.kind == kind);
        alike().count() >= UNKNOWN || alike().filter(|turned| turned.worked).count() >= WORKED
    }

    fn remember(&mut self, destination: &DestinationId, good: bool) {
        if self.last.len() >= REMEMBERED && !self.last.contains_key(destination) {
            self.last.clear();
        }
        self.last.insert(destination.clone(), good);
    }

    fn age(&mut self) {
        if self.declared.as_ref().is_some_and(|declared| declared.met.elapsed() > OVER) {
            self.declared = None;
        }
    }
}

fn failure(kind: Kind, what: &str) -> Failure {
    let message =
        format!("many destinations began to fail alike, which is taken for an outage and not for their fault: {what}");
    Failure::new(Reason::Outage, message).hint(kind.remedy())
}

#[cfg(test)]
mod tests;
