//! Plans the settlement of a delivery: one pure function from context to plan. Nothing rewrites a
//! plan.

mod outcome;
mod plan;

use std::time::Duration;

use jiff::Timestamp;

use super::admission::Deferral;
use super::decode::{DecodedJob, Rejection};
use super::history;
use super::in_flight::JobEnd;
use super::lease::{CopyBody, LeaseSnapshot, LeaseStatus};
use crate::domain::headers::{DESTINATION, Headers, JobHeaders};
use crate::domain::lane::Lane;
use crate::domain::outcome::{
    DecisionContext, Disposition, Failure, OutcomeData, OutcomeKind, Reason, RetryDelay, RetryPolicy, SUPERSEDED,
    SupersededBy, TransferResult, Wait, decide,
};
use crate::metrics::DeferCause;
use crate::queue::{OutcomeEvent, Properties, Settlement};
pub(super) use outcome::reply_to;
use outcome::{EventSource, data_of, delivered, with_failure};
pub(super) use plan::SettlementPlan;

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

/// Plans the settlement of a duplicate, which may carry an upload, by the end of its job. `None` is
/// a job that did not end in time.
pub(super) fn of_duplicate(end: Option<&JobEnd>, carried: Option<&str>, started_at: Timestamp) -> Settlement {
    match end {
        Some(JobEnd::Ended(_)) => Settlement::Ack,
        Some(JobEnd::Continued(resumed)) if carried.is_none_or(|id| resumed.as_deref() == Some(id)) => Settlement::Ack,
        Some(JobEnd::Open) => Settlement::Requeue,
        // Another worker may be at the upload that it carries, so it is neither aborted nor forgotten.
        Some(JobEnd::Continued(_)) | None => {
            Settlement::Defer { delay: RetryDelay::S30, headers: history::started_at(started_at) }
        }
    }
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
            Deferral::Limited(limited) => match self.decision(None).defer(Wait::Permit(limited.wait)) {
                Disposition::Defer(delay) => SettlementPlan { deferred: Some(limited.cause), ..self.next_turn(delay) },
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

#[cfg(test)]
mod tests;
