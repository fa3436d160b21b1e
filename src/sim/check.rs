//! The rules that hold at certain moments: at rest, when a worker ends, and when the story does.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::plan::{Fate, Taken};
use super::record::Record;
use super::world::{State, World, note};
use crate::metrics::Metrics;
use crate::worker::Worker;
use crate::worker::lease::MAX_CRASHES;

/// The most calls of the queue in a story, for each job. Those of a destination that is asked every ten minutes for a day come to
/// some 500, and copies of a job that ask every minute whether others have done it, to more. Whoever turns in circles makes millions.
const CALLS: u64 = 2000;

/// The workers that take jobs.
pub(super) fn living(state: &State) -> Vec<usize> {
    let members = state.members.iter().enumerate();
    members.filter(|(_, member)| member.alive && !member.draining).map(|(number, _)| number).collect()
}

/// Looks at the slots now and then, when nothing is about to happen: they are for transfers and for nothing else.
pub(super) async fn watch(world: Arc<World>) {
    loop {
        tokio::time::sleep(Duration::from_millis(53_003)).await;
        // What the same moment has woken may go first.
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        let mut state = world.lock();
        for member in 0..state.members.len() {
            slots(&mut state, member);
        }
    }
}

fn slots(state: &mut State, number: usize) {
    let member = &state.members[number];
    let Some(worker) = member.worker.upgrade().filter(|_| member.alive) else { return };
    let (free, _, unquarantined) = worker.free_permits();
    if !unquarantined {
        // Others may wait for their turn, which they do for ten seconds with a slot in hand.
        return;
    }
    let held = state.story.slots as usize - free;
    // One is held by the loop that waits for a delivery. A lease that is being taken is waited for with the slot.
    let most = (member.running + member.leasing) as usize + 1;
    if held > most {
        state.wrong(format!("worker {number} holds {held} slots, and {} are in use", most - 1));
    }
}

/// A worker has ended by itself. Its metrics can serve again when all was settled.
pub(super) fn left(state: &mut State, number: usize, worker: &Worker, drained: bool) -> Option<Arc<Metrics>> {
    if !state.members[number].alive {
        return None;
    }
    note!(state, "worker {number} has ended, drained: {drained}");
    let metrics = Arc::clone(&state.members[number].metrics);
    if drained {
        clean(state, number, worker, &metrics);
    } else if !state.members[number].draining || state.story.is_peaceful() {
        state.wrong(format!("worker {number} could not drain"));
    }
    state.kill(number);
    metrics.set_draining(false);
    drained.then_some(metrics)
}

/// Whoever drained owes nothing.
fn clean(state: &mut State, number: usize, worker: &Worker, metrics: &Metrics) {
    let mut owed = Vec::new();
    let running: u64 = metrics.snapshot().lanes.iter().map(|lane| lane.running).sum();
    if running > 0 || state.members[number].running > 0 {
        owed.push(format!("{running} transfers are counted as running"));
    }
    let (free, backfill, _) = worker.free_permits();
    let all = state.story.slots as usize;
    if free != all || backfill != state.story.backfill_slots as usize {
        owed.push(format!("{free} of {all} slots and {backfill} for backfills are free"));
    }
    if !worker.activity().list().is_empty() {
        owed.push("its board is not empty".to_owned());
    }
    let leases = state.leases.values().filter(|held| held.member == number && !held.passed_on).count();
    if leases > 0 {
        owed.push(format!("{leases} leases are not settled"));
    }
    for (job, record) in state.records.iter().enumerate() {
        for (_, end) in record.ends.iter().filter(|(member, end)| *member == number && !end.is_interrupted()) {
            owed.push(format!("job-{job} ended as {end:?}, and nothing followed"));
        }
    }
    owed.into_iter().for_each(|what| state.wrong(format!("worker {number} has ended, and {what}")));
}

/// The time is over and something is left.
pub(super) fn unfinished(state: &mut State) {
    let mut left = Vec::new();
    for job in 0..state.records.len() {
        if state.held(job) > 0 {
            left.push(format!("job-{job}"));
        }
    }
    let loans: Vec<_> = state.members.iter().map(|member| member.loans.len()).collect();
    let running: Vec<_> = state.members.iter().map(|member| member.running).collect();
    let ready: Vec<_> = state.ready.iter().map(VecDeque::len).collect();
    let what = format!(
        "not done: {left:?}; ready {ready:?}, waiting {}, on loan {loans:?}, running {running:?}, leases {}, limbo {}",
        state.waiting.len(),
        state.leases.len(),
        state.limbo
    );
    state.wrong(what);
}

/// The story is over.
pub(super) fn finished(state: &mut State) {
    let mut wrong = Vec::new();
    for job in 0..state.records.len() {
        wrong.extend(judged(state, job).into_iter().map(|problem| format!("job-{job}: {problem}")));
    }
    for (id, upload) in state.buckets.uploads.iter().filter(|(_, upload)| upload.open) {
        if upload.excused.is_none() {
            wrong.push(format!("{id} of job-{} ({}) is open, and nobody knows of it", upload.job, upload.key));
        }
    }
    if state.operations > CALLS * state.records.len() as u64 {
        wrong.push(format!("{} calls of the queue for {} jobs", state.operations, state.records.len()));
    }
    if state.story.is_peaceful() && state.buckets.twice > 0 {
        wrong.push(format!("{} parts were sent twice, and nothing had failed", state.buckets.twice));
    }
    wrong.into_iter().for_each(|what| state.wrong(what));
}

/// What is wrong with how a job ended.
fn judged(state: &State, job: usize) -> Vec<String> {
    let record = &state.records[job];
    let plan = state.plan(job);
    let mut wrong = Vec::new();
    let has = |kind: &str| record.outcomes.contains_key(kind);
    let letters = state.dead.iter().filter(|letter| letter.job == job).count();
    if record.outcomes.is_empty() && (plan.fate != Fate::Refused || letters == 0) {
        wrong.push("it has no outcome".to_owned());
    }
    if record.outcomes.values().any(|ids| ids.len() != 1) {
        wrong.push(format!("one outcome has several ids: {:?}", record.outcomes));
    }
    if record.outcomes.len() > 1 && !has("delivered") && !record.doubled {
        wrong.push(format!("it ended in several ways: {:?}", record.outcomes.keys()));
    }
    if has("delivered") && !state.buckets.has(job) {
        wrong.push("it is delivered, and its object is not there".to_owned());
    }
    if letters > 1 && !record.doubled {
        wrong.push(format!("{letters} dead letters"));
    }
    // A failed outcome may be recorded without its dead letter, where the job came again and ended otherwise.
    let otherwise = record.doubled && record.outcomes.len() > 1;
    if has("failed") != (letters > 0) && plan.fate != Fate::Refused && !otherwise {
        wrong.push(format!("{letters} dead letters, and the outcomes are {:?}", record.outcomes.keys()));
    }
    wrong.extend(unfounded(state, job, record));
    wrong
}

/// A job that is not delivered needs a reason.
fn unfounded(state: &State, job: usize, record: &Record) -> Option<String> {
    let plan = state.plan(job);
    let has = |kind: &str| record.outcomes.contains_key(kind);
    let exhausted = record.charged >= state.story.max_attempts || record.defects >= 2;
    let given_up = exhausted
        || record.crashes >= MAX_CRASHES
        || record.refused_for_good
        || state.story.lost_for_good(plan.destination);
    let foreign = plan.taken.is_taken();
    // Of two messages of one job, one may find the other's object, and have the last word.
    let beaten = record.published > 1 && plan.taken != Taken::Replace;
    if has("skipped") && !matches!(plan.taken, Taken::Keep(_)) {
        return Some("it is skipped, and did not ask for that".to_owned());
    }
    if foreign && state.buckets.has(job) {
        return Some("it has replaced an object that it was to leave alone".to_owned());
    }
    let excused = given_up || foreign || beaten || has("expired") || matches!(plan.fate, Fate::Refused | Fate::Poison);
    (!has("delivered") && !excused).then(|| format!("it is not delivered: {:?}", record.outcomes.keys()))
}
