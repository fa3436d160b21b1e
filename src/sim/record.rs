//! What is known of a job so far, for the rules to be checked against.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::domain::outcome::{Class, TransferResult};

/// The history of one job.
#[derive(Debug, Default)]
pub(super) struct Record {
    /// Attempts that were begun.
    pub(super) attempts: usize,
    /// Attempts that run now, by worker.
    pub(super) running: Vec<usize>,
    /// Ends of attempts that are not settled yet, by worker.
    pub(super) ends: Vec<(usize, End)>,
    /// Failures that count as an attempt.
    pub(super) charged: u32,
    pub(super) defects: u32,
    pub(super) deferred_since: Option<Duration>,
    /// Workers that died over it.
    pub(super) crashes: u32,
    pub(super) refused_for_good: bool,
    pub(super) delivered: bool,
    /// The terminal outcomes that were recorded: kind and id.
    pub(super) outcomes: BTreeMap<String, BTreeSet<String>>,
    /// More than one message of this job was about: it may have ended more than once.
    pub(super) doubled: bool,
    pub(super) published: usize,
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Delivered,
    Skipped,
    Expired,
    Failed(Class),
}

impl End {
    pub(super) fn of(ended: &TransferResult) -> Self {
        match ended {
            TransferResult::Delivered(_) => Self::Delivered,
            TransferResult::Skipped | TransferResult::Cancelled(_) => Self::Skipped,
            TransferResult::Expired => Self::Expired,
            TransferResult::Failed(failure) => Self::Failed(failure.class()),
        }
    }

    pub(super) fn is_charged(self) -> bool {
        matches!(self, Self::Failed(Class::Transient | Class::Session | Class::Defect))
    }

    /// Whether nothing follows from it for the job.
    pub(super) fn is_interrupted(self) -> bool {
        matches!(self, Self::Failed(Class::Interrupted | Class::Worker))
    }
}

impl Record {
    /// An attempt has ended.
    pub(super) fn ended(&mut self, member: usize, end: End, now: Duration) {
        self.ends.push((member, end));
        self.charged += u32::from(end.is_charged());
        self.defects += u32::from(end == End::Failed(Class::Defect));
        self.refused_for_good |= end == End::Failed(Class::Job);
        self.delivered |= end == End::Delivered;
        if end == End::Failed(Class::Destination) {
            self.deferred_since.get_or_insert(now);
        }
    }

    /// Settles an end of this worker, if there is one that fits.
    pub(super) fn settle(&mut self, member: usize, fits: impl Fn(End) -> bool) -> bool {
        let place = self.ends.iter().position(|(of, end)| *of == member && fits(*end));
        place.map(|place| self.ends.remove(place)).is_some()
    }
}
