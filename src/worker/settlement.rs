//! Plans the settlement of a delivery: one pure function from context to plan. Nothing rewrites a
//! plan.

use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;

use super::admission::Deferral;
use super::decode::{DecodedJob, Rejection};
use super::history;
use super::lease::{CopyBody, LeaseSnapshot, LeaseStatus};
use crate::domain::destination::DestinationId;
use crate::domain::generation::NewerDelivery;
use crate::domain::headers::{DESTINATION, ERROR_REASON, Headers, JobHeaders};
use crate::domain::lane::Lane;
use crate::domain::outcome::{
    DecisionContext, Disposition, Failure, OutcomeData, OutcomeKind, Reason, Receipt, RetryDelay, RetryPolicy,
    SUPERSEDED, SupersededBy, TransferResult, Wait, decide, event_id, render,
};
use crate::domain::routing_key;
use crate::metrics::DeferCause;
use crate::queue::{OutcomeEvent, Properties, Settlement};

/// Expected time until the end of another job's write of the same object.
const OBJECT_BUSY_WAIT: Duration = Duration::from_secs(10);

/// End of a job's stay in this worker.
#[derive(Debug)]
pub(super) enum Conclusion {
    /// An attempt was made.
    Attempted(TransferResult),
    /// The job did not start.
    Deferred(Deferral),
}

/// Everything that a plan depends on beside the conclusion.
#[derive(Debug, Clone)]
pub(super) struct SettlementContext<'a> {
    /// `broker.prefix`: the source of outcomes.
    pub(super) prefix: &'a str,
    pub(super) policy: &'a RetryPolicy,
    pub(super) lane: Lane,
    pub(super) properties: &'a Properties,
    pub(super) job: &'a DecodedJob,
    pub(super) started_at: Timestamp,
    pub(super) now: Timestamp,
    pub(super) took: Duration,
    /// Time until the destination's next probe, when its circuit breaker is open.
    pub(super) next_probe: Option<Duration>,
    /// Last success of the destination, as far as it is known.
    pub(super) last_success_at: Option<Timestamp>,
    pub(super) lease: LeaseSnapshot,
}

/// Plan for a delivery. It is performed once, by value.
#[derive(Debug)]
pub(super) struct SettlementPlan {
    pub(super) settlement: Settlement,
    /// Body of the copy that the settlement publishes.
    pub(super) body: CopyBody,
    /// True if the unfinished upload must be aborted: nobody will resume it.
    pub(super) abort_upload: bool,
    /// Outcome to publish before the acknowledgement.
    pub(super) outcome: Option<PlannedOutcome>,
    /// Failure behind the plan.
    pub(super) failure: Option<Failure>,
    /// Reason under which a failed attempt is counted.
    pub(super) counted: Option<Reason>,
    /// Cause under which a deferral is counted.
    pub(super) deferred: Option<DeferCause>,
    /// Newer generation of the object that was delivered, if the job is skipped because of it.
    pub(super) superseded_by: Option<NewerDelivery>,
    /// True if the job is done here for good, so that duplicates are acknowledged.
    pub(super) is_final: bool,
}

/// Outcome of a job.
#[derive(Debug)]
pub(super) struct PlannedOutcome {
    pub(super) kind: OutcomeKind,
    /// Stored bytes of a delivery.
    pub(super) bytes: u64,
    pub(super) event: OutcomeEvent,
}

/// Plans the settlement of a job.
pub(super) fn plan(context: &SettlementContext<'_>, conclusion: Conclusion) -> SettlementPlan {
    match conclusion {
        Conclusion::Attempted(TransferResult::Failed(failure)) => context.failed(failure),
        Conclusion::Attempted(result) => context.ended(result, true),
        Conclusion::Deferred(deferral) => context.deferred(deferral),
    }
}

/// Plans the settlement of a message that is no job for this worker: it is dead-lettered at once.
/// The outcome needs an id and a destination that can be read.
pub(super) fn reject(prefix: &str, properties: &Properties, rejection: &Rejection, now: Timestamp) -> SettlementPlan {
    let headers = JobHeaders::parse(&properties.headers);
    let mut history = headers.history.clone();
    history.attempts = history.attempts.saturating_add(1);
    let failure = &rejection.failure;
    let outcome = rejection.job_id.as_ref().zip(rejection.destination.as_ref()).map(|(job_id, destination)| {
        let data = OutcomeData {
            job_id: job_id.to_string(),
            destination: destination.to_string(),
            attempts: history.attempts,
            finished_at: Some(now),
            labels: rejection.labels.clone(),
            ..OutcomeData::default()
        };
        let identity = rejection.event_identity.clone();
        let source = EventSource { prefix, destination, identity, headers: &headers, properties, now };
        source.outcome(OutcomeKind::Failed, with_failure(data, failure))
    });
    let settlement =
        Settlement::DeadLetter { headers: history::of_dead_letter(&history, failure.reason, failure, now) };
    SettlementPlan { outcome, failure: Some(failure.clone()), ..SettlementPlan::of(settlement) }
}

/// Returns the outcome of a job that was delivered before, and of which no details are remembered.
pub(super) fn delivered_before(
    prefix: &str,
    properties: &Properties,
    job: &DecodedJob,
    now: Timestamp,
) -> OutcomeEvent {
    let message = "delivered before; the worker no longer has the details";
    let attempts = job.headers.history.attempts.saturating_add(1);
    let data = OutcomeData { attempts, message: Some(message.to_owned()), ..data_of(job) };
    let (destination, identity) = (&job.destination.id, job.destination.identity.to_string());
    let source = EventSource { prefix, destination, identity, headers: &job.headers, properties, now };
    source.outcome(OutcomeKind::Delivered, data).event
}

impl SettlementPlan {
    fn of(settlement: Settlement) -> Self {
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
    pub(super) fn sample(settlement: Settlement, kind: Option<OutcomeKind>, failure: Option<Failure>) -> Self {
        let event =
            || OutcomeEvent { routing_key: String::new(), id: String::new(), body: Bytes::new(), reply_to: None };
        let outcome = kind.map(|kind| PlannedOutcome { kind, bytes: 0, event: event() });
        Self { outcome, failure, ..Self::of(settlement) }
    }

    /// Kind of the outcome, if there is one.
    pub(super) fn kind(&self) -> Option<OutcomeKind> {
        self.outcome.as_ref().map(|outcome| outcome.kind)
    }

    /// Reason of the dead letter, if the plan publishes one.
    pub(super) fn dead_letter_reason(&self) -> Option<Reason> {
        match &self.settlement {
            Settlement::DeadLetter { headers } => Reason::parse(headers.get(ERROR_REASON)?),
            _ => None,
        }
    }

    /// Word for log lines and traces: the outcome, else the settlement's action. A job that another
    /// worker continues counts as returned, whether it is requeued, handed off or lost.
    pub(super) fn word(&self) -> &'static str {
        match self.kind() {
            Some(kind) => kind.as_str(),
            None if self.is_final => self.settlement.action(),
            None => Settlement::Requeue.action(),
        }
    }

    /// Returns true if the job may write its object after others that came later.
    pub(super) fn may_write_later(&self) -> bool {
        !matches!(self.settlement, Settlement::Ack | Settlement::Requeue)
    }

    /// Delay of the copy, if one waits.
    pub(super) fn delay(&self) -> Option<RetryDelay> {
        match &self.settlement {
            Settlement::Retry { delay, .. } | Settlement::Defer { delay, .. } => Some(*delay),
            _ => None,
        }
    }
}

impl SettlementContext<'_> {
    fn failed(&self, failure: Failure) -> SettlementPlan {
        let disposition = decide(&failure, &self.job.headers.history, self.policy, &self.decision(None));
        let reason = match disposition {
            Disposition::DeadLetter(Reason::Exhausted) => Reason::Exhausted,
            _ => failure.reason,
        };
        SettlementPlan { counted: Some(reason), ..self.disposed(disposition, failure, true) }
    }

    fn deferred(&self, deferral: Deferral) -> SettlementPlan {
        match deferral {
            Deferral::Unhealthy { failure, next_probe } => {
                let context = DecisionContext { next_probe: Some(next_probe), ..self.decision(self.last_success_at) };
                let disposition = decide(&failure, &self.job.headers.history, self.policy, &context);
                self.disposed(disposition, *failure, false)
            }
            Deferral::Limited { wait, cause } => match self.decision(None).defer(Wait::Permit(wait)) {
                Disposition::Defer(delay) => SettlementPlan { deferred: Some(cause), ..self.next_turn(delay) },
                _ => self.ended(TransferResult::Expired, false),
            },
            Deferral::Quarantined => self.next_turn(RetryDelay::S30),
            Deferral::Cancelled(backfill) => self.ended(TransferResult::Cancelled(backfill), false),
            Deferral::Superseded(newer) => self.ended(TransferResult::Superseded(newer), false),
            Deferral::ObjectBusy => self.ended(TransferResult::ObjectBusy, false),
            Deferral::Stopped => SettlementPlan::of(Settlement::Requeue),
        }
    }

    fn decision(&self, last_success_at: Option<Timestamp>) -> DecisionContext {
        DecisionContext {
            now: self.now,
            expires_at: self.job.job.expires_at,
            next_probe: self.next_probe,
            last_success_at,
        }
    }

    /// Plan for a result that is no failure, and for an expired job.
    fn ended(&self, result: TransferResult, attempted: bool) -> SettlementPlan {
        let data =
            OutcomeData { attempts: self.job.headers.history.attempts.saturating_add(attempted.into()), ..self.data() };
        match result {
            TransferResult::Delivered(receipt) => {
                let bytes = receipt.bytes;
                let mut plan = self.terminal(OutcomeKind::Delivered, delivered(data, receipt), Settlement::Ack);
                if let Some(outcome) = &mut plan.outcome {
                    outcome.bytes = bytes;
                }
                plan
            }
            TransferResult::Skipped => self.terminal(OutcomeKind::Skipped, data, Settlement::Ack),
            TransferResult::Cancelled(backfill) => {
                let message = Some(format!("the backfill {backfill} was cancelled before this job began"));
                self.terminal(OutcomeKind::Skipped, OutcomeData { message, ..data }, Settlement::Ack)
            }
            TransferResult::Superseded(newer) => {
                let data = OutcomeData {
                    reason: Some(SUPERSEDED.to_owned()),
                    message: Some(format!("a newer generation of this object was delivered: {newer}")),
                    superseded_by: Some(SupersededBy { job_id: newer.job.to_string(), generation: newer.generation }),
                    ..data
                };
                let plan = self.terminal(OutcomeKind::Skipped, data, Settlement::Ack);
                SettlementPlan { superseded_by: Some(newer), ..plan }
            }
            TransferResult::ObjectBusy => self.object_busy(attempted),
            TransferResult::Expired => {
                self.expired(self.job.headers.last_failure.clone(), self.job.headers.history.attempts)
            }
            TransferResult::Failed(failure) => self.failed(failure),
        }
    }

    /// Plan for a job whose object another job writes now. An upload that is open is kept.
    fn object_busy(&self, attempted: bool) -> SettlementPlan {
        let Disposition::Defer(delay) = self.decision(None).defer(Wait::Permit(OBJECT_BUSY_WAIT)) else {
            return self.ended(TransferResult::Expired, false);
        };
        let plan = SettlementPlan { deferred: Some(DeferCause::Concurrency), ..self.next_turn(delay) };
        match plan.settlement {
            Settlement::Defer { delay, headers } if attempted => SettlementPlan {
                body: CopyBody::Checkpoint,
                settlement: Settlement::Defer { delay, headers: self.copy_headers(headers) },
                ..plan
            },
            settlement => SettlementPlan { settlement, ..plan },
        }
    }

    /// Plan for a decision about a failure. A job that was not attempted is the same attempt when
    /// it returns.
    fn disposed(&self, disposition: Disposition, failure: Failure, attempted: bool) -> SettlementPlan {
        let before = &self.job.headers.history;
        let after = history::after_failure(before, &failure, attempted, self.now);
        let attempts = before.attempts.saturating_add(attempted.into());
        match disposition {
            Disposition::Retry(delay) => {
                let retry_at = history::time_after(self.now, delay.duration());
                let data = OutcomeData { attempts, retry_at, ..self.data() };
                let headers = self.copy_headers(history::of_waiting_copy(&after, &failure, self.now));
                SettlementPlan {
                    body: CopyBody::Checkpoint,
                    outcome: Some(self.source().outcome(OutcomeKind::Retrying, with_failure(data, &failure))),
                    failure: Some(failure),
                    ..SettlementPlan::of(Settlement::Retry { delay, headers })
                }
            }
            Disposition::Defer(delay) => {
                let mut headers = history::of_waiting_copy(&after, &failure, self.now);
                headers.insert(DESTINATION.to_owned(), self.job.destination.identity.to_string());
                if (after.attempts, after.deferrals) == (before.attempts, before.deferrals) {
                    // A copy must never be taken for its original.
                    headers.extend(history::next_turn(&self.job.headers));
                }
                let (headers, body) = if attempted {
                    (self.copy_headers(headers), CopyBody::Checkpoint)
                } else {
                    (headers, CopyBody::AsDelivered)
                };
                SettlementPlan {
                    body,
                    failure: Some(failure),
                    deferred: Some(DeferCause::Circuit),
                    ..SettlementPlan::of(Settlement::Defer { delay, headers })
                }
            }
            Disposition::DeadLetter(reason) => {
                let mut headers = history::of_dead_letter(&after, reason, &failure, self.now);
                // It may be requeued: then the object may have been written since the first attempt.
                headers.extend(history::started_at(self.lease.first_started_at));
                let data = OutcomeData { attempts, ..self.data() };
                let data = with_failure(data, &Failure { reason, ..failure.clone() });
                let plan = self.terminal(OutcomeKind::Failed, data, Settlement::DeadLetter { headers });
                SettlementPlan { failure: Some(failure), ..plan }
            }
            Disposition::Expire => self.expired(Some(failure), after.attempts),
            Disposition::Requeue => SettlementPlan { failure: Some(failure), ..self.requeue(attempted) },
        }
    }

    /// Plan for a job that is continued elsewhere. Nothing of a lost lease is ours any more: its
    /// holder has the job, or it arrived here and joined this job, and is then all that is left of
    /// it.
    fn requeue(&self, attempted: bool) -> SettlementPlan {
        match self.lease.state {
            LeaseStatus::Lost => SettlementPlan { is_final: false, ..SettlementPlan::of(Settlement::Ack) },
            LeaseStatus::Held => self.hand_off(),
            LeaseStatus::Absent if attempted && self.lease.upload_id.is_some() => self.hand_off(),
            LeaseStatus::Absent => SettlementPlan::of(Settlement::Requeue),
        }
    }

    fn hand_off(&self) -> SettlementPlan {
        let settlement = Settlement::HandOff { headers: self.copy_headers(Headers::new()) };
        SettlementPlan { body: CopyBody::Checkpoint, ..SettlementPlan::of(settlement) }
    }

    /// Plan for a job that did not start and waits uncharged.
    fn next_turn(&self, delay: RetryDelay) -> SettlementPlan {
        SettlementPlan::of(Settlement::Defer { delay, headers: history::next_turn(&self.job.headers) })
    }

    /// Plan for an expired job. `attempts` is the number of charged attempts, which may be none.
    fn expired(&self, last: Option<Failure>, attempts: u32) -> SettlementPlan {
        let data = OutcomeData { attempts, ..self.data() };
        let data = last.as_ref().map_or_else(|| data.clone(), |failure| with_failure(data.clone(), failure));
        SettlementPlan { failure: last, ..self.terminal(OutcomeKind::Expired, data, Settlement::Ack) }
    }

    /// Plan for the end of a job. Its upload is aborted, unless another worker continues it.
    fn terminal(&self, kind: OutcomeKind, data: OutcomeData, settlement: Settlement) -> SettlementPlan {
        SettlementPlan {
            body: CopyBody::Original,
            abort_upload: self.lease.state != LeaseStatus::Lost,
            outcome: Some(self.source().outcome(kind, data)),
            ..SettlementPlan::of(settlement)
        }
    }

    /// Adds the headers of a copy that is made after an attempt. An attempt that ended, however it
    /// ended, did not crash the worker.
    fn copy_headers(&self, headers: Headers) -> Headers {
        let survived = if self.lease.crashes > 0 { history::crashes(0) } else { Headers::new() };
        headers.into_iter().chain(history::started_at(self.lease.first_started_at)).chain(survived).collect()
    }

    fn data(&self) -> OutcomeData {
        OutcomeData {
            started_at: Some(self.started_at),
            finished_at: Some(self.now),
            duration_seconds: Some(self.took.as_secs_f64()),
            ..data_of(self.job)
        }
    }

    fn source(&self) -> EventSource<'_> {
        EventSource {
            prefix: self.prefix,
            destination: &self.job.destination.id,
            identity: self.job.destination.identity.to_string(),
            headers: &self.job.headers,
            properties: self.properties,
            now: self.now,
        }
    }
}

fn data_of(job: &DecodedJob) -> OutcomeData {
    let DecodedJob { job, destination, .. } = job;
    OutcomeData {
        job_id: job.id.to_string(),
        destination: destination.id.to_string(),
        tenant: destination.tenant.clone(),
        bucket: Some(destination.bucket.to_string()),
        key: destination.prefix.join(job.key.as_str()).ok().map(|key| key.to_string()),
        labels: job.labels.clone(),
        ..OutcomeData::default()
    }
}

fn delivered(data: OutcomeData, receipt: Receipt) -> OutcomeData {
    OutcomeData {
        bytes: Some(receipt.bytes),
        source_bytes: Some(receipt.source_bytes),
        parts: Some(receipt.parts),
        etag: receipt.etag,
        version_id: receipt.version_id,
        checksum_crc64nvme: receipt.checksum_crc64nvme,
        encryption: receipt.encryption,
        resumed: receipt.resumed,
        length_unproven: receipt.length_unproven,
        ..data
    }
}

fn with_failure(data: OutcomeData, failure: &Failure) -> OutcomeData {
    OutcomeData {
        class: Some(failure.class().as_str().to_owned()),
        reason: Some(failure.reason.as_str().to_owned()),
        message: Some(failure.message.clone()),
        hint: Some(failure.hint.clone()).filter(|hint| !hint.is_empty()),
        aws_request_id: failure.aws_request_id.clone(),
        ..data
    }
}

/// Origin of an outcome event.
struct EventSource<'a> {
    prefix: &'a str,
    destination: &'a DestinationId,
    /// Text that stands for the destination in the ids of events.
    identity: String,
    headers: &'a JobHeaders,
    properties: &'a Properties,
    now: Timestamp,
}

impl EventSource<'_> {
    fn outcome(&self, kind: OutcomeKind, data: OutcomeData) -> PlannedOutcome {
        let id = event_id(&self.identity, &data.job_id, self.headers.run, kind, data.attempts);
        let body = render(self.prefix, kind, id.clone(), self.now, self.headers.traceparent.clone(), data);
        let event = OutcomeEvent {
            routing_key: routing_key::outcome(kind.as_str(), self.destination),
            id,
            body: Bytes::from(body),
            reply_to: reply_to(self.properties),
        };
        PlannedOutcome { kind, bytes: 0, event }
    }
}

/// Returns the queue that a copy of the outcome goes to, with its correlation id.
pub(super) fn reply_to(properties: &Properties) -> Option<(String, Option<String>)> {
    properties.reply_to.clone().map(|to| (to, properties.correlation_id.clone()))
}

#[cfg(test)]
mod tests;
