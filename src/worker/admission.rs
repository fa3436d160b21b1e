//! Admission: decides whether a job may start, and who is at fault when one fails.
//!
//! [`Admission::acquire`] gives a job its [`Permit`] or a [`Deferral`]. [`Admission::observe`]
//! learns from the result of each attempt, and is the only place that decides whose fault a failure
//! is: the destination's (circuit breaker), this worker's (health) or everybody's (outage).

mod bounds;
mod circuit;
mod health;
mod limits;
mod outage;
mod permit;
mod release;
mod slots;

use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::cancellations::Cancellations;
use super::decode::DecodedJob;
use super::generations::{Generations, ObjectLocks};
use super::parts::{WorkerClock, WorkerParts};
use super::reports::FleetReports;
use crate::domain::control::BackfillId;
use crate::domain::destination::{Destination, DestinationIdentity};
use crate::domain::fleet::FleetShare;
use crate::domain::generation::NewerDelivery;
use crate::domain::lane::Lane;
use crate::domain::outcome::{Failure, RetryDelay, Symptom, TransferResult};
use crate::domain::routing_key;
use crate::metrics::{DeferCause, Metrics};
use crate::queue::{Delivery, Queue};
use crate::transfer::Transport;
pub use circuit::CircuitView;
pub(super) use circuit::SharedChange;
use circuit::{CircuitBreakers, CircuitState, ObservedAttempt};
use health::WorkerHealth;
pub use limits::WaitingJobs;
use limits::{DestinationLimits, DestinationPermit, IMMINENT_WAIT, LimitDecision};
use outage::{ObservedResult, OutageDetector};
pub(super) use permit::Permit;
use release::{DelayedJobs, DestinationReset};
pub(super) use slots::Slots;

/// Time that a job waits here for its permits. It holds no slot meanwhile, and its delivery is far
/// from any acknowledgement time-out.
const PERMIT_TIMEOUT: Duration = Duration::from_secs(30);
/// Time that a job waits for the end of another one that may be crashing workers.
const QUARANTINE_TIMEOUT: Duration = Duration::from_secs(10);
/// Lost workers from which on a job runs alone.
const QUARANTINE_CRASHES: u32 = 2;

/// Reason why a job does not start now. Nothing was attempted, and nothing is charged.
#[derive(Debug)]
pub(super) enum Deferral {
    /// The circuit breaker is open, or there is an outage.
    Unhealthy {
        /// Failure that the job is deferred with.
        failure: Box<Failure>,
        /// Time until the next probe.
        next_probe: Duration,
    },
    /// The destination has no free permit.
    Limited {
        /// Expected time until one is free.
        wait: Duration,
        cause: DeferCause,
    },
    /// Another job that may be crashing workers runs.
    Quarantined,
    /// The backfill of the job was cancelled.
    Cancelled(BackfillId),
    /// A newer generation of the object was delivered.
    Superseded(NewerDelivery),
    /// Another job of this worker writes the object.
    ObjectBusy,
    /// The worker drains, or has a fault of its own.
    Stopped,
}

/// Result of an attempt after admission has observed it.
#[derive(Debug)]
pub(super) struct ObservedEnd {
    /// The result; a failure that is part of an outage has become one.
    pub(super) result: TransferResult,
    /// Time until the destination's next probe, when its circuit breaker is open.
    pub(super) next_probe: Option<Duration>,
}

/// State of admission, for `/status`.
#[derive(Debug, Default)]
pub struct AdmissionView {
    /// Circuit breakers that are not closed.
    pub circuits: HashMap<DestinationIdentity, CircuitView>,
    /// Last reset, passed connection test or success of each destination.
    pub recovered_at: HashMap<DestinationIdentity, Timestamp>,
    /// Jobs that wait for a permit of their destination.
    pub waiting: HashMap<DestinationIdentity, WaitingJobs>,
    /// Jobs that this worker deferred until their destination recovers, and that have not returned.
    /// Those of other workers, and of the time before this worker's start, are not counted.
    pub awaiting_recovery: HashMap<DestinationIdentity, u32>,
}

/// Admission of one worker.
#[derive(Debug)]
pub(super) struct Admission {
    slots: Slots,
    limits: Arc<DestinationLimits>,
    circuits: Arc<CircuitBreakers>,
    outage: OutageDetector,
    /// Held while calls of our own confirm an outage: results that are suspicious meanwhile wait
    /// for the same verdict.
    confirming: tokio::sync::Mutex<()>,
    health: WorkerHealth,
    quarantine: Arc<Semaphore>,
    delayed: DelayedJobs,
    cancellations: Arc<Cancellations>,
    generations: Arc<Generations>,
    objects: ObjectLocks,
    queue: Arc<dyn Queue>,
    transport: Arc<dyn Transport>,
    metrics: Arc<Metrics>,
    clock: WorkerClock,
    /// Cancelled when the worker drains.
    draining: CancellationToken,
}

impl Admission {
    pub(super) fn new(
        parts: &WorkerParts,
        (cancellations, generations): (Arc<Cancellations>, Arc<Generations>),
        reports: FleetReports,
        draining: CancellationToken,
    ) -> Self {
        parts.metrics.set_fleet_workers(FleetShare::default().workers);
        Self {
            slots: Slots::new(&parts.config),
            limits: DestinationLimits::new(parts.config.destination_slots, parts.config.slots),
            circuits: CircuitBreakers::new(parts.denied_for, parts.metrics.clone(), reports),
            outage: OutageDetector::default(),
            confirming: tokio::sync::Mutex::default(),
            health: WorkerHealth::default(),
            quarantine: Arc::new(Semaphore::new(1)),
            delayed: DelayedJobs::new(),
            cancellations,
            generations,
            objects: ObjectLocks::default(),
            queue: parts.queue.clone(),
            transport: parts.transport.clone(),
            metrics: parts.metrics.clone(),
            clock: parts.clock,
            draining,
        }
    }

    /// Slots of the worker.
    pub(super) fn slots(&self) -> &Slots {
        &self.slots
    }

    /// Waits until the worker is healthy enough for another job. See
    /// [`WorkerHealth::ready_for_job`].
    pub(super) async fn ready_for_job(&self) -> Option<OwnedSemaphorePermit> {
        self.health.ready_for_job().await
    }

    /// Returns why this worker does not consume, or only one job at a time.
    pub(super) fn fault(&self) -> Option<String> {
        self.health.fault()
    }

    /// Stops consumption for good.
    pub(super) fn drain(&self) {
        self.health.drain();
    }

    /// Resolves while the worker has a fault of its own.
    pub(super) async fn sick(&self) {
        self.health.sick().await;
    }

    /// Returns true while the worker has a fault of its own.
    pub(super) fn is_sick(&self) -> bool {
        self.health.is_sick()
    }

    /// Acquires everything that a job needs to start, within [`PERMIT_TIMEOUT`]. While the job
    /// waits, `permit` releases its slot. A worker with a fault of its own starts nothing but its
    /// probe.
    pub(super) async fn acquire(
        &self,
        delivery: &Delivery,
        job: &DecodedJob,
        permit: Permit,
    ) -> Result<Permit, Deferral> {
        let is_probe = permit.is_sole();
        let unfit = async {
            if is_probe {
                std::future::pending::<()>().await;
            }
            self.sick().await;
        };
        tokio::select! {
            biased;
            () = unfit => Err(Deferral::Stopped),
            acquired = timeout(PERMIT_TIMEOUT, self.acquire_permits(delivery, job, permit)) => {
                acquired.unwrap_or_else(|_| Err(self.limited(&job.destination.identity)))
            }
        }
    }

    async fn acquire_permits(
        &self,
        delivery: &Delivery,
        job: &DecodedJob,
        mut permit: Permit,
    ) -> Result<Permit, Deferral> {
        permit.quarantine = self.quarantine(job.headers.crashes).await?;
        if let Some(backfill) = self.cancellations.covering(&job.headers) {
            return Err(Deferral::Cancelled(backfill));
        }
        let id = &job.destination.identity;
        self.acquire_object(job, &mut permit).await?;
        if let Some((failure, pause)) = self.outage.defers(id) {
            self.unless_draining(sleep(pause)).await?;
            return Err(Deferral::Unhealthy { failure: Box::new(failure), next_probe: Duration::ZERO });
        }
        self.ask_circuit(id, &mut permit).await?;
        if routing_key::published_lane(&delivery.routing_key) == Lane::Backfill && permit.backfill.is_none() {
            // The ceiling holds for backfills that another worker started, too. It comes first, as no
            // other job waits for it.
            permit.release_slot();
            permit.backfill = self.in_time(id, self.slots.claim_backfill()).await?;
        }
        let waited = self.acquire_limits(&job.destination, delivery.lane, &mut permit).await?;
        // The breaker may have opened meanwhile.
        if waited && permit.probe.is_none() {
            self.ask_circuit(id, &mut permit).await?;
        }
        Ok(permit)
    }

    /// Waits until no other job of this worker writes the same object. Such a job holds no slot
    /// meanwhile, and is no late one because of it.
    async fn acquire_object(&self, job: &DecodedJob, permit: &mut Permit) -> Result<(), Deferral> {
        let Some(written) = job.written() else { return Ok(()) };
        let mut guard = self.objects.try_lock(written.object);
        if guard.is_none() {
            permit.release_slot();
            let waiting = timeout(PERMIT_TIMEOUT / 2, self.objects.lock(written.object));
            guard = self.unless_draining(waiting).await?.ok();
        }
        permit.object = Some(guard.ok_or(Deferral::ObjectBusy)?);
        self.generations.newer_than(written).map_or(Ok(()), |newer| Err(Deferral::Superseded(newer)))
    }

    /// Acquires the destination's permit and a slot. Returns true if the job waited for the first.
    async fn acquire_limits(
        &self,
        destination: &Destination,
        lane: Lane,
        permit: &mut Permit,
    ) -> Result<bool, Deferral> {
        let (granted, waited) = match self.limits.acquire(destination, lane) {
            LimitDecision::Granted(granted) => (granted, false),
            LimitDecision::Imminent(granted) => {
                (self.granted(&destination.identity, IMMINENT_WAIT * 2, granted).await?, true)
            }
            LimitDecision::Queued(granted) => {
                permit.release_slot();
                (self.granted(&destination.identity, PERMIT_TIMEOUT, granted).await?, true)
            }
            LimitDecision::Deferred(deferred) => {
                return Err(Deferral::Limited { wait: deferred.wait, cause: deferred.cause });
            }
        };
        let granted = permit.destination.insert(granted);
        if permit.slot.is_none() {
            permit.slot = self.in_time(&destination.identity, self.slots.claim_slot()).await?;
            granted.restart();
        }
        Ok(waited)
    }

    /// Jobs over which workers were lost more than once run one at a time, so that the one which
    /// crashes them is distinguished from the others. No job waits long for that with a slot in
    /// hand.
    async fn quarantine(&self, crashes: u32) -> Result<Option<OwnedSemaphorePermit>, Deferral> {
        if crashes < QUARANTINE_CRASHES {
            return Ok(None);
        }
        let acquired = timeout(QUARANTINE_TIMEOUT, self.quarantine.clone().acquire_owned()).await;
        acquired.map(Result::ok).map_err(|_| Deferral::Quarantined)
    }

    async fn ask_circuit(&self, destination: &DestinationIdentity, permit: &mut Permit) -> Result<(), Deferral> {
        let state = if self.circuits.is_probe_due(destination) {
            self.circuits.claim(destination, &*self.queue, (self.clock)()).await
        } else {
            self.circuits.state(destination)
        };
        match state {
            CircuitState::Closed => Ok(()),
            CircuitState::HalfOpen(probe) => {
                permit.probe = Some(probe);
                Ok(())
            }
            CircuitState::Open { failure, next_probe } => Err(Deferral::Unhealthy { failure, next_probe }),
        }
    }

    async fn granted(
        &self,
        destination: &DestinationIdentity,
        limit: Duration,
        granted: oneshot::Receiver<DestinationPermit>,
    ) -> Result<DestinationPermit, Deferral> {
        let granted = self.unless_draining(timeout(limit, granted)).await?;
        granted.ok().and_then(Result::ok).ok_or_else(|| self.limited(destination))
    }

    async fn in_time<T>(
        &self,
        destination: &DestinationIdentity,
        claim: impl Future<Output = T>,
    ) -> Result<T, Deferral> {
        let claimed = self.unless_draining(timeout(PERMIT_TIMEOUT, claim)).await?;
        claimed.map_err(|_| self.limited(destination))
    }

    fn limited(&self, destination: &DestinationIdentity) -> Deferral {
        let deferred = self.limits.deferral(destination);
        Deferral::Limited { wait: deferred.wait, cause: deferred.cause }
    }

    async fn unless_draining<T>(&self, waiting: impl Future<Output = T>) -> Result<T, Deferral> {
        tokio::select! {
            biased;
            () = self.draining.cancelled() => Err(Deferral::Stopped),
            done = waiting => Ok(done),
        }
    }

    /// Observes that S3 accepted data of an attempt: no other job waits for the end of this probe.
    pub(super) fn destination_accepts(&self, destination: &Arc<Destination>, permit: &mut Permit) {
        self.circuits.succeeded(&destination.identity, (self.clock)());
        self.outage.succeeded(destination, self.metrics.roles_assumed());
        if !self.outage.is_outage() {
            self.health.recover();
            permit.sole = None;
        }
    }

    /// Observes the result of an attempt, and decides who is at fault: everybody, this worker, or
    /// the destination.
    pub(super) async fn observe(&self, job: &DecodedJob, probe: Option<u64>, result: TransferResult) -> ObservedEnd {
        let destination = &job.destination.identity;
        let result = match self.outage.observe(&job.destination, result, self.metrics.roles_assumed()) {
            ObservedResult::Known(result) => result,
            ObservedResult::Suspicious(result, symptom) => {
                self.confirm_outage(symptom).await;
                self.outage.covered(&job.destination, result)
            }
        };
        // Where STS denies every role, a delivery with a session from before proves nothing.
        let delivered = matches!(result, TransferResult::Delivered(_) | TransferResult::Skipped);
        if (!delivered || !self.outage.is_outage()) && !self.is_about_one_trust_policy(&result) {
            self.health.observe(&result);
        }
        let attempt = ObservedAttempt { destination, key: job.job.key.as_str(), probe };
        let next_probe = self.circuits.observe(attempt, &result, (self.clock)());
        if self.outage.covers(&result) {
            // Another attempt started the outage meanwhile; the breaker must not open because of it.
            self.circuits.clear(destination);
            return ObservedEnd { result, next_probe: None };
        }
        ObservedEnd { result, next_probe }
    }

    /// Confirms by calls of our own that a failure which many destinations share is not theirs,
    /// once for all results that are suspicious at the same time.
    async fn confirm_outage(&self, symptom: Symptom) {
        let _confirming = self.confirming.lock().await;
        let Some(controls) = self.outage.controls(symptom) else { return };
        let confirmed = self.transport.confirm_outage(symptom, &controls).await;
        tracing::info!(event = "outage_examined", ?symptom, confirmed, "several destinations fail in the same way");
        if let Some(evidence) = self.outage.conclude(symptom, confirmed) {
            self.circuits.close_recent(evidence);
        }
    }

    /// Returns true for a denial of session tags while STS grants other roles: it is for the
    /// platform to fix, but the worker is not sick.
    fn is_about_one_trust_policy(&self, result: &TransferResult) -> bool {
        let denied = matches!(result, TransferResult::Failed(failure) if failure.is_about_session_tags());
        denied && self.metrics.roles_assumed() > 0
    }

    /// Returns the last success of a destination, as far as it is known.
    pub(super) fn last_success_at(&self, destination: &DestinationIdentity) -> Option<Timestamp> {
        self.circuits.last_success_at(destination)
    }

    /// Records a job that was deferred until its destination recovers.
    pub(super) fn record_delayed(&self, destination: &DestinationIdentity, delay: RetryDelay) {
        self.delayed.record(destination, delay.duration());
    }

    /// Records a job that was deferred until its destination has a free permit.
    pub(super) fn record_limited(&self, destination: &DestinationIdentity, delay: RetryDelay) {
        self.limits.record_deferral(destination, delay.duration());
    }

    /// Resets a destination now: its configuration changed, a connection test passed, or an
    /// operator says so. Its breaker closes, cached denials are dropped, and its delayed jobs are
    /// released.
    pub(super) fn reset(&self, destination: &DestinationIdentity) {
        self.transport.forget_denials();
        let now = (self.clock)();
        for destination in self.covered(destination) {
            let known = self.circuits.reset(&destination, now);
            self.delayed.request(&destination, DestinationReset { known, at: now, now });
        }
    }

    /// Performs a reset that was requested at `at` through the control stream. It may be read more
    /// than once, and long after `at`: it covers what was known of the destination then.
    pub(super) fn reset_as_of(&self, destination: &DestinationIdentity, at: Timestamp) {
        let now = (self.clock)();
        for destination in self.covered(destination) {
            let known = self.circuits.reset_as_of(&destination, at, now);
            if known {
                self.transport.forget_denials();
            }
            self.delayed.request(&destination, DestinationReset { known, at, now });
        }
    }

    /// Returns the destinations that a reset is meant for: the named one, and known ones of that id
    /// that came with jobs, where an operator named the id alone.
    fn covered(&self, named: &DestinationIdentity) -> BTreeSet<DestinationIdentity> {
        let known = self.circuits.covered(named).into_iter().chain(self.delayed.covered(named));
        known.chain([named.clone()]).collect()
    }

    /// Applies what a worker of the fleet observed of a destination.
    pub(super) fn apply(&self, shared: SharedChange) {
        self.circuits.apply(shared, (self.clock)());
    }

    /// Applies this worker's share of the fleet: limits of destinations hold for all workers
    /// together.
    pub(super) fn set_share(&self, share: FleetShare) {
        tracing::info!(
            event = "fleet_changed",
            workers = share.workers,
            index = share.index,
            "the number of workers changed"
        );
        self.metrics.set_fleet_workers(share.workers);
        self.limits.set_share(share);
    }

    /// Releases delayed jobs of destinations that recovered, until `drain`.
    pub(super) async fn release_until(&self, drain: &CancellationToken) {
        tokio::select! {
            biased;
            () = drain.cancelled() => {}
            () = self.delayed.run(&self.queue) => {}
        }
    }

    /// Returns the state for `/status`.
    pub(super) fn view(&self) -> AdmissionView {
        AdmissionView {
            circuits: self.circuits.view((self.clock)()),
            recovered_at: self.circuits.recovered(),
            waiting: self.limits.waiting(),
            awaiting_recovery: self.delayed.counts(),
        }
    }

    /// Free slots, free backfill permits, and true while no job is quarantined.
    #[cfg(test)]
    pub(super) fn free_permits(&self) -> (usize, usize, bool) {
        let (slots, backfill) = self.slots.free();
        (slots, backfill, self.quarantine.available_permits() > 0)
    }
}
