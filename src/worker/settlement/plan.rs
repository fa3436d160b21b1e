//! Plan for the settlement of a delivery.

use crate::domain::generation::NewerDelivery;
use crate::domain::headers::ERROR_REASON;
use crate::domain::outcome::{Failure, OutcomeKind, Reason, RetryDelay};
use crate::metrics::DeferCause;
use crate::queue::{OutcomeEvent, Settlement};
use crate::worker::lease::CopyBody;

/// Plan for a delivery. It is performed once, by value.
#[derive(Debug)]
pub(in crate::worker) struct SettlementPlan {
    pub(in crate::worker) settlement: Settlement,
    /// Body of the copy that the settlement publishes.
    pub(in crate::worker) body: CopyBody,
    /// True if the unfinished upload must be aborted: nobody will resume it.
    pub(in crate::worker) abort_upload: bool,
    /// Outcome to publish before the acknowledgement.
    pub(in crate::worker) outcome: Option<PlannedOutcome>,
    /// Failure behind the plan.
    pub(in crate::worker) failure: Option<Failure>,
    /// Reason under which a failed attempt is counted.
    pub(in crate::worker) counted: Option<Reason>,
    /// Cause under which a deferral is counted.
    pub(in crate::worker) deferred: Option<DeferCause>,
    /// Newer generation of the object that was delivered, if the job is skipped because of it.
    pub(in crate::worker) superseded_by: Option<NewerDelivery>,
    /// True if the job is done here for good, so that duplicates are acknowledged.
    pub(in crate::worker) is_final: bool,
}

/// Outcome of a job.
#[derive(Debug)]
pub(in crate::worker) struct PlannedOutcome {
    pub(in crate::worker) kind: OutcomeKind,
    /// Stored bytes of a delivery.
    pub(in crate::worker) bytes: u64,
    pub(in crate::worker) event: OutcomeEvent,
}

impl SettlementPlan {
    /// Plan without an outcome, for a delivery that is settled so.
    pub(super) fn of(settlement: Settlement) -> Self {
        let is_final = !matches!(settlement, Settlement::Requeue | Settlement::HandOff { .. });
        Self {
            settlement,
            body: CopyBody::AsDelivered,
            abort_upload: false,
            outcome: None,
            failure: None,
            counted: None,
            deferred: None,
            superseded_by: None,
            is_final,
        }
    }

    /// A plan with these parts, for tests of what consumes plans.
    #[cfg(test)]
    pub(in crate::worker) fn sample(
        settlement: Settlement,
        kind: Option<OutcomeKind>,
        failure: Option<Failure>,
    ) -> Self {
        let event = || OutcomeEvent {
            routing_key: String::new(),
            id: String::new(),
            body: bytes::Bytes::new(),
            reply_to: None,
        };
        let outcome = kind.map(|kind| PlannedOutcome { kind, bytes: 0, event: event() });
        Self { outcome, failure, ..Self::of(settlement) }
    }

    /// Kind of the outcome, if there is one.
    pub(in crate::worker) fn kind(&self) -> Option<OutcomeKind> {
        self.outcome.as_ref().map(|outcome| outcome.kind)
    }

    /// Reason of the dead letter, if the plan publishes one.
    pub(in crate::worker) fn dead_letter_reason(&self) -> Option<Reason> {
        match &self.settlement {
            Settlement::DeadLetter { headers } => Reason::parse(headers.get(ERROR_REASON)?),
            _ => None,
        }
    }

    /// Word for log lines and traces: the outcome, else the settlement's action. A job that another
    /// worker continues counts as returned, whether it is requeued, handed off or lost.
    pub(in crate::worker) fn word(&self) -> &'static str {
        match self.kind() {
            Some(kind) => kind.as_str(),
            None if self.is_final => self.settlement.action(),
            None => Settlement::Requeue.action(),
        }
    }

    /// Returns true if the job may write its object after others that came later.
    pub(in crate::worker) fn may_write_later(&self) -> bool {
        !matches!(self.settlement, Settlement::Ack | Settlement::Requeue)
    }

    /// Delay of the copy, if one waits.
    pub(in crate::worker) fn delay(&self) -> Option<RetryDelay> {
        match &self.settlement {
            Settlement::Retry { delay, .. } | Settlement::Defer { delay, .. } => Some(*delay),
            _ => None,
        }
    }
}
