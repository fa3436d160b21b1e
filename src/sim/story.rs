//! A story: everything that will happen, drawn from one seed before it begins.

use std::time::Duration;

use bytes::Bytes;

use super::clock;
use super::dice::Dice;
use super::plan::{self, Plan};
use crate::domain::outcome::Reason;

/// What a destination's fault may be.
const SIEGES: [Reason; 5] = [
    Reason::AccessDenied,
    Reason::AssumeRoleDenied,
    Reason::BucketNotFound,
    Reason::KmsDenied,
    Reason::AccessKeyInvalid,
];

/// One seed's story.
#[derive(Debug)]
pub(super) struct Story {
    /// Workers at once.
    pub(super) workers: usize,
    pub(super) slots: u32,
    pub(super) backfill_slots: u32,
    pub(super) max_attempts: u32,
    /// The most transfers of a worker into one destination.
    pub(super) destination_slots: u32,
    pub(super) drain: Duration,
    pub(super) lease_after: Duration,
    pub(super) weather: Weather,
    pub(super) jobs: Vec<Plan>,
    /// What happens when, in order.
    pub(super) happenings: Vec<(Duration, Happening)>,
    pub(super) sieges: Vec<Siege>,
    /// From here on nothing fails any more, except what always does.
    pub(super) calm: Duration,
    pub(super) dice: Dice,
    kind: Kind,
}

/// How likely the small faults are, in percent of the occasions.
#[derive(Debug, Clone, Default)]
pub(super) struct Weather {
    /// A message is not taken by the broker.
    pub(super) refused: u32,
    /// A message is taken, and its confirm is lost.
    pub(super) unconfirmed: u32,
    /// An acknowledgement is lost with its session, and the worker is told that all is well.
    pub(super) ack_lost: u32,
    /// An acknowledgement arrives, and the worker is told that it is lost.
    pub(super) ack_unknown: u32,
    /// The broker or a network takes seconds instead of milliseconds.
    pub(super) slow: u32,
    /// A copy comes out of the wait ladder twice.
    pub(super) doubled: u32,
    /// What comes back goes to the end of its queue, as RabbitMQ does it with a delivery limit.
    pub(super) to_the_back: bool,
    /// Messages overtake each other.
    pub(super) shuffled: bool,
    /// Nobody may abort an upload.
    pub(super) abort_denied: bool,
}

/// What happens at one moment.
#[derive(Debug, Clone)]
pub(super) enum Happening {
    /// A producer publishes this job.
    Publish(usize),
    /// Some worker loses its session with the broker.
    Lose,
    /// The broker is gone for so long.
    Away(Duration),
    /// Some worker dies at once; another takes its place after so long.
    Crash(Duration),
    /// Some worker is told to end; another takes its place after so long.
    Drain(Duration),
    /// Some worker's own identity is refused for so long.
    Sick(Duration),
}

/// A destination that refuses everything for a while.
#[derive(Debug)]
pub(super) struct Siege {
    pub(super) destination: usize,
    pub(super) reason: Reason,
    pub(super) from: Duration,
    /// `None`: for good.
    pub(super) until: Option<Duration>,
}

/// What kind of story it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Nothing fails; workers are replaced one by one.
    Rolling,
    /// A bit of everything.
    Mixed,
    /// Everything at once.
    Storm,
    /// A destination that never comes back.
    Siege,
}

impl Story {
    pub(super) fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let kind = match dice.below(100) {
            0..15 => Kind::Rolling,
            15..80 => Kind::Mixed,
            80..99 => Kind::Storm,
            _ => Kind::Siege,
        };
        let calm = dice.seconds(60, 1200);
        let destinations = dice.count(1, 3) as usize;
        let slots = dice.count(1, 4);
        let workers = dice.count(1, 3) as usize;
        let max_attempts = dice.count(1, 6);
        let sieges = sieges(kind, &mut dice, destinations, calm);
        let more = if kind == Kind::Siege { 0 } else { dice.count(0, 15) };
        let count = 5 + dice.count(0, more) as usize;
        let faulty = kind != Kind::Rolling;
        let jobs: Vec<_> = (0..count).map(|n| plan::draw(&mut dice, n, destinations, faulty)).collect();
        let happenings = happenings(kind, &mut dice, &jobs, calm);
        Self {
            workers,
            slots,
            backfill_slots: dice.count(0, slots).max(1),
            max_attempts,
            drain: dice.seconds(5, 60),
            lease_after: dice.seconds(5, 600),
            weather: weather(kind, &mut dice),
            jobs,
            happenings,
            sieges,
            calm,
            destination_slots: dice.count(1, slots + 1),
            dice: dice.fork(),
            kind,
        }
    }

    /// A story that is written by hand: one worker at a time, one job, and what happens. Small faults are left out of it.
    pub(super) fn written(job: Plan, lease_after: Duration, happenings: &[(Duration, Happening)]) -> Self {
        let first = job.published.iter().map(|at| (*at, Happening::Publish(0)));
        Self {
            workers: 1,
            slots: 2,
            backfill_slots: 1,
            max_attempts: 1,
            destination_slots: 2,
            drain: Duration::from_secs(60),
            lease_after,
            weather: Weather::default(),
            happenings: first.chain(happenings.iter().cloned()).collect(),
            jobs: vec![job],
            sieges: Vec::new(),
            calm: Duration::from_secs(1000),
            dice: Dice::new(0),
            kind: Kind::Mixed,
        }
    }

    /// Whether nothing fails in it.
    pub(super) fn is_peaceful(&self) -> bool {
        self.kind == Kind::Rolling
    }

    /// Why a destination refuses everything now, if so.
    pub(super) fn besieged(&self, destination: usize) -> Option<Reason> {
        let now = clock::elapsed();
        let goes_on = |siege: &&Siege| {
            siege.destination == destination && siege.from <= now && siege.until.is_none_or(|until| now < until)
        };
        self.sieges.iter().find(goes_on).map(|siege| siege.reason)
    }

    /// Whether this destination refuses everything for good.
    pub(super) fn lost_for_good(&self, destination: usize) -> bool {
        self.sieges.iter().any(|siege| siege.destination == destination && siege.until.is_none())
    }
}

fn sieges(kind: Kind, dice: &mut Dice, destinations: usize, calm: Duration) -> Vec<Siege> {
    let mut siege = |until: Option<Duration>| Siege {
        destination: dice.index(destinations),
        reason: *dice.pick(&SIEGES),
        from: until.map_or(Duration::ZERO, |until| until.mul_f64(0.3)),
        until,
    };
    match kind {
        Kind::Rolling => Vec::new(),
        Kind::Siege => vec![siege(None)],
        Kind::Mixed => vec![siege(Some(calm.mul_f64(0.6)))],
        Kind::Storm => vec![siege(Some(calm.mul_f64(0.5))), siege(Some(calm.mul_f64(0.9)))],
    }
}

fn weather(kind: Kind, dice: &mut Dice) -> Weather {
    let most = match kind {
        Kind::Rolling => return Weather { to_the_back: dice.percent(50), ..Weather::default() },
        Kind::Siege => 2,
        Kind::Mixed => 8,
        Kind::Storm => 30,
    };
    // Some kinds of fault are left out of a story, so that each is also seen without the others.
    let mut chance = || if dice.percent(50) { 0 } else { dice.count(0, most) };
    Weather {
        refused: chance(),
        unconfirmed: chance(),
        ack_lost: chance(),
        ack_unknown: chance(),
        slow: chance(),
        doubled: chance(),
        to_the_back: dice.percent(50),
        shuffled: dice.percent(30),
        abort_denied: dice.percent(20),
    }
}

fn happenings(kind: Kind, dice: &mut Dice, jobs: &[Plan], calm: Duration) -> Vec<(Duration, Happening)> {
    let mut all = Vec::new();
    for (number, job) in jobs.iter().enumerate() {
        all.extend(job.published.iter().map(|at| (*at, Happening::Publish(number))));
    }
    let millis = u64::try_from(calm.as_millis()).unwrap_or(u64::MAX);
    let (loses, aways, crashes, drains, sick) = match kind {
        Kind::Rolling => (0, 0, 0, 4, 0),
        Kind::Mixed => (4, 1, 1, 2, 1),
        Kind::Storm => (15, 4, 4, 4, 2),
        Kind::Siege => (1, 0, 1, 1, 0),
    };
    let mut some = |most: u32, happening: &dyn Fn(&mut Dice) -> Happening| {
        for _ in 0..dice.count(0, most) {
            let at = dice.millis(0, millis);
            all.push((at, happening(dice)));
        }
    };
    some(loses, &|_| Happening::Lose);
    some(aways, &|dice| Happening::Away(dice.seconds(1, 240)));
    some(crashes, &|dice| Happening::Crash(dice.seconds(0, 120)));
    some(drains, &|dice| Happening::Drain(dice.seconds(0, 60)));
    some(sick, &|dice| Happening::Sick(dice.seconds(1, 120)));
    all.sort_by_key(|(at, _)| *at);
    all
}

/// A job as a producer writes it.
pub(super) fn body(id: &str, destination: &str, key: &str, more: &str) -> Bytes {
    let created = clock::at(Duration::ZERO);
    format!(
        r#"{{"version":1,"id":"{id}","source":{{"url":"file:///in/{key}"}},"destination":"{destination}","key":"{key}","created_at":"{created}"{more}}}"#
    )
    .into()
}
