//! The embedded queue: one SQLite file, for one machine, for as long as that serves (`broker.url = "sqlite:PATH"`). The only place
//! that imports rusqlite.
//!
//! It does what the queue on RabbitMQ does (one suite of tests holds both to it): lanes with a prefetch, a wait ladder, dead letters,
//! outcomes. Several processes may open the file at once (`run`, `enqueue`), several workers share its work, and
//! `broker.prefix` keeps several installations in one file apart. The file must be on a local disk: SQLite's log is shared
//! through memory, which no network file system can do.
//!
//! # What is promised
//! * A job that was published, and a settlement that was performed, is on the disk (`synchronous = FULL`). Events, copy and
//!   acknowledgement of a settlement are one transaction. Settlements and publishes that meet share one commit.
//! * A process that ends, however it ends, loses nothing: what it held is delivered again, within a second or so where the
//!   system shows that the process is gone, else after half a minute without a sign of life (see `owner`). A settlement that
//!   comes after that ends in [`QueueError::Lost`]: its events are recorded (they carry stable ids), its copy is not made.
//! * A lease is the job's own row: it is moved to lane `continued` and says what another worker would get, from the start on the
//!   disk, and within ten seconds of every change. It stays its owner's while that lives, and nothing else limits it. When others
//!   took this process for dead, or the file is gone, all work under leases is told that it has lost its job.
//! * Jobs of other processes are seen within 50 ms; those published through the same queue at once.
//! * A file that is locked, or a full disk: not ready, with the reason; everything is tried again. A settlement or publish that
//!   can't be done within 30 s fails, and the delivery comes again.
//! * A file that is damaged, not ours, of a newer version, or read-only is refused, and left as it is.
//! * The same job id may be published again while it is queued, as on RabbitMQ: each is a delivery of its own, and the worker
//!   joins them.
//!
//! # What people may read
//! `sqlite3 FILE "SELECT recorded_at, job_id, outcome, reason, message FROM outcomes ORDER BY seq DESC LIMIT 20"`
//!
//! | table | columns |
//! |---|---|
//! | `outcomes` | `seq`, `recorded_at` (RFC 3339), `prefix`, `id` (the CloudEvents id, unique), `repeats` (how often the same outcome came again), `outcome`, `job_id`, `destination`, `bytes`, `attempts`, `reason`, `message`, `routing_key`, `reply_to`, `correlation_id`, `body` (the whole event, JSON) |
//! | `dead_letters` | `seq`, `died_at`, `prefix`, `lane`, `routing_key`, `reason`, `class`, `message`, `attempts`, `first_failure_at`, `last_failure_at`, `published_at`, `message_id`, `content_type`, `reply_to`, `correlation_id`, `type`, `headers` (JSON), `body` |
//! | `jobs` | those to be worked on, and worked on (`owner`), under a lease in lane `continued`: `seq`, `prefix`, `lane`, `routing_key`, `published_at`, `message_id`, `redelivered`, `delivery_count`, `headers`, `body` ... |
//! | `waiting` | copies on the wait ladder: the same, and `due_at` |
//! | `control` | control messages of the last 7 days: `seq`, `announced_at`, `prefix`, `body` (JSON) |
//! | `owners` | processes that consume: `id`, `worker`, `pid`, `started_at`, `beats` |
//!
//! The newest 100,000 outcomes are kept. A terminal outcome that comes twice is one row. An outcome for `reply_to` is not sent
//! anywhere: the one who asked finds it here. Reading with other tools harms nothing; a long write transaction makes the queue wait.

mod control;
mod dead;
mod depths;
mod engine;
mod file;
mod jobs;
mod outcomes;
mod owner;
mod schema;
#[cfg(test)]
mod tests;
mod trouble;
mod visit;
mod work;

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
pub use dead::DeadLetters;
pub use depths::depths;
pub use outcomes::Outcomes;
pub(super) use outcomes::replies;

use crate::domain::destination::DestinationId;
use crate::domain::lane::Lane;
use crate::domain::routing_key;
use crate::metrics::Metrics;
use crate::queue::prefetch::PrefetchBuffer;
use crate::queue::{
    self, BoxFuture, ControlEvent, Delivery, JobPublisher, OutcomeEvent, Publication, Queue, QueueError, Released,
    Settlement,
};
use engine::{Engine, Phase, Shared};
use file::Store;
use trouble::Trouble;
use work::{Command, LeaseContent, Pending, WriteOp};

/// How long a settlement or a publish is tried.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long closing, and giving back, wait for what is under way.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest name or property; RabbitMQ's bound, so that what works here works there.
const LONGEST_NAME: usize = 255;
/// The longest message; that of RabbitMQ 4.
const LONGEST_BODY: usize = 16 << 20;

/// The tables, each with what it holds.
pub const TABLES: [(&str, &str); 6] = [
    ("jobs", "jobs to be worked on, and worked on"),
    ("waiting", "copies on the wait ladder"),
    ("dead_letters", "jobs that were given up, with the reason"),
    ("outcomes", "the newest 100,000 outcomes"),
    ("control", "control messages of the last 7 days"),
    ("owners", "processes that consume"),
];

/// Makes the file and its tables, where they are not there yet. A queue that is started does so itself.
///
/// # Errors
/// As [`SqliteQueue::start`]; `Unavailable` for a file that is locked or can't grow.
pub fn apply(file: &Path) -> Result<(), QueueError> {
    Store::open(file).map(drop).map_err(Trouble::into_error)
}

/// The control messages of the last 7 days, oldest first.
pub(super) async fn control_messages(file: &Path, prefix: &str) -> Result<Vec<Bytes>, QueueError> {
    let owned = prefix.to_owned();
    let found = outcomes::patiently(file, move |store| control::after(store.connection(), &owned, 0)).await?;
    Ok(found.into_iter().map(|(_, body)| body).collect())
}

/// The queue in a SQLite file.
pub struct SqliteQueue {
    shared: Arc<Shared>,
    commands: Mutex<Sender<Command>>,
    control: AsyncMutex<UnboundedReceiver<ControlEvent>>,
    patience: Duration,
}

impl fmt::Debug for SqliteQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteQueue").field("file", &self.shared.file).finish_non_exhaustive()
    }
}

impl SqliteQueue {
    /// Opens the file, and creates it (readable for its owner alone) where there is none. Blocks for milliseconds as a rule, for 2 s
    /// where another process holds a lock; then it goes on trying in the background, and [`Queue::ready`] says why.
    ///
    /// `worker_id` names the process among the owners; `consume` gives each lane's prefetch. With no lanes it only publishes.
    ///
    /// # Errors
    /// `Unusable`: damaged, not ours, of a newer version, read-only, in no directory.
    pub fn start(
        file: &Path,
        prefix: &str,
        worker_id: &str,
        consume: Vec<(Lane, u16)>,
        metrics: Arc<Metrics>,
    ) -> Result<Arc<Self>, QueueError> {
        Self::start_with(PATIENCE, file, prefix, worker_id, consume, metrics)
    }

    fn start_with(
        patience: Duration,
        file: &Path,
        prefix: &str,
        worker_id: &str,
        consume: Vec<(Lane, u16)>,
        metrics: Arc<Metrics>,
    ) -> Result<Arc<Self>, QueueError> {
        let shared = Arc::new(Shared {
            file: file.to_owned(),
            prefix: prefix.to_owned(),
            worker_id: worker_id.to_owned(),
            lanes: consume,
            metrics,
            prefetched: PrefetchBuffer::default(),
            phase: watch::Sender::new(Phase::Down(QueueError::Unavailable("opening".to_owned()))),
        });
        let (commands, received) = mpsc::channel();
        let (announced, control) = unbounded_channel();
        let engine = Engine::start(Arc::clone(&shared), received, announced)?;
        let thread = std::thread::Builder::new().name("queue".to_owned()).spawn(move || engine.run());
        thread.map_err(|error| QueueError::Unavailable(format!("a thread can't be started: {error}")))?;
        let (commands, control) = (Mutex::new(commands), AsyncMutex::new(control));
        Ok(Arc::new(Self { shared, commands, control, patience }))
    }

    fn send(&self, command: Command) -> Result<(), QueueError> {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner).send(command).map_err(|_| closed())
    }

    async fn ask(&self, work: WriteOp, patience: Option<Duration>) -> Result<(), QueueError> {
        let (reply, answer) = oneshot::channel();
        let deadline = patience.map(|patience| Instant::now() + patience);
        self.send(Command::Do(Pending { work, deadline, reply: Some(reply) }))?;
        answer.await.unwrap_or_else(|_| Err(closed()))
    }

    async fn perform(
        &self,
        delivery: Delivery,
        settlement: Settlement,
        events: Vec<OutcomeEvent>,
    ) -> Result<(), QueueError> {
        let action = settlement.action();
        for event in &events {
            check_lengths(&[Some(&event.routing_key), Some(&event.id)])?;
        }
        let delivery = Box::new(delivery);
        self.ask(WriteOp::Settle { delivery, settlement, events }, Some(self.patience)).await?;
        self.shared.metrics.settled(action);
        Ok(())
    }

    /// The job's row is its lease: there is nobody else to be told by a key.
    async fn take_lease(&self, delivery: &Delivery, work: Arc<dyn queue::LeaseHolder>) -> Result<(), QueueError> {
        let (ticket, headers, message) = (delivery.ticket, delivery.properties.headers.clone(), work.message());
        check_lengths(&[Some(&message.content_type)])?;
        message.headers.keys().try_for_each(|name| check_lengths(&[Some(name)]))?;
        let content = LeaseContent { ticket, headers, message };
        self.ask(WriteOp::Lease { content, work }, Some(self.patience)).await
    }

    async fn publish(&self, publication: Publication) -> Result<(), QueueError> {
        let lane = check(&publication)?;
        let _unconfirmed = self.shared.metrics.unconfirmed();
        let publication = Box::new(publication);
        self.ask(WriteOp::Publish { lane, publication }, Some(self.patience)).await
    }

    /// They are due at once, and come as ever, in the order in which they began to wait.
    async fn call_back(&self, destinations: &BTreeSet<DestinationId>) -> Result<Released, QueueError> {
        let (keys, count) = (destinations.iter().flat_map(routing_key::jobs_of).collect(), Arc::new(AtomicU64::new(0)));
        self.ask(WriteOp::Recall { keys, count: Arc::clone(&count) }, Some(self.patience)).await?;
        Ok(Released { count: count.load(Ordering::Relaxed), partly: false })
    }

    /// What was fetched and not handed out goes back untouched. A file that can't be written now gets it later; the worker, which
    /// has slots to fill, does not wait for that.
    async fn give_back(&self, prefetched: Vec<Delivery>) {
        if prefetched.is_empty() {
            return;
        }
        let tickets = prefetched.iter().map(|delivery| delivery.ticket).collect();
        match tokio::time::timeout(CLOSE_TIMEOUT, self.ask(WriteOp::GiveBack { tickets, counted: false }, None)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => tracing::debug!("the queue is closed; what was fetched is given back with it"),
            Err(_) => tracing::debug!("the file can't be written now; what was fetched is given back later"),
        }
    }

    async fn shut_down(&self) {
        let (reply, closed) = oneshot::channel();
        if self.send(Command::Close(reply)).is_ok() {
            let _ = tokio::time::timeout(CLOSE_TIMEOUT, closed).await;
        }
    }
}

/// The lane of a job that is to be published.
fn check(publication: &Publication) -> Result<Lane, QueueError> {
    let Publication { routing_key, body, properties: p } = publication;
    let lane = jobs::lane_of(routing_key).ok_or_else(|| {
        QueueError::Refused(format!(
            "no queue takes the routing key `{routing_key}`; publish with `job.scheduled.DEST` or `job.backfill.DEST`"
        ))
    })?;
    let texts = [&p.content_type, &p.message_id, &p.reply_to, &p.correlation_id, &p.kind];
    check_lengths(&[Some(routing_key)])?;
    check_lengths(&texts.map(Option::as_ref))?;
    p.headers.keys().try_for_each(|name| check_lengths(&[Some(name)]))?;
    if body.len() > LONGEST_BODY {
        return Err(QueueError::Refused(format!(
            "the body has {} bytes, and at most {LONGEST_BODY} are taken",
            body.len()
        )));
    }
    Ok(lane)
}

fn check_lengths(names: &[Option<&String>]) -> Result<(), QueueError> {
    match names.iter().flatten().find(|name| name.len() > LONGEST_NAME) {
        Some(name) => {
            let start: String = name.chars().take(40).collect();
            Err(QueueError::Refused(format!("`{start}...` has {} bytes; at most {LONGEST_NAME} fit", name.len())))
        }
        None => Ok(()),
    }
}

fn closed() -> QueueError {
    QueueError::Unavailable("the queue is closed".to_owned())
}

impl Queue for SqliteQueue {
    fn wait_connected(&self, limit: Duration) -> BoxFuture<'_, Result<(), QueueError>> {
        Box::pin(async move {
            let mut phases = self.shared.phase.subscribe();
            let settled = |phase: &Phase| !matches!(phase, Phase::Down(QueueError::Unavailable(_)));
            let phase = match tokio::time::timeout(limit, phases.wait_for(settled)).await {
                Ok(Ok(phase)) => phase.clone(),
                Ok(Err(_)) => Phase::Closed,
                Err(_) => self.shared.phase.borrow().clone(),
            };
            match phase {
                Phase::Up => Ok(()),
                Phase::Down(problem) => Err(problem),
                Phase::Closed => Err(closed()),
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
        Box::pin(self.perform(delivery, settlement, events))
    }

    fn lease<'a>(
        &'a self,
        delivery: &'a Delivery,
        _key: &'a str,
        work: Arc<dyn queue::LeaseHolder>,
    ) -> BoxFuture<'a, Result<(), QueueError>> {
        Box::pin(self.take_lease(delivery, work))
    }

    fn publish_control(&self, control: Bytes) -> BoxFuture<'_, Result<(), QueueError>> {
        Box::pin(self.ask(WriteOp::Announce(control), Some(self.patience)))
    }

    fn next_control(&self) -> BoxFuture<'_, Option<ControlEvent>> {
        Box::pin(async { self.control.lock().await.recv().await })
    }

    fn release_delayed(&self, destinations: BTreeSet<DestinationId>) -> BoxFuture<'_, Result<Released, QueueError>> {
        Box::pin(async move { self.call_back(&destinations).await })
    }

    fn stop_consuming(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.give_back(self.shared.prefetched.close()).await;
        })
    }

    fn pause(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.give_back(self.shared.prefetched.pause()).await;
        })
    }

    fn resume(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.shared.prefetched.resume();
            // Without its thread there is nothing to take.
            let _ = self.send(Command::Wake);
        })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.shut_down())
    }

    fn system(&self) -> &'static str {
        "sqlite"
    }

    fn ready(&self) -> Result<(), String> {
        match &*self.shared.phase.borrow() {
            Phase::Down(QueueError::Unavailable(why) | QueueError::Unusable(why)) => Err(why.clone()),
            Phase::Down(problem) => Err(problem.to_string()),
            Phase::Closed => Err("the queue is closed".to_owned()),
            Phase::Up if self.shared.prefetched.is_closed() => Err("no more work is taken".to_owned()),
            Phase::Up => Ok(()),
        }
    }
}

impl JobPublisher for SqliteQueue {
    fn publish(&self, publication: Publication) -> BoxFuture<'_, Result<(), QueueError>> {
        Box::pin(Self::publish(self, publication))
    }
}
