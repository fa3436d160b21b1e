//! Control messages: which backfills are cancelled, which destinations are reset, and what the
//! workers report to each other.
//!
//! A task reads them beside the jobs. Before the first delivery is consumed, those of the past are
//! read, so that a worker that starts knows what was cancelled while it was away; the queue reports
//! when that is done ([`ControlEvent::CaughtUp`]). Each may be read more than once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::admission::{Admission, SharedChange};
use super::cancellations::Cancellations;
use super::generations::Generations;
use super::in_flight::InFlight;
use super::parts::WorkerClock;
use crate::domain::control::{Control, ControlCommand};
use crate::queue::{ControlEvent, Queue};

/// Time without a control message after which jobs are consumed although not all were read.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest time for which the worker reads control messages before it consumes jobs.
const MAX_CATCH_UP: Duration = Duration::from_mins(2);

/// Parts of the worker that control messages change.
#[derive(Debug, Clone)]
pub(super) struct ControlEffects {
    pub(super) admission: Arc<Admission>,
    pub(super) cancellations: Arc<Cancellations>,
    pub(super) in_flight: Arc<InFlight>,
    pub(super) generations: Arc<Generations>,
}

/// Reader of control messages.
#[derive(Debug, Clone)]
pub(super) struct ControlListener {
    queue: Arc<dyn Queue>,
    effects: ControlEffects,
    /// Clock of the worker.
    pub(super) clock: WorkerClock,
    /// Control messages that were read.
    read: Arc<AtomicU64>,
}

impl ControlListener {
    pub(super) fn new(queue: Arc<dyn Queue>, effects: ControlEffects, clock: WorkerClock) -> Self {
        Self { queue, effects, clock, read: Arc::default() }
    }

    /// Starts the task that reads control messages. Returns when those of the past are read, or at
    /// `drain`.
    pub(super) async fn start(&self, drain: &CancellationToken) -> JoinHandle<()> {
        let (sender, caught_up) = oneshot::channel();
        let task = tokio::spawn(self.clone().read(sender));
        tokio::select! {
            biased;
            () = drain.cancelled() => {}
            // The sender is dropped when all are read, and when nothing more can be read.
            _ = caught_up => {}
            () = self.timed_out() => {
                self.effects.generations.interrupted();
                tracing::warn!(
                    event = "control_late",
                    next = "jobs are consumed without them",
                    remedy = "check the broker if this repeats",
                    "control messages were not read in time"
                );
            }
        }
        task
    }

    async fn timed_out(&self) {
        while self.queue.wait_connected(CATCH_UP_TIMEOUT).await.is_err() {
            // A permanent error returns at once.
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let latest = Instant::now() + MAX_CATCH_UP;
        loop {
            let before = self.read.load(Ordering::Relaxed);
            tokio::time::sleep(CATCH_UP_TIMEOUT).await;
            if self.read.load(Ordering::Relaxed) == before || Instant::now() >= latest {
                return;
            }
        }
    }

    async fn read(self, caught_up: oneshot::Sender<()>) {
        let mut caught_up = Some(caught_up);
        while let Some(event) = self.queue.next_control().await {
            self.read.fetch_add(1, Ordering::Relaxed);
            if matches!(event, ControlEvent::Message(_) | ControlEvent::Fleet(_)) {
                self.effects.generations.set_readable(true);
            }
            match event {
                ControlEvent::Message(body) => self.perform(&body),
                ControlEvent::CaughtUp => {
                    self.effects.generations.caught_up();
                    drop(caught_up.take());
                }
                ControlEvent::Interrupted => self.effects.generations.interrupted(),
                ControlEvent::Unreadable => self.effects.generations.set_readable(false),
                ControlEvent::Fleet(share) => {
                    self.effects.generations.set_share(share);
                    self.effects.admission.set_share(share);
                }
            }
        }
    }

    fn perform(&self, body: &[u8]) {
        let Control { id, at, command } = match Control::parse(body) {
            Ok(control) => control,
            Err(error) => {
                return tracing::warn!(
                    event = "control_invalid",
                    %error,
                    next = "the message is ignored",
                    remedy = "run the same version of consign in all workers",
                    "a control message can't be read"
                );
            }
        };
        match command {
            ControlCommand::CancelBackfill(backfill) => {
                if self.effects.cancellations.cancel(backfill.clone(), id, at, (self.clock)()) {
                    tracing::info!(
                        event = "backfill_cancelled",
                        %backfill,
                        %at,
                        next = "jobs that have not started are skipped",
                        "backfill cancelled"
                    );
                }
            }
            ControlCommand::ResetCircuit(destination) => {
                self.effects.admission.recovery.reset_as_of(&destination, at);
            }
            ControlCommand::Circuit(destination, change) => {
                self.effects.admission.apply(SharedChange { id, destination, change, at });
            }
            ControlCommand::JobDelivered(run) => self.effects.in_flight.delivered_elsewhere(run, at, (self.clock)()),
            ControlCommand::Generation(object, change) => self.effects.generations.apply(object, change),
            // The queue keeps the roster.
            ControlCommand::WorkerStarted(_) | ControlCommand::WorkerStopped(_) => {}
        }
    }
}
