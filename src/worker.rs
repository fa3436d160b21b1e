//! The worker: consumes jobs and runs them until it is drained.
//!
//! ```text
//! message -> consume -> decode -> in_flight.claim -> admission.acquire -> attempt -> settlement.plan -> settle
//! ```
//!
//! [`consume`] takes a permit first and a delivery second. [`runner`] is the path of one job: it
//! decodes the message ([`decode`]), claims the job ([`in_flight`]), acquires its permits
//! ([`admission`]), runs one attempt ([`attempt`], with its lease in [`lease`]), plans the
//! settlement ([`settlement`], pure) and performs the plan ([`settle`]). Drained means that all
//! tasks have ended, their settlements included. A panic in a transfer becomes a failed attempt of
//! that job alone.

mod activity;
mod admission;
mod attempt;
mod cancellations;
mod check;
mod consume;
mod control;
mod decode;
mod generations;
mod history;
mod in_flight;
pub(crate) mod lease;
mod parts;
mod reports;
mod runner;
#[cfg(test)]
mod sample;
mod settle;
mod settlement;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::domain::destination::DestinationIdentity;
use crate::domain::lane::Lane;
use crate::upload::StopSignals;
pub use activity::{
    Activity, DeadLetterCount, DestinationRecord, EndedTransfer, FailureDetail, Recent, RunningTransfer, Throughput,
};
use admission::Admission;
pub use admission::{AdmissionView, CircuitView, WaitingJobs};
use cancellations::Cancellations;
use consume::Consumer;
use control::{ControlEffects, ControlListener};
use generations::Generations;
pub use parts::{WorkerClock, WorkerParts};
use reports::FleetReports;
use runner::Runner;

/// Time in which the broker must answer a request to stop consuming, and to close.
const BROKER_TIMEOUT: Duration = Duration::from_secs(4);
/// Age of the last heartbeat from which on a worker counts as stuck.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest time in which a drained worker aborts uploads that could not be aborted before.
const ABORT_TIMEOUT: Duration = Duration::from_secs(5);
/// Share of the drain time in which transfers may still finish. The rest is for requeueing the
/// others.
const FINISHING_SHARE: f64 = 0.8;

/// Consumes jobs from a queue and delivers them until it is drained.
#[derive(Debug)]
pub struct Worker {
    parts: Arc<WorkerParts>,
    admission: Arc<Admission>,
    runner: Arc<Runner>,
    control: ControlListener,
    reports: FleetReports,
    generations: Arc<Generations>,
    activity: Arc<Activity>,
    stop: StopSignals,
    heartbeat: Mutex<Instant>,
    /// True once control messages of the past are read and jobs are consumed.
    started: AtomicBool,
}

impl Worker {
    /// Builds a worker that consumes nothing yet.
    pub fn new(parts: WorkerParts) -> Arc<Self> {
        let slots = parts.config.slots.get();
        let backfill = parts.config.backfill_slots.min(slots);
        for (lane, count) in [(Lane::Continued, slots), (Lane::Scheduled, slots), (Lane::Backfill, backfill)] {
            parts.metrics.set_slots(lane, count);
        }
        let parts = Arc::new(parts);
        let (stop, activity, cancellations) =
            (StopSignals::default(), Arc::<Activity>::default(), Arc::<Cancellations>::default());
        let reports = FleetReports::new();
        let generations = Generations::new(&parts);
        let admission = Arc::new(Admission::new(
            &parts,
            cancellations.clone(),
            generations.clone(),
            reports.clone(),
            stop.hand_off.clone(),
        ));
        let runner = Arc::new(Runner::new(
            &parts,
            admission.clone(),
            generations.clone(),
            activity.clone(),
            reports.clone(),
            stop.clone(),
        ));
        let in_flight = runner.in_flight.clone();
        let effects =
            ControlEffects { admission: admission.clone(), cancellations, in_flight, generations: generations.clone() };
        Arc::new(Self {
            control: ControlListener::new(parts.queue.clone(), effects, parts.clock),
            parts,
            runner,
            admission,
            reports,
            generations,
            activity,
            stop,
            heartbeat: Mutex::new(Instant::now()),
            started: AtomicBool::new(false),
        })
    }

    /// Running and ended transfers.
    pub fn activity(&self) -> &Arc<Activity> {
        &self.activity
    }

    /// Circuit breakers, waiting jobs and recoveries.
    pub fn admission(&self) -> AdmissionView {
        self.admission.view()
    }

    /// Resets a destination: its configuration changed, or an operator says that it is fixed. Its
    /// circuit breaker closes, cached denials are dropped, and its deferred jobs are recalled.
    pub fn reset_circuit(&self, destination: &DestinationIdentity) {
        self.admission.recovery.reset(destination);
    }

    /// Returns `Ok` while jobs are consumed, else the reason why not.
    pub fn ready(&self) -> Result<(), String> {
        self.admission.health().fault().map_or_else(|| self.queue_ready(), Err)?;
        let started = self.started.load(Ordering::Acquire);
        started.then_some(()).ok_or_else(|| "control messages of the past are being read".to_owned())
    }

    /// Returns `Ok` while the queue delivers, else the reason why not.
    pub fn queue_ready(&self) -> Result<(), String> {
        self.parts.queue.ready()
    }

    /// Returns true while the runtime schedules the worker: false when its heartbeat is late.
    pub fn alive(&self) -> bool {
        self.heartbeat.lock().elapsed() < HEARTBEAT_TIMEOUT
    }

    /// Consumes jobs until `drain` is cancelled, then drains within `worker.drain_timeout`: running
    /// transfers may finish, a transfer that can't finish in time is requeued untouched or handed
    /// off, and prefetched deliveries are requeued at once.
    ///
    /// Returns true when every delivery was settled in time.
    pub async fn run(self: &Arc<Self>, drain: CancellationToken) -> bool {
        let heartbeat = tokio::spawn(self.clone().beat());
        let releases = tokio::spawn({
            let (worker, drain) = (self.clone(), drain.clone());
            async move { worker.admission.recovery.release_until(&drain).await }
        });
        let reports = tokio::spawn(self.reports.clone().publish(self.parts.queue.clone(), self.parts.clock));
        let drained = self.serve(&drain).await;
        reports.abort();
        releases.abort();
        heartbeat.abort();
        drained
    }

    /// [`Worker::run`] without heartbeat and reports, for the simulation.
    pub(crate) async fn serve(self: &Arc<Self>, drain: &CancellationToken) -> bool {
        let control = self.control.start(drain).await;
        self.started.store(true, Ordering::Release);
        let tasks = TaskTracker::new();
        self.consume(drain, &tasks).await;
        let drained = self.drain(&tasks).await;
        self.generations.hand_over(self.parts.lease_after).await;
        let closed = timeout(BROKER_TIMEOUT, self.parts.queue.close()).await;
        if closed.is_err() {
            tracing::warn!(
                event = "broker_close_timeout",
                next = "its connections are dropped; unsettled deliveries are redelivered",
                remedy = "check the broker if this repeats",
                "the broker does not answer"
            );
        }
        control.abort();
        drained
    }

    /// Spawns a task for each delivery.
    async fn consume(&self, drain: &CancellationToken, tasks: &TaskTracker) {
        let mut consumer = Consumer::new(self.parts.clone(), self.admission.clone());
        loop {
            let next = tokio::select! {
                biased;
                () = drain.cancelled() => return,
                next = consumer.next() => next,
            };
            let Some((delivery, permit)) = next else { return };
            tasks.spawn(self.runner.clone().handle(delivery, permit));
        }
    }

    async fn drain(&self, tasks: &TaskTracker) -> bool {
        let Self { parts, stop, .. } = self;
        let drain_timeout = parts.config.drain_timeout;
        let deadline = Instant::now() + drain_timeout;
        parts.metrics.set_draining(true);
        self.admission.health().drain();
        tracing::info!(event = "drain_started", seconds = drain_timeout.as_secs(), running = tasks.len(), "draining");
        // A transfer that another worker can resume is handed off at once: waiting would only interrupt
        // it later.
        stop.hand_off.cancel();
        let finishing = Instant::now() + drain_timeout.mul_f64(FINISHING_SHARE);
        if timeout(BROKER_TIMEOUT, parts.queue.stop_consuming()).await.is_err() {
            tracing::warn!(
                event = "broker_cancel_timeout",
                next = "prefetched deliveries are redelivered when the connection ends",
                remedy = "check the broker if this repeats",
                "the broker does not answer"
            );
        }
        tasks.close();
        if timeout_at(finishing, tasks.wait()).await.is_err() {
            tracing::info!(event = "drain_requeues", running = tasks.len(), "requeueing unfinished transfers");
            stop.cancel.cancel();
        }
        let drained = timeout_at(deadline, tasks.wait()).await.is_ok();
        let left = deadline.duration_since(Instant::now());
        parts.transport.finish_aborts(left.min(ABORT_TIMEOUT)).await;
        tracing::info!(event = "drain_ended", drained, left = tasks.len(), "drained");
        drained
    }

    async fn beat(self: Arc<Self>) {
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        loop {
            tick.tick().await;
            self.parts.metrics.set_oldest_in_flight(self.activity.oldest());
            self.activity.tick();
            self.generations.report_writes();
            *self.heartbeat.lock() = Instant::now();
        }
    }

    /// Free slots, free backfill permits, and true while no job is quarantined.
    #[cfg(test)]
    pub(crate) fn free_permits(&self) -> (usize, usize, bool) {
        self.admission.free_permits()
    }
}
