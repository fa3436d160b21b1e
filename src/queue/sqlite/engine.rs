//! The thread that owns the connection. It performs all pending operations in one transaction (a
//! commit costs the same for one job as for a hundred), together with claiming the next jobs, and
//! then answers the callers.

mod availability;
mod batch;
mod lease;
mod session;

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{oneshot, watch};

use super::connection::Store;
use super::control_reader::ControlCursor;
use super::errors::FileError;
use super::owner;
use super::write_op::{EngineCommand, PendingWrite, WriteOp};
use crate::domain::lane::Lane;
use crate::metrics::Metrics;
use crate::queue::prefetch::PrefetchBuffer;
use crate::queue::{ControlEvent, Delivery, QueueError};
use availability::Availability;
use lease::LeasedJobs;
use session::{FileSession, HEARTBEAT_INTERVAL};

/// Interval at which the thread looks for jobs of other processes.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// State shared by the thread and the queue's users.
pub(super) struct EngineShared {
    pub(super) file: PathBuf,
    pub(super) prefix: String,
    pub(super) worker_id: String,
    /// Each lane with its prefetch. Empty: this queue only publishes.
    pub(super) lanes: Vec<(Lane, u16)>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) prefetched: PrefetchBuffer<Delivery>,
    pub(super) phase: watch::Sender<FilePhase>,
}

/// State of the file.
#[derive(Debug, Clone)]
pub(super) enum FilePhase {
    /// The file can't be used, with the reason. The thread retries.
    Down(QueueError),
    /// The file is open.
    Up,
    /// The queue is closed.
    Closed,
}

/// State of the thread.
pub(super) struct Engine {
    shared: Arc<EngineShared>,
    commands: Receiver<EngineCommand>,
    session: Option<FileSession>,
    generation: u64,
    /// Lane of each job that is prefetched or handed out, by row.
    unsettled: BTreeMap<u64, Lane>,
    leased_jobs: LeasedJobs,
    /// Lanes that may have jobs without an owner.
    ready_lanes: Vec<Lane>,
    next_due: Option<i64>,
    pending: VecDeque<PendingWrite>,
    availability: Availability,
    /// `None`: this queue only publishes.
    control: Option<ControlCursor>,
}

impl Engine {
    /// Tries once to open the file.
    ///
    /// # Errors
    /// Errors that waiting does not resolve. [`Engine::run`] retries a file that is locked or full.
    pub(super) fn start(
        shared: Arc<EngineShared>,
        commands: Receiver<EngineCommand>,
        control_inbox: UnboundedSender<ControlEvent>,
    ) -> Result<Self, QueueError> {
        let control = (!shared.lanes.is_empty()).then(|| ControlCursor::new(control_inbox));
        let mut engine = Self {
            availability: Availability::new(Arc::clone(&shared)),
            shared,
            commands,
            session: None,
            generation: 0,
            unsettled: BTreeMap::new(),
            leased_jobs: LeasedJobs::default(),
            ready_lanes: Vec::new(),
            next_due: None,
            pending: VecDeque::new(),
            control,
        };
        match engine.open() {
            Err(FileError::Permanent(reason)) => return Err(QueueError::Unusable(reason)),
            Err(error) => engine.set_down(error),
            Ok(()) => engine.availability.set_up(),
        }
        Ok(engine)
    }

    /// Runs until the queue is closed or all its users are dropped.
    pub(super) fn run(mut self) {
        let closed = loop {
            match self.receive() {
                Ok(()) => self.step(),
                Err(closed) => break closed,
            }
        };
        self.close();
        if let Some(reply) = closed {
            let _ = reply.send(());
        }
    }

    /// Waits for a command or a timeout, then takes all commands that are there. Returns `Err` when
    /// the thread must end.
    fn receive(&mut self) -> Result<(), Option<oneshot::Sender<()>>> {
        let first = match self.receive_timeout() {
            Some(timeout) => self.commands.recv_timeout(timeout),
            None => self.commands.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        let mut next = match first {
            Ok(command) => Some(command),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return Err(None),
        };
        while let Some(command) = next {
            match command {
                EngineCommand::Write(pending) => self.pending.push_back(pending),
                EngineCommand::Resume { lane, room, done } => {
                    self.resume(lane, room);
                    // The caller may have stopped waiting.
                    let _ = done.send(());
                }
                EngineCommand::Close(reply) => return Err(Some(reply)),
                #[cfg(test)]
                EngineCommand::LimitPages(pages) => {
                    self.session.iter().for_each(|session| session.store.limit_pages(pages));
                }
            }
            next = self.commands.try_recv().ok();
        }
        Ok(())
    }

    /// Time to wait for a command; `None` means without a limit.
    fn receive_timeout(&self) -> Option<Duration> {
        if let Some(at) = self.availability.retry_at {
            return Some(at.saturating_duration_since(Instant::now()));
        }
        if !self.pending.is_empty() {
            return Some(Duration::ZERO);
        }
        (!self.shared.lanes.is_empty()).then_some(POLL_INTERVAL)
    }

    fn resume(&mut self, lane: Lane, room: u16) {
        let unsettled = self.unsettled.values().filter(|other| **other == lane).count();
        let limit = u16::try_from(unsettled).unwrap_or(u16::MAX).saturating_add(room);
        self.shared.prefetched.resume(lane, limit);
        self.check_everything();
    }

    fn step(&mut self) {
        if self.availability.retry_at.is_none_or(|at| at <= Instant::now()) {
            let result = self
                .open()
                .and_then(|()| self.run_maintenance())
                .and_then(|()| self.commit_batch())
                .and_then(|()| self.read_control());
            match result {
                Ok(()) => self.availability.set_up(),
                Err(error) => self.set_down(error),
            }
        }
        self.expire_pending();
    }

    fn read_control(&mut self) -> Result<(), FileError> {
        let (Some(reader), Some(session)) = (&mut self.control, &self.session) else { return Ok(()) };
        reader.read(&session.store, &self.shared.prefix)
    }

    fn set_down(&mut self, error: FileError) {
        if matches!(error, FileError::Permanent(_)) {
            // Opening the file checks it again. The jobs of this owner are delivered again then.
            self.session = None;
        }
        // Reading may work while writing does not: only a written heartbeat shows that the file is usable again.
        if let Some(session) = &mut self.session {
            session.heartbeat_at = Instant::now();
        }
        self.availability.set_down(error);
    }

    /// Opens the file unless it is open, and registers this process as an owner if it consumes.
    fn open(&mut self) -> Result<(), FileError> {
        if self.session.is_some() {
            return Ok(());
        }
        let store = Store::open(&self.shared.file)?;
        self.session = Some(FileSession::new(store));
        if self.shared.lanes.is_empty() { Ok(()) } else { self.start_generation() }
    }

    /// Registers a new owner. The jobs of the last one are delivered again, and their old
    /// deliveries can't be settled any more.
    fn start_generation(&mut self) -> Result<(), FileError> {
        self.lose_deliveries();
        let Some(session) = &mut self.session else { return Ok(()) };
        if let Err(error) = session.register(&self.shared) {
            // A session without an owner is of no use.
            self.session = None;
            return Err(error);
        }
        self.check_everything();
        Ok(())
    }

    /// Invalidates all deliveries and leases of the current generation.
    fn lose_deliveries(&mut self) {
        self.generation += 1;
        self.unsettled.clear();
        self.leased_jobs.lose_all();
        self.shared.prefetched.clear();
    }

    fn check_everything(&mut self) {
        self.ready_lanes = self.shared.lanes.iter().map(|(lane, _)| *lane).collect();
        self.next_due = Some(0);
        self.control.iter_mut().for_each(ControlCursor::wake);
    }

    /// Renews leases, writes the heartbeat, requeues jobs of dead owners, and finds other changes.
    fn run_maintenance(&mut self) -> Result<(), FileError> {
        if self.shared.lanes.is_empty() {
            return Ok(());
        }
        let now = Instant::now();
        self.renew_leases(now);
        let Some(session) = &mut self.session else { return Ok(()) };
        if now >= session.heartbeat_at {
            if !session.store.is_in_place() {
                self.discard_file();
                let reason = format!("{} was deleted or replaced while it was in use", self.shared.file.display());
                return Err(FileError::Transient(reason));
            }
            session.heartbeat_at = now + HEARTBEAT_INTERVAL;
            if !session.heartbeat()? {
                tracing::warn!(
                    event = "queue_owner_lost",
                    next = "its work is discarded; other workers have its jobs",
                    remedy = "check the load and the disk of this machine if this repeats",
                    "this process missed its heartbeats"
                );
                return self.start_generation();
            }
        }
        let requeued = if now >= session.lock_check_at { session.release_dead_owners(&self.shared.file)? } else { 0 };
        let set_back = session.check_clock(&self.shared.prefix)?;
        let version = session.store.version()?;
        if std::mem::replace(&mut session.version, version) != version || requeued > 0 || set_back {
            self.check_everything();
        }
        Ok(())
    }

    /// Discards all state of a file that was deleted or replaced.
    fn discard_file(&mut self) {
        tracing::error!(
            event = "queue_file_replaced",
            file = %self.shared.file.display(),
            next = "the worker opens the file of that name again",
            remedy = "restore the lost jobs from their producers, and keep other programs away from the file",
            "the queue file was deleted or replaced; its content is lost"
        );
        if let Some(owner) = self.session.take().and_then(|session| session.owner) {
            owner.remove_lock();
        }
        self.lose_deliveries();
        self.control.iter_mut().for_each(ControlCursor::rewind);
    }

    /// Queues an operation without a deadline, whose result nobody waits for.
    fn write_in_background(&mut self, op: WriteOp) {
        self.pending.push_back(PendingWrite { op, deadline: None, reply: None });
    }

    /// Fails operations past their deadline. Their deliveries are requeued as soon as possible.
    fn expire_pending(&mut self) {
        let now = Instant::now();
        let is_expired = |pending: &PendingWrite| pending.deadline.is_some_and(|deadline| deadline <= now);
        if !self.pending.iter().any(is_expired) {
            return;
        }
        let problem = self.availability.problem();
        let (expired, left): (Vec<_>, _) = std::mem::take(&mut self.pending).into_iter().partition(is_expired);
        self.pending = left.into();
        for pending in expired {
            let tickets: Vec<_> = pending.op.settled_tags(self.generation).collect();
            if !tickets.is_empty() {
                self.write_in_background(WriteOp::Requeue { tickets, delivered: true });
            }
            pending.answer(Err(problem.clone()));
        }
    }

    /// Performs pending operations, requeues everything unsettled, and closes the file. If the file
    /// can't be written now, other processes find out that this owner is dead.
    fn close(&mut self) {
        let tickets = self.shared.prefetched.close().into_iter().map(|delivery| delivery.ticket).collect();
        self.write_in_background(WriteOp::Requeue { tickets, delivered: false });
        while !self.pending.is_empty() && self.session.is_some() && self.commit_batch().is_ok() {}
        if let Some(FileSession { mut store, owner: Some(owner), .. }) = self.session.take() {
            match store.transact(false, |db| owner::remove(db, owner.id())) {
                Ok(_) => owner.remove_lock(),
                Err(error) => {
                    tracing::debug!(
                        event = "queue_owner_not_removed",
                        ?error,
                        "this owner could not be removed; other processes will expire it"
                    );
                }
            }
        }
        for pending in std::mem::take(&mut self.pending) {
            pending.answer(Err(QueueError::closed()));
        }
        // With the owner removed, other workers get its jobs.
        self.leased_jobs.lose_all();
    }
}

impl Drop for Engine {
    /// However the thread ends, no user keeps waiting for it.
    fn drop(&mut self) {
        self.leased_jobs.lose_all();
        self.shared.prefetched.close();
        self.shared.metrics.set_broker_connected(false);
        self.shared.phase.send_replace(FilePhase::Closed);
    }
}
