//! Queue in one SQLite file, for one machine (`broker.url = "sqlite:PATH"`). The only module that
//! imports rusqlite.
//!
//! It provides what the queue on RabbitMQ provides, and one conformance suite tests both: lanes
//! with a prefetch, retry delays, dead letters, outcomes. Several processes may open the file at
//! once (`run`, `enqueue`), several workers share its jobs, and `broker.prefix` keeps several
//! installations in one file apart. The file must be on a local disk: SQLite's write-ahead log uses
//! shared memory, which no network file system provides.
//!
//! # Guarantees
//! * A published job, and a settlement that was performed, is on the disk (`synchronous = FULL`).
//!   Events, copy and acknowledgement of a settlement are one transaction. Concurrent settlements
//!   and publishes share one commit.
//! * A process that ends in any way loses nothing. Its unsettled jobs are delivered again, within
//!   about a second if the system shows that the process is gone, else after half a minute without
//!   heartbeats (see `owner`). A later settlement fails with [`QueueError::Lost`]: its events are
//!   recorded (they carry stable ids), its copy is not made.
//! * A lease is the job's own row. The row moves to lane `continued` and holds what another worker
//!   would get, which is on the disk from the start and updated within ten seconds of a change. It
//!   stays with its owner as long as the owner lives, without any other limit. If other processes
//!   have expired this owner, or the file is gone, all lease holders are notified of the loss.
//! * Jobs of other processes are seen within 50 ms; those published through the same queue at once.
//! * While the file is locked or the disk is full, the queue is not ready, with the reason, and
//!   every operation is retried. A settlement or publish that can't be performed within 30 s fails,
//!   and the delivery is redelivered.
//! * A file that is damaged, foreign, of a newer version or read-only is refused and not changed.
//! * The same job id may be published again while it is queued, as on RabbitMQ. Each is a delivery
//!   of its own, and the worker joins them.
//!
//! # Reading the file
//! `sqlite3 FILE "SELECT recorded_at, job_id, outcome, reason, message FROM outcomes ORDER BY seq
//! DESC LIMIT 20"`
//!
//! | table | columns |
//! |---|---|
//! | `outcomes` | `seq`, `recorded_at` (RFC 3339), `prefix`, `id` (the CloudEvents id, unique), `repeats` (number of times the same outcome was recorded again), `outcome`, `job_id`, `destination`, `bytes`, `attempts`, `reason`, `message`, `routing_key`, `reply_to`, `correlation_id`, `body` (the whole event, JSON) |
//! | `dead_letters` | `seq`, `died_at`, `prefix`, `lane`, `routing_key`, `reason`, `class`, `message`, `attempts`, `first_failure_at`, `last_failure_at`, `published_at`, `message_id`, `content_type`, `reply_to`, `correlation_id`, `type`, `headers` (JSON), `body` |
//! | `jobs` | ready jobs and jobs in progress (`owner`), under a lease in lane `continued`: `seq`, `prefix`, `lane`, `routing_key`, `published_at`, `message_id`, `redelivered`, `delivery_count`, `headers`, `body` ... |
//! | `waiting` | copies that wait for their retry delay: the same, and `due_at` |
//! | `control` | control messages of the last 7 days: `seq`, `announced_at`, `prefix`, `body` (JSON) |
//! | `owners` | processes that consume: `id`, `worker`, `pid`, `started_at`, `beats` |
//!
//! The newest 100,000 outcomes are kept. A terminal outcome that is recorded twice is one row. An
//! outcome for `reply_to` is not sent anywhere: its receiver reads it here. Reading with other
//! tools is harmless; a long write transaction makes the queue wait.

mod control;
mod dead_letters;
mod depths;
mod engine;
mod errors;
mod file;
mod jobs;
mod limits;
mod outcomes;
mod owner;
mod retrying_store;
mod schema;
#[cfg(test)]
mod tests;
mod write_op;

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::{Mutex as AsyncMutex, oneshot, watch};

pub(super) use control::follow_control;
pub use dead_letters::SqliteDeadLetters;
pub use depths::depths;
pub use outcomes::SqliteOutcomes;
pub(super) use outcomes::replies;

use crate::domain::destination::DestinationIdentity;
use crate::domain::lane::Lane;
use crate::metrics::Metrics;
use crate::queue::prefetch::PrefetchBuffer;
use crate::queue::{
    self, BoxFuture, ControlEvent, Delivery, DeliveryTag, JobPublisher, OutcomeEvent, Publication, Queue, QueueError,
    Released, Settlement,
};
use engine::{Engine, EngineShared, FilePhase};
use errors::FileError;
use file::Store;
use write_op::{EngineCommand, LeaseContent, PendingWrite, WriteOp};

/// Time for which a settlement or a publish is retried.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// Time for which closing, pausing and stopping wait for pending operations.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Tables of the file, with their content.
pub const TABLES: [(&str, &str); 6] = [
    ("jobs", "ready jobs and jobs in progress"),
    ("waiting", "copies that wait for their retry delay"),
    ("dead_letters", "jobs that were not delivered, with the reason"),
    ("outcomes", "the newest 100,000 outcomes"),
    ("control", "control messages of the last 7 days"),
    ("owners", "processes that consume"),
];

/// Creates the file and its tables unless they exist. Starting a queue does the same.
///
/// # Errors
/// As [`SqliteQueue::start`]; `Unavailable` for a file that is locked or can't grow.
pub fn apply(file: &Path) -> Result<(), QueueError> {
    Store::open(file).map(drop).map_err(FileError::into_queue_error)
}

/// Returns the control messages of the last 7 days, oldest first.
pub(super) async fn control_messages(file: &Path, prefix: &str) -> Result<Vec<Bytes>, QueueError> {
    let prefix = prefix.to_owned();
    let messages = retrying_store::open_and(file, move |store| store.read(|db| control::after(db, &prefix, 0))).await?;
    Ok(messages.into_iter().map(|(_, body)| body).collect())
}

/// The queue in a SQLite file.
pub struct SqliteQueue {
    shared: Arc<EngineShared>,
    commands: Mutex<Sender<EngineCommand>>,
    control: AsyncMutex<UnboundedReceiver<ControlEvent>>,
    write_timeout: Duration,
}

impl fmt::Debug for SqliteQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteQueue").field("file", &self.shared.file).finish_non_exhaustive()
    }
}

impl SqliteQueue {
    /// Opens the file, or creates it with mode 0600. Blocks, usually for milliseconds, and for 2 s
    /// if another process holds a lock. Then the thread retries in the background, and
    /// [`Queue::ready`] returns the reason.
    ///
    /// `worker_id` names the process among the owners; `consume` gives each lane's prefetch.
    /// Without lanes the queue only publishes.
    ///
    /// # Errors
    /// `Unusable`: damaged, foreign, of a newer version, read-only, or without a directory.
    pub fn start(
        file: &Path,
        prefix: &str,
        worker_id: &str,
        consume: Vec<(Lane, u16)>,
        metrics: Arc<Metrics>,
    ) -> Result<Arc<Self>, QueueError> {
        let shared = Arc::new(EngineShared {
            file: file.to_owned(),
            prefix: prefix.to_owned(),
            worker_id: worker_id.to_owned(),
            lanes: consume,
            metrics,
            prefetched: PrefetchBuffer::default(),
            phase: watch::Sender::new(FilePhase::Down(QueueError::Unavailable("opening".to_owned()))),
        });
        let (commands, command_receiver) = mpsc::channel();
        let (control_inbox, control) = unbounded_channel();
        let engine = Engine::start(Arc::clone(&shared), command_receiver, control_inbox)?;
        let thread = std::thread::Builder::new().name("queue".to_owned()).spawn(move || engine.run());
        thread.map_err(|error| QueueError::Unavailable(format!("a thread can't be started: {error}")))?;
        let (commands, control) = (Mutex::new(commands), AsyncMutex::new(control));
        Ok(Arc::new(Self { shared, commands, control, write_timeout: WRITE_TIMEOUT }))
    }

    fn send(&self, command: EngineCommand) -> Result<(), QueueError> {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner).send(command).map_err(|_| closed())
    }

    /// Performs a write operation, which fails after [`SqliteQueue::write_timeout`].
    async fn write(&self, op: WriteOp) -> Result<(), QueueError> {
        self.write_until(op, Some(Instant::now() + self.write_timeout)).await
    }

    async fn write_until(&self, op: WriteOp, deadline: Option<Instant>) -> Result<(), QueueError> {
        let (reply, result) = oneshot::channel();
        self.send(EngineCommand::Write(PendingWrite { op, deadline, reply: Some(reply) }))?;
        result.await.unwrap_or_else(|_| Err(closed()))
    }

    /// Requeues jobs that were prefetched and not handed out. If the file can't be written now, the
    /// thread retries; the worker, which has slots to fill, does not wait for that.
    async fn requeue_prefetched(&self, tickets: Vec<DeliveryTag>) {
        if tickets.is_empty() {
            return;
        }
        let requeued = self.write_until(WriteOp::Requeue { tickets, delivered: false }, None);
        match tokio::time::timeout(CLOSE_TIMEOUT, requeued).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => {
                tracing::debug!(event = "requeue_by_close", "the queue is closed, which requeues all prefetched jobs");
            }
            Err(_) => tracing::debug!(
                event = "requeue_delayed",
                "the file can't be written now; prefetched jobs are requeued later"
            ),
        }
    }
}

fn closed() -> QueueError {
    QueueError::Unavailable("the queue is closed".to_owned())
}

impl Queue for SqliteQueue {
    fn wait_connected(&self, limit: Duration) -> BoxFuture<'_, Result<(), QueueError>> {
        Box::pin(async move {
            let mut phases = self.shared.phase.subscribe();
            let is_final = |phase: &FilePhase| !matches!(phase, FilePhase::Down(QueueError::Unavailable(_)));
            let phase = match tokio::time::timeout(limit, phases.wait_for(is_final)).await {
                Ok(Ok(phase)) => phase.clone(),
                Ok(Err(_)) => FilePhase::Closed,
                Err(_) => self.shared.phase.borrow().clone(),
            };
            match phase {
                FilePhase::Up => Ok(()),
                FilePhase::Down(problem) => Err(problem),
                FilePhase::Closed => Err(closed()),
            }
        })
    }

    fn next(&self, lane: Lane) -> BoxFuture<'_, Option<Delivery>> {
        Box::pin(self.shared.prefetched.next(lane, std::convert::identity))
    }

    fn settle(
        &self,
        delivery: Delivery,
        settlement: Settlement,
        events: Vec<OutcomeEvent>,
    ) -> BoxFuture<'_, Result<(), QueueError>> {
        Box::pin(async move {
            let action = settlement.action();
            limits::check_outcomes(&events)?;
            let delivery = Box::new(delivery);
            self.write(WriteOp::Settle { delivery, settlement, events }).await?;
            self.shared.metrics.settled(action);
            Ok(())
        })
    }

    fn lease<'a>(
        &'a self,
        delivery: &'a Delivery,
        _key: &'a str,
        holder: Arc<dyn queue::LeaseHolder>,
    ) -> BoxFuture<'a, Result<(), QueueError>> {
        // The row is the lease, so the key of the run is not needed.
        Box::pin(async move {
            let (ticket, headers, message) = (delivery.ticket, delivery.properties.headers.clone(), holder.message());
            limits::check_lease(&message)?;
            let content = LeaseContent { ticket, headers, message };
            self.write(WriteOp::Lease { content, holder }).await
        })
    }

    fn publish_control(&self, control: Bytes) -> BoxFuture<'_, Result<(), QueueError>> {
        Box::pin(self.write(WriteOp::PublishControl(control)))
    }

    fn next_control(&self) -> BoxFuture<'_, Option<ControlEvent>> {
        Box::pin(async { self.control.lock().await.recv().await })
    }

    fn release_delayed(
        &self,
        destinations: BTreeSet<DestinationIdentity>,
    ) -> BoxFuture<'_, Result<Released, QueueError>> {
        // They go to their lanes in the order in which their waits began.
        Box::pin(async move {
            let count = Arc::new(AtomicU64::new(0));
            self.write(WriteOp::ReleaseDelayed { destinations, count: Arc::clone(&count) }).await?;
            Ok(Released { count: count.load(Ordering::Relaxed), partly: false })
        })
    }

    fn stop_consuming(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            let left = self.shared.prefetched.close().into_iter().map(|delivery| delivery.ticket).collect();
            self.requeue_prefetched(left).await;
        })
    }

    fn pause(&self, lane: Lane) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let left = self.shared.prefetched.pause(lane).into_iter().map(|delivery| delivery.ticket).collect();
            self.requeue_prefetched(left).await;
        })
    }

    fn resume(&self, lane: Lane, room: u16) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let (done, resumed) = oneshot::channel();
            // Fails only without the thread, and then there are no jobs to fetch.
            if self.send(EngineCommand::Resume { lane, room, done }).is_ok() {
                let _ = tokio::time::timeout(CLOSE_TIMEOUT, resumed).await;
            }
        })
    }

    fn oldest_prefetched(&self) -> Option<(Lane, tokio::time::Instant)> {
        self.shared.prefetched.oldest()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            let (reply, closed) = oneshot::channel();
            if self.send(EngineCommand::Close(reply)).is_ok() {
                let _ = tokio::time::timeout(CLOSE_TIMEOUT, closed).await;
            }
        })
    }

    fn system(&self) -> &'static str {
        "sqlite"
    }

    fn ready(&self) -> Result<(), String> {
        match &*self.shared.phase.borrow() {
            FilePhase::Down(QueueError::Unavailable(why) | QueueError::Unusable(why)) => Err(why.clone()),
            FilePhase::Down(problem) => Err(problem.to_string()),
            FilePhase::Closed => Err("the queue is closed".to_owned()),
            FilePhase::Up if self.shared.prefetched.is_closed() => Err("the queue has stopped consuming".to_owned()),
            FilePhase::Up => Ok(()),
        }
    }
}

impl JobPublisher for SqliteQueue {
    fn publish(&self, publication: Publication) -> BoxFuture<'_, Result<(), QueueError>> {
        Box::pin(async move {
            let lane = limits::check_publication(&publication)?;
            let _unconfirmed = self.shared.metrics.unconfirmed();
            let publication = Box::new(publication);
            self.write(WriteOp::Publish { lane, publication }).await
        })
    }
}
