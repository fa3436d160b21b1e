//! Path of one job through the worker: decode, claim, acquire, attempt, plan, settle. Each station
//! owns its state, and none is visited twice.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::activity::Activity;
use super::admission::{Admission, Permit};
use super::attempt::{Attempts, OwnedJob};
use super::check::{CHECK_TYPE, Checks};
use super::decode::{DecodedJob, Decoder};
use super::generations::Generations;
use super::in_flight::{AttemptId, Claim, InFlight, InFlightJob, JobEnd, JobOwner, Joined};
use super::lease::{AttemptState, LeaseStatus};
use super::parts::WorkerParts;
use super::reports::FleetReports;
use super::settle::JobSettler;
use super::settlement::{self, Conclusion, SettlementContext, SettlementPlan};
use crate::domain::control::ControlCommand;
use crate::domain::destination::DestinationIdentity;
use crate::domain::lane::Lane;
use crate::domain::outcome::{Class, History, OutcomeKind, RetryPolicy};
use crate::metrics::DeferCause;
use crate::queue::{Delivery, OutcomeEvent, Settlement};
use crate::runtime::failpoints;
use crate::telemetry::spans;
use crate::upload::StopSignals;

/// Word in traces for the end of a delivery whose job another delivery owns.
const JOINED_OUTCOME: &str = "joined";

/// Runs jobs. Built once, shared by all tasks.
#[derive(Debug)]
pub(super) struct Runner {
    parts: Arc<WorkerParts>,
    decoder: Arc<Decoder>,
    /// Jobs that run in this worker, and those that were delivered.
    pub(super) in_flight: Arc<InFlight>,
    admission: Arc<Admission>,
    generations: Arc<Generations>,
    attempts: Attempts,
    settler: Arc<JobSettler>,
    checks: Checks,
    reports: FleetReports,
    policy: RetryPolicy,
    stop: StopSignals,
}

impl Runner {
    pub(super) fn new(
        parts: &Arc<WorkerParts>,
        admission: Arc<Admission>,
        generations: Arc<Generations>,
        activity: Arc<Activity>,
        reports: FleetReports,
        stop: StopSignals,
    ) -> Self {
        let decoder = Arc::new(Decoder::new(parts.destinations.clone(), parts.inline.clone()));
        let settler = Arc::new(JobSettler { parts: parts.clone(), activity: activity.clone() });
        Self {
            checks: Checks {
                parts: parts.clone(),
                decoder: decoder.clone(),
                admission: admission.clone(),
                settler: settler.clone(),
                cancel: stop.cancel.clone(),
            },
            in_flight: InFlight::new(),
            reports,
            attempts: Attempts {
                parts: parts.clone(),
                admission: admission.clone(),
                generations: generations.clone(),
                activity,
            },
            policy: RetryPolicy {
                max_attempts: parts.config.max_attempts.get(),
                denied_for: parts.denied_for,
                max_deferral_age: RetryPolicy::MAX_DEFERRAL_AGE,
            },
            parts: parts.clone(),
            decoder,
            admission,
            generations,
            settler,
            stop,
        }
    }

    /// Handles one delivery until it is settled.
    pub(super) async fn handle(self: Arc<Self>, delivery: Delivery, permit: Permit) {
        failpoints::hit("taken");
        if delivery.properties.kind.as_deref() == Some(CHECK_TYPE) {
            return self.checks.run(delivery, permit).await;
        }
        let job = match self.decoder.decode(&delivery) {
            Ok(job) => job,
            Err(rejection) => {
                // Waiting for the broker needs no slot.
                drop(permit);
                return self.settler.reject(delivery, *rejection).await;
            }
        };
        let trace = self.settler.trace(&delivery, Some(job.job.id.as_str()), Some(&job.destination.id));
        match self.in_flight.claim(AttemptId::of(&job), self.parts.now()) {
            Claim::Owned(owner) => trace.run(self.run(delivery, &job, owner, permit)).await,
            Claim::Delivered(event) => {
                drop(permit);
                trace.run(self.answer_again(delivery, &job, event.as_deref())).await;
            }
            Claim::Duplicate { job: in_flight, same } => {
                drop(permit);
                trace.run(self.join(&in_flight, same, delivery, &job)).await;
            }
        }
    }

    /// Runs a job that this delivery owns: acquire, attempt, plan, settle.
    async fn run(&self, mut delivery: Delivery, job: &DecodedJob, owner: JobOwner, permit: Permit) {
        // A duplicate may replace the delivery: the outcome answers the first one.
        let (lane, properties) = (delivery.lane, delivery.properties.clone());
        let acquired = self.admission.acquire(&delivery, job, permit).await;
        let started_at = self.parts.now();
        let state = AttemptState::new(&delivery, job, &self.stop, started_at);
        let (conclusion, attempt) = match acquired {
            Ok(permit) => {
                self.count_wait(&delivery, job, started_at);
                let owned = OwnedJob { job, owner: &owner, state: &state };
                let (result, facts) = self.attempts.run(&mut delivery, owned, permit).await;
                self.settler.abort_outdated(&state, &job.destination).await;
                (Conclusion::Attempted(result), Some(facts))
            }
            Err(deferral) => (Conclusion::Deferred(deferral), None),
        };
        let context = SettlementContext {
            prefix: &self.parts.prefix,
            policy: &self.policy,
            lane,
            properties: &properties,
            job,
            started_at,
            now: attempt.as_ref().map_or(started_at, |facts| facts.finished_at),
            took: attempt.as_ref().map_or(Duration::ZERO, |facts| facts.took),
            next_probe: attempt.as_ref().and_then(|facts| facts.next_probe),
            last_success_at: self.admission.last_success_at(&job.destination.identity),
            lease: state.lease_context(),
        };
        let plan = settlement::plan(&context, conclusion);
        self.settler.record(&context, &plan, attempt.as_ref().map(|facts| &*facts.progress));
        let owned = OwnedJob { job, owner: &owner, state: &state };
        let end = self.settle(delivery, plan, owned, attempt.is_some()).await;
        owner.release(end);
        // The quarantine lasts until the delivery is settled.
        drop(attempt.and_then(|facts| facts.quarantine));
    }

    /// Settles a job, and returns its end for the duplicates.
    async fn settle(&self, delivery: Delivery, plan: SettlementPlan, owned: OwnedJob<'_>, attempted: bool) -> JobEnd {
        let OwnedJob { job, owner, state } = owned;
        let delivered = plan.outcome.as_ref().filter(|outcome| outcome.kind == OutcomeKind::Delivered);
        let delivered = delivered.inspect(|outcome| owner.delivered(outcome.event.clone())).is_some();
        // A lease may reach another worker although its job has ended here.
        let leased = state.lease_state() != LeaseStatus::Absent;
        if delivered && leased {
            self.reports.send(ControlCommand::JobDelivered(owner.run().digest()));
        }
        self.record_deferral(&job.destination.identity, &plan);
        if let Some(written) = job.written().filter(|_| plan.may_write_later()) {
            self.generations.announce(written).await;
        }
        if let Some(written) = job.written().filter(|_| plan.superseded_by.is_some()) {
            self.generations.report_superseding(written).await;
        }
        owner.settling();
        let end = job_end(&plan, state);
        let settled = self.settler.perform(delivery, plan, state, &job.destination).await;
        if delivered && !settled && !leased {
            // The message is redelivered, and perhaps to another worker.
            self.reports.send(ControlCommand::JobDelivered(owner.run().digest()));
        }
        if attempted && (!settled || state.lease_state() == LeaseStatus::Lost) {
            self.settler.abort_unrecorded(state, &job.destination).await;
        }
        if let Some(written) = job.written().filter(|_| attempted && !settled) {
            self.generations.announce_redelivery(written).await;
        }
        if settled { end } else { JobEnd::Open }
    }

    /// Informs admission of a deferred job.
    fn record_deferral(&self, destination: &DestinationIdentity, plan: &SettlementPlan) {
        let Settlement::Defer { delay, .. } = plan.settlement else { return };
        if plan.failure.as_ref().is_some_and(|failure| failure.class() == Class::Destination) {
            self.admission.recovery.record_delayed(destination, delay);
        }
        if matches!(plan.deferred, Some(DeferCause::Concurrency | DeferCause::Rate)) {
            self.admission.record_limited(destination, delay);
        }
    }

    /// Answers a job that was delivered before: only its outcome is published, to the new
    /// requester.
    async fn answer_again(&self, delivery: Delivery, job: &DecodedJob, event: Option<&OutcomeEvent>) {
        tracing::info!(
            event = "job_answered_again",
            job_id = %job.job.id,
            "the outcome of a delivered job is published again"
        );
        spans::ended(OutcomeKind::Delivered.as_str(), None);
        self.settler.abort_carried(job, None).await;
        let reply_to = settlement::reply_to(&delivery.properties);
        let without_details =
            || settlement::delivered_before(&self.parts.prefix, &delivery.properties, job, self.parts.now());
        let event = OutcomeEvent { reply_to, ..event.cloned().unwrap_or_else(without_details) };
        let settled = self.settler.settle(delivery, Settlement::Ack, vec![event]).await;
        if let Some(written) = job.written().filter(|_| settled) {
            self.generations.delivered_before(written, &job.job.id);
        }
    }

    /// Waits for the owner of a job, though not for ever: a duplicate takes a place of the
    /// prefetch.
    async fn join(&self, in_flight: &InFlightJob, same: bool, delivery: Delivery, job: &DecodedJob) {
        tracing::debug!(event = "job_joined", job_id = %job.job.id, "the job is in flight here; its duplicate waits");
        let upload_id = job.checkpoint().map(|checkpoint| checkpoint.upload_id.as_str());
        let (delivery, end) = match in_flight.join(delivery, same, upload_id).await {
            Joined::Taken => return spans::ended(JOINED_OUTCOME, None),
            Joined::Returned(delivery, end) => (*delivery, end),
        };
        if let Some(JobEnd::Ended(resumed)) = &end {
            self.settler.abort_carried(job, resumed.as_deref()).await;
        }
        let settlement = settlement::of_duplicate(end.as_ref(), upload_id, in_flight.started_at);
        let word = if matches!(settlement, Settlement::Ack) { JOINED_OUTCOME } else { settlement.action() };
        spans::ended(word, None);
        self.settler.settle(delivery, settlement, Vec::new()).await;
    }

    /// Observes how long a job waited for its first attempt.
    fn count_wait(&self, delivery: &Delivery, job: &DecodedJob, now: Timestamp) {
        let first = job.headers.history == History::default() && delivery.lane != Lane::Continued;
        if let Some(created) = job.job.created_at.filter(|_| first) {
            let waited = Duration::try_from(now.duration_since(created)).unwrap_or_default();
            self.parts.metrics.queue_wait(delivery.lane, waited);
        }
    }
}

/// Returns the end of a job for its duplicates, once its plan is performed.
fn job_end(plan: &SettlementPlan, state: &AttemptState) -> JobEnd {
    let upload = || state.lease_context().upload_id.filter(|_| !plan.abort_upload);
    match plan.settlement {
        _ if !plan.is_final => JobEnd::Open,
        Settlement::Retry { .. } | Settlement::Defer { .. } => JobEnd::Continued(upload()),
        _ => JobEnd::Ended(upload()),
    }
}
