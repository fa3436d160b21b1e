//! The worker: permit, delivery, transfer, verdict, settlement; and the drain.
//!
//! Order of things: a permit is taken before a delivery, and rides in its task until the transfer has ended. Drained means that
//! all tasks have ended, their settlements included. A panic in a transfer becomes a failed attempt of that job alone.

mod activity;
mod admission;
mod attempt;
mod check;
mod consume;
mod control;
mod decode;
mod history;
mod in_flight;
mod join;
pub(crate) mod lease;
#[cfg(test)]
mod sample;
mod settlement;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

use crate::config::WorkerConfig;
use crate::domain::destination::{DestinationId, Destinations};
use crate::domain::lane::Lane;
use crate::domain::outcome::{OutcomeKind, RetryPolicy};
use crate::metrics::Metrics;
use crate::queue::{Delivery, OutcomeEvent, Queue, QueueError, Settlement};
use crate::runtime::failpoints;
use crate::telemetry::spans;
use crate::transfer::Transport;
use crate::upload::StopSignals;
pub use activity::{Board, DestinationRecord, EndedTransfer, Recent, RunningTransfer, Throughput, Trouble};
pub use admission::circuit::CircuitView;
use admission::circuit::Circuits;
use admission::health::Health;
use admission::limits::{Limits, Pass};
use admission::outage::Outage;
use decode::{Admitted, Refusal};
use in_flight::{AttemptId, Entry, Ledger, RunId};

/// A transfer that takes longer is ended as a time-out: no broker keeps a delivery that long, and something is stuck.
const DEADLINE: Duration = Duration::from_hours(24);
/// How long a job waits for another one that may end workers.
const QUARANTINE: Duration = Duration::from_secs(10);
/// How long a transfer that is stopped may take to end.
const STOPPING: Duration = Duration::from_mins(1);
/// Deliveries that were fetched ahead wait this long for a slot.
const HOARDING: Duration = Duration::from_secs(60);
/// A message that came back this often without a settlement ends workers. The broker itself gives up at 1,000, and says nothing.
const CRASH_LOOP: u64 = 500;
/// Stopping to consume, and closing, may each take this long when the broker does not answer.
const BROKER_PATIENCE: Duration = Duration::from_secs(4);
/// A worker whose tick is older than this is stuck.
const STUCK: Duration = Duration::from_secs(20);
/// The share of the drain time in which transfers may still finish; the rest is for giving the others back.
const FINISHING: f64 = 0.8;

/// What the worker is made of. Built once by the composition root.
#[derive(Debug)]
pub struct Parts {
    /// `[worker]`.
    pub config: WorkerConfig,
    /// `broker.prefix`, the source of every outcome.
    pub prefix: String,
    /// `broker.lease_after`.
    pub lease_after: Duration,
    /// How long a refusal of STS is remembered.
    pub denied_for: Duration,
    /// `check.egress_addresses`, for connection tests by message.
    pub egress_addresses: Vec<String>,
    /// Where jobs come from.
    pub queue: Arc<dyn Queue>,
    /// What delivers them.
    pub transport: Arc<dyn Transport>,
    /// What tells the time. It must go with tokio's clock, by which everything waits: `Timestamp::now` does.
    pub clock: fn() -> Timestamp,
    /// The configured destinations, replaced as a whole by a reload.
    pub destinations: watch::Receiver<Arc<Destinations>>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

/// Takes jobs from a queue and delivers them until it is drained.
#[derive(Debug)]
pub struct Worker {
    parts: Parts,
    policy: RetryPolicy,
    pub(crate) slots: Arc<Semaphore>,
    pub(crate) backfill_slots: Arc<Semaphore>,
    /// Somebody waits for a slot that the taker only sits on.
    wanted: Notify,
    limits: Arc<Limits>,
    circuits: Arc<Circuits>,
    outage: Outage,
    pub(crate) quarantine: Semaphore,
    ledger: Arc<Ledger>,
    board: Arc<Board>,
    health: Health,
    beat: Mutex<Instant>,
    stop: StopSignals,
    wishes: control::Cancellations,
    recalls: admission::release::Recalls,
}

/// The right to run one transfer.
#[derive(Debug)]
struct Permits {
    slot: Option<OwnedSemaphorePermit>,
    backfill: Option<OwnedSemaphorePermit>,
    /// After a fault of the worker: the right to be the only one.
    alone: Option<OwnedSemaphorePermit>,
    /// The right to one transfer into the destination.
    pass: Option<Pass>,
    /// The right to ask whether the destination is mended.
    probe: Option<admission::circuit::Probe>,
}

impl Permits {
    /// Somebody else may run meanwhile. The place among the backfills is kept: it keeps none but backfills waiting.
    fn give_up_slot(&mut self) {
        self.slot = None;
    }
}

impl Worker {
    /// A worker that takes nothing yet.
    pub fn new(parts: Parts) -> Arc<Self> {
        let slots = parts.config.slots.get();
        let backfill = parts.config.backfill_slots.min(slots);
        for (lane, count) in [(Lane::Continued, slots), (Lane::Scheduled, slots), (Lane::Backfill, backfill)] {
            parts.metrics.set_slots(lane, count);
        }
        Arc::new(Self {
            policy: RetryPolicy {
                max_attempts: parts.config.max_attempts.get(),
                denied_for: parts.denied_for,
                patience: RetryPolicy::PATIENCE,
            },
            slots: Arc::new(Semaphore::new(slots as usize)),
            backfill_slots: Arc::new(Semaphore::new(backfill as usize)),
            wanted: Notify::new(),
            limits: Limits::new(parts.config.destination_slots, parts.config.slots),
            circuits: Circuits::new(parts.denied_for, parts.metrics.clone()),
            outage: Outage::default(),
            quarantine: Semaphore::new(1),
            ledger: Ledger::new(),
            board: Arc::default(),
            health: Health::default(),
            beat: Mutex::new(Instant::now()),
            stop: StopSignals::default(),
            wishes: control::Cancellations::default(),
            recalls: admission::release::Recalls::new(),
            parts,
        })
    }

    /// What runs now.
    pub fn board(&self) -> &Arc<Board> {
        &self.board
    }

    /// The circuits that are not closed.
    pub fn circuits(&self) -> HashMap<DestinationId, CircuitView> {
        self.circuits.view((self.parts.clock)())
    }

    /// When each destination was reset, passed its connection test, or took something, last.
    pub fn mended_at(&self) -> HashMap<DestinationId, Timestamp> {
        self.circuits.mended()
    }

    /// Jobs of each destination that must wait because it has all it may have: how many wait here, and how many were sent away and
    /// are still to come back.
    pub fn waiting(&self) -> HashMap<DestinationId, (usize, u32)> {
        self.limits.waiting()
    }

    /// Jobs of each destination that this worker sent away until it is mended (its circuit was open, or they were refused themselves),
    /// and whose wait is not over: those of other workers, and of before this one's start, are not among them.
    pub fn awaiting_repair(&self) -> HashMap<DestinationId, u32> {
        self.recalls.counts()
    }

    /// Somebody says that a destination is mended, or it is configured otherwise: its circuit closes, no remembered refusal counts any
    /// more, and what waits for its repair is called back.
    pub fn reset_circuit(&self, destination: &DestinationId) {
        self.parts.transport.forget_denials();
        let now = (self.parts.clock)();
        let known = self.circuits.mend(destination, now);
        self.call_back(destination, known, now);
    }

    /// `Ok` while jobs are taken; else why not.
    pub fn ready(&self) -> Result<(), String> {
        self.health.fault().map_or_else(|| self.parts.queue.ready(), Err)
    }

    /// `Ok` while the queue gives work; else why not.
    pub fn queue_ready(&self) -> Result<(), String> {
        self.parts.queue.ready()
    }

    /// Whether the loops turn: false when the runtime did not get round to the worker's own tick for a while.
    pub fn alive(&self) -> bool {
        self.beat.lock().unwrap_or_else(PoisonError::into_inner).elapsed() < STUCK
    }

    /// Takes jobs until `drain` is cancelled, then drains within `worker.drain_timeout`: running transfers may finish, what
    /// can't finish in time goes back to the queue untouched, and what was fetched but not begun goes back at once.
    ///
    /// Returns true when everything was settled in time.
    pub async fn run(self: &Arc<Self>, drain: CancellationToken) -> bool {
        let watch = tokio::spawn(self.clone().watch_age());
        let recalls = tokio::spawn({
            let (worker, drain) = (self.clone(), drain.clone());
            async move { worker.recall_until(&drain).await }
        });
        let control = self.follow_control(&drain).await;
        let drained = self.serve(&drain).await;
        control.abort();
        recalls.abort();
        watch.abort();
        drained
    }

    /// [`Worker::run`] without the tick of every second: the hours of a model need none.
    pub(crate) async fn serve(self: &Arc<Self>, drain: &CancellationToken) -> bool {
        let tasks = TaskTracker::new();
        self.take(drain, &tasks).await;
        let drained = self.drain(&tasks).await;
        let closed = timeout(BROKER_PATIENCE, self.parts.queue.close()).await;
        if closed.is_err() {
            tracing::warn!("the broker does not answer; its connections are dropped");
        }
        drained
    }

    async fn drain(&self, tasks: &TaskTracker) -> bool {
        let limit = self.parts.config.drain_timeout;
        let ends = Instant::now() + limit;
        self.parts.metrics.set_draining(true);
        self.health.drain();
        tracing::info!(seconds = limit.as_secs(), running = tasks.len(), "draining");
        // What another worker can continue is not waited for: it would only be cut short later.
        self.stop.hand_off.cancel();
        let finished = Instant::now() + limit.mul_f64(FINISHING);
        if timeout(BROKER_PATIENCE, self.parts.queue.stop_consuming()).await.is_err() {
            tracing::warn!("the broker does not answer; what was fetched comes again when the connection ends");
        }
        tasks.close();
        if tokio::time::timeout_at(finished, tasks.wait()).await.is_err() {
            tracing::info!(running = tasks.len(), "what can't finish in time goes back to the queue");
            self.stop.cancel.cancel();
        }
        let drained = tokio::time::timeout_at(ends, tasks.wait()).await.is_ok();
        tracing::info!(drained, left = tasks.len(), "drained");
        drained
    }

    async fn handle(self: Arc<Self>, delivery: Delivery, permits: Permits) {
        failpoints::hit("taken");
        if delivery.properties.kind.as_deref() == Some(check::KIND) {
            return self.check(delivery, permits).await;
        }
        match self.admit(&delivery) {
            Ok(admitted) => self.place(delivery, admitted, permits).await,
            Err(refusal) => {
                // What waits for the broker needs no slot.
                drop(permits);
                self.refuse(delivery, *refusal).await;
            }
        }
    }

    /// Works on the job, joins whoever does, or answers from memory.
    async fn place(&self, delivery: Delivery, admitted: Admitted, permits: Permits) {
        let Admitted { job, destination, .. } = &admitted;
        let history = history::history(&delivery.properties.headers);
        let run = history::run(&delivery.properties.headers);
        let run = RunId { job: job.id.clone(), destination: destination.id.clone(), run };
        let id = AttemptId {
            run,
            attempts: history.attempts,
            deferrals: history.deferrals,
            turns: history::turns(&delivery.properties.headers),
        };
        match self.ledger.enter(id, (self.parts.clock)()) {
            Entry::Mine(running) => self.traced(delivery, &admitted, running, permits).await,
            Entry::Delivered(event) => {
                drop(permits);
                let trace = self.trace(&delivery, &admitted);
                trace.run(self.answer_again(delivery, &admitted, &event)).await;
            }
            Entry::Joined(seat, same) => {
                // Waiting needs no slot.
                drop(permits);
                self.join((&seat, same), delivery, &admitted).await;
            }
        }
    }

    /// The job was delivered before: only its outcome is sent, to whoever asked now.
    async fn answer_again(&self, delivery: Delivery, admitted: &Admitted, event: &OutcomeEvent) {
        tracing::info!(job_id = %admitted.job.id, "delivered already; its outcome is sent again");
        spans::ended(OutcomeKind::Delivered.as_str(), None);
        self.left_over(admitted, None).await;
        let event = OutcomeEvent { reply_to: settlement::reply_to(&delivery.properties), ..event.clone() };
        self.settle(delivery, Settlement::Ack, vec![event]).await;
    }

    /// Settles, and says whether that is certain. A lost delivery comes again; that is the queue's promise, not a fault.
    async fn settle(&self, delivery: Delivery, settlement: Settlement, events: Vec<OutcomeEvent>) -> bool {
        let action = settlement.action();
        let span = spans::settle(self.parts.queue.system(), &self.parts.prefix, action);
        let settled = self.parts.queue.settle(delivery, settlement, events).instrument(span.clone()).await;
        if settled.is_err() {
            spans::fail(&span, "unsettled");
        }
        match settled {
            Ok(()) => {
                failpoints::hit("settled");
                true
            }
            Err(QueueError::Lost) => {
                tracing::info!(action, "the delivery was lost before it was settled; it comes again");
                false
            }
            Err(error) => {
                tracing::warn!(action, %error, "a delivery could not be settled; it comes again");
                false
            }
        }
    }

    async fn watch_age(self: Arc<Self>) {
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        loop {
            tick.tick().await;
            self.parts.metrics.set_oldest_in_flight(self.board.oldest());
            self.board.tick();
            *self.beat.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        }
    }
}
