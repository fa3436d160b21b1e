//! Checks at certain moments: of idle workers, of a worker that stops, and of the final state.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::job_plan::{ExistingObject, JobBehavior};
use super::job_record::JobRecord;
use super::world::{SimState, SimWorld, note};
use crate::metrics::Metrics;
use crate::worker::Worker;
use crate::worker::lease::MAX_CRASHES;

/// Limit of queue calls per job. A destination that is probed every ten minutes for a day needs
/// about 500; copies of a job that ask every minute whether another one is done need more. A busy
/// loop makes millions.
const MAX_CALLS_PER_JOB: u64 = 2000;
/// The same for a copy that a fault doubled: the broker released it twice, or still holds the
/// message that it replaces, because a confirm or an acknowledgement was lost.
const MAX_CALLS_PER_DOUBLED_COPY: u64 = 200;
/// Limit of the sum, in calls per job.
const MAX_CALLS_WITH_DOUBLED_COPIES: u64 = 10 * MAX_CALLS_PER_JOB;

/// Returns the workers that take jobs.
pub(super) fn active_workers(state: &SimState) -> Vec<usize> {
    let workers = state.workers.iter().enumerate();
    workers.filter(|(_, worker)| worker.alive && !worker.draining).map(|(number, _)| number).collect()
}

/// Checks the workers' slots from time to time, between events: only transfers may hold one. A job
/// whose permit is imminent waits for it with its slot, for up to two seconds: what is held longer
/// is a violation.
pub(super) async fn watch_slots(world: Arc<SimWorld>) {
    const INTERVALS: [u64; 4] = [53_003, 2_503, 3_301, 4_507];
    let mut held = BTreeMap::<usize, usize>::new();
    for (nth, interval) in INTERVALS.into_iter().cycle().enumerate() {
        tokio::time::sleep(Duration::from_millis(interval)).await;
        // Tasks woken at the same moment run first.
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        let mut state = world.lock();
        let first = nth.is_multiple_of(INTERVALS.len());
        let before = std::mem::take(&mut held);
        for number in 0..state.workers.len() {
            let times = if first { 1 } else { before.get(&number).map_or(0, |times| times + 1) };
            match held_slots(&state, number).filter(|_| times > 0) {
                Some(problem) if times == INTERVALS.len() => state.report_violation(problem),
                Some(_) => drop(held.insert(number, times)),
                None => {}
            }
        }
    }
}

/// Returns a violation if a worker holds more slots than its transfers need.
fn held_slots(state: &SimState, number: usize) -> Option<String> {
    let process = &state.workers[number];
    let worker = process.instance.upgrade().filter(|_| process.alive)?;
    let (free, _, unquarantined) = worker.free_permits();
    if !unquarantined {
        // Other jobs may wait for the quarantine permit, for up to ten seconds and with a slot.
        return None;
    }
    let in_use = state.scenario.slots as usize - free;
    // The consume loop holds one slot. A lease that is being taken keeps its slot.
    let limit = (process.running + process.leasing) as usize + 1;
    (in_use > limit).then(|| format!("worker {number} holds {in_use} slots, and {} are in use", limit - 1))
}

/// Checks a worker that stopped by itself. Returns its metrics for reuse if it drained.
pub(super) fn worker_stopped(
    state: &mut SimState,
    number: usize,
    worker: &Worker,
    drained: bool,
) -> Option<Arc<Metrics>> {
    if !state.workers[number].alive {
        return None;
    }
    note!(state, "worker {number} has stopped, drained: {drained}");
    let metrics = Arc::clone(&state.workers[number].metrics);
    if drained {
        check_drained(state, number, worker, &metrics);
    } else if !state.workers[number].draining || state.scenario.is_fault_free() {
        state.report_violation(format!("worker {number} could not drain"));
    }
    state.kill(number);
    metrics.set_draining(false);
    drained.then_some(metrics)
}

/// Checks that a drained worker has released everything.
fn check_drained(state: &mut SimState, number: usize, worker: &Worker, metrics: &Metrics) {
    let mut unreleased = Vec::new();
    let running: u64 = metrics.snapshot().lanes.iter().map(|lane| lane.running).sum();
    if running > 0 || state.workers[number].running > 0 {
        unreleased.push(format!("{running} transfers are counted as running"));
    }
    let (free, backfill, _) = worker.free_permits();
    let all = state.scenario.slots as usize;
    if free != all || backfill != state.scenario.backfill_slots as usize {
        unreleased.push(format!("{free} of {all} slots and {backfill} for backfills are free"));
    }
    if !worker.activity().list().is_empty() {
        unreleased.push("its activity list is not empty".to_owned());
    }
    let leases = state.leases.values().filter(|lease| lease.worker == number && !lease.superseded).count();
    if leases > 0 {
        unreleased.push(format!("{leases} leases are not settled"));
    }
    for (job, record) in state.records.iter().enumerate() {
        for (_, end) in record.ends.iter().filter(|(worker, end)| *worker == number && !end.is_interrupted()) {
            unreleased.push(format!("job-{job} ended as {end:?}, and was not settled"));
        }
    }
    unreleased.into_iter().for_each(|what| state.report_violation(format!("worker {number} has stopped, but {what}")));
}

/// Reports the time limit with everything that is left.
pub(super) fn report_unfinished(state: &mut SimState) {
    let mut left = Vec::new();
    for job in 0..state.records.len() {
        if state.message_count(job) > 0 {
            left.push(format!("job-{job}"));
        }
    }
    let unacked: Vec<_> = state.workers.iter().map(|worker| worker.unacked.len()).collect();
    let running: Vec<_> = state.workers.iter().map(|worker| worker.running).collect();
    let ready: Vec<_> = state.ready.iter().map(VecDeque::len).collect();
    let what = format!(
        "not done: {left:?}; ready {ready:?}, waiting {}, on unacked {unacked:?}, running {running:?}, leases {}, in transit {}",
        state.waiting.len(),
        state.leases.len(),
        state.in_transit
    );
    state.report_violation(what);
}

/// Checks the final state.
pub(super) fn check_final_state(state: &mut SimState) {
    let mut violations = Vec::new();
    for job in 0..state.records.len() {
        violations.extend(job_violations(state, job).into_iter().map(|problem| format!("job-{job}: {problem}")));
    }
    for (id, upload) in state.s3.uploads.iter().filter(|(_, upload)| upload.open) {
        if upload.allowed_open.is_none() {
            violations.push(format!(
                "{id} of job-{} ({}) is open, and no worker or message knows of it",
                upload.job, upload.key
            ));
        }
    }
    let doubling = ["copies released twice", "confirms lost", "copies beside their originals"];
    let doubled: u64 = doubling.iter().filter_map(|fault| state.faults.get(fault)).sum();
    let jobs = state.records.len() as u64;
    let limit = MAX_CALLS_PER_JOB * jobs + MAX_CALLS_PER_DOUBLED_COPY * doubled;
    if state.operations > limit.min(MAX_CALLS_WITH_DOUBLED_COPIES * jobs) {
        violations.push(format!("{} calls of the queue for {} jobs", state.operations, state.records.len()));
    }
    if state.scenario.is_fault_free() && state.s3.repeated_parts > 0 {
        violations.push(format!("{} parts were sent twice without a fault", state.s3.repeated_parts));
    }
    violations.into_iter().for_each(|what| state.report_violation(what));
}

/// Returns everything wrong with the end of a job.
fn job_violations(state: &SimState, job: usize) -> Vec<String> {
    let record = &state.records[job];
    let plan = state.plan(job);
    let mut violations = Vec::new();
    let has = |kind: &str| record.outcomes.contains_key(kind);
    let letters = state.dead.iter().filter(|letter| letter.job == job).count();
    if record.outcomes.is_empty() && (plan.behavior != JobBehavior::Invalid || letters == 0) {
        violations.push("it has no outcome".to_owned());
    }
    if record.outcomes.values().any(|ids| ids.len() != 1) {
        violations.push(format!("one outcome has several ids: {:?}", record.outcomes));
    }
    if record.outcomes.len() > 1 && !has("delivered") && !record.duplicated {
        violations.push(format!("it ended in several ways: {:?}", record.outcomes.keys()));
    }
    if has("delivered") && !state.has_as_new(job) && !state.is_overtaken(job) {
        violations.push("it is delivered, but its object is missing".to_owned());
    }
    if letters > 1 && !record.duplicated {
        violations.push(format!("{letters} dead letters"));
    }
    // A failed outcome may be recorded without its dead letter, if the job was redelivered and
    // ended in another way.
    let otherwise = record.duplicated && record.outcomes.len() > 1;
    if has("failed") != (letters > 0) && plan.behavior != JobBehavior::Invalid && !otherwise {
        violations.push(format!("{letters} dead letters, and the outcomes are {:?}", record.outcomes.keys()));
    }
    violations.extend(missing_reason(state, job, record));
    violations
}

/// Returns a violation if a job was not delivered without a reason.
fn missing_reason(state: &SimState, job: usize, record: &JobRecord) -> Option<String> {
    let plan = state.plan(job);
    let has = |kind: &str| record.outcomes.contains_key(kind);
    let exhausted = record.charged >= state.scenario.max_attempts || record.defects >= 2;
    let abandoned = exhausted
        || record.crashes >= MAX_CRASHES
        || record.refused_for_good
        || state.scenario.is_permanently_down(plan.destination);
    let foreign = plan.existing.is_present();
    // Of two messages of one job, one may find the object of the other and end last.
    let preempted = record.published > 1 && plan.existing != ExistingObject::Replace;
    let superseded = state.is_superseded(job);
    if has("skipped") && !matches!(plan.existing, ExistingObject::Keep(_)) && !superseded {
        return Some("it is skipped without `if_exists`".to_owned());
    }
    if foreign && state.has(job) {
        return Some("it replaced an object that it had to keep".to_owned());
    }
    let excused = abandoned
        || foreign
        || preempted
        || superseded && has("skipped")
        || has("expired")
        || matches!(plan.behavior, JobBehavior::Invalid | JobBehavior::Poison);
    (!has("delivered") && !excused).then(|| format!("it is not delivered: {:?}", record.outcomes.keys()))
}
