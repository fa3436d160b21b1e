//! State of one scenario: broker, buckets, workers, and the violations found so far.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use super::clock;
use super::control::ControlStream;
use super::fake_s3::FakeS3;
use super::job_plan::JobPlan;
use super::job_record::JobRecord;
use super::lease::{SimLease, StaleMessage};
use super::message::SimMessage;
use super::rng::Rng;
use super::runner::ScenarioResult;
use super::scenario::Scenario;
use super::statistics::Statistics;
use super::worker::SimWorker;

/// State shared by all parts of a scenario.
#[derive(Debug)]
pub(super) struct SimWorld {
    state: Mutex<SimState>,
    /// Notified when something has ended: the runner then checks for the end of the scenario.
    pub(super) changed: Notify,
}

/// All mutable state.
#[derive(Debug)]
pub(super) struct SimState {
    pub(super) scenario: Arc<Scenario>,
    pub(super) rng: Rng,
    /// True once no more faults occur.
    pub(super) faults_over: bool,
    /// True while the broker is unreachable.
    pub(super) broker_down: bool,
    pub(super) ready: [VecDeque<SimMessage>; 3],
    pub(super) waiting: BTreeMap<u64, SimMessage>,
    pub(super) dead: Vec<SimMessage>,
    pub(super) control: ControlStream,
    pub(super) leases: BTreeMap<u64, SimLease>,
    pub(super) stale_messages: BTreeMap<u64, StaleMessage>,
    pub(super) workers: Vec<SimWorker>,
    pub(super) s3: FakeS3,
    pub(super) records: Vec<JobRecord>,
    /// Work that is visible nowhere else: messages between two queues, aborts in the background.
    pub(super) in_transit: usize,
    /// Number of queue calls.
    pub(super) operations: u64,
    /// Number of faults by name.
    pub(super) faults: BTreeMap<&'static str, u64>,
    /// Violated invariants.
    pub(super) violations: Vec<String>,
    log: LogMode,
    next: u64,
}

/// Destination of the scenario's log lines.
#[derive(Debug)]
pub(super) enum LogMode {
    /// None are written.
    Off,
    /// They are collected, to be compared.
    Collected(Vec<String>),
    /// They are printed at once.
    Printed,
}

/// Writes a line to the scenario's log, if it has one.
macro_rules! note {
    ($state:expr, $($text:tt)*) => {
        if $state.logs() {
            let line = format!($($text)*);
            $state.write(line);
        }
    };
}
pub(super) use note;

impl SimWorld {
    pub(super) fn new(scenario: Scenario, log: LogMode) -> Arc<Self> {
        let records = scenario.jobs.iter().map(|_| JobRecord::default()).collect();
        let state = SimState {
            rng: scenario.rng.clone(),
            s3: FakeS3::new(&scenario),
            scenario: Arc::new(scenario),
            faults_over: false,
            broker_down: false,
            ready: Default::default(),
            waiting: BTreeMap::new(),
            dead: Vec::new(),
            control: ControlStream::default(),
            leases: BTreeMap::new(),
            stale_messages: BTreeMap::new(),
            workers: Vec::new(),
            records,
            in_transit: 0,
            operations: 0,
            faults: BTreeMap::new(),
            violations: Vec::new(),
            log,
            next: 0,
        };
        Arc::new(Self { state: Mutex::new(state), changed: Notify::new() })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, SimState> {
        self.state.lock()
    }

    /// Takes the result of the scenario and breaks reference cycles.
    pub(super) fn result(&self) -> ScenarioResult {
        let mut state = self.lock();
        state.leases.clear();
        let kept = match &mut state.log {
            LogMode::Collected(lines) => std::mem::take(lines),
            LogMode::Off | LogMode::Printed => Vec::new(),
        };
        ScenarioResult {
            violations: std::mem::take(&mut state.violations),
            log: kept,
            statistics: Statistics::of(&state),
        }
    }

    /// Runs `then` later, and counts it as in transit until then.
    pub(super) fn schedule(self: &Arc<Self>, wait: Duration, then: impl FnOnce(&Arc<Self>) + Send + 'static) {
        self.lock().in_transit += 1;
        let world = Arc::clone(self);
        tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            world.lock().in_transit -= 1;
            then(&world);
            world.changed.notify_one();
        });
    }
}

impl SimState {
    pub(super) fn logs(&self) -> bool {
        !matches!(self.log, LogMode::Off)
    }

    pub(super) fn write(&mut self, line: String) {
        let line = format!("{:>12.3} {line}", clock::elapsed().as_secs_f64());
        match &mut self.log {
            LogMode::Off => {}
            LogMode::Collected(lines) => lines.push(line),
            LogMode::Printed => println!("{line}"),
        }
    }

    /// Records a violation. The scenario continues, so that the log shows the consequences.
    pub(super) fn report_violation(&mut self, what: String) {
        note!(self, "VIOLATION: {what}");
        self.violations.push(format!("at {:.3} s: {what}", clock::elapsed().as_secs_f64()));
    }

    /// Returns a number that is used once.
    pub(super) fn next_number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Returns true if a fault of this probability occurs now, and counts it.
    pub(super) fn fault_occurs(&mut self, fault: &'static str, percent: u32) -> bool {
        let occurs = percent > 0 && !self.faults_over && self.rng.percent(percent);
        if occurs {
            self.count_fault(fault);
        }
        occurs
    }

    pub(super) fn count_fault(&mut self, fault: &'static str) {
        *self.faults.entry(fault).or_default() += 1;
    }

    /// Draws the duration of a network operation.
    pub(super) fn latency(&mut self) -> Duration {
        if self.fault_occurs("slow", self.scenario.fault_rates.slow) {
            self.rng.millis(1000, 20_000)
        } else {
            self.rng.millis(1, 20)
        }
    }

    pub(super) fn plan(&self, job: usize) -> &JobPlan {
        &self.scenario.jobs[job]
    }

    /// Returns true if a newer refresh of the job's object was delivered.
    pub(super) fn is_superseded(&self, job: usize) -> bool {
        let plan = self.plan(job);
        let newer = |other: &usize| {
            let other = self.plan(*other);
            other.object == plan.object && other.generation > plan.generation
        };
        (0..self.records.len()).filter(newer).any(|other| self.records[other].delivered)
    }

    /// Returns true if a first attempt of an older refresh replaced the object of this job, or of a
    /// newer one.
    pub(super) fn is_overtaken(&self, job: usize) -> bool {
        let plan = self.plan(job);
        let as_new = |other: &usize| {
            let other = self.plan(*other);
            other.object == plan.object && other.generation >= plan.generation
        };
        (0..self.records.len()).filter(as_new).any(|other| self.records[other].overtaken)
    }

    /// Number of messages of this job in the broker, in any queue or lease.
    pub(super) fn message_count(&self, job: usize) -> usize {
        let queued = self.ready.iter().flatten().chain(self.waiting.values());
        let unacked = self.workers.iter().flat_map(SimWorker::messages);
        let stale_messages = self.stale_messages.values().map(|stale| &stale.message);
        let all = queued.chain(unacked).chain(stale_messages);
        all.filter(|message| message.job == job).count()
            + self.leases.values().filter(|lease| lease.base.job == job).count()
    }

    /// Returns true if no work is left.
    pub(super) fn is_done(&self) -> bool {
        let queues_empty = self.ready.iter().all(VecDeque::is_empty) && self.waiting.is_empty();
        let leases_over = self.leases.is_empty() && self.stale_messages.is_empty();
        queues_empty && leases_over && self.in_transit == 0 && self.workers.iter().all(SimWorker::is_idle)
    }
}
