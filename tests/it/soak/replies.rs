//! Queues for copies of outcomes: one that takes them, and those of a hostile scheduler.

use std::collections::{BTreeMap, BTreeSet};

use super::World;
use super::inbox::Reported;
use crate::testbed::broker::Broker;

/// Queue that a job names for the copy of its outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ReplyTo {
    Good,
    /// Confirms nothing while that fault is active.
    Silent,
    /// Has room for one.
    Full,
    Missing,
    /// Queues of consign itself, where a copy would be a job or a dead letter.
    Jobs,
    Dead,
    /// There, and not permitted.
    Elsewhere,
}

use ReplyTo::{Dead, Elsewhere, Full, Good, Jobs, Missing, Silent};

const ALL: [ReplyTo; 7] = [Good, Silent, Full, Missing, Jobs, Dead, Elsewhere];

/// Share of each in a hundred jobs.
pub const DECK: [(Option<ReplyTo>, usize); 8] = [
    (None, 40),
    (Some(Good), 24),
    (Some(Silent), 12),
    (Some(Full), 8),
    (Some(Missing), 7),
    (Some(Jobs), 3),
    (Some(Dead), 3),
    (Some(Elsewhere), 3),
];
/// From so many on, some copy must have reached a good queue, whatever else went wrong.
const ENOUGH: usize = 10;

/// Copies in a queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Jobs that asked for one.
    pub asked: usize,
    /// Jobs of which one is there.
    pub received: usize,
}

impl ReplyTo {
    /// Name below the prefix.
    fn name(self) -> &'static str {
        match self {
            Good => "reply.good",
            Silent => "reply.silent",
            Full => "reply.full",
            Missing => "reply.missing",
            Jobs => "jobs.scheduled",
            Dead => "dead",
            Elsewhere => "test.elsewhere",
        }
    }

    /// The whole name.
    pub fn queue(self, prefix: &str) -> String {
        format!("{prefix}.{}", self.name())
    }

    fn is_own(self) -> bool {
        matches!(self, Jobs | Dead)
    }
}

/// Declares those that are there and are not consign's.
pub async fn declare(broker: &Broker) {
    for (queue, most) in [(Good, 1_000_000), (Silent, 1_000_000), (Full, 1), (Elsewhere, 1_000_000)] {
        broker.own_bounded(queue.name(), most).await;
    }
}

/// Counts the copies, after the checker took the dead letters. A copy is where its job asked for
/// it and where that is permitted, or nowhere.
pub async fn count(world: &World, problems: &mut Vec<String>) -> BTreeMap<&'static str, Count> {
    let broker = &world.stage.site.broker;
    let mut counts = BTreeMap::new();
    if broker.file.is_some() {
        return counts;
    }
    for queue in ALL {
        let asked = asked(world, queue);
        let received = if queue.is_own() { copies_among_dead_letters(broker) } else { received(broker, queue).await };
        let permitted = matches!(queue, Good | Silent | Full);
        for stray in received.iter().filter(|job| !permitted || !asked.contains(*job)) {
            problems.push(format!("a copy of the outcome of {stray} is in {}", queue.name()));
        }
        if queue == Good && asked.len() >= ENOUGH && received.is_empty() {
            problems.push(format!("no copy reached the good queue, and {} jobs asked for one", asked.len()));
        }
        counts.insert(queue.name(), Count { asked: asked.len(), received: received.len() });
    }
    counts
}

fn asked(world: &World, queue: ReplyTo) -> BTreeSet<String> {
    let published = world.published.lock().unwrap();
    published.iter().filter(|(_, job)| job.reply_to == Some(queue)).map(|(id, _)| id.clone()).collect()
}

async fn received(broker: &Broker, queue: ReplyTo) -> BTreeSet<String> {
    let received = broker.take(queue.name()).await;
    received.iter().map(|message| Reported::read(&message.json()).job).collect()
}

/// What is no job is rejected, so a copy in a queue of jobs ends here, too.
fn copies_among_dead_letters(broker: &Broker) -> BTreeSet<String> {
    let dead = broker.all_taken().into_iter().filter(|(queue, _)| queue == "dead");
    let events = dead.filter_map(|(_, letter)| serde_json::from_slice(&letter.body).ok()).map(|e| Reported::read(&e));
    events.filter(|event| !event.outcome.is_empty()).map(|event| event.job).collect()
}
