//! Performs settlement plans, and records them: metrics, log line, activity, trace.

use std::sync::Arc;

use tracing::Instrument as _;

use super::activity::Activity;
use super::decode::{DecodedJob, Rejection};
use super::lease::AttemptState;
use super::parts::WorkerParts;
use super::settlement::{self, SettlementContext, SettlementPlan};
use crate::domain::destination::{Destination, DestinationId};
use crate::domain::job::JobId;
use crate::domain::job::lease::Checkpoint;
use crate::domain::outcome::{Class, Failure, OutcomeKind};
use crate::queue::{Delivery, OutcomeEvent, QueueError, Settlement};
use crate::runtime::failpoints;
use crate::telemetry::spans::{self, Trace};
use crate::upload::Progress;

/// Settles deliveries.
#[derive(Debug)]
pub(super) struct JobSettler {
    pub(super) parts: Arc<WorkerParts>,
    pub(super) activity: Arc<Activity>,
}

impl JobSettler {
    /// Returns the place of a delivery in the trace of its job; empty where nothing is known of it.
    pub(super) fn trace(
        &self,
        delivery: &Delivery,
        job_id: Option<&str>,
        destination: Option<&DestinationId>,
    ) -> Trace {
        Trace::of(&spans::MessageAttributes {
            system: self.parts.queue.system(),
            exchange: &self.parts.prefix,
            routing_key: &delivery.routing_key,
            job_id: job_id.unwrap_or_default(),
            destination: destination.map(DestinationId::as_str).unwrap_or_default(),
            headers: &delivery.properties.headers,
        })
    }

    /// Performs a plan: aborts the upload that nobody resumes, publishes outcome and copy,
    /// acknowledges. Returns true if the delivery is settled for certain.
    pub(super) async fn perform(
        &self,
        mut delivery: Delivery,
        plan: SettlementPlan,
        state: &AttemptState,
        destination: &Arc<Destination>,
    ) -> bool {
        state.fill(&mut delivery, plan.body);
        if plan.abort_upload {
            self.abort_open_upload(state, destination, |_| true).await;
        }
        let events = plan.outcome.into_iter().map(|outcome| outcome.event).collect();
        self.settle(delivery, plan.settlement, events).await
    }

    /// Settles a delivery. Returns true if that is certain. A lost delivery is redelivered: the
    /// queue promises it, and it is no fault.
    pub(super) async fn settle(&self, delivery: Delivery, settlement: Settlement, events: Vec<OutcomeEvent>) -> bool {
        let action = settlement.action();
        let span = spans::settle(self.parts.queue.system(), &self.parts.prefix, action);
        let settled = self.parts.queue.settle(delivery, settlement, events).instrument(span.clone()).await;
        match settled {
            Ok(()) => {
                failpoints::hit("settled");
                return true;
            }
            Err(QueueError::Lost) => {
                tracing::info!(
                    event = "delivery_lost",
                    action,
                    next = "it will be redelivered",
                    "a delivery was lost before it was settled"
                );
            }
            Err(error) => tracing::warn!(
                event = "delivery_unsettled",
                action,
                %error,
                next = "it will be redelivered",
                remedy = "check the broker if this repeats",
                "a delivery could not be settled"
            ),
        }
        spans::fail(&span, "unsettled");
        false
    }

    /// Dead-letters a message that is no job for this worker, with the job as it was published.
    pub(super) async fn reject(&self, delivery: Delivery, rejection: Rejection) {
        let (job_id, destination) = (rejection.job_id.as_ref(), rejection.destination.as_ref());
        let id = job_id.map(JobId::as_str).or(delivery.properties.message_id.as_deref());
        let trace = self.trace(&delivery, id, destination);
        trace.run(self.rejected(delivery, rejection)).await;
    }

    async fn rejected(&self, mut delivery: Delivery, mut rejection: Rejection) {
        if let Some(lease) = rejection.lease.take() {
            (delivery.body, delivery.properties.content_type) = (lease.body, lease.content_type);
            if lease.checkpoint.is_some() {
                // Without a destination the upload can't be aborted.
                self.parts.metrics.multipart_orphaned();
            }
        }
        let failure = &rejection.failure;
        let (job_id, destination) = (rejection.job_id.as_ref(), rejection.destination.as_ref());
        self.parts.metrics.decode_failed(delivery.lane, failure.reason);
        tracing::warn!(
            event = "message_rejected",
            job_id = job_id.map(tracing::field::display),
            lane = delivery.lane.as_str(),
            reason = failure.reason.as_str(),
            cause = %failure.message,
            next = "the message is dead-lettered",
            remedy = "correct its producer; `consign dead list` shows the message",
            "message rejected"
        );
        let plan = settlement::reject(&self.parts.prefix, &delivery.properties, &rejection, self.parts.now());
        self.activity.rejected(delivery.lane, &plan, job_id.map(JobId::as_str), destination);
        spans::ended(OutcomeKind::Failed.as_str(), plan.failure.as_ref());
        let events = plan.outcome.into_iter().map(|outcome| outcome.event).collect();
        self.settle(delivery, plan.settlement, events).await;
    }

    /// Counts, logs and shows a plan. A deferral without an outcome is only counted and logged.
    pub(super) fn record(&self, context: &SettlementContext<'_>, plan: &SettlementPlan, progress: Option<&Progress>) {
        self.count(context, plan);
        spans::ended(plan.word(), plan.failure.as_ref());
        if progress.is_none() && plan.outcome.is_none() {
            let (job_id, destination) = (&context.job.job.id, &context.job.destination.id);
            tracing::debug!(
                event = "job_deferred",
                %job_id,
                %destination,
                action = plan.settlement.action(),
                "the job does not start now"
            );
            return;
        }
        let nothing = Progress::default();
        let progress = progress.unwrap_or(&nothing);
        log(context, plan, progress);
        self.activity.ended(context, plan, progress);
    }

    fn count(&self, context: &SettlementContext<'_>, plan: &SettlementPlan) {
        let (lane, destination, metrics) = (context.lane, &context.job.destination.id, &self.parts.metrics);
        if let Some(outcome) = &plan.outcome {
            if outcome.kind == OutcomeKind::Delivered {
                metrics.object_delivered(lane, destination, outcome.bytes);
            }
            if outcome.kind.is_terminal() {
                metrics.transfer_ended(lane, outcome.kind, destination, context.took);
            }
        }
        if let (Some(reason), Some(failure)) = (plan.counted, &plan.failure) {
            metrics.attempt_failed(destination, &Failure { reason, ..failure.clone() });
        }
        if let (Settlement::Retry { .. }, Some(failure)) = (&plan.settlement, &plan.failure) {
            metrics.retry(failure.reason);
        }
        if plan.superseded_by.is_some() {
            metrics.superseded();
        }
        if let Some(cause) = plan.deferred {
            metrics.deferred(cause);
        }
    }

    /// Aborts the uploads that outdated leases of the job record.
    pub(super) async fn abort_outdated(&self, state: &AttemptState, destination: &Arc<Destination>) {
        for checkpoint in state.take_outdated_uploads() {
            self.parts.transport.abort_upload(destination, &checkpoint).await;
        }
    }

    /// Cleans up after an attempt whose delivery may not be settled (the lease is lost, or no copy
    /// was made for certain): aborts an upload that no message records. What a lease records, and
    /// what the delivery carried, is known to the worker that gets it, and may be in use there
    /// already.
    pub(super) async fn abort_unrecorded(&self, state: &AttemptState, destination: &Arc<Destination>) {
        self.abort_outdated(state, destination).await;
        self.abort_open_upload(state, destination, |checkpoint| !state.is_recorded(checkpoint)).await;
    }

    /// Aborts the upload that a delivery carried when its job is done elsewhere, unless it is the
    /// one that is `resumed` there.
    pub(super) async fn abort_carried(&self, job: &DecodedJob, resumed: Option<&str>) {
        if let Some(checkpoint) = job.checkpoint().filter(|checkpoint| resumed != Some(&checkpoint.upload_id)) {
            self.parts.transport.abort_upload(&job.destination, checkpoint).await;
        }
    }

    async fn abort_open_upload(
        &self,
        state: &AttemptState,
        destination: &Arc<Destination>,
        wanted: impl Fn(&Checkpoint) -> bool,
    ) {
        if let Some(checkpoint) = state.open_upload.checkpoint().filter(|checkpoint| wanted(checkpoint)) {
            state.open_upload.close();
            self.parts.transport.abort_upload(destination, &checkpoint).await;
        }
    }
}

/// Logs one line for each attempt, and for each job that ended without one.
fn log(context: &SettlementContext<'_>, plan: &SettlementPlan, progress: &Progress) {
    let (job, failure) = (context.job, plan.failure.as_ref());
    let failed = failure.is_some_and(|failure| !matches!(failure.class(), Class::Interrupted));
    macro_rules! line {
        ($level:ident) => {
            tracing::$level!(
                event = "transfer_ended",
                job_id = %job.job.id,
                destination = %job.destination.id,
                lane = context.lane.as_str(),
                outcome = plan.word(),
                bytes = progress.bytes(),
                parts = progress.parts(),
                attempt = job.headers.history.attempts.saturating_add(1),
                seconds = context.took.as_secs_f64(),
                class = failure.map(|f| f.class().as_str()),
                reason = failure.map(|f| f.reason.as_str()),
                cause = failure.map(|f| f.message.as_str()),
                next = failed.then(|| next(&plan.settlement)),
                remedy = failure.map(|f| f.hint.as_str()).filter(|hint| !hint.is_empty()),
                aws_request_id = failure.and_then(|f| f.aws_request_id.as_deref()),
                traceparent = context.properties.headers.get("traceparent"),
                tracestate = context.properties.headers.get("tracestate"),
                "transfer ended"
            )
        };
    }
    if failed { line!(warn) } else { line!(info) }
}

/// Returns what happens to a job after a failed attempt, for its log line.
fn next(settlement: &Settlement) -> &'static str {
    match settlement {
        Settlement::Ack => "the job is not retried",
        Settlement::Retry { .. } => "the job is retried after a delay",
        Settlement::Defer { .. } => "the job is deferred, and no attempt is charged",
        Settlement::DeadLetter { .. } => "the job is dead-lettered",
        Settlement::HandOff { .. } => "another worker resumes the job",
        Settlement::Requeue => "the job is requeued",
    }
}
