//! The queue in a SQLite file: each operation is passed on to the thread that owns the connection.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Sender};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::{Mutex as AsyncMutex, oneshot, watch};

use super::engine::{Engine, EngineShared, FilePhase};
use super::limits;
use super::write_op::{EngineCommand, LeaseContent, PendingWrite, WriteOp};
use crate::domain::destination::DestinationIdentity;
use crate::domain::lane::Lane;
use crate::metrics::Metrics;
use crate::queue::prefetch::PrefetchBuffer;
use crate::queue::{
    self, ControlEvent, Delivery, JobPublisher, OutcomeEvent, Publication, Queue, QueueError, Released, Settlement,
};

/// Default of [`SqliteQueue::write_timeout`].
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// Time for which closing, pausing and stopping wait for pending operations.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// The queue in a SQLite file.
pub struct SqliteQueue {
    pub(super) shared: Arc<EngineShared>,
    commands: Mutex<Sender<EngineCommand>>,
    control: AsyncMutex<UnboundedReceiver<ControlEvent>>,
    /// Time for which a settlement or a publish is retried.
    pub(super) write_timeout: Duration,
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

    pub(super) fn send(&self, command: EngineCommand) -> Result<(), QueueError> {
        self.commands.lock().send(command).map_err(|_| QueueError::closed())
    }

    /// Performs a write operation, which fails after [`SqliteQueue::write_timeout`].
    async fn write(&self, op: WriteOp) -> Result<(), QueueError> {
        self.write_until(op, Some(Instant::now() + self.write_timeout)).await
    }

    async fn write_until(&self, op: WriteOp, deadline: Option<Instant>) -> Result<(), QueueError> {
        let (reply, result) = oneshot::channel();
        self.send(EngineCommand::Write(PendingWrite { op, deadline, reply: Some(reply) }))?;
        result.await.unwrap_or_else(|_| Err(QueueError::closed()))
    }

    /// Requeues jobs that were prefetched and not handed out. If the file can't be written now, the
    /// thread retries; the worker, which has slots to fill, does not wait for that.
    async fn requeue_prefetched(&self, deliveries: Vec<Delivery>) {
        if deliveries.is_empty() {
            return;
        }
        let tickets = deliveries.into_iter().map(|delivery| delivery.ticket).collect();
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

#[async_trait]
impl Queue for SqliteQueue {
    async fn wait_connected(&self, limit: Duration) -> Result<(), QueueError> {
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
            FilePhase::Closed => Err(QueueError::closed()),
        }
    }

    async fn next(&self, lane: Lane) -> Option<Delivery> {
        self.shared.prefetched.next(lane, std::convert::identity).await
    }

    async fn settle(
        &self,
        delivery: Delivery,
        settlement: Settlement,
        events: Vec<OutcomeEvent>,
    ) -> Result<(), QueueError> {
        let action = settlement.action();
        limits::check_outcomes(&events)?;
        let delivery = Box::new(delivery);
        self.write(WriteOp::Settle { delivery, settlement, events }).await?;
        self.shared.metrics.settled(action);
        Ok(())
    }

    async fn lease(
        &self,
        delivery: &Delivery,
        _key: &str,
        holder: Arc<dyn queue::LeaseHolder>,
    ) -> Result<(), QueueError> {
        // The row is the lease, so the key of the run is not needed.
        let (ticket, headers, message) = (delivery.ticket, delivery.properties.headers.clone(), holder.message());
        limits::check_lease(&message)?;
        let content = LeaseContent { ticket, headers, message };
        self.write(WriteOp::Lease { content, holder }).await
    }

    async fn publish_control(&self, control: Bytes) -> Result<(), QueueError> {
        self.write(WriteOp::PublishControl(control)).await
    }

    async fn next_control(&self) -> Option<ControlEvent> {
        self.control.lock().await.recv().await
    }

    async fn release_delayed(&self, destinations: BTreeSet<DestinationIdentity>) -> Result<Released, QueueError> {
        // They go to their lanes in the order in which their waits began.
        let count = Arc::new(AtomicU64::new(0));
        self.write(WriteOp::ReleaseDelayed { destinations, count: Arc::clone(&count) }).await?;
        Ok(Released { count: count.load(Ordering::Relaxed), partly: false })
    }

    async fn stop_consuming(&self) {
        self.requeue_prefetched(self.shared.prefetched.close()).await;
    }

    async fn pause(&self, lane: Lane) {
        self.requeue_prefetched(self.shared.prefetched.pause(lane)).await;
    }

    async fn resume(&self, lane: Lane, room: u16) {
        let (done, resumed) = oneshot::channel();
        // Fails only without the thread, and then there are no jobs to fetch.
        if self.send(EngineCommand::Resume { lane, room, done }).is_ok() {
            let _ = tokio::time::timeout(CLOSE_TIMEOUT, resumed).await;
        }
    }

    fn oldest_prefetched(&self) -> Option<(Lane, tokio::time::Instant)> {
        self.shared.prefetched.oldest()
    }

    async fn close(&self) {
        let (reply, closed) = oneshot::channel();
        if self.send(EngineCommand::Close(reply)).is_ok() {
            let _ = tokio::time::timeout(CLOSE_TIMEOUT, closed).await;
        }
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

#[async_trait]
impl JobPublisher for SqliteQueue {
    async fn publish(&self, publication: Publication) -> Result<(), QueueError> {
        let lane = limits::check_publication(&publication)?;
        let _unconfirmed = self.shared.metrics.unconfirmed();
        let publication = Box::new(publication);
        self.write(WriteOp::Publish { lane, publication }).await
    }
}
