//! Admission: decides whether a job may start, and who is at fault when one fails.
//!
//! [`Admission::acquire`] gives a job its [`Permit`] or a [`Deferral`]. [`Admission::observe`]
//! learns from the result of each attempt: `fault` is the only place that decides whose fault a
//! failure is: the destination's (circuit breaker), this worker's (health) or everybody's (outage).

mod bounds;
mod circuit;
mod deferral;
mod fault;
mod health;
mod limits;
mod outage;
mod permit;
mod quarantine;
mod recovery;
mod release;
mod slots;

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::cancellations::Cancellations;
use super::decode::DecodedJob;
use super::generations::{Generations, ObjectLocks};
use super::parts::WorkerParts;
use super::reports::FleetReports;
use crate::domain::destination::{Destination, DestinationIdentity};
use crate::domain::fleet::FleetShare;
use crate::domain::lane::Lane;
use crate::domain::outcome::{RetryDelay, TransferResult};
use crate::domain::routing_key;
use crate::queue::Delivery;
pub use circuit::CircuitView;
pub(super) use circuit::SharedChange;
use circuit::{CircuitBreakers, CircuitState};
pub(super) use deferral::Deferral;
use fault::FaultObserver;
pub(super) use fault::ObservedEnd;
pub(super) use health::WorkerHealth;
#[cfg(test)]
pub(super) use limits::Deferred;
pub use limits::WaitingJobs;
use limits::{DestinationLimits, DestinationPermit, IMMINENT_WAIT, LimitDecision};
use outage::OutageDetector;
pub(super) use permit::Permit;
use quarantine::Quarantine;
pub(super) use recovery::Recovery;
use release::DelayedJobs;
pub(super) use slots::Slots;

/// Time that a job waits here for its permits. It holds no slot meanwhile, and its delivery is far
/// from any acknowledgement time-out.
const PERMIT_TIMEOUT: Duration = Duration::from_secs(30);

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
    /// Slots of the worker.
    pub(super) slots: Slots,
    limits: Arc<DestinationLimits>,
    circuits: Arc<CircuitBreakers>,
    faults: FaultObserver,
    quarantine: Quarantine,
    /// Resets, and the jobs that wait for one.
    pub(super) recovery: Recovery,
    cancellations: Arc<Cancellations>,
    generations: Arc<Generations>,
    objects: ObjectLocks,
    parts: Arc<WorkerParts>,
    /// Cancelled when the worker drains.
    draining: CancellationToken,
}

impl Admission {
    pub(super) fn new(
        parts: &Arc<WorkerParts>,
        cancellations: Arc<Cancellations>,
        generations: Arc<Generations>,
        reports: FleetReports,
        draining: CancellationToken,
    ) -> Self {
        parts.metrics.set_fleet_workers(FleetShare::default().workers);
        let circuits = CircuitBreakers::new(parts.denied_for, parts.metrics.clone(), reports);
        Self {
            slots: Slots::new(&parts.config),
            limits: DestinationLimits::new(parts.config.destination_slots, parts.config.slots),
            faults: FaultObserver {
                health: WorkerHealth::default(),
                outage: OutageDetector::default(),
                confirming: tokio::sync::Mutex::default(),
                circuits: circuits.clone(),
                parts: parts.clone(),
            },
            quarantine: Quarantine::default(),
            recovery: Recovery { circuits: circuits.clone(), delayed: DelayedJobs::new(), parts: parts.clone() },
            circuits,
            cancellations,
            generations,
            objects: ObjectLocks::default(),
            parts: parts.clone(),
            draining,
        }
    }

    /// Health of the worker itself.
    pub(super) fn health(&self) -> &WorkerHealth {
        &self.faults.health
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
        let is_probe = permit.sole.is_some();
        let unfit = async {
            if is_probe {
                std::future::pending::<()>().await;
            }
            self.health().sick().await;
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
        permit.quarantine = self.quarantine.enter(job.headers.crashes).await?;
        if let Some(backfill) = self.cancellations.covering(&job.headers) {
            return Err(Deferral::Cancelled(backfill));
        }
        let id = &job.destination.identity;
        self.acquire_object(job, &mut permit).await?;
        if let Some((failure, pause)) = self.faults.outage.defers(id) {
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
            LimitDecision::Deferred(deferred) => return Err(Deferral::Limited(deferred)),
        };
        let granted = permit.destination.insert(granted);
        if permit.slot.is_none() {
            permit.slot = self.in_time(&destination.identity, self.slots.claim_slot()).await?;
            granted.restart();
        }
        Ok(waited)
    }

    async fn ask_circuit(&self, destination: &DestinationIdentity, permit: &mut Permit) -> Result<(), Deferral> {
        let state = if self.circuits.is_probe_due(destination) {
            self.circuits.claim(destination, &*self.parts.queue, self.parts.now()).await
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
        Deferral::Limited(self.limits.deferral(destination))
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
        if self.faults.accepted(destination) {
            permit.sole = None;
        }
    }

    /// Observes the result of an attempt, and decides who is at fault. See
    /// [`FaultObserver::observe`].
    pub(super) async fn observe(
        &self,
        job: &DecodedJob,
        ended_at: Instant,
        probe: Option<u64>,
        result: TransferResult,
    ) -> ObservedEnd {
        self.faults.observe(job, ended_at, probe, result).await
    }

    /// Returns the last success of a destination, as far as it is known.
    pub(super) fn last_success_at(&self, destination: &DestinationIdentity) -> Option<Timestamp> {
        self.circuits.last_success_at(destination)
    }

    /// Records a job that was deferred until its destination has a free permit.
    pub(super) fn record_limited(&self, destination: &DestinationIdentity, delay: RetryDelay) {
        self.limits.record_deferral(destination, delay.duration());
    }

    /// Applies what a worker of the fleet observed of a destination.
    pub(super) fn apply(&self, shared: SharedChange) {
        self.circuits.apply(shared, self.parts.now());
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
        self.parts.metrics.set_fleet_workers(share.workers);
        self.limits.set_share(share);
    }

    /// Returns the state for `/status`.
    pub(super) fn view(&self) -> AdmissionView {
        AdmissionView {
            circuits: self.circuits.view(self.parts.now()),
            recovered_at: self.circuits.recovered(),
            waiting: self.limits.waiting(),
            awaiting_recovery: self.recovery.awaiting(),
        }
    }

    /// Free slots, free backfill permits, and true while no job is quarantined.
    #[cfg(test)]
    pub(super) fn free_permits(&self) -> (usize, usize, bool) {
        let (slots, backfill) = self.slots.free();
        (slots, backfill, self.quarantine.is_free())
    }
}
