//! A bounded memory of ended attempts, and of each destination that was worked for lately.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;

use super::super::history;
use super::super::settlement::{Case, Verdict};
use super::throughput::Tally;
use crate::domain::destination::{Destination, DestinationId};
use crate::domain::job::JobId;
use crate::domain::lane::Lane;
use crate::domain::outcome::{Class, Failure, OutcomeKind};
use crate::queue::Settlement;
use crate::upload::Progress;

/// Ended attempts that are kept, and as many of those with trouble: a stream of good ones must not wash them away.
const KEPT: usize = 50;
/// Destinations that are remembered. Beyond, the half that was idle longest is forgotten: inline ones come without end.
const DESTINATIONS: usize = 2000;
/// Characters of a message or hint.
const TEXT: usize = 600;

/// An attempt that has ended, as `/status` shows it.
#[derive(Debug, Clone, Serialize)]
pub struct EndedTransfer {
    /// Grows with each end: the identity of this line.
    pub number: u64,
    /// When it ended.
    pub at: Timestamp,
    /// The job, if that could be read.
    pub job_id: Option<String>,
    /// Its destination, if that could be read.
    pub destination: Option<String>,
    /// The lane it came by.
    pub lane: &'static str,
    /// `delivered`, `failed`, `skipped`, `expired`; `retrying` (charged), `deferred` (not charged), `returned` (to the queue).
    pub outcome: &'static str,
    /// Which attempt it was.
    pub attempt: u32,
    /// How long it ran.
    pub seconds: f64,
    /// Bytes that S3 accepted.
    pub bytes: u64,
    /// What went wrong.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "shared")]
    pub trouble: Option<Arc<Trouble>>,
}

/// What went wrong in an attempt, in words for the customer.
#[derive(Debug, Clone, Serialize)]
pub struct Trouble {
    /// When.
    pub at: Timestamp,
    /// The class of the reason.
    pub class: &'static str,
    /// The reason.
    pub reason: &'static str,
    /// What happened.
    pub message: String,
    /// What can be done; may be empty.
    pub hint: String,
    /// When it is tried again, if it is.
    pub next_try_at: Option<Timestamp>,
}

/// The last ended attempts, newest first.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Recent {
    /// Of every kind.
    pub ended: Vec<EndedTransfer>,
    /// Those with trouble.
    pub problems: Vec<EndedTransfer>,
}

/// What is remembered of a destination.
#[derive(Debug, Clone)]
pub struct DestinationRecord {
    /// As it was when it was used last.
    pub destination: Arc<Destination>,
    /// Failed attempts since the last delivery, as `consign_destination_consecutive_failures` counts them.
    pub consecutive_failures: u32,
    /// The last failure, even if all went well since.
    pub last_trouble: Option<Arc<Trouble>>,
    /// The last delivery.
    pub last_delivered_at: Option<Timestamp>,
    /// Delivered objects.
    pub delivered: u64,
    /// Bytes of delivered objects.
    pub delivered_bytes: u64,
    /// Which end was the last one here: greater is later.
    pub last_active: u64,
}

/// The memory.
#[derive(Debug, Default)]
pub(super) struct Past {
    next: u64,
    ended: VecDeque<EndedTransfer>,
    problems: VecDeque<EndedTransfer>,
    destinations: HashMap<DestinationId, DestinationRecord>,
    counts: Tally,
}

impl EndedTransfer {
    pub(super) fn of(case: &Case<'_>, verdict: &Verdict, progress: &Progress) -> Self {
        Self {
            job_id: Some(case.job.id.to_string()),
            destination: Some(case.destination.id.to_string()),
            attempt: case.history.attempts.saturating_add(1),
            seconds: case.took.as_secs_f64(),
            bytes: progress.bytes(),
            ..Self::refused(case.lane, verdict, None, None)
        }
    }

    pub(super) fn refused(
        lane: Lane,
        verdict: &Verdict,
        job_id: Option<&JobId>,
        destination: Option<&DestinationId>,
    ) -> Self {
        let at = Timestamp::now();
        Self {
            number: 0,
            at,
            job_id: job_id.map(ToString::to_string),
            destination: destination.map(ToString::to_string),
            lane: lane.as_str(),
            outcome: outcome(verdict),
            attempt: 1,
            seconds: 0.0,
            bytes: 0,
            trouble: verdict.failure.as_ref().map(|failure| Arc::new(Trouble::of(failure, at, &verdict.settlement))),
        }
    }
}

#[expect(clippy::ref_option, reason = "serde hands over a reference to the field")]
fn shared<S: serde::Serializer>(trouble: &Option<Arc<Trouble>>, to: S) -> Result<S::Ok, S::Error> {
    trouble.as_deref().serialize(to)
}

fn outcome(verdict: &Verdict) -> &'static str {
    match (verdict.kind, &verdict.settlement) {
        (Some(kind), _) => kind.as_str(),
        (None, Settlement::Requeue) => "returned",
        (None, _) => "deferred",
    }
}

impl Trouble {
    fn of(failure: &Failure, at: Timestamp, settlement: &Settlement) -> Self {
        let next_try_at = match settlement {
            Settlement::Retry { delay, .. } | Settlement::Defer { delay, .. } => history::after(at, delay.duration()),
            _ => None,
        };
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
    match text.char_indices().nth(TEXT) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

impl Past {
    /// An attempt for a destination has ended.
    pub(super) fn attempt(&mut self, ended: EndedTransfer, destination: &Arc<Destination>, verdict: &Verdict) {
        let (bytes, trouble) = (ended.bytes, ended.trouble.clone());
        let number = self.keep(ended);
        let record = self.record(destination);
        record.last_active = number;
        if verdict.kind == Some(OutcomeKind::Delivered) {
            record.consecutive_failures = 0;
            record.last_delivered_at = Some(Timestamp::now());
            record.delivered += 1;
            record.delivered_bytes += bytes;
        }
        let theirs =
            |failure: &Failure| matches!(failure.class(), Class::Destination | Class::Session | Class::Transient);
        if verdict.failure.as_ref().is_some_and(theirs) {
            record.consecutive_failures = record.consecutive_failures.saturating_add(1);
        }
        if trouble.is_some() {
            record.last_trouble = trouble;
        }
    }

    /// A message was refused. It counts for no destination: names that nobody configured must not use up the memory.
    pub(super) fn refusal(&mut self, ended: EndedTransfer) {
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

    fn record(&mut self, destination: &Arc<Destination>) -> &mut DestinationRecord {
        if self.destinations.len() >= DESTINATIONS && !self.destinations.contains_key(&destination.id) {
            self.forget_the_idle();
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
        let record = self.destinations.entry(destination.id.clone()).or_insert_with(fresh);
        if !Arc::ptr_eq(&record.destination, destination) {
            record.destination = destination.clone();
        }
        record
    }

    fn forget_the_idle(&mut self) {
        let mut activity: Vec<_> = self.destinations.values().map(|record| record.last_active).collect();
        activity.sort_unstable();
        let median = activity[activity.len() / 2];
        self.destinations.retain(|_, record| record.last_active >= median);
    }

    /// Ends since the start; no bytes.
    pub(super) fn counts(&self) -> Tally {
        self.counts
    }

    pub(super) fn recent(&self) -> Recent {
        Recent { ended: self.ended.iter().cloned().collect(), problems: self.problems.iter().cloned().collect() }
    }

    pub(super) fn destinations(&self) -> BTreeMap<DestinationId, DestinationRecord> {
        self.destinations.iter().map(|(id, record)| (id.clone(), record.clone())).collect()
    }
}

fn push(list: &mut VecDeque<EndedTransfer>, ended: EndedTransfer) {
    list.push_front(ended);
    list.truncate(KEPT);
}

#[cfg(test)]
mod tests;
