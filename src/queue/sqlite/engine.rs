//! The thread that owns the connection. What was asked meanwhile is done in one transaction (a commit costs the same for one job
//! as for a hundred), together with taking new jobs; then the answers go out.

mod batch;
mod leases;
mod session;

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;

use super::control::Reader;
use super::file::Store;
use super::owner;
use super::trouble::Trouble;
use super::work::{Command, Pending, WriteOp};
use crate::domain::lane::Lane;
use crate::metrics::Metrics;
use crate::queue::prefetch::PrefetchBuffer;
use crate::queue::{ControlEvent, Delivery, QueueError};
use crate::runtime::retry::Retry;
use leases::Leases;
use session::{BEAT, Session};

/// How late jobs of other processes are seen.
const POLL: Duration = Duration::from_millis(50);
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// What the thread and the queue's users share.
pub(super) struct Shared {
    pub(super) file: PathBuf,
    pub(super) prefix: String,
    pub(super) worker_id: String,
    /// Each lane with its prefetch; none: this queue only publishes.
    pub(super) lanes: Vec<(Lane, u16)>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) prefetched: PrefetchBuffer<Delivery>,
    pub(super) phase: watch::Sender<Phase>,
}

/// Where the thread stands.
#[derive(Debug, Clone)]
pub(super) enum Phase {
    /// The file can't be worked with, and why. It is tried again.
    Down(QueueError),
    /// The file is open.
    Up,
    /// Given up for good.
    Closed,
}

/// The thread's own.
pub(super) struct Engine {
    shared: Arc<Shared>,
    commands: Receiver<Command>,
    session: Option<Session>,
    generation: u64,
    /// What is on loan or in the backlog, by row.
    held: BTreeMap<u64, Lane>,
    leases: Leases,
    /// Lanes that may have jobs which nobody holds.
    more: Vec<Lane>,
    next_due: Option<i64>,
    pending: VecDeque<Pending>,
    retry: Retry,
    again_at: Option<Instant>,
    was_up: bool,
    /// None: this queue only publishes.
    control: Option<Reader>,
}

impl Engine {
    /// Opens the file, once.
    ///
    /// # Errors
    /// What waiting does not mend; a file that is only locked or full is tried again by [`Engine::run`].
    pub(super) fn start(
        shared: Arc<Shared>,
        commands: Receiver<Command>,
        announced: UnboundedSender<ControlEvent>,
    ) -> Result<Self, QueueError> {
        let control = (!shared.lanes.is_empty()).then(|| Reader::new(announced));
        let mut engine = Self {
            shared,
            commands,
            session: None,
            generation: 0,
            held: BTreeMap::new(),
            leases: Leases::default(),
            more: Vec::new(),
            next_due: None,
            pending: VecDeque::new(),
            retry: Retry::endless(FIRST_WAIT, LONGEST_WAIT),
            again_at: None,
            was_up: false,
            control,
        };
        match engine.open() {
            Err(Trouble::Lasting(why)) => return Err(QueueError::Unusable(why)),
            Err(trouble) => engine.down(trouble),
            Ok(()) => engine.up(),
        }
        Ok(engine)
    }

    /// Works until it is closed, or everybody who could ask has gone.
    pub(super) fn run(mut self) {
        let closed = loop {
            match self.receive() {
                Ok(()) => self.work(),
                Err(closed) => break closed,
            }
        };
        self.close();
        if let Some(reply) = closed {
            let _ = reply.send(());
        }
    }

    /// Waits for something to do; then takes everything that is there. `Err` when it is time to end.
    fn receive(&mut self) -> Result<(), Option<tokio::sync::oneshot::Sender<()>>> {
        let first = match self.patience() {
            Some(patience) => self.commands.recv_timeout(patience),
            None => self.commands.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        let mut next = match first {
            Ok(command) => Some(command),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return Err(None),
        };
        while let Some(command) = next {
            match command {
                Command::Do(pending) => self.pending.push_back(pending),
                Command::Wake => self.look_everywhere(),
                Command::Close(reply) => return Err(Some(reply)),
                #[cfg(test)]
                Command::Limit(pages) => {
                    self.session.iter().for_each(|session| session.store.limit_pages(pages));
                }
            }
            next = self.commands.try_recv().ok();
        }
        Ok(())
    }

    /// How long to wait for a command; `None`: until there is one.
    fn patience(&self) -> Option<Duration> {
        if let Some(at) = self.again_at {
            return Some(at.saturating_duration_since(Instant::now()));
        }
        if !self.pending.is_empty() {
            return Some(Duration::ZERO);
        }
        (!self.shared.lanes.is_empty()).then_some(POLL)
    }

    fn work(&mut self) {
        if self.again_at.is_none_or(|at| at <= Instant::now()) {
            let result = self
                .open()
                .and_then(|()| self.keep_house())
                .and_then(|()| self.turn())
                .and_then(|()| self.read_control());
            match result {
                Ok(()) => self.up(),
                Err(trouble) => self.down(trouble),
            }
        }
        self.expire();
    }

    fn read_control(&mut self) -> Result<(), Trouble> {
        let (Some(reader), Some(session)) = (&mut self.control, &self.session) else { return Ok(()) };
        reader.read(&session.store, (&self.shared.file, &self.shared.prefix))
    }

    fn up(&mut self) {
        self.again_at = None;
        self.retry.reset();
        if matches!(&*self.shared.phase.borrow(), Phase::Up) {
            return;
        }
        self.shared.metrics.set_broker_connected(true);
        if self.was_up {
            self.shared.metrics.broker_reconnected();
        }
        self.was_up = true;
        tracing::info!(file = %self.shared.file.display(), "the queue is open");
        self.shared.phase.send_replace(Phase::Up);
    }

    fn down(&mut self, trouble: Trouble) {
        self.again_at = Some(Instant::now() + self.retry.next_wait(None).unwrap_or(LONGEST_WAIT));
        if matches!(trouble, Trouble::Lasting(_)) {
            // Opened anew, it is checked anew; what this owner held comes again then.
            self.session = None;
        }
        // Reading may work where writing does not: only a sign of life that was written shows that the trouble is over.
        if let Some(session) = &mut self.session {
            session.beats_at = Instant::now();
        }
        let problem = trouble.into_error();
        let text = problem.to_string();
        if !matches!(&*self.shared.phase.borrow(), Phase::Down(known) if known.to_string() == text) {
            tracing::warn!(%problem, "the queue can't be worked with; trying again");
        }
        self.shared.metrics.set_broker_connected(false);
        self.shared.phase.send_replace(Phase::Down(problem));
    }

    /// Opens the file where it is not open, and makes this process known as an owner where it consumes.
    fn open(&mut self) -> Result<(), Trouble> {
        if self.session.is_some() {
            return Ok(());
        }
        let store = Store::open(&self.shared.file)?;
        self.session = Some(Session::new(store));
        if self.shared.lanes.is_empty() { Ok(()) } else { self.begin_generation() }
    }

    /// A new owner: what the last one held comes again, and can't be settled any more.
    fn begin_generation(&mut self) -> Result<(), Trouble> {
        let Some(session) = &mut self.session else { return Ok(()) };
        self.generation += 1;
        self.held.clear();
        self.leases.lose_all();
        self.shared.prefetched.clear();
        if let Err(trouble) = session.enter(&self.shared) {
            // Without an owner it is no session.
            self.session = None;
            return Err(trouble);
        }
        self.look_everywhere();
        Ok(())
    }

    fn look_everywhere(&mut self) {
        self.more = self.shared.lanes.iter().map(|(lane, _)| *lane).collect();
        self.next_due = Some(0);
        self.control.iter_mut().for_each(Reader::wake);
    }

    /// Signs of life, the work of the dead, and what other processes did.
    fn keep_house(&mut self) -> Result<(), Trouble> {
        if self.shared.lanes.is_empty() {
            return Ok(());
        }
        let now = Instant::now();
        self.refresh_leases(now);
        let Some(session) = &mut self.session else { return Ok(()) };
        let file = &self.shared.file;
        if now >= session.beats_at {
            if !session.store.is_in_place(file) {
                self.abort_upload();
                let why = format!("{} was deleted or replaced while it was in use", self.shared.file.display());
                return Err(Trouble::Passing(why));
            }
            session.beats_at = now + BEAT;
            let alive = session.beat().map_err(|error| Trouble::of(file, &error))?;
            if !alive {
                tracing::warn!("others took this process for dead and have its jobs; what it still works on is lost");
                return self.begin_generation();
            }
        }
        let buried = if now >= session.looks_at { session.bury_the_dead(file)? } else { 0 };
        let clock = session.follow_the_clock(&self.shared.prefix);
        let version = session.store.version();
        let changed = clock.and_then(|moved| version.map(|version| (moved, version)));
        let (moved, version) = changed.map_err(|error| Trouble::of(file, &error))?;
        if std::mem::replace(&mut session.version, version) != version || buried > 0 || moved {
            self.look_everywhere();
        }
        Ok(())
    }

    /// Everything known of the file is void.
    fn abort_upload(&mut self) {
        tracing::error!(file = %self.shared.file.display(), "the queue's file was deleted or replaced; what was in it is lost");
        if let Some(owner) = self.session.take().and_then(|session| session.owner) {
            owner.remove_lock();
        }
        self.generation += 1;
        self.held.clear();
        self.leases.lose_all();
        self.shared.prefetched.clear();
        self.control.iter_mut().for_each(Reader::start_over);
    }

    /// Ends the waiting of those whose time is over. A delivery that could not be settled goes back as soon as that is possible.
    fn expire(&mut self) {
        let now = Instant::now();
        if !self.pending.iter().any(|pending| pending.deadline.is_some_and(|deadline| deadline <= now)) {
            return;
        }
        let problem = match &*self.shared.phase.borrow() {
            Phase::Down(problem) => problem.clone(),
            Phase::Up | Phase::Closed => QueueError::Unavailable("the disk is too slow".to_owned()),
        };
        let (over, left): (Vec<_>, _) = std::mem::take(&mut self.pending)
            .into_iter()
            .partition(|pending| pending.deadline.is_some_and(|deadline| deadline <= now));
        self.pending = left.into();
        for pending in over {
            let tickets: Vec<_> = pending.work.ends(self.generation).collect();
            if !tickets.is_empty() {
                let work = WriteOp::GiveBack { tickets, counted: true };
                self.pending.push_back(Pending { work, deadline: None, reply: None });
            }
            pending.answer(Err(problem.clone()));
        }
    }

    /// Does what is left, gives everything back, and leaves the file. What can't be done now, others find out.
    fn close(&mut self) {
        let fetched = self.shared.prefetched.close().into_iter().map(|delivery| delivery.ticket).collect();
        self.pending.push_back(Pending {
            work: WriteOp::GiveBack { tickets: fetched, counted: false },
            deadline: None,
            reply: None,
        });
        while !self.pending.is_empty() && self.session.is_some() && self.turn().is_ok() {}
        if let Some(Session { mut store, owner: Some(owner), .. }) = self.session.take() {
            match store.transact(false, |db| owner::forget(db, owner.id())) {
                Ok(_) => owner.remove_lock(),
                Err(error) => tracing::debug!(%error, "this process could not say goodbye; others find out"),
            }
        }
        for pending in std::mem::take(&mut self.pending) {
            pending.answer(Err(QueueError::Unavailable("the queue is closed".to_owned())));
        }
        // With the owner gone, its jobs are everybody's.
        self.leases.lose_all();
    }
}

impl Drop for Engine {
    /// However the thread ends, nobody waits for it in vain.
    fn drop(&mut self) {
        self.leases.lose_all();
        self.shared.prefetched.close();
        self.shared.metrics.set_broker_connected(false);
        self.shared.phase.send_replace(Phase::Closed);
    }
}
