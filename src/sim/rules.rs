//! The rules that hold at every moment. A breach is noted, and the story goes on.

use super::clock;
use super::message::{Message, counter};
use super::plan::{DESTINATIONS, Fate};
use super::record::End;
use super::world::{State, note};
use crate::domain::job::Job;
use crate::domain::job::lease::{Checkpoint, Lease};
use crate::domain::lane::Lane;
use crate::domain::outcome::{Class, Outcome, Reason, RetryPolicy};
use crate::queue::{Delivery, LeaseMessage, OutcomeEvent, Settlement};
use crate::transfer::TransferRequest;
use crate::worker::lease::MAX_CRASHES;

const ATTEMPT: &str = "x-attempt";
const DEFERRALS: &str = "x-deferrals";
const DEFERRED_SINCE: &str = "x-deferred-since";
const LAST_REASON: &str = "x-last-error-reason";

/// The job that a message id names.
pub(super) fn job_of(message_id: Option<&str>) -> usize {
    message_id.and_then(|id| id.strip_prefix("job-")).and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// A worker settles a delivery: what it says must follow from how an attempt of its own ended.
pub(super) fn settling(
    state: &mut State,
    member: usize,
    delivery: &Delivery,
    settlement: &Settlement,
    events: &[OutcomeEvent],
) {
    let job = job_of(delivery.properties.message_id.as_deref());
    let kinds: Vec<_> = events.iter().map(kind).collect();
    note!(state, "worker {member} settles job-{job}: {} with {kinds:?}", settlement.action());
    if let Some(problem) = unfounded(state, member, job, delivery, settlement, &kinds) {
        state.wrong(format!("worker {member} settles job-{job} by {} with {kinds:?}: {problem}", settlement.action()));
    }
    if let Some(problem) = damaged(state, job, delivery, settlement) {
        state.wrong(format!("worker {member} settles job-{job} by {}: {problem}", settlement.action()));
    }
}

fn unfounded(
    state: &mut State,
    member: usize,
    job: usize,
    delivery: &Delivery,
    settlement: &Settlement,
    kinds: &[&str],
) -> Option<&'static str> {
    let before = &delivery.properties.headers;
    let poisonous = state.plan(job).fate == Fate::Poison;
    let destination = state.plan(job).destination;
    let known_broken = state.members[member].refused.contains(&destination);
    let expires = state.plan(job).expires.is_some();
    let failing = state.members[member].failed.len();
    let told = state.members[member].told.contains(&job);
    if kinds == ["delivered"] {
        state.members[member].delivered.insert(job);
    }
    let record = &mut state.records[job];
    match settlement {
        Settlement::Ack => match kinds {
            [] => {
                // However an attempt ends whose job is another worker's by now, nothing follows from it.
                let _ = told && record.settle(member, |end| end != End::Delivered);
                None
            }
            ["delivered"] if record.settle(member, |end| end == End::Delivered) || record.delivered => None,
            ["skipped"] if record.settle(member, |end| end == End::Skipped) => None,
            ["expired"] if record.settle(member, |end| end == End::Expired) => None,
            ["expired"] if record.settle(member, |end| matches!(end, End::Failed(_)) && !end.is_interrupted()) => None,
            ["expired"] if record.settle(member, End::is_interrupted) || poisonous || record.crashes >= MAX_CRASHES => {
                None
            }
            // It was turned away: its destination was known to be broken, or had all it may have.
            ["expired"] if known_broken || expires => None,
            _ => Some("no attempt ended so"),
        },
        Settlement::Retry { headers, .. } => {
            if counter(headers, ATTEMPT) != counter(before, ATTEMPT) + 1 {
                return Some("the attempt is not counted once");
            }
            let founded = kinds == ["retrying"] && record.settle(member, End::is_charged);
            (!founded).then_some("no attempt failed in passing")
        }
        Settlement::Defer { headers, .. } if headers.contains_key(DEFERRALS) => {
            if counter(headers, ATTEMPT) != counter(before, ATTEMPT) {
                return Some("an attempt is charged");
            }
            if headers.contains_key(DEFERRED_SINCE) {
                record.deferred_since.get_or_insert(clock::elapsed());
            }
            let ours = record.settle(member, |end| end == End::Failed(Class::Destination)) || known_broken;
            let all = headers.get(LAST_REASON).is_some_and(|reason| reason == Reason::Outage.as_str());
            let alike = all && (record.settle(member, |end| matches!(end, End::Failed(_))) || failing >= 3);
            let founded = kinds.is_empty() && (ours || alike);
            (!founded).then_some("no destination refused")
        }
        Settlement::Defer { headers, .. } => headers.contains_key(ATTEMPT).then_some("an attempt is charged"),
        Settlement::DeadLetter { .. } => {
            let refused = poisonous || state.story.jobs[job].fate == Fate::Refused || record.crashes >= MAX_CRASHES;
            let ended = |end| matches!(end, End::Failed(_)) && !End::is_interrupted(end);
            let founded = record.settle(member, ended) || refused || known_broken;
            (!founded).then_some("no attempt ended so")
        }
        Settlement::HandOff { headers } => {
            record.settle(member, End::is_interrupted);
            (counter(headers, ATTEMPT) > counter(before, ATTEMPT)).then_some("an attempt is charged")
        }
        Settlement::Requeue => {
            record.settle(member, End::is_interrupted);
            None
        }
    }
}

/// What is wrong with the copy that this settlement makes.
fn damaged(state: &State, job: usize, delivery: &Delivery, settlement: &Settlement) -> Option<&'static str> {
    let plan = state.plan(job);
    let is_lease = Lease::is_type(delivery.properties.content_type.as_deref());
    match settlement {
        Settlement::Ack | Settlement::Requeue => None,
        Settlement::DeadLetter { headers } => {
            let reason = headers.get("x-error-reason");
            let known = reason.is_some_and(|reason| Reason::ALL.iter().any(|known| known.as_str() == reason));
            (!known).then_some("a dead letter without a reason")
        }
        _ if is_lease => match Lease::decode(&delivery.body) {
            Ok(lease) if lease.body != plan.body => Some("the lease has another body in it"),
            Ok(lease) if lease.lane != plan.lane => Some("the lease has another lane"),
            Ok(lease) => {
                let key = super::bucket::key(job);
                lease.checkpoint.is_some_and(|it| it.key != key).then_some("the checkpoint is another object's")
            }
            Err(_) => Some("the lease can't be read"),
        },
        _ => (delivery.body != plan.body).then_some("the body is not the job's"),
    }
}

/// The word of an event: `delivered` and its like.
fn kind(event: &OutcomeEvent) -> &str {
    event.routing_key.split('.').nth(1).unwrap_or_default()
}

/// An outcome is with the broker.
pub(super) fn recorded(state: &mut State, job: usize, event: &OutcomeEvent) {
    let kind = kind(event);
    note!(state, "job-{job} is recorded as {kind}");
    if kind == "retrying" {
        return;
    }
    let outcome: Option<Outcome> = serde_json::from_slice(&event.body).ok();
    let Some(outcome) = outcome else { return state.wrong(format!("job-{job}: an outcome that can't be read")) };
    if outcome.subject != state.plan(job).id || outcome.id != event.id {
        state.wrong(format!("job-{job}: an outcome of {} ({})", outcome.subject, outcome.id));
    }
    // The attempt after a defect is granted whatever the limit.
    let most = state.story.max_attempts + state.records[job].defects;
    if outcome.data.attempts > most {
        state.wrong(format!("job-{job}: {} attempts, and {most} are allowed", outcome.data.attempts));
    }
    if kind == "delivered" && !state.buckets.has(job) {
        state.wrong(format!("job-{job} is said to be delivered, and its object is not there"));
    }
    // The shortest wait is five seconds: with less time left than that there is no other attempt.
    let early = |at: std::time::Duration| clock::elapsed() + std::time::Duration::from_secs(5) < at;
    if kind == "expired" && state.plan(job).expires.is_none_or(early) {
        state.wrong(format!("job-{job} has expired before its time"));
    }
    state.records[job].outcomes.entry(kind.to_owned()).or_default().insert(event.id.clone());
}

/// A dead letter is with the broker.
pub(super) fn buried(state: &mut State, letter: &Message) {
    let (plan, poisonous) = (state.plan(letter.job), state.plan(letter.job).fate == Fate::Poison);
    let reason = letter.properties.headers.get("x-error-reason").cloned().unwrap_or_default();
    if letter.body != plan.body || letter.properties.content_type.as_deref() != plan.content_type() {
        state.wrong(format!("{reason}: the dead letter of job-{} is not what was published", letter.job));
    }
    let reason = Reason::ALL.iter().find(|known| known.as_str() == reason);
    let record = &state.records[letter.job];
    let waited = record.deferred_since.map(|since| clock::elapsed().saturating_sub(since));
    let problem = match reason.map(|reason| (*reason, reason.class())) {
        None => Some("without a reason".to_owned()),
        Some((_, Class::Destination)) if waited.is_none_or(|waited| waited < RetryPolicy::MAX_DEFERRAL_AGE) => {
            Some(format!("the destination was waited for {waited:?}"))
        }
        Some((Reason::Exhausted, _)) if record.charged < state.story.max_attempts => {
            Some(format!("exhausted after {} failures", record.charged))
        }
        Some((Reason::CrashLoop, _)) if poisonous && record.attempts == 0 => None,
        Some((Reason::CrashLoop, _)) if record.crashes >= MAX_CRASHES => None,
        Some((Reason::CrashLoop, _)) => Some(format!("{} workers died over it", record.crashes)),
        Some((_, Class::Defect)) if record.defects < 2 => Some("after one defect".to_owned()),
        Some((_, Class::Interrupted | Class::Worker)) => Some("nothing was wrong with it".to_owned()),
        Some(_) => None,
    };
    if let Some(problem) = problem {
        state.wrong(format!("job-{} is dead as {reason:?}: {problem}", letter.job));
    }
}

/// A delivery is acknowledged: the job must be somewhere else, or have ended.
pub(super) fn acknowledged(state: &mut State, job: usize) {
    let buried = state.dead.iter().any(|letter| letter.job == job);
    if !buried && state.records[job].outcomes.is_empty() && state.held(job) == 0 {
        state.wrong(format!("job-{job} is acknowledged and lost"));
    }
}

/// A lease is written for the first time.
pub(super) fn leased(state: &mut State, base: &Message, message: &LeaseMessage) {
    let plan = state.plan(base.job);
    let parsed = Lease::decode(&message.body);
    let whole = Lease::is_type(Some(&message.content_type))
        && parsed.is_ok_and(|lease| lease.body == plan.body && lease.lane == plan.lane);
    if !whole {
        state.wrong(format!("the lease of job-{} does not hold the job", base.job));
    }
}

/// An attempt begins.
pub(super) fn beginning(state: &mut State, member: usize, job: usize, parsed: &Job, attempt: &TransferRequest<'_>) {
    let running = state.members[member].running;
    state.members[member].told.retain(|other| *other != job);
    note!(state, "worker {member} begins job-{job}, resumed: {}", attempt.resume.is_some());
    if running > state.story.slots {
        state.wrong(format!("worker {member} runs {running} transfers in {} slots", state.story.slots));
    }
    if let Some(board) = state.members[member].worker.upgrade().map(|worker| worker.activity().list()) {
        let backfills = board.iter().filter(|running| running.lane == Lane::Backfill.as_str()).count();
        if backfills > state.story.backfill_slots as usize {
            state.wrong(format!("worker {member} runs {backfills} backfills"));
        }
        let into =
            board.iter().filter(|running| running.destination == DESTINATIONS[state.plan(job).destination]).count();
        if into > state.story.destination_slots as usize {
            state.wrong(format!("worker {member} runs {into} transfers into one destination"));
        }
        let mut same: Vec<_> = board.iter().filter(|running| running.job_id == parsed.id.as_str()).collect();
        same.sort_by_key(|running| running.attempt);
        let twice = same.windows(2).any(|pair| pair[0].attempt == pair[1].attempt);
        if twice && state.records[job].deferred_since.is_none() {
            state.wrong(format!("worker {member} makes one attempt of job-{job} twice at once"));
        }
    }
    // Who waits for its turn, as a job that may end workers, was let in before.
    if state.members[member].delivered.contains(&job) && state.records[job].crashes == 0 {
        state.wrong(format!("worker {member} has delivered job-{job}, and begins it again"));
    }
    if state.records[job].running.len() > 1 && !state.records[job].doubled {
        state.wrong(format!("job-{job} is worked on by {:?} at once", state.records[job].running));
    }
    if let Some(checkpoint) = &attempt.resume {
        state.members[member].unsettled.retain(|other| *other != checkpoint.upload_id);
    }
    if attempt.resume.as_ref().is_some_and(|checkpoint| checkpoint.key != super::bucket::key(job)) {
        state.wrong(format!("job-{job} is to go on with another object's upload"));
    }
}

/// A worker gives up an upload that it has no part in any more. One with which another worker goes on is not its own: it was lost with
/// its lease, or it came with a delivery that others get again.
pub(super) fn abandoning(state: &mut State, member: usize, checkpoint: &Checkpoint) {
    let id = &checkpoint.upload_id;
    let Some(upload) = state.buckets.open(id) else { return };
    let (job, other) = (upload.job, upload.member);
    let busy = other != member && state.records[job].running.contains(&other) && !state.records[job].delivered;
    let worker = &state.members[member];
    let over = worker.told.contains(&job) || worker.unsettled.contains(id);
    let foreign = over && (worker.resumed.contains(id) || worker.written.contains(id));
    if busy && foreign {
        state.wrong(format!("worker {member} gives up {id} of job-{job}, with which worker {other} goes on"));
    }
}
