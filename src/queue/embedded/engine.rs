//! The thread that owns the connection. What was asked meanwhile is done in one transaction (a commit costs the same for one job
//! as for a hundred), together with taking new jobs; then the answers go out.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::file::Store;
use super::intake::Intake;
use super::owner::{self, Owner, Watch};
use super::trouble::Trouble;
use super::work::{Command, Pending, Work};
use super::{jobs, outcomes};
use crate::lane::Lane;
use crate::metrics::Metrics;
use crate::queue::{Delivery, QueueError};
use crate::retry::Retry;

/// How late jobs of other processes are seen.
const POLL: Duration = Duration::from_millis(50);
/// How often locks of other owners are tried.
const LOOK: Duration = Duration::from_secs(1);
/// How often this owner gives a sign of life.
const BEAT: Duration = Duration::from_secs(5);
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(2);
/// Pieces of work in one transaction.
const BATCH: usize = 256;

/// What the thread and the queue's users share.
pub(super) struct Shared {
    pub(super) file: PathBuf,
    pub(super) prefix: String,
    pub(super) worker_id: String,
    /// Each lane with its prefetch; none: this queue only publishes.
    pub(super) lanes: Vec<(Lane, u16)>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) intake: Intake,
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

/// The file, open, and this process's part in it.
struct Session {
    store: Store,
    owner: Option<Owner>,
    watch: Watch,
    version: i64,
    looks_at: Instant,
    beats_at: Instant,
    clock_ms: i64,
}

/// The thread's own.
pub(super) struct Engine {
    shared: Arc<Shared>,
    commands: Receiver<Command>,
    session: Option<Session>,
    generation: u64,
    /// What is on loan or in the backlog, by row.
    held: BTreeMap<u64, Lane>,
    /// Lanes that may have jobs which nobody holds.
    more: Vec<Lane>,
    next_due: Option<i64>,
    pending: VecDeque<Pending>,
    retry: Retry,
    again_at: Option<Instant>,
    was_up: bool,
}

/// What a transaction did.
struct Done {
    answers: Vec<Result<(), QueueError>>,
    fetched: Vec<(Lane, usize, Vec<Delivery>)>,
    arrived: usize,
    next_due: Option<i64>,
}

impl Engine {
    /// Opens the file, once.
    ///
    /// # Errors
    /// What waiting does not mend; a file that is only locked or full is tried again by [`Engine::run`].
    pub(super) fn start(shared: Arc<Shared>, commands: Receiver<Command>) -> Result<Self, QueueError> {
        let mut engine = Self {
            shared,
            commands,
            session: None,
            generation: 0,
            held: BTreeMap::new(),
            more: Vec::new(),
            next_due: None,
            pending: VecDeque::new(),
            retry: Retry::endless(FIRST_WAIT, LONGEST_WAIT),
            again_at: None,
            was_up: false,
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
            let result = self.open().and_then(|()| self.keep_house()).and_then(|()| self.turn());
            match result {
                Ok(()) => self.up(),
                Err(trouble) => self.down(trouble),
            }
        }
        self.expire();
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
        let file = &self.shared.file;
        let store = Store::open(file)?;
        let now = Instant::now();
        let session = Session {
            store,
            owner: None,
            watch: Watch::default(),
            version: -1,
            looks_at: now,
            beats_at: now + BEAT,
            clock_ms: i64::MAX,
        };
        self.session = Some(session);
        if self.shared.lanes.is_empty() { Ok(()) } else { self.begin_generation() }
    }

    /// A new owner: what the last one held comes again, and can't be settled any more.
    fn begin_generation(&mut self) -> Result<(), Trouble> {
        let Some(session) = &mut self.session else { return Ok(()) };
        self.generation += 1;
        self.held.clear();
        self.shared.intake.forget();
        let entered = Owner::new(&self.shared.file).map_err(|error| Trouble::creating(&self.shared.file, &error))?;
        let worker = &self.shared.worker_id;
        let result = session.store.transact(false, |db| entered.enter(db, worker));
        if let Err(error) = result {
            entered.remove_lock();
            self.session = None;
            return Err(Trouble::of(&self.shared.file, &error));
        }
        if let Some(old) = session.owner.replace(entered) {
            old.remove_lock();
        }
        self.look_everywhere();
        Ok(())
    }

    fn look_everywhere(&mut self) {
        self.more = self.shared.lanes.iter().map(|(lane, _)| *lane).collect();
        self.next_due = Some(0);
    }

    /// Signs of life, the work of the dead, and what other processes did.
    fn keep_house(&mut self) -> Result<(), Trouble> {
        if self.shared.lanes.is_empty() {
            return Ok(());
        }
        let now = Instant::now();
        let Some(session) = &mut self.session else { return Ok(()) };
        let file = &self.shared.file;
        if now >= session.beats_at {
            if !session.store.is_in_place(file) {
                self.abandon();
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
    fn abandon(&mut self) {
        tracing::error!(file = %self.shared.file.display(), "the queue's file was deleted or replaced; what was in it is lost");
        if let Some(owner) = self.session.take().and_then(|session| session.owner) {
            owner.remove_lock();
        }
        self.generation += 1;
        self.held.clear();
        self.shared.intake.forget();
    }

    /// One transaction with all that is to be done.
    fn turn(&mut self) -> Result<(), Trouble> {
        let due = self.next_due.is_some_and(|due| due <= jobs::now_ms());
        let wanted = self.wanted(due);
        if self.pending.is_empty() && wanted.is_empty() && !due {
            return Ok(());
        }
        let Some(session) = &mut self.session else { return Ok(()) };
        let batch = || self.pending.iter().take(BATCH).map(|pending| &pending.work);
        let prefix = self.shared.prefix.as_str();
        let owner = (session.owner.as_ref().map_or("", Owner::id), self.generation);
        let recorded = batch().any(|work| matches!(work, Work::Settle { events, .. } if !events.is_empty()));
        let work = |db: &rusqlite::Transaction<'_>| {
            let answers = batch().map(|work| work.apply(db, prefix, owner)).collect::<rusqlite::Result<_>>()?;
            if recorded {
                outcomes::trim(db)?;
            }
            let arrived = if due { jobs::arrive(db, prefix)? } else { 0 };
            let fetched = wanted
                .iter()
                .map(|(lane, room)| Ok((*lane, *room, jobs::claim(db, prefix, *lane, owner, *room)?)))
                .collect::<rusqlite::Result<_>>()?;
            Ok(Done { answers, fetched, arrived, next_due: jobs::next_due(db, prefix)? })
        };
        let done = session.store.transact(batch().any(Work::is_durable), work);
        match done {
            Ok(done) => self.finish(done),
            Err(error) => return Err(Trouble::of(&self.shared.file, &error)),
        }
        Ok(())
    }

    /// The lanes with room, and how much, after the settlements that are pending.
    fn wanted(&self, due: bool) -> Vec<(Lane, usize)> {
        if !self.shared.intake.takes() {
            return Vec::new();
        }
        let batch = || self.pending.iter().take(BATCH).map(|pending| &pending.work);
        let brings = due || batch().any(Work::brings_jobs);
        let ending: Vec<_> = batch().flat_map(|work| work.ends(self.generation)).map(|ticket| ticket.lane).collect();
        let lanes = self.shared.lanes.iter().filter(|(lane, _)| brings || self.more.contains(lane));
        let room = |(lane, prefetch): &(Lane, u16)| {
            let held = self.held.values().filter(|held| *held == lane).count();
            let ending = ending.iter().filter(|ending| *ending == lane).count();
            (*lane, usize::from((*prefetch).max(1)).saturating_sub(held.saturating_sub(ending)))
        };
        lanes.map(room).filter(|(_, room)| *room > 0).collect()
    }

    fn finish(&mut self, done: Done) {
        if done.answers.iter().any(Result::is_err) {
            tracing::debug!("a settlement came too late; its delivery is somebody else's by now");
        }
        if self.pending.iter().take(done.answers.len()).any(|pending| pending.work.brings_jobs()) || done.arrived > 0 {
            self.more = self.shared.lanes.iter().map(|(lane, _)| *lane).collect();
        }
        self.next_due = done.next_due;
        for answer in done.answers {
            let Some(pending) = self.pending.pop_front() else { break };
            for ticket in pending.work.ends(self.generation) {
                self.held.remove(&ticket.tag);
            }
            pending.answer(answer);
        }
        for (lane, room, fetched) in done.fetched {
            if fetched.len() < room {
                self.more.retain(|other| *other != lane);
            }
            self.hand_over(fetched);
        }
    }

    fn hand_over(&mut self, fetched: Vec<Delivery>) {
        let mut unwanted = Vec::new();
        for delivery in fetched {
            self.held.insert(delivery.ticket.tag, delivery.lane);
            unwanted.extend(self.shared.intake.put(delivery));
        }
        if !unwanted.is_empty() {
            let work = Work::GiveBack { tickets: unwanted, counted: false };
            self.pending.push_back(Pending { work, deadline: None, reply: None });
        }
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
                let work = Work::GiveBack { tickets, counted: true };
                self.pending.push_back(Pending { work, deadline: None, reply: None });
            }
            pending.answer(Err(problem.clone()));
        }
    }

    /// Does what is left, gives everything back, and leaves the file. What can't be done now, others find out.
    fn close(&mut self) {
        let fetched = self.shared.intake.close();
        self.pending.push_back(Pending {
            work: Work::GiveBack { tickets: fetched, counted: false },
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
    }
}

impl Drop for Engine {
    /// However the thread ends, nobody waits for it in vain.
    fn drop(&mut self) {
        self.shared.intake.close();
        self.shared.metrics.set_broker_connected(false);
        self.shared.phase.send_replace(Phase::Closed);
    }
}

impl Session {
    /// A sign of life, and a look at everybody else. False when others have called this owner gone.
    fn beat(&mut self) -> rusqlite::Result<bool> {
        let Some(owner) = &self.owner else { return Ok(true) };
        let watch = &mut self.watch;
        let mut released = 0;
        let alive = self.store.transact(false, |db| {
            if !owner.beat(db)? {
                return Ok(false);
            }
            for id in watch.look(db, owner.id())? {
                released += owner::forget(db, &id)?;
            }
            Ok(true)
        })?;
        if released > 0 {
            self.version = -1;
            tracing::warn!(
                jobs = released,
                "a process gave no sign of life for half a minute; its jobs are delivered again"
            );
        }
        Ok(alive)
    }

    /// Gives back what owners held whose processes are gone; how many jobs.
    fn bury_the_dead(&mut self, file: &std::path::Path) -> Result<usize, Trouble> {
        let Some(owner) = &self.owner else { return Ok(0) };
        let trouble = |error| Trouble::of(file, &error);
        let dead = owner::dead(self.store.connection(), file, owner.id()).map_err(trouble)?;
        let mut released = 0;
        for dead in dead {
            released += self.store.transact(false, |db| owner::forget(db, &dead.id)).map_err(trouble)?;
            dead.remove_lock();
        }
        if released > 0 {
            tracing::info!(
                jobs = released,
                "a process has ended without giving its jobs back; they are delivered again"
            );
        }
        self.looks_at = Instant::now() + LOOK;
        Ok(released)
    }

    /// Whether the clock went back, which would make copies wait too long.
    fn follow_the_clock(&mut self, prefix: &str) -> rusqlite::Result<bool> {
        let now = jobs::now_ms();
        let back = now < self.clock_ms.saturating_sub(1000);
        self.clock_ms = now;
        if back {
            self.store.transact(false, |db| jobs::shorten_waits(db, prefix))?;
        }
        Ok(back)
    }
}
