//! The worker: permit, delivery, transfer, verdict, settlement; and the drain.
//!
//! Order of things: a permit is taken before a delivery, and rides in its task until the transfer has ended. Drained means that
//! all tasks have ended, their settlements included. A panic in a transfer becomes a failed attempt of that job alone.

mod admit;
mod board;
mod check;
mod headers;
mod health;
mod join;
mod lease;
mod ledger;
#[cfg(test)]
mod model;
mod verdict;

use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use futures_util::FutureExt as _;
use jiff::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit, watch};
use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::WorkerConfig;
use crate::crash;
use crate::destination::Destinations;
use crate::job::Job;
use crate::job::lease::Checkpoint;
use crate::lane::Lane;
use crate::metrics::Metrics;
use crate::outcome::{Ended, Failure, OutcomeKind, Policy, Reason, Step};
use crate::queue::{Delivery, Event, Queue, QueueError, Settlement};
use crate::transfer::{Attempt, Transport};
use crate::upload::{Progress, Stop};
use admit::{Admitted, Refusal};
pub use board::{Board, DestinationRecord, EndedTransfer, Recent, RunningTransfer, Throughput, Trouble};
use health::Health;
use lease::Held;
use ledger::{AttemptId, Entry, Ledger, RunId, Running, Standing};
use verdict::Case;

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
    policy: Policy,
    slots: Arc<Semaphore>,
    backfill_slots: Arc<Semaphore>,
    quarantine: Semaphore,
    ledger: Arc<Ledger>,
    board: Arc<Board>,
    health: Health,
    beat: Mutex<Instant>,
    stop: Stop,
}

/// The right to run one transfer.
#[derive(Debug)]
struct Permits {
    _slot: OwnedSemaphorePermit,
    _backfill: Option<OwnedSemaphorePermit>,
    /// After a fault of the worker: the right to be the only one.
    _probe: Option<OwnedSemaphorePermit>,
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
            policy: Policy {
                max_attempts: parts.config.max_attempts.get(),
                denied_for: parts.denied_for,
                patience: Policy::PATIENCE,
            },
            slots: Arc::new(Semaphore::new(slots as usize)),
            backfill_slots: Arc::new(Semaphore::new(backfill as usize)),
            quarantine: Semaphore::new(1),
            ledger: Ledger::new(),
            board: Arc::default(),
            health: Health::default(),
            beat: Mutex::new(Instant::now()),
            stop: Stop::default(),
            parts,
        })
    }

    /// What runs now.
    pub fn board(&self) -> &Arc<Board> {
        &self.board
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
        let drained = self.serve(&drain).await;
        watch.abort();
        drained
    }

    /// [`Worker::run`] without the tick of every second: the hours of a model need none.
    async fn serve(self: &Arc<Self>, drain: &CancellationToken) -> bool {
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
        self.stop.hand_over.cancel();
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

    /// Permit first, delivery second, for as long as the worker may take.
    async fn take(self: &Arc<Self>, drain: &CancellationToken, tasks: &TaskTracker) {
        loop {
            let taken = tokio::select! {
                biased;
                () = drain.cancelled() => return,
                taken = self.next() => taken,
            };
            let Some((delivery, permits)) = taken else { return };
            tasks.spawn(self.clone().handle(delivery, permits));
        }
    }

    /// The next delivery with its permits: continued work first, then scheduled, then backfills below their ceiling.
    async fn next(&self) -> Option<(Delivery, Permits)> {
        let probe = self.health.able().await;
        let slot = self.slot().await?;
        let queue = &self.parts.queue;
        let backfill = async {
            let permit = self.backfill_slots.clone().acquire_owned().await.ok()?;
            queue.next(Lane::Backfill).await.map(|delivery| (delivery, Some(permit)))
        };
        let (delivery, backfill) = tokio::select! {
            biased;
            delivery = queue.next(Lane::Continued) => (delivery?, None),
            delivery = queue.next(Lane::Scheduled) => (delivery?, None),
            delivery = backfill => delivery?,
        };
        Some((delivery, Permits { _slot: slot, _backfill: backfill, _probe: probe }))
    }

    /// A free slot. Long transfers may hold all of them for hours; what was fetched meanwhile must not wait here until the broker
    /// loses its patience, so it goes back to the queue until there is a slot again.
    async fn slot(&self) -> Option<OwnedSemaphorePermit> {
        let slots = || self.slots.clone().acquire_owned();
        if let Ok(slot) = timeout(HOARDING, slots()).await {
            return slot.ok();
        }
        tracing::info!(
            seconds = HOARDING.as_secs(),
            "every slot is busy; what was fetched ahead goes back to the queue"
        );
        self.parts.queue.pause().await;
        let slot = slots().await.ok();
        self.parts.queue.resume().await;
        slot
    }

    async fn handle(self: Arc<Self>, delivery: Delivery, permits: Permits) {
        crash::point("taken");
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
        let history = headers::history(&delivery.properties.headers);
        let run = headers::run(&delivery.properties.headers);
        let run = RunId { job: job.id.clone(), destination: destination.id.clone(), run };
        let id = AttemptId { run, attempts: history.attempts, deferrals: history.deferrals };
        match self.ledger.enter(id, (self.parts.clock)()) {
            Entry::Mine(running) => self.work(delivery, &admitted, running, permits).await,
            Entry::Delivered(event) => {
                drop(permits);
                tracing::info!(job_id = %job.id, "delivered already; its outcome is sent again");
                self.left_over(&admitted, None).await;
                self.settle(delivery, Settlement::Ack, vec![(*event).clone()]).await;
            }
            Entry::Joined(seat) => {
                // Waiting needs no slot.
                drop(permits);
                self.join(&seat, delivery, &admitted).await;
            }
        }
    }

    async fn work(&self, mut delivery: Delivery, admitted: &Admitted, running: Running, permits: Permits) {
        let Admitted { job, destination, lease } = admitted;
        let Ok(_quarantine) = self.quarantined(&delivery).await else {
            drop(permits);
            let later = Settlement::Defer { rung: Step::S30, headers: headers::Headers::new() };
            let settled = self.settle(delivery, later, Vec::new()).await;
            let kept = lease.as_ref().and_then(|lease| lease.checkpoint.as_ref()).map(|c| c.upload_id.as_str().into());
            return running.leave(if settled { Standing::Settled(kept) } else { Standing::Open });
        };
        let started_at = (self.parts.clock)();
        let started = Instant::now();
        let history = headers::history(&delivery.properties.headers);
        let metrics = &self.parts.metrics;
        let progress = Arc::new(Progress::default());
        self.note_wait(&delivery, job, started_at);
        let held = Held::new(&delivery, lease.as_ref(), &self.stop, started_at);
        let ended = self.attempt(&mut delivery, admitted, &running, &held, &progress).await;
        self.replace_lost(&mut delivery, running.seat(), &held);
        crash::point("ended");
        self.health.note(&ended);
        let properties = delivery.properties.clone();
        let case = Case {
            prefix: &self.parts.prefix,
            policy: &self.policy,
            lane: delivery.lane,
            properties: &properties,
            job,
            destination,
            history: &history,
            started_at,
            now: (self.parts.clock)(),
            took: started.elapsed(),
        };
        let verdict = case.judge(ended, metrics);
        verdict::log(&case, &verdict, &progress);
        self.board.ended(&case, &verdict, &progress);
        if let (Some(OutcomeKind::Delivered), Some(event)) = (verdict.kind, &verdict.event) {
            running.delivered(event.clone());
        }
        let events = verdict.event.into_iter().collect();
        // The slot is for transfers; what waits for the broker's confirm is bounded by what may be fetched.
        drop(permits);
        // Another worker has the job, and its upload: nothing of it is ours any more. Or what took it away is a lease that came here and
        // has joined this work: then it is all that is left of the job.
        let gone = matches!(verdict.settlement, Settlement::Return) && held.is_lost();
        let settlement = match verdict.settlement {
            _ if gone => Settlement::Ack,
            settlement => self.pack(&mut delivery, settlement, &held, destination).await,
        };
        let returned = gone || matches!(settlement, Settlement::Return | Settlement::HandOver { .. });
        let kept = held.journal.checkpoint().map(|checkpoint| checkpoint.upload_id.into());
        let settled = self.settle(delivery, settlement, events).await;
        if !settled || held.is_lost() {
            self.unsettled(&held, destination).await;
        }
        running.leave(if settled && !returned { Standing::Settled(kept) } else { Standing::Open });
    }

    async fn attempt(
        &self,
        delivery: &mut Delivery,
        admitted: &Admitted,
        running: &Running,
        held: &Arc<Held>,
        progress: &Arc<Progress>,
    ) -> Ended {
        let Admitted { job, destination, lease } = admitted;
        let resume = lease.as_ref().and_then(|lease| lease.checkpoint.clone());
        if let Some(failure) = crash_loop(delivery) {
            return Ended::Failed(failure);
        }
        let history = headers::history(&delivery.properties.headers);
        let _in_flight = self.parts.metrics.transfer_running(delivery.lane);
        let _pin = self.board.pin(board::Card {
            job_id: job.id.as_str(),
            destination: destination.id.as_str(),
            lane: delivery.lane,
            attempt: history.attempts.saturating_add(1),
            size: job.source.size,
            progress: progress.clone(),
        });
        let earlier = earlier(delivery, job, history.first_failure_at, resume.as_ref());
        let (stop, journal) = (&held.stop, &held.journal);
        let attempt = Attempt { destination, earlier, stop, progress, resume, journal };
        self.under_lease(delivery, running, held, self.bounded(job, attempt)).await
    }

    /// Jobs over which workers were lost more than once go one at a time, so that the guilty one is told from its neighbours. `Err`
    /// where another one takes long: nobody waits for that with a slot in hand.
    async fn quarantined(&self, delivery: &Delivery) -> Result<Option<SemaphorePermit<'_>>, Elapsed> {
        if headers::crashes(&delivery.properties.headers) < 2 {
            return Ok(None);
        }
        timeout(QUARANTINE, self.quarantine.acquire()).await.map(Result::ok)
    }

    /// How long a job that comes for the first time has waited.
    fn note_wait(&self, delivery: &Delivery, job: &Job, now: Timestamp) {
        let first = headers::history(&delivery.properties.headers) == crate::outcome::History::default();
        if let Some(created) = job.created_at.filter(|_| first && delivery.lane != Lane::Continued) {
            let waited = Duration::try_from(now.duration_since(created)).unwrap_or_default();
            self.parts.metrics.queue_wait(delivery.lane, waited);
        }
    }

    /// The transfer behind its panic boundary and its deadline, at which it is stopped as by a drain: what can be continued is kept.
    async fn bounded(&self, job: &Job, attempt: Attempt<'_>) -> Ended {
        let stop = attempt.stop.clone();
        let mut transfer = pin!(AssertUnwindSafe(self.parts.transport.deliver(job, attempt)).catch_unwind());
        let late = || Ended::Failed(Failure::new(Reason::Timeout, "the transfer took more than 24 hours"));
        let ended = if let Ok(ended) = timeout(DEADLINE, &mut transfer).await {
            ended
        } else {
            stop.cancel.cancel();
            let stopped = timeout(STOPPING, transfer).await.unwrap_or_else(|_| Ok(late()));
            stopped.map(|ended| if matches!(ended, Ended::Failed(_)) { late() } else { ended })
        };
        ended.unwrap_or_else(|_| {
            let message = "the worker broke one of its own rules in this transfer; its log says where";
            Ended::Failed(Failure::new(Reason::Panic, message))
        })
    }

    /// Settles, and says whether that is certain. A lost delivery comes again; that is the queue's promise, not a fault.
    async fn settle(&self, delivery: Delivery, settlement: Settlement, events: Vec<Event>) -> bool {
        let action = settlement.action();
        match self.parts.queue.settle(delivery, settlement, events).await {
            Ok(()) => {
                crash::point("settled");
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

/// The failure of a job that ends workers.
fn crash_loop(delivery: &Delivery) -> Option<Failure> {
    let crashes = headers::crashes(&delivery.properties.headers);
    let message = if crashes >= lease::CRASHES {
        format!("{crashes} workers in a row were lost or cut off while they worked on this job, and nothing came of it")
    } else if delivery.redelivered && delivery.delivery_count >= CRASH_LOOP {
        format!("the message came back {} times without an end; it ends workers", delivery.delivery_count)
    } else {
        return None;
    };
    Some(Failure::new(Reason::CrashLoop, message))
}

/// When an earlier attempt of this very job may have written its object: known only for a job that came before.
fn earlier(
    delivery: &Delivery,
    job: &Job,
    first_failure_at: Option<Timestamp>,
    resume: Option<&Checkpoint>,
) -> Option<SystemTime> {
    let initiated =
        resume.and_then(|checkpoint| Timestamp::from_second(i64::try_from(checkpoint.initiated).ok()?).ok());
    let before = [headers::begun(&delivery.properties.headers), first_failure_at, initiated];
    let returned = delivery.redelivered || delivery.delivery_count > 0 || delivery.lane == Lane::Continued;
    let again = returned || before.iter().any(Option::is_some);
    let since = before.into_iter().chain([job.created_at]).flatten().min();
    let since = since.filter(|_| again)?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::try_from(since.as_duration()).ok()?)
}
