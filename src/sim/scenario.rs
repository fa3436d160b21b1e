//! Scenarios: everything that will happen, drawn from a seed before the run.

use std::time::Duration;

use bytes::Bytes;

use super::clock;
use super::job_plan::{self, JobPlan};
use super::rng::Rng;
use crate::domain::outcome::Reason;

/// Reasons of a destination outage.
const OUTAGE_REASONS: [Reason; 5] = [
    Reason::AccessDenied,
    Reason::AssumeRoleDenied,
    Reason::BucketNotFound,
    Reason::KmsDenied,
    Reason::AccessKeyInvalid,
];

/// Scenario of one seed.
#[derive(Debug)]
pub(super) struct Scenario {
    /// Number of workers at a time.
    pub(super) worker_count: usize,
    pub(super) slots: u32,
    pub(super) backfill_slots: u32,
    pub(super) max_attempts: u32,
    /// Concurrency limit per worker and destination.
    pub(super) destination_slots: u32,
    pub(super) drain: Duration,
    pub(super) lease_after: Duration,
    pub(super) fault_rates: FaultRates,
    pub(super) jobs: Vec<JobPlan>,
    /// Events by time, in order.
    pub(super) events: Vec<(Duration, ScenarioEvent)>,
    pub(super) outages: Vec<DestinationOutage>,
    /// Time after which no fault occurs any more, except permanent ones.
    pub(super) faults_end: Duration,
    /// True if the clocks of the workers differ by minutes.
    pub(super) clock_skew: bool,
    pub(super) rng: Rng,
    kind: ScenarioKind,
}

/// Probability of each small fault, in percent per occasion.
#[derive(Debug, Clone, Default)]
pub(super) struct FaultRates {
    /// The broker refuses a message.
    pub(super) publish_refused: u32,
    /// The broker accepts a message, and its confirm is lost.
    pub(super) unconfirmed: u32,
    /// An acknowledgement is lost with its connection, and the worker sees success.
    pub(super) ack_lost: u32,
    /// An acknowledgement arrives, and the worker sees it as lost.
    pub(super) ack_unknown: u32,
    /// A worker loses its connection when an upload is complete, before its settlement.
    pub(super) lost_at_end: u32,
    /// The broker or a network takes seconds instead of milliseconds.
    pub(super) slow: u32,
    /// A copy leaves its wait queue twice.
    pub(super) duplicate_release: u32,
    /// Requeued messages go to the back of the queue, as on RabbitMQ with a delivery limit.
    pub(super) requeue_to_back: bool,
    /// Messages overtake each other.
    pub(super) reordered: bool,
    /// AbortMultipartUpload is denied.
    pub(super) abort_denied: bool,
}

/// An event at one moment.
#[derive(Debug, Clone)]
pub(super) enum ScenarioEvent {
    /// A producer publishes this job.
    Publish(usize),
    /// A random worker loses its connection.
    LoseConnection,
    /// The broker is unreachable for this time.
    BrokerOutage(Duration),
    /// A random worker crashes; a new one starts after this time.
    Crash(Duration),
    /// A random worker drains; a new one starts after this time.
    Drain(Duration),
    /// A random worker's own identity is refused for this time.
    RefuseIdentity(Duration),
}

/// A time in which a destination refuses every request.
#[derive(Debug)]
pub(super) struct DestinationOutage {
    pub(super) destination: usize,
    pub(super) reason: Reason,
    pub(super) from: Duration,
    /// `None`: permanently.
    pub(super) until: Option<Duration>,
}

/// Kind of a scenario.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ScenarioKind {
    /// No faults; workers are replaced one by one.
    RollingRestart,
    /// A moderate mix of all faults.
    Mixed,
    /// Many faults at once.
    HeavyFaults,
    /// A destination that never recovers.
    PermanentOutage,
}

impl Scenario {
    pub(super) fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let kind = match rng.below(100) {
            0..15 => ScenarioKind::RollingRestart,
            15..80 => ScenarioKind::Mixed,
            80..99 => ScenarioKind::HeavyFaults,
            _ => ScenarioKind::PermanentOutage,
        };
        let faults_end = rng.seconds(60, 1200);
        let destinations = rng.count(1, 3) as usize;
        let slots = rng.count(1, 4);
        let workers = rng.count(1, 4) as usize;
        let max_attempts = rng.count(1, 6);
        let outages = outages(kind, &mut rng, destinations, faults_end);
        let more = if kind == ScenarioKind::PermanentOutage { 0 } else { rng.count(0, 15) };
        let count = 5 + rng.count(0, more) as usize;
        let faulty = kind != ScenarioKind::RollingRestart;
        let mut jobs = Vec::new();
        for _ in 0..count {
            jobs.push(job_plan::draw(&mut rng, &jobs, destinations, faulty));
        }
        // Times of expiry, and the age limit of deferred jobs, are compared with a worker's clock.
        let timed = kind == ScenarioKind::PermanentOutage || jobs.iter().any(|job| job.expires.is_some());
        let clock_skew = !timed && rng.percent(50);
        let events = events(kind, &mut rng, &jobs, faults_end);
        Self {
            worker_count: workers,
            slots,
            backfill_slots: rng.count(0, slots).max(1),
            max_attempts,
            drain: rng.seconds(5, 60),
            lease_after: rng.seconds(5, 600),
            fault_rates: fault_rates(kind, &mut rng),
            jobs,
            events,
            outages,
            faults_end,
            destination_slots: rng.count(1, slots + 1),
            clock_skew,
            rng: rng.fork(),
            kind,
        }
    }

    /// A scenario written by hand: one worker at a time, one job, the given events, and no small
    /// faults.
    pub(super) fn scripted(job: JobPlan, lease_after: Duration, events: &[(Duration, ScenarioEvent)]) -> Self {
        let first = job.published.iter().map(|at| (*at, ScenarioEvent::Publish(0)));
        Self {
            worker_count: 1,
            slots: 2,
            backfill_slots: 1,
            max_attempts: 1,
            destination_slots: 2,
            drain: Duration::from_secs(60),
            lease_after,
            fault_rates: FaultRates::default(),
            events: first.chain(events.iter().cloned()).collect(),
            jobs: vec![job],
            outages: Vec::new(),
            faults_end: Duration::from_secs(1000),
            clock_skew: false,
            rng: Rng::new(0),
            kind: ScenarioKind::Mixed,
        }
    }

    /// Returns true if the scenario has no faults.
    pub(super) fn is_fault_free(&self) -> bool {
        self.kind == ScenarioKind::RollingRestart
    }

    /// Returns the reason with which a destination refuses every request now, if it does.
    pub(super) fn outage_reason(&self, destination: usize) -> Option<Reason> {
        let now = clock::elapsed();
        let active = |outage: &&DestinationOutage| {
            outage.destination == destination && outage.from <= now && outage.until.is_none_or(|until| now < until)
        };
        self.outages.iter().find(active).map(|outage| outage.reason)
    }

    /// Returns true if the destination never recovers.
    pub(super) fn is_permanently_down(&self, destination: usize) -> bool {
        self.outages.iter().any(|outage| outage.destination == destination && outage.until.is_none())
    }
}

fn outages(kind: ScenarioKind, rng: &mut Rng, destinations: usize, faults_end: Duration) -> Vec<DestinationOutage> {
    let mut outage = |until: Option<Duration>| DestinationOutage {
        destination: rng.index(destinations),
        reason: *rng.choose(&OUTAGE_REASONS),
        from: until.map_or(Duration::ZERO, |until| until.mul_f64(0.3)),
        until,
    };
    match kind {
        ScenarioKind::RollingRestart => Vec::new(),
        ScenarioKind::PermanentOutage => vec![outage(None)],
        ScenarioKind::Mixed => vec![outage(Some(faults_end.mul_f64(0.6)))],
        ScenarioKind::HeavyFaults => vec![outage(Some(faults_end.mul_f64(0.5))), outage(Some(faults_end.mul_f64(0.9)))],
    }
}

fn fault_rates(kind: ScenarioKind, rng: &mut Rng) -> FaultRates {
    let max = match kind {
        ScenarioKind::RollingRestart => {
            return FaultRates { requeue_to_back: rng.percent(50), ..FaultRates::default() };
        }
        ScenarioKind::PermanentOutage => 2,
        ScenarioKind::Mixed => 8,
        ScenarioKind::HeavyFaults => 30,
    };
    // Each kind of fault is left out of some scenarios, so that the others are also seen without
    // it.
    let mut chance = || if rng.percent(50) { 0 } else { rng.count(0, max) };
    FaultRates {
        publish_refused: chance(),
        unconfirmed: chance(),
        ack_lost: chance(),
        ack_unknown: chance(),
        lost_at_end: chance(),
        slow: chance(),
        duplicate_release: chance(),
        requeue_to_back: rng.percent(50),
        reordered: rng.percent(30),
        abort_denied: rng.percent(20),
    }
}

fn events(kind: ScenarioKind, rng: &mut Rng, jobs: &[JobPlan], faults_end: Duration) -> Vec<(Duration, ScenarioEvent)> {
    let mut all = Vec::new();
    for (number, job) in jobs.iter().enumerate() {
        all.extend(job.published.iter().map(|at| (*at, ScenarioEvent::Publish(number))));
    }
    let millis = u64::try_from(faults_end.as_millis()).unwrap_or(u64::MAX);
    let (losses, outages, crashes, drains, refusals) = match kind {
        ScenarioKind::RollingRestart => (0, 0, 0, 4, 0),
        ScenarioKind::Mixed => (4, 1, 1, 2, 1),
        ScenarioKind::HeavyFaults => (15, 4, 4, 4, 2),
        ScenarioKind::PermanentOutage => (1, 0, 1, 1, 0),
    };
    let mut add = |max: u32, event: &dyn Fn(&mut Rng) -> ScenarioEvent| {
        for _ in 0..rng.count(0, max) {
            let at = rng.millis(0, millis);
            all.push((at, event(rng)));
        }
    };
    add(losses, &|_| ScenarioEvent::LoseConnection);
    add(outages, &|rng| ScenarioEvent::BrokerOutage(rng.seconds(1, 240)));
    add(crashes, &|rng| ScenarioEvent::Crash(rng.seconds(0, 120)));
    add(drains, &|rng| ScenarioEvent::Drain(rng.seconds(0, 60)));
    add(refusals, &|rng| ScenarioEvent::RefuseIdentity(rng.seconds(1, 120)));
    all.sort_by_key(|(at, _)| *at);
    all
}

/// Job document as a producer writes it.
pub(super) fn body(id: &str, destination: &str, key: &str, more: &str) -> Bytes {
    let created = clock::at(Duration::ZERO);
    format!(
        r#"{{"version":1,"id":"{id}","source":{{"url":"file:///in/{key}"}},"destination":"{destination}","key":"{key}","created_at":"{created}"{more}}}"#
    )
    .into()
}
