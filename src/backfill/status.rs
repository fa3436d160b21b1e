//! Status of a backfill, from its retained outcomes, its journal and the control messages.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use bytes::Bytes;
use jiff::Timestamp;
use serde::Serialize;

use super::journal::{self, JournalContents};
use crate::domain::control::{BackfillId, Control};
use crate::domain::outcome::OutcomeKind;
use crate::producer::counts::OutcomeCounts;
use crate::producer::outcome::{ObservedOutcome, OutcomeDetails};
use crate::producer::pending::{PendingJobs, PendingReport, WorkerReports};
use crate::queue::{Admin, QueueError};

/// Jobs that failed, or wait for a retry, for the same reason.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct FailureGroup {
    /// Number of jobs.
    pub jobs: usize,
    /// Id of one of them.
    pub example: String,
    /// Message of the example.
    pub message: Option<String>,
    /// Remedy of the example.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// Status of a backfill.
#[serde_with::skip_serializing_none]
#[derive(Debug, Serialize)]
pub struct BackfillStatus {
    /// Id of the backfill.
    pub backfill: String,
    /// Jobs of the plan; known where it was published from here.
    pub jobs: Option<usize>,
    /// Jobs that were published from here.
    pub published: Option<usize>,
    /// Time of the last cancellation.
    pub cancelled_at: Option<Timestamp>,
    /// Jobs by outcome.
    pub outcomes: OutcomeCounts,
    /// Jobs that have not ended, by cause.
    #[serde(skip_serializing_if = "PendingReport::is_empty")]
    pub waiting_for: PendingReport,
    /// Failures by reason.
    pub failures: BTreeMap<String, FailureGroup>,
    /// Time of the first outcome.
    pub first_outcome_at: Option<Timestamp>,
    /// Time of the last outcome.
    pub last_outcome_at: Option<Timestamp>,
}

/// Error of reading a status.
#[derive(Debug)]
pub enum StatusError {
    /// The journal belongs to another backfill.
    Journal(String),
    /// The broker.
    Queue(QueueError),
}

/// Everything that is known of a backfill without asking workers.
#[derive(Debug, Default)]
pub struct BackfillRecords {
    outcomes: OutcomeDigest,
    journal: Option<JournalContents>,
    control: Vec<Bytes>,
}

impl BackfillRecords {
    /// Reads outcomes, journal and control messages; `None` for a backfill of which neither an
    /// outcome nor a journal exists.
    pub async fn read(
        admin: &dyn Admin,
        address: &str,
        backfill: &BackfillId,
        journal: Option<&Path>,
    ) -> Result<Option<Self>, StatusError> {
        let read_journal = || {
            let contents = journal.map_or(Ok(None), |path| journal::read(path, backfill));
            contents.map_err(StatusError::Journal)
        };
        let since = read_journal()?.and_then(|contents| contents.header?.since());
        let mut outcomes = OutcomeDigest { since, ..OutcomeDigest::default() };
        let found = admin.read_retained(address, &mut |body| outcomes.add(body)).await.map_err(StatusError::Queue)?;
        // A second time: a run in progress may have published more meanwhile, and no job may have an outcome
        // without being published.
        let journal = read_journal()?;
        if !found && journal.is_none() {
            return Ok(None);
        }
        let control = admin.control_messages().await.map_err(StatusError::Queue)?;
        Ok(Some(Self { outcomes, journal, control }))
    }

    /// Returns the destinations of jobs that have not ended.
    pub fn pending_destinations(&self) -> BTreeSet<&str> {
        self.pending().filter(|pending| pending.jobs > 0).filter_map(|pending| pending.destination).collect()
    }

    /// Jobs that have not ended: those to be retried, and those published without an outcome.
    fn pending(&self) -> impl Iterator<Item = PendingJobs<'_>> {
        let retrying = self.outcomes.jobs.values().filter(|(kind, _)| !kind.is_terminal()).map(|(_, details)| {
            let destination = details.as_ref().and_then(|details| details.destination.as_deref());
            PendingJobs { jobs: 1, destination, last: details.as_ref() }
        });
        let destination = self.journal.as_ref().and_then(|journal| journal.header.as_ref()?.destination.as_deref());
        retrying.chain([PendingJobs { jobs: self.without_outcome(), destination, last: None }])
    }

    /// Number of published jobs without an outcome.
    fn without_outcome(&self) -> usize {
        self.journal.as_ref().map_or(0, |journal| journal.published.len().saturating_sub(self.outcomes.jobs.len()))
    }

    fn cancelled_at(&self, backfill: &BackfillId) -> Option<Timestamp> {
        let messages = self.control.iter().filter_map(|body| Control::parse(body).ok());
        let journal = self.journal.as_ref();
        let earlier = journal.and_then(|journal| journal.header.as_ref()?.cancellations());
        // A cancellation before a repeated run does not apply to it.
        let applies = |control: &Control| match &earlier {
            Some(earlier) => !earlier.contains(control.id),
            None => self.outcomes.since.is_none_or(|since| control.at >= since),
        };
        let ours = messages.filter(|control| control.cancels(backfill) && applies(control));
        ours.map(|control| control.at).max().max(journal.and_then(|journal| journal.cancelled_at))
    }

    /// Computes the status, with what workers report of destinations.
    pub fn status(self, backfill: &BackfillId, workers: &WorkerReports) -> BackfillStatus {
        let cancelled_at = self.cancelled_at(backfill);
        let (mut outcomes, waiting_for) = (OutcomeCounts::default(), PendingReport::new(self.pending(), workers));
        *outcomes.of(None) = self.without_outcome();
        let Self { outcomes: OutcomeDigest { jobs, first, last, .. }, journal, .. } = self;
        let mut failures: BTreeMap<String, FailureGroup> = BTreeMap::new();
        for (id, (kind, details)) in jobs {
            *outcomes.of(Some(kind)) += 1;
            let Some(OutcomeDetails { reason: Some(reason), message, hint, .. }) = details else { continue };
            let group = failures.entry(reason).or_default();
            group.jobs += 1;
            if group.example.is_empty() || id < group.example {
                (group.example, group.message, group.hint) = (id, message, hint);
            }
        }
        BackfillStatus {
            backfill: backfill.to_string(),
            jobs: journal.as_ref().and_then(|journal| journal.header.as_ref()).map(|header| header.jobs),
            published: journal.map(|journal| journal.published.len()),
            cancelled_at,
            outcomes,
            waiting_for,
            failures,
            first_outcome_at: first,
            last_outcome_at: last,
        }
    }
}

/// Last outcome of each job.
#[derive(Debug, Default)]
struct OutcomeDigest {
    jobs: HashMap<String, (OutcomeKind, Option<OutcomeDetails>)>,
    since: Option<Timestamp>,
    first: Option<Timestamp>,
    last: Option<Timestamp>,
}

impl OutcomeDigest {
    /// Adds an outcome. `delivered` overrides every other outcome, and a terminal outcome overrides
    /// `retrying`.
    fn add(&mut self, body: &[u8]) {
        let Ok(outcome) = serde_json::from_slice::<ObservedOutcome>(body) else { return };
        let Some(kind) = outcome.kind().filter(|_| outcome.counts(self.since)) else { return };
        self.first = Some(self.first.map_or(outcome.time, |first| first.min(outcome.time)));
        self.last = self.last.max(Some(outcome.time));
        let known = self.jobs.get(&outcome.subject).map(|(kind, _)| *kind);
        let overridden =
            known == Some(OutcomeKind::Delivered) || known.is_some_and(OutcomeKind::is_terminal) && !kind.is_terminal();
        if !overridden {
            let details = outcome.data.reason.is_some().then_some(outcome.data);
            self.jobs.insert(outcome.subject, (kind, details));
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::domain::control::ControlCommand;

    fn outcome(job: &str, kind: &str, second: i64, reason: Option<&str>) -> Vec<u8> {
        let time = Timestamp::new(1_800_000_000 + second, 123_456_789).unwrap();
        let data =
            serde_json::json!({"destination": "acme", "reason": reason, "message": "it broke", "hint": "fix it"});
        let event = serde_json::json!({
            "subject": job, "type": format!("consign.transfer.{kind}.v1"), "time": time, "data": data,
        });
        serde_json::to_vec(&event).unwrap()
    }

    fn digest(outcomes: &[(&str, &str, Option<&str>)]) -> OutcomeDigest {
        let mut digest = OutcomeDigest::default();
        for (second, (job, kind, reason)) in (0..).zip(outcomes) {
            digest.add(&outcome(job, kind, second, *reason));
        }
        digest.add(b"not an outcome");
        digest
    }

    fn backfill() -> BackfillId {
        BackfillId::parse("b").unwrap()
    }

    /// Eight published jobs, two without an outcome, and a cancellation.
    pub(crate) fn busy() -> BackfillStatus {
        let outcomes = digest(&[
            ("a", "retrying", Some("slow_down")),
            ("a", "delivered", None),
            ("a", "delivered", None),
            ("b", "delivered", None),
            ("b", "failed", Some("timeout")),
            ("c", "failed", Some("kms_denied")),
            ("c", "retrying", Some("slow_down")),
            ("d", "failed", Some("kms_denied")),
            ("e", "skipped", None),
            ("f", "retrying", Some("slow_down")),
        ]);
        let journal =
            JournalContents { published: ('a'..='h').map(String::from).collect(), ..JournalContents::default() };
        let at = Timestamp::new(1_800_000_100, 123_456_789).unwrap();
        let cancel = |id: BackfillId, at| Control::new(ControlCommand::CancelBackfill(id), at).render().into();
        let control = vec![cancel(backfill(), at), cancel(BackfillId::parse("c").unwrap(), Timestamp::MAX)];
        BackfillRecords { outcomes, journal: Some(journal), control }.status(&backfill(), &WorkerReports::default())
    }

    /// One delivered job and no journal.
    pub(crate) fn without_journal() -> BackfillStatus {
        let records = BackfillRecords { outcomes: digest(&[("a", "delivered", None)]), ..BackfillRecords::default() };
        records.status(&backfill(), &WorkerReports::default())
    }

    #[test]
    fn each_job_counts_once() {
        let status = busy();
        let expected = OutcomeCounts { delivered: 2, skipped: 1, failed: 2, expired: 0, retrying: 1, left: 2 };
        let at = Timestamp::new(1_800_000_100, 123_456_789).unwrap();
        assert_eq!((status.outcomes, status.cancelled_at), (expected, Some(at)));
        let reasons: Vec<_> = status.failures.iter().map(|(reason, group)| (reason.as_str(), group.jobs)).collect();
        assert_eq!(reasons, [("kms_denied", 2), ("slow_down", 1)]);
        assert_eq!(status.failures["kms_denied"].example, "c");
    }

    #[test]
    fn without_a_journal_the_number_of_jobs_is_not_known() {
        let status = without_journal();
        assert_eq!(status.outcomes.left, 0);
        let json = serde_json::to_value(&status).unwrap();
        assert_eq!(json["outcomes"]["delivered"], 1);
        assert!(json.get("published").is_none());
    }
}
