//! Bounded record of ended attempts, and of each recently used destination.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;

use super::throughput::TransferTotals;
use crate::domain::destination::{Destination, DestinationId, DestinationIdentity};
use crate::domain::lane::Lane;
use crate::domain::outcome::{Class, Failure, OutcomeKind};
use crate::upload::Progress;
use crate::worker::history;
use crate::worker::settlement::{SettlementContext, SettlementPlan};

/// Ended attempts that are kept, and as many failed ones: a stream of successes must not displace
/// them.
const MAX_KEPT: usize = 50;
/// Destinations that are kept. Beyond, the half that was idle longest is dropped: inline
/// destinations are unlimited in number.
const MAX_DESTINATIONS: usize = 2000;
/// Characters of a message or hint.
const MAX_TEXT_CHARS: usize = 600;

/// Ended attempt, as `/status` shows it.
#[derive(Debug, Clone, Serialize)]
pub struct EndedTransfer {
    /// Number of the entry; grows with each.
    pub number: u64,
    /// Time of its end.
    pub at: Timestamp,
    /// Id of the job, if it could be read.
    pub job_id: Option<String>,
    /// Id of its destination, if it could be read.
    pub destination: Option<String>,
    /// Lane of the delivery.
    pub lane: &'static str,
    /// `delivered`, `failed`, `skipped`, `expired`; `retrying` (charged), `deferred` (not charged),
    /// `returned` (requeued).
    pub outcome: &'static str,
    /// Number of the attempt; 1 is the first.
    pub attempt: u32,
    /// Seconds that it took.
    pub seconds: f64,
    /// Bytes that S3 accepted.
    pub bytes: u64,
    /// Job that was delivered with a newer generation of the object, if this one was skipped
    /// because of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub superseded_by: Option<String>,
    /// Its failure.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "shared")]
    pub trouble: Option<Arc<FailureDetail>>,
}

/// Failure of an attempt, in words for the customer.
#[derive(Debug, Clone, Serialize)]
pub struct FailureDetail {
    /// Time of the failure.
    pub at: Timestamp,
    /// Class of the reason.
    pub class: &'static str,
    /// Reason.
    pub reason: &'static str,
    /// Description.
    pub message: String,
    /// Remedy; may be empty.
    pub hint: String,
    /// Time of the next attempt, if there is one.
    pub next_try_at: Option<Timestamp>,
}

/// Last ended attempts, newest first.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Recent {
    /// All of them.
    pub ended: Vec<EndedTransfer>,
    /// Those that failed.
    pub problems: Vec<EndedTransfer>,
}

/// Dead-lettered messages of a reason since the start of this worker.
#[derive(Debug, Clone, Serialize)]
pub struct DeadLetterCount {
    /// Class of the reason.
    pub class: &'static str,
    /// Reason.
    pub reason: &'static str,
    /// Number of them.
    pub count: u64,
    /// Time of the last one.
    pub last_at: Timestamp,
}

/// Record of a destination.
#[derive(Debug, Clone)]
pub struct DestinationRecord {
    /// The destination as it was used last.
    pub destination: Arc<Destination>,
    /// Failed attempts since the last delivery, as `consign_destination_consecutive_failures`
    /// counts them.
    pub consecutive_failures: u32,
    /// Last failure, even if later attempts succeeded.
    pub last_trouble: Option<Arc<FailureDetail>>,
    /// Time of the last delivery.
    pub last_delivered_at: Option<Timestamp>,
    /// Delivered objects.
    pub delivered: u64,
    /// Bytes of delivered objects.
    pub delivered_bytes: u64,
    /// Number of the last entry of this destination: greater is later.
    pub last_active: u64,
}

/// The record.
#[derive(Debug, Default)]
pub(super) struct EndedTransfers {
    next: u64,
    ended: VecDeque<EndedTransfer>,
    problems: VecDeque<EndedTransfer>,
    destinations: HashMap<DestinationIdentity, DestinationRecord>,
    /// By reason, so a few dozen at most.
    dead_letters: BTreeMap<&'static str, DeadLetterCount>,
    /// Totals since the start, without bytes.
    pub(super) counts: TransferTotals,
}

impl EndedTransfer {
    pub(super) fn of(context: &SettlementContext<'_>, plan: &SettlementPlan, progress: &Progress) -> Self {
        Self {
            job_id: Some(context.job.job.id.to_string()),
            destination: Some(context.job.destination.id.to_string()),
            attempt: context.job.headers.history.attempts.saturating_add(1),
            seconds: context.took.as_secs_f64(),
            bytes: progress.bytes(),
            ..Self::rejected(context.lane, plan, None, None)
        }
    }

    pub(super) fn rejected(
        lane: Lane,
        plan: &SettlementPlan,
        job_id: Option<&str>,
        destination: Option<&DestinationId>,
    ) -> Self {
        let at = Timestamp::now();
        Self {
            number: 0,
            at,
            job_id: job_id.map(ToString::to_string),
            destination: destination.map(ToString::to_string),
            lane: lane.as_str(),
            outcome: outcome(plan),
            attempt: 1,
            seconds: 0.0,
            bytes: 0,
            superseded_by: plan.superseded_by.as_ref().map(|newer| newer.job.to_string()),
            trouble: plan.failure.as_ref().map(|failure| Arc::new(FailureDetail::of(failure, at, plan))),
        }
    }
}

#[expect(clippy::ref_option, reason = "serde hands over a reference to the field")]
fn shared<S: serde::Serializer>(trouble: &Option<Arc<FailureDetail>>, to: S) -> Result<S::Ok, S::Error> {
    trouble.as_deref().serialize(to)
}

fn outcome(plan: &SettlementPlan) -> &'static str {
    match plan.kind() {
        Some(kind) => kind.as_str(),
        // A message without a readable job has no outcome, and is dead-lettered.
        None if plan.dead_letter_reason().is_some() => OutcomeKind::Failed.as_str(),
        None if plan.is_final => "deferred",
        None => "returned",
    }
}

impl FailureDetail {
    fn of(failure: &Failure, at: Timestamp, plan: &SettlementPlan) -> Self {
        let next_try_at = plan.delay().and_then(|delay| history::time_after(at, delay.duration()));
        Self {
            at,
            class: failure.class().as_str(),
            reason: failure.reason.as_str(),
            message: shortened(&failure.message),
            hint: shortened(&failure.hint),
            next_try_at,
        }
    }
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(MAX_TEXT_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

impl EndedTransfers {
    /// Records the end of an attempt.
    pub(super) fn attempt(&mut self, ended: EndedTransfer, destination: &Arc<Destination>, plan: &SettlementPlan) {
        self.count_dead_letter(plan, ended.at);
        let (bytes, trouble) = (ended.bytes, ended.trouble.clone());
        let number = self.keep(ended);
        let record = self.record(destination);
        record.last_active = number;
        if plan.kind() == Some(OutcomeKind::Delivered) {
            record.consecutive_failures = 0;
            record.last_delivered_at = Some(Timestamp::now());
            record.delivered += 1;
            record.delivered_bytes += bytes;
        }
        let counts =
            |failure: &Failure| matches!(failure.class(), Class::Destination | Class::Session | Class::Transient);
        if plan.failure.as_ref().is_some_and(counts) {
            record.consecutive_failures = record.consecutive_failures.saturating_add(1);
        }
        if trouble.is_some() {
            record.last_trouble = trouble;
        }
    }

    /// Records a rejected message. It counts for no destination: names that nobody configured must
    /// not use up the record.
    pub(super) fn rejection(&mut self, ended: EndedTransfer, plan: &SettlementPlan) {
        self.count_dead_letter(plan, ended.at);
        self.keep(ended);
    }

    fn keep(&mut self, mut ended: EndedTransfer) -> u64 {
        self.next += 1;
        ended.number = self.next;
        match ended.outcome {
            "delivered" | "skipped" => self.counts.delivered += 1,
            "failed" | "expired" => self.counts.failed += 1,
            _ => self.counts.repeated += 1,
        }
        if ended.trouble.is_some() {
            push(&mut self.problems, ended.clone());
        }
        push(&mut self.ended, ended);
        self.next
    }

    fn count_dead_letter(&mut self, plan: &SettlementPlan, last_at: Timestamp) {
        let Some(reason) = plan.dead_letter_reason() else { return };
        let (class, reason) = (reason.class().as_str(), reason.as_str());
        let fresh = || DeadLetterCount { class, reason, count: 0, last_at };
        let known = self.dead_letters.entry(reason).or_insert_with(fresh);
        known.count += 1;
        known.last_at = last_at;
    }

    /// Returns the dead letters of this worker by reason, the most frequent first.
    pub(super) fn dead_letters(&self) -> Vec<DeadLetterCount> {
        let mut counts: Vec<_> = self.dead_letters.values().cloned().collect();
        counts.sort_by_key(|count| Reverse(count.count));
        counts
    }

    fn record(&mut self, destination: &Arc<Destination>) -> &mut DestinationRecord {
        if self.destinations.len() >= MAX_DESTINATIONS && !self.destinations.contains_key(&destination.identity) {
            self.drop_idle();
        }
        let fresh = || DestinationRecord {
            destination: destination.clone(),
            consecutive_failures: 0,
            last_trouble: None,
            last_delivered_at: None,
            delivered: 0,
            delivered_bytes: 0,
            last_active: 0,
        };
        let record = self.destinations.entry(destination.identity.clone()).or_insert_with(fresh);
        if !Arc::ptr_eq(&record.destination, destination) {
            record.destination = destination.clone();
        }
        record
    }

    fn drop_idle(&mut self) {
        let mut activity: Vec<_> = self.destinations.values().map(|record| record.last_active).collect();
        activity.sort_unstable();
        let median = activity[activity.len() / 2];
        self.destinations.retain(|_, record| record.last_active >= median);
    }

    pub(super) fn recent(&self) -> Recent {
        Recent { ended: self.ended.iter().cloned().collect(), problems: self.problems.iter().cloned().collect() }
    }

    pub(super) fn destinations(&self) -> BTreeMap<DestinationIdentity, DestinationRecord> {
        self.destinations.iter().map(|(id, record)| (id.clone(), record.clone())).collect()
    }
}

fn push(list: &mut VecDeque<EndedTransfer>, ended: EndedTransfer) {
    list.push_front(ended);
    list.truncate(MAX_KEPT);
}

#[cfg(test)]
mod tests;
