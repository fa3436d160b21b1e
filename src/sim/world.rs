//! The world of one story: what the broker has, what is in the buckets, which workers live, and what went wrong so far.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::bucket::Buckets;
use super::dice::Dice;
use super::held::{Ghost, Held};
use super::member::Member;
use super::message::Message;
use super::play::Ending;
use super::record::Record;
use super::story::Story;
use super::tally::Tally;
use super::{clock, plan};

/// Shared by everything in a story.
#[derive(Debug)]
pub(super) struct World {
    state: Mutex<State>,
    /// Something came to an end: the player looks whether all did.
    pub(super) changed: Notify,
}

/// All that can change.
#[derive(Debug)]
pub(super) struct State {
    pub(super) story: Arc<Story>,
    pub(super) dice: Dice,
    /// Nothing fails any more.
    pub(super) calm: bool,
    /// The broker can't be reached.
    pub(super) away: bool,
    pub(super) ready: [VecDeque<Message>; 3],
    pub(super) waiting: BTreeMap<u64, Message>,
    pub(super) dead: Vec<Message>,
    pub(super) leases: BTreeMap<u64, Held>,
    pub(super) ghosts: BTreeMap<u64, Ghost>,
    pub(super) members: Vec<Member>,
    pub(super) buckets: Buckets,
    pub(super) records: Vec<Record>,
    /// What is under way and can't be seen elsewhere: messages between two queues, aborts in the background.
    pub(super) limbo: usize,
    /// Calls of the queue.
    pub(super) operations: u64,
    /// Faults that happened, by name.
    pub(super) faults: BTreeMap<&'static str, u64>,
    /// Rules that were broken.
    pub(super) wrong: Vec<String>,
    log: Log,
    next: u64,
}

/// What becomes of the lines of a story's log.
#[derive(Debug)]
pub(super) enum Log {
    /// None are written.
    Off,
    /// They are kept, to be compared.
    BackfillOutcomes(Vec<String>),
    /// They are printed as they come.
    Printed,
}

/// Writes a line into the story's log, if there is one.
macro_rules! note {
    ($state:expr, $($text:tt)*) => {
        if $state.logs() {
            let line = format!($($text)*);
            $state.write(line);
        }
    };
}
pub(super) use note;

impl World {
    pub(super) fn new(story: Story, log: Log) -> Arc<Self> {
        let records = story.jobs.iter().map(|_| Record::default()).collect();
        let state = State {
            dice: story.dice.clone(),
            buckets: Buckets::new(&story),
            story: Arc::new(story),
            calm: false,
            away: false,
            ready: Default::default(),
            waiting: BTreeMap::new(),
            dead: Vec::new(),
            leases: BTreeMap::new(),
            ghosts: BTreeMap::new(),
            members: Vec::new(),
            records,
            limbo: 0,
            operations: 0,
            faults: BTreeMap::new(),
            wrong: Vec::new(),
            log,
            next: 0,
        };
        Arc::new(Self { state: Mutex::new(state), changed: Notify::new() })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What came of the story. What could keep it in memory is let go.
    pub(super) fn ending(&self) -> Ending {
        let mut state = self.lock();
        state.leases.clear();
        let kept = match &mut state.log {
            Log::BackfillOutcomes(lines) => std::mem::take(lines),
            Log::Off | Log::Printed => Vec::new(),
        };
        Ending { wrong: std::mem::take(&mut state.wrong), log: kept, tally: Tally::of(&state) }
    }

    /// Does something later, and counts it as under way until then.
    pub(super) fn after(self: &Arc<Self>, wait: Duration, then: impl FnOnce(&Arc<Self>) + Send + 'static) {
        self.lock().limbo += 1;
        let world = Arc::clone(self);
        tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            world.lock().limbo -= 1;
            then(&world);
            world.changed.notify_one();
        });
    }
}

impl State {
    pub(super) fn logs(&self) -> bool {
        !matches!(self.log, Log::Off)
    }

    pub(super) fn write(&mut self, line: String) {
        let line = format!("{:>12.3} {line}", clock::elapsed().as_secs_f64());
        match &mut self.log {
            Log::Off => {}
            Log::BackfillOutcomes(lines) => lines.push(line),
            Log::Printed => println!("{line}"),
        }
    }

    /// A rule was broken: the story goes on, so that the log shows what came of it.
    pub(super) fn wrong(&mut self, what: String) {
        note!(self, "WRONG: {what}");
        self.wrong.push(format!("at {:.3} s: {what}", clock::elapsed().as_secs_f64()));
    }

    /// A number that nothing else has.
    pub(super) fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Whether a fault of this likelihood happens now.
    pub(super) fn strikes(&mut self, fault: &'static str, percent: u32) -> bool {
        let strikes = percent > 0 && !self.calm && self.dice.percent(percent);
        if strikes {
            self.happened(fault);
        }
        strikes
    }

    pub(super) fn happened(&mut self, fault: &'static str) {
        *self.faults.entry(fault).or_default() += 1;
    }

    /// How long something on a network takes.
    pub(super) fn latency(&mut self) -> Duration {
        if self.strikes("slow", self.story.weather.slow) {
            self.dice.millis(1000, 20_000)
        } else {
            self.dice.millis(1, 20)
        }
    }

    pub(super) fn plan(&self, job: usize) -> &plan::Plan {
        &self.story.jobs[job]
    }

    /// How many messages of this job the broker has, wherever they are.
    pub(super) fn held(&self, job: usize) -> usize {
        let queued = self.ready.iter().flatten().chain(self.waiting.values());
        let lent = self.members.iter().flat_map(Member::messages);
        let ghosts = self.ghosts.values().map(|ghost| &ghost.message);
        let all = queued.chain(lent).chain(ghosts);
        all.filter(|message| message.job == job).count()
            + self.leases.values().filter(|held| held.base.job == job).count()
    }

    /// Whether nothing is left to do.
    pub(super) fn is_done(&self) -> bool {
        let queues_empty = self.ready.iter().all(VecDeque::is_empty) && self.waiting.is_empty();
        let leases_over = self.leases.is_empty() && self.ghosts.is_empty();
        queues_empty && leases_over && self.limbo == 0 && self.members.iter().all(Member::is_idle)
    }
}
