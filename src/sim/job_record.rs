//! History of each job, for the invariants.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::domain::outcome::{Class, TransferResult};

/// History of one job.
#[derive(Debug, Default)]
pub(super) struct JobRecord {
    /// Number of attempts started.
    pub(super) attempts: usize,
    /// Workers that run an attempt now.
    pub(super) running: Vec<usize>,
    /// Ends of attempts that are not settled yet, by worker.
    pub(super) ends: Vec<(usize, AttemptEnd)>,
    /// Failures that count as an attempt.
    pub(super) charged: u32,
    pub(super) defects: u32,
    pub(super) deferred_since: Option<Duration>,
    /// Workers that stopped while they ran it.
    pub(super) crashes: u32,
    pub(super) refused_for_good: bool,
    pub(super) delivered: bool,
    /// Ids of the terminal outcomes by kind.
    pub(super) outcomes: BTreeMap<String, BTreeSet<String>>,
    /// True if more than one message of this job existed: it may have ended more than once.
    pub(super) duplicated: bool,
    /// True once a copy left its wait queue twice: both resume one upload, and the end of either
    /// aborts it for the other.
    pub(super) released_twice: bool,
    pub(super) published: usize,
    /// True if a first attempt of an older refresh replaced its object.
    pub(super) overtaken: bool,
    /// True once its delivery was reported to all workers.
    pub(super) reported: bool,
    /// Workers that delivered it.
    pub(super) deliverers: Vec<usize>,
}

/// End of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AttemptEnd {
    Delivered,
    Skipped,
    Expired,
    Failed(Class),
}

impl AttemptEnd {
    pub(super) fn of(ended: &TransferResult) -> Self {
        match ended {
            TransferResult::Delivered(_) => Self::Delivered,
            TransferResult::Skipped | TransferResult::Cancelled(_) | TransferResult::Superseded(_) => Self::Skipped,
            TransferResult::Expired => Self::Expired,
            TransferResult::Failed(failure) => Self::Failed(failure.class()),
            TransferResult::ObjectBusy => Self::Failed(Class::Interrupted),
        }
    }

    pub(super) fn is_charged(self) -> bool {
        matches!(self, Self::Failed(Class::Transient | Class::Session | Class::Defect))
    }

    /// Returns true if the end has no consequences for the job.
    pub(super) fn is_interrupted(self) -> bool {
        matches!(self, Self::Failed(Class::Interrupted | Class::Worker))
    }
}

impl JobRecord {
    /// Records the end of an attempt.
    pub(super) fn ended(&mut self, worker: usize, end: AttemptEnd, now: Duration) {
        self.ends.push((worker, end));
        self.charged += u32::from(end.is_charged());
        self.defects += u32::from(end == AttemptEnd::Failed(Class::Defect));
        self.refused_for_good |= end == AttemptEnd::Failed(Class::Job);
        self.delivered |= end == AttemptEnd::Delivered;
        self.deliverers.extend((end == AttemptEnd::Delivered).then_some(worker));
        if end == AttemptEnd::Failed(Class::Destination) {
            self.deferred_since.get_or_insert(now);
        }
    }

    /// Settles an end of this worker that `fits`. Returns false if there is none.
    pub(super) fn settle(&mut self, worker: usize, fits: impl Fn(AttemptEnd) -> bool) -> bool {
        let position = self.ends.iter().position(|(of, end)| *of == worker && fits(*end));
        position.map(|position| self.ends.remove(position)).is_some()
    }
}
