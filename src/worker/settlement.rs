//! From how a transfer ended to what is done about it: the settlement, the outcome event, the counters, the log line.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;

use super::admission::acquire::Away;
use super::history::{self, Headers};
use crate::domain::destination::{Destination, DestinationId};
use crate::domain::job::{Job, JobId, Rejected};
use crate::domain::lane::Lane;
use crate::domain::outcome::{
    Class, Disposition, Failure, History, Moment, OutcomeData, OutcomeKind, Reason, Receipt, RetryPolicy,
    TransferResult, decide, event_id, postpone, render,
};
use crate::metrics::{DeferCause, Metrics};
use crate::queue::{OutcomeEvent, Properties, Settlement};
use crate::upload::Progress;

/// What is done with a delivery.
#[derive(Debug)]
pub(super) struct Verdict {
    pub(super) settlement: Settlement,
    pub(super) event: Option<OutcomeEvent>,
    pub(super) kind: Option<OutcomeKind>,
    /// What went wrong, for the log.
    pub(super) failure: Option<Failure>,
}

/// Everything a verdict is made from beside the end itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Case<'a> {
    pub(super) prefix: &'a str,
    pub(super) policy: &'a RetryPolicy,
    pub(super) lane: Lane,
    pub(super) properties: &'a Properties,
    pub(super) job: &'a Job,
    pub(super) destination: &'a Arc<Destination>,
    pub(super) history: &'a History,
    pub(super) started_at: Timestamp,
    pub(super) now: Timestamp,
    pub(super) took: Duration,
    /// How long it is until the destination is asked again, where its circuit is open.
    pub(super) next_probe: Option<Duration>,
    /// When the destination took something last, as far as that is known.
    pub(super) worked_at: Option<Timestamp>,
    /// Whether an attempt was made.
    pub(super) tried: bool,
}

impl Case<'_> {
    /// Judges the end of a transfer, and counts it.
    pub(super) fn judge(&self, ended: TransferResult, metrics: &Metrics) -> Verdict {
        let now = self.now;
        match ended {
            TransferResult::Delivered(receipt) => {
                metrics.object_delivered(self.lane, &self.destination.id, receipt.bytes);
                self.ended(OutcomeKind::Delivered, self.delivered(receipt), None, Settlement::Ack, metrics)
            }
            TransferResult::Skipped => self.ended(OutcomeKind::Skipped, self.data(now), None, Settlement::Ack, metrics),
            TransferResult::Cancelled(backfill) => {
                let message = Some(format!("the backfill {backfill} was cancelled before this job began"));
                let data = OutcomeData { message, ..self.data(now) };
                self.ended(OutcomeKind::Skipped, data, None, Settlement::Ack, metrics)
            }
            TransferResult::Expired => {
                self.expired(history::last_failure(&self.properties.headers), self.history.attempts, metrics)
            }
            TransferResult::Failed(failure) => self.failed(failure, metrics),
        }
    }

    /// Judges a job that may not begin now. Nothing was tried: no attempt is counted.
    pub(super) fn turned_away(&self, away: Away, metrics: &Metrics) -> Verdict {
        match away {
            Away::Broken(failure, _) => {
                let decision = decide(&failure, self.history, self.policy, &self.moment());
                self.decided(decision, *failure, metrics)
            }
            Away::Full(wait, cause) => match postpone(wait, &self.moment()) {
                Disposition::Defer(delay) => {
                    metrics.deferred(cause);
                    let headers = history::another_turn(&self.properties.headers);
                    let settlement = Settlement::Defer { delay, headers };
                    Verdict { settlement, event: None, kind: None, failure: None }
                }
                _ => self.expired(history::last_failure(&self.properties.headers), self.history.attempts, metrics),
            },
            Away::Cancelled(ended) => self.judge(*ended, metrics),
            Away::Draining => Verdict { settlement: Settlement::Requeue, event: None, kind: None, failure: None },
        }
    }

    fn moment(&self) -> Moment {
        let worked_at = self.worked_at.filter(|_| !self.tried);
        Moment { now: self.now, expires_at: self.job.expires_at, next_probe: self.next_probe, worked_at }
    }

    fn failed(&self, failure: Failure, metrics: &Metrics) -> Verdict {
        let decision = decide(&failure, self.history, self.policy, &self.moment());
        let counted = if decision == Disposition::DeadLetter(Reason::Exhausted) {
            Failure { reason: Reason::Exhausted, ..failure.clone() }
        } else {
            failure.clone()
        };
        metrics.attempt_failed(&self.destination.id, &counted);
        self.decided(decision, failure, metrics)
    }

    fn decided(&self, decision: Disposition, failure: Failure, metrics: &Metrics) -> Verdict {
        let now = self.now;
        let after = self.history_after(&failure, now);
        match decision {
            Disposition::Retry(delay) => {
                metrics.retry(failure.reason);
                let data =
                    OutcomeData { retry_at: history::after(now, delay.duration()), ..self.failure(&failure, now) };
                let headers = history::waiting(&after, &failure, now);
                let event = self.event(OutcomeKind::Retrying, data);
                Verdict {
                    settlement: Settlement::Retry { delay, headers },
                    event: Some(event),
                    kind: Some(OutcomeKind::Retrying),
                    failure: Some(failure),
                }
            }
            Disposition::Defer(delay) => {
                metrics.deferred(DeferCause::Circuit);
                let mut headers = history::waiting(&after, &failure, now);
                if (after.attempts, after.deferrals) == (self.history.attempts, self.history.deferrals) {
                    // A copy must never be taken for its original.
                    headers.extend(history::another_turn(&self.properties.headers));
                }
                Verdict {
                    settlement: Settlement::Defer { delay, headers },
                    event: None,
                    kind: None,
                    failure: Some(failure),
                }
            }
            Disposition::DeadLetter(reason) => {
                let headers = history::dead(&after, reason, &failure, now);
                let data = self.failure(&Failure { reason, ..failure.clone() }, now);
                self.ended(OutcomeKind::Failed, data, Some(failure), Settlement::DeadLetter { headers }, metrics)
            }
            Disposition::Expired => self.expired(Some(failure), after.attempts, metrics),
            Disposition::Requeue => {
                Verdict { settlement: Settlement::Requeue, event: None, kind: None, failure: Some(failure) }
            }
        }
    }

    /// `attempts` were charged: the last word may have been said without another one.
    fn expired(&self, last: Option<Failure>, attempts: u32, metrics: &Metrics) -> Verdict {
        let data = OutcomeData { attempts, ..self.data(self.now) };
        let data = match &last {
            Some(failure) => with_failure(data, failure),
            None => data,
        };
        self.ended(OutcomeKind::Expired, data, last, Settlement::Ack, metrics)
    }

    fn ended(
        &self,
        kind: OutcomeKind,
        data: OutcomeData,
        failure: Option<Failure>,
        settlement: Settlement,
        metrics: &Metrics,
    ) -> Verdict {
        metrics.transfer_ended(self.lane, kind, &self.destination.id, self.took);
        Verdict { settlement, event: Some(self.event(kind, data)), kind: Some(kind), failure }
    }

    /// The history that a copy of the job carries on.
    /// A job that was not tried is the same attempt when it comes back.
    fn history_after(&self, failure: &Failure, now: Timestamp) -> History {
        let (before, tried) = (self.history, self.tried);
        let charged = tried && !matches!(failure.class(), Class::Destination | Class::Interrupted | Class::Worker);
        let deferred = failure.class() == Class::Destination;
        History {
            attempts: before.attempts.saturating_add(charged.into()),
            deferrals: before.deferrals.saturating_add((tried && deferred).into()),
            defects: before.defects.saturating_add((tried && failure.class() == Class::Defect).into()),
            first_failure_at: before.first_failure_at.or(tried.then_some(now)),
            // Patience is for a destination that stays broken: another end of an attempt shows that it did not.
            deferred_since: before.deferred_since.filter(|_| deferred || !tried).or(deferred.then_some(now)),
        }
    }

    fn data(&self, now: Timestamp) -> OutcomeData {
        OutcomeData {
            job_id: self.job.id.to_string(),
            destination: self.destination.id.to_string(),
            tenant: self.destination.tenant.clone(),
            bucket: Some(self.destination.bucket.to_string()),
            key: self.destination.prefix.join(self.job.key.as_str()).ok().map(|key| key.to_string()),
            attempts: self.history.attempts.saturating_add(self.tried.into()),
            started_at: Some(self.started_at),
            finished_at: Some(now),
            duration_seconds: Some(self.took.as_secs_f64()),
            labels: self.job.labels.clone(),
            ..OutcomeData::default()
        }
    }

    fn delivered(&self, receipt: Receipt) -> OutcomeData {
        OutcomeData {
            bytes: Some(receipt.bytes),
            source_bytes: Some(receipt.source_bytes),
            parts: Some(receipt.parts),
            etag: receipt.etag,
            version_id: receipt.version_id,
            checksum_crc64nvme: receipt.checksum_crc64nvme,
            encryption: receipt.encryption,
            resumed: receipt.resumed,
            ..self.data(self.now)
        }
    }

    fn failure(&self, failure: &Failure, now: Timestamp) -> OutcomeData {
        with_failure(self.data(now), failure)
    }

    fn event(&self, kind: OutcomeKind, data: OutcomeData) -> OutcomeEvent {
        event(self.prefix, kind, &self.destination.id, self.properties, (self.now, data))
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

fn event(
    prefix: &str,
    kind: OutcomeKind,
    destination: &DestinationId,
    properties: &Properties,
    (now, data): (Timestamp, OutcomeData),
) -> OutcomeEvent {
    let id = event_id(&data.job_id, history::run(&properties.headers), kind, data.attempts);
    let trace = properties.headers.get("traceparent").cloned();
    let body = render(prefix, kind, id.clone(), now, trace, data);
    OutcomeEvent {
        routing_key: format!("transfer.{}.{destination}", kind.as_str()),
        id,
        body: Bytes::from(body),
        reply_to: reply_to(properties),
    }
}

/// Who asked for a copy of the outcome.
pub(super) fn reply_to(properties: &Properties) -> Option<(String, Option<String>)> {
    properties.reply_to.clone().map(|to| (to, properties.correlation_id.clone()))
}

/// A message that is no job, or a job for nobody: dead at once. The outcome needs an id and a destination that can be read.
pub(super) fn refused(
    (prefix, now): (&str, Timestamp),
    properties: &Properties,
    failure: Failure,
    job_id: Option<&JobId>,
    destination: Option<&DestinationId>,
    labels: BTreeMap<String, String>,
) -> Verdict {
    let mut history = history::history(&properties.headers);
    history.attempts = history.attempts.saturating_add(1);
    let headers: Headers = history::dead(&history, failure.reason, &failure, now);
    let event = job_id.zip(destination).map(|(job_id, destination)| {
        let data = OutcomeData {
            job_id: job_id.to_string(),
            destination: destination.to_string(),
            attempts: history.attempts,
            finished_at: Some(now),
            labels,
            ..OutcomeData::default()
        };
        event(prefix, OutcomeKind::Failed, destination, properties, (now, with_failure(data, &failure)))
    });
    Verdict {
        settlement: Settlement::DeadLetter { headers },
        event,
        kind: Some(OutcomeKind::Failed),
        failure: Some(failure),
    }
}

/// The failure of a rejected message: its field is named first.
pub(super) fn rejection(rejected: &Rejected) -> Failure {
    Failure::new(rejected.reason, format!("{}: {}", rejected.field, rejected.message))
}

/// One line for each attempt that ended.
pub(super) fn log(case: &Case<'_>, verdict: &Verdict, progress: &Progress) {
    let failure = verdict.failure.as_ref();
    let outcome = verdict.kind.map_or_else(|| verdict.settlement.action(), OutcomeKind::as_str);
    let troubled = failure.is_some_and(|f| !matches!(f.class(), Class::Interrupted));
    macro_rules! line {
        ($level:ident) => {
            tracing::$level!(
                job_id = %case.job.id,
                destination = %case.destination.id,
                lane = case.lane.as_str(),
                outcome,
                bytes = progress.bytes(),
                parts = progress.parts(),
                attempt = case.history.attempts.saturating_add(1),
                seconds = case.took.as_secs_f64(),
                class = failure.map(|f| f.class().as_str()),
                reason = failure.map(|f| f.reason.as_str()),
                cause = failure.map(|f| f.message.as_str()),
                hint = failure.map(|f| f.hint.as_str()).filter(|hint| !hint.is_empty()),
                aws_request_id = failure.and_then(|f| f.aws_request_id.as_deref()),
                traceparent = case.properties.headers.get("traceparent"),
                tracestate = case.properties.headers.get("tracestate"),
                "transfer ended"
            )
        };
    }
    if troubled { line!(warn) } else { line!(info) }
}
