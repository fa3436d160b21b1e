//! Performs a story: hires workers, lets happen what is to happen, and waits until all is done.

use std::cell::RefCell;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::cloud::Cloud;
use super::link::Link;
use super::member::Member;
use super::message::Message;
use super::plan::{DESTINATIONS, Fate};
use super::story::{Happening, Story};
use super::tally::Tally;
use super::world::{Log, World, note};
use super::{check, clock};
use crate::config::WorkerConfig;
use crate::domain::destination::raw::{RawAuth, RawDestination};
use crate::domain::destination::{DestinationId, Destinations};
use crate::metrics::Metrics;
use crate::queue::Properties;
use crate::worker::{Worker, WorkerParts};

/// How long all that is left may take once nothing fails any more: the longest wait of a job that always fails, and the longest
/// transfers one after the other.
const PATIENCE: Duration = Duration::from_hours(12);
/// As long again for those who wait for a destination that never comes back.
const SIEGE: Duration = Duration::from_hours(26);

/// What came of a story.
#[derive(Debug)]
pub(super) struct Ending {
    pub(super) wrong: Vec<String>,
    pub(super) log: Vec<String>,
    pub(super) tally: Tally,
}

thread_local! {
    /// Metrics are costly to build and can serve again: only gauges matter here, and they are back at zero.
    static METRICS: RefCell<Vec<Arc<Metrics>>> = const { RefCell::new(Vec::new()) };
}

/// Performs a story; it is told once its clock goes.
pub(super) async fn play(story: impl FnOnce() -> Story, log: Log) -> Ending {
    clock::start();
    let start = Instant::now();
    let world = World::new(story(), log);
    let story = Arc::clone(&world.lock().story);
    let destinations = destinations();
    let hire = || hire(&world, &destinations);
    (0..story.workers).for_each(|_| hire());
    let watch = tokio::spawn(check::watch(Arc::clone(&world)));
    for (at, happening) in &story.happenings {
        sleep_until(start + *at).await;
        happen(&world, happening, &destinations);
    }
    sleep_until(start + story.calm).await;
    watch.abort();
    note!(world.lock(), "calm");
    world.lock().calm = true;
    world.come_back();
    while check::living(&world.lock()).len() < story.workers {
        hire();
    }
    let limit = if story.sieges.iter().any(|siege| siege.until.is_none()) { PATIENCE + SIEGE } else { PATIENCE };
    if timeout(limit, done(&world)).await.is_err() {
        check::unfinished(&mut world.lock());
    }
    dismiss(&world, story.drain).await;
    check::finished(&mut world.lock());
    world.ending()
}

/// Waits until nothing is left to do.
async fn done(world: &Arc<World>) {
    loop {
        let changed = world.changed.notified();
        if world.lock().is_done() {
            return;
        }
        changed.await;
    }
}

/// Tells all workers to end, and waits for them.
async fn dismiss(world: &Arc<World>, drain: Duration) {
    world.lock().members.iter().for_each(|member| member.drain.cancel());
    let until = Instant::now() + drain + Duration::from_secs(10);
    while world.lock().members.iter().any(|member| member.alive) {
        if timeout_at(until, world.changed.notified()).await.is_err() {
            return world.lock().wrong("a worker does not end".to_owned());
        }
    }
}

fn happen(world: &Arc<World>, happening: &Happening, destinations: &watch::Receiver<Arc<Destinations>>) {
    let someone = {
        let mut state = world.lock();
        let living = check::living(&state);
        (!living.is_empty()).then(|| *state.dice.pick(&living))
    };
    match (happening, someone) {
        (Happening::Publish(job), _) => publish(world, *job),
        (Happening::Away(wait), _) => world.go_away(*wait),
        (_, None) => {}
        (Happening::Lose, Some(member)) => world.lose(member),
        (Happening::Crash(wait), Some(member)) => {
            world.lock().happened("crashes");
            world.lock().kill(member);
            let destinations = destinations.clone();
            world.after(*wait, move |world| hire(world, &destinations));
        }
        (Happening::Drain(wait), Some(member)) => {
            note!(world.lock(), "worker {member} is told to end");
            world.lock().happened("drains");
            world.lock().members[member].draining = true;
            world.lock().members[member].drain.cancel();
            let destinations = destinations.clone();
            world.after(*wait, move |world| hire(world, &destinations));
        }
        (Happening::Sick(wait), Some(member)) => {
            note!(world.lock(), "worker {member} is refused for {wait:?}");
            world.lock().members[member].sick = clock::elapsed() + *wait;
        }
    }
}

fn publish(world: &Arc<World>, job: usize) {
    let mut state = world.lock();
    let plan = state.plan(job);
    let (lane, id) = (plan.lane, plan.id.clone());
    let poisonous = plan.fate == Fate::Poison;
    let message = Message {
        job,
        body: plan.body.clone(),
        properties: Properties {
            content_type: plan.content_type().map(str::to_owned),
            message_id: Some(id.clone()),
            ..Properties::default()
        },
        routing_key: format!("job.{}.{}", lane.as_str(), DESTINATIONS[plan.destination]),
        redelivered: poisonous,
        delivery_count: if poisonous { 500 } else { 0 },
    };
    note!(state, "{id} is published to {lane:?}");
    state.records[job].published += 1;
    let again = state.records[job].published > 1;
    state.records[job].doubled |= again;
    state.enqueue(lane, message, false);
}

/// One more worker.
fn hire(world: &Arc<World>, destinations: &watch::Receiver<Arc<Destinations>>) {
    let story = Arc::clone(&world.lock().story);
    let metrics = METRICS.with_borrow_mut(Vec::pop).unwrap_or_else(|| Arc::new(Metrics::new(3)));
    let member = {
        let mut state = world.lock();
        state.members.push(Member::new(story.slots, story.backfill_slots, Arc::clone(&metrics)));
        state.members.len() - 1
    };
    let worker = Worker::new(WorkerParts {
        config: config(&story, member),
        prefix: "consign".to_owned(),
        lease_after: story.lease_after,
        denied_for: Duration::from_secs(60),
        egress_addresses: Vec::new(),
        queue: Arc::new(Link { world: Arc::clone(world), member }),
        transport: Arc::new(Cloud { world: Arc::clone(world), member }),
        clock: clock::now,
        destinations: destinations.clone(),
        metrics,
    });
    let drain = {
        let mut state = world.lock();
        note!(state, "worker {member} begins");
        state.members[member].worker = Arc::downgrade(&worker);
        state.members[member].connected = !state.away;
        state.dispatch();
        state.members[member].drain.clone()
    };
    let world = Arc::clone(world);
    tokio::spawn(async move {
        let drained = worker.serve(&drain).await;
        let metrics = check::left(&mut world.lock(), member, &worker, drained);
        METRICS.with_borrow_mut(|spare| spare.extend(metrics));
        world.changed.notify_one();
    });
}

fn config(story: &Story, member: usize) -> WorkerConfig {
    WorkerConfig {
        slots: NonZeroU32::new(story.slots).unwrap_or(NonZeroU32::MIN),
        backfill_slots: story.backfill_slots,
        memory_budget: 64 << 20,
        drain_timeout: story.drain,
        max_attempts: NonZeroU32::new(story.max_attempts).unwrap_or(NonZeroU32::MIN),
        destination_slots: NonZeroU32::new(story.destination_slots).unwrap_or(NonZeroU32::MIN),
        id: format!("worker-{member}"),
    }
}

thread_local! {
    static CONFIGURED: watch::Receiver<Arc<Destinations>> = configured();
}

fn destinations() -> watch::Receiver<Arc<Destinations>> {
    CONFIGURED.with(Clone::clone)
}

fn configured() -> watch::Receiver<Arc<Destinations>> {
    let all = DESTINATIONS.map(|name| {
        let id = DestinationId::parse(name).unwrap();
        let raw = RawDestination {
            bucket: format!("{name}-bucket"),
            region: "eu-central-1".to_owned(),
            prefix: "in/".to_owned(),
            auth: RawAuth { role_arn: Some("arn:aws:iam::123456789012:role/consign".to_owned()), ..RawAuth::default() },
            ..RawDestination::default()
        };
        (id.clone(), Arc::new(raw.validate(id).unwrap()))
    });
    watch::channel(Arc::new(Destinations::from(all))).1
}
