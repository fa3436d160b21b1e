//! Runs a scenario: starts workers, applies the events, and waits until every job has ended.

use std::cell::RefCell;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::control::MAX_CATCH_UP;
use super::job_plan::{DESTINATIONS, JobBehavior};
use super::message::SimMessage;
use super::queue::SimQueue;
use super::scenario::{Scenario, ScenarioEvent};
use super::statistics::Statistics;
use super::transport::SimTransport;
use super::worker::SimWorker;
use super::world::{LogMode, SimWorld, note};
use super::{clock, oracle};
use crate::config::WorkerConfig;
use crate::domain::destination::raw::{RawAuth, RawDestination};
use crate::domain::destination::{DestinationId, Destinations, InlinePolicy};
use crate::domain::{headers, routing_key};
use crate::metrics::Metrics;
use crate::queue::Properties;
use crate::worker::lease::MAX_CRASHES;
use crate::worker::{Worker, WorkerParts};

/// Time limit for the remaining work after the faults end: the longest wait of a job that always
/// fails, plus the longest transfers one after the other.
const RECOVERY_LIMIT: Duration = Duration::from_hours(12);
/// Additional time for jobs that wait for a permanently unavailable destination.
const PERMANENT_OUTAGE_LIMIT: Duration = Duration::from_hours(26);

/// Result of a scenario.
#[derive(Debug)]
pub(super) struct ScenarioResult {
    pub(super) violations: Vec<String>,
    pub(super) log: Vec<String>,
    pub(super) statistics: Statistics,
}

thread_local! {
    /// Metrics for reuse, since they are expensive to build. Only gauges matter here, and those are
    /// back at zero.
    static METRICS: RefCell<Vec<Arc<Metrics>>> = const { RefCell::new(Vec::new()) };
}

/// Runs a scenario, which is built once the clock has started.
pub(super) async fn run(scenario: impl FnOnce() -> Scenario, log: LogMode) -> ScenarioResult {
    clock::start();
    let start = Instant::now();
    let world = SimWorld::new(scenario(), log);
    let scenario = Arc::clone(&world.lock().scenario);
    let destinations = destinations();
    let start_worker = || start_worker(&world, &destinations);
    (0..scenario.worker_count).for_each(|_| start_worker());
    let watch = tokio::spawn(oracle::watch_slots(Arc::clone(&world)));
    for (at, event) in &scenario.events {
        sleep_until(start + *at).await;
        apply_event(&world, event, &destinations);
    }
    sleep_until(start + scenario.faults_end).await;
    watch.abort();
    note!(world.lock(), "no more faults");
    world.lock().faults_over = true;
    world.end_broker_outage();
    while oracle::active_workers(&world.lock()).len() < scenario.worker_count {
        start_worker();
    }
    let limit = if scenario.outages.iter().any(|outage| outage.until.is_none()) {
        RECOVERY_LIMIT + PERMANENT_OUTAGE_LIMIT
    } else {
        RECOVERY_LIMIT
    };
    if timeout(limit, done(&world)).await.is_err() {
        oracle::report_unfinished(&mut world.lock());
    }
    stop_workers(&world, scenario.drain).await;
    oracle::check_final_state(&mut world.lock());
    world.result()
}

/// Waits until all work is done.
async fn done(world: &Arc<SimWorld>) {
    loop {
        let changed = world.changed.notified();
        if world.lock().is_done() {
            return;
        }
        changed.await;
    }
}

/// Drains all workers and waits until they stop.
async fn stop_workers(world: &Arc<SimWorld>, drain: Duration) {
    world.lock().workers.iter().for_each(|worker| worker.drain.cancel());
    let until = Instant::now() + drain + Duration::from_secs(10);
    while world.lock().workers.iter().any(|worker| worker.alive) {
        if timeout_at(until, world.changed.notified()).await.is_err() {
            return world.lock().report_violation("a worker does not stop".to_owned());
        }
    }
}

fn apply_event(world: &Arc<SimWorld>, event: &ScenarioEvent, destinations: &watch::Receiver<Arc<Destinations>>) {
    let someone = {
        let mut state = world.lock();
        let active = oracle::active_workers(&state);
        (!active.is_empty()).then(|| *state.rng.choose(&active))
    };
    match (event, someone) {
        (ScenarioEvent::Publish(job), _) => publish(world, *job),
        (ScenarioEvent::BrokerOutage(wait), _) => world.start_broker_outage(*wait),
        (_, None) => {}
        (ScenarioEvent::LoseConnection, Some(number)) => world.lose_connection(number),
        (ScenarioEvent::Crash(wait), Some(number)) => {
            world.lock().count_fault("crashes");
            world.lock().kill(number);
            let destinations = destinations.clone();
            world.schedule(*wait, move |world| start_worker(world, &destinations));
        }
        (ScenarioEvent::Drain(wait), Some(number)) => {
            note!(world.lock(), "worker {number} drains");
            world.lock().count_fault("drains");
            world.lock().workers[number].draining = true;
            world.lock().workers[number].drain.cancel();
            let destinations = destinations.clone();
            world.schedule(*wait, move |world| start_worker(world, &destinations));
        }
        (ScenarioEvent::RefuseIdentity(wait), Some(number)) => {
            note!(world.lock(), "the identity of worker {number} is refused for {wait:?}");
            world.lock().workers[number].identity_refused_until = clock::elapsed() + *wait;
        }
    }
}

fn publish(world: &Arc<SimWorld>, job: usize) {
    let mut state = world.lock();
    let plan = state.plan(job);
    let (lane, id) = (plan.lane, plan.id.clone());
    let poison = plan.behavior == JobBehavior::Poison;
    // As a lease that six workers in turn left behind.
    let crashes = poison.then(|| (headers::CRASHES.to_owned(), MAX_CRASHES.to_string()));
    let message = SimMessage {
        job,
        body: plan.body.clone(),
        properties: Properties {
            content_type: plan.content_type().map(str::to_owned),
            message_id: Some(id.clone()),
            headers: crashes.into_iter().collect(),
            ..Properties::default()
        },
        routing_key: routing_key::job(lane, DESTINATIONS[plan.destination]),
        redelivered: poison,
        delivery_count: 0,
    };
    note!(state, "{id} is published to {lane:?}");
    state.records[job].published += 1;
    let again = state.records[job].published > 1;
    state.records[job].duplicated |= again;
    state.enqueue(lane, message, false);
}

/// Starts one more worker.
fn start_worker(world: &Arc<SimWorld>, destinations: &watch::Receiver<Arc<Destinations>>) {
    let scenario = Arc::clone(&world.lock().scenario);
    let metrics = METRICS.with_borrow_mut(Vec::pop).unwrap_or_else(|| Arc::new(Metrics::new(3)));
    let number = {
        let mut state = world.lock();
        let catch_up = state.rng.millis(0, u64::try_from(MAX_CATCH_UP.as_millis()).unwrap_or(0));
        state.control.join(catch_up);
        state.workers.push(SimWorker::new(scenario.slots, scenario.backfill_slots, Arc::clone(&metrics)));
        state.workers.len() - 1
    };
    let worker = Worker::new(WorkerParts {
        config: config(&scenario, number),
        prefix: "consign".to_owned(),
        lease_after: scenario.lease_after,
        denied_for: Duration::from_secs(60),
        egress_addresses: Vec::new(),
        inline: InlinePolicy::default(),
        queue: Arc::new(SimQueue { world: Arc::clone(world), worker: number }),
        transport: Arc::new(SimTransport { world: Arc::clone(world), worker: number }),
        clock: if scenario.clock_skew { clock::SKEWED[number % clock::SKEWED.len()] } else { clock::now },
        destinations: destinations.clone(),
        metrics,
    });
    let drain = {
        let mut state = world.lock();
        note!(state, "worker {number} starts");
        state.workers[number].instance = Arc::downgrade(&worker);
        state.workers[number].connected = !state.broker_down;
        state.dispatch();
        state.workers[number].drain.clone()
    };
    let world = Arc::clone(world);
    tokio::spawn(async move {
        let drained = worker.serve(&drain).await;
        let metrics = oracle::worker_stopped(&mut world.lock(), number, &worker, drained);
        METRICS.with_borrow_mut(|idle| idle.extend(metrics));
        world.changed.notify_one();
    });
}

fn config(scenario: &Scenario, number: usize) -> WorkerConfig {
    WorkerConfig {
        slots: NonZeroU32::new(scenario.slots).unwrap_or(NonZeroU32::MIN),
        backfill_slots: scenario.backfill_slots,
        memory_budget: 64 << 20,
        drain_timeout: scenario.drain,
        max_attempts: NonZeroU32::new(scenario.max_attempts).unwrap_or(NonZeroU32::MIN),
        destination_slots: NonZeroU32::new(scenario.destination_slots).unwrap_or(NonZeroU32::MIN),
        id: format!("worker-{number}"),
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
