//! Invariants checked at each step. A violation is recorded and the scenario continues.

use std::time::Duration;

use super::clock;
use super::job_plan::{DESTINATIONS, JobBehavior};
use super::job_record::{AttemptEnd, JobRecord};
use super::message::{SimMessage, counter};
use super::world::{SimState, note};
use crate::domain::headers::{ATTEMPT, DEFERRALS, DEFERRED_SINCE, ERROR_REASON, LAST_ERROR_REASON};
use crate::domain::job::Job;
use crate::domain::job::lease::{Checkpoint, Lease};
use crate::domain::lane::Lane;
use crate::domain::outcome::{Class, Outcome, Reason, RetryPolicy};
use crate::queue::{Delivery, LeaseMessage, OutcomeEvent, Settlement};
use crate::transfer::TransferRequest;
use crate::worker::lease::MAX_CRASHES;

/// With less time left until `expires_at` there is no further attempt.
const SHORTEST_RETRY_DELAY: Duration = Duration::from_secs(5);

/// Returns the job that a message id names.
pub(super) fn job_of(message_id: Option<&str>) -> usize {
    message_id.and_then(|id| id.strip_prefix("job-")).and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// Checks a settlement: it must follow from the end of an attempt of the same worker.
pub(super) fn check_settlement(
    state: &mut SimState,
    worker: usize,
    delivery: &Delivery,
    settlement: &Settlement,
    events: &[OutcomeEvent],
) {
    let job = job_of(delivery.properties.message_id.as_deref());
    let kinds: Vec<_> = events.iter().map(kind).collect();
    note!(state, "worker {worker} settles job-{job}: {} with {kinds:?}", settlement.action());
    if let Some(problem) = unjustified(state, worker, job, delivery, settlement, &kinds) {
        state.report_violation(format!(
            "worker {worker} settles job-{job} by {} with {kinds:?}: {problem}",
            settlement.action()
        ));
    }
    if let Some(problem) = copy_defect(state, job, delivery, settlement) {
        state.report_violation(format!("worker {worker} settles job-{job} by {}: {problem}", settlement.action()));
    }
}

fn unjustified(
    state: &mut SimState,
    worker: usize,
    job: usize,
    delivery: &Delivery,
    settlement: &Settlement,
    kinds: &[&str],
) -> Option<&'static str> {
    let before = &delivery.properties.headers;
    let poison = state.plan(job).behavior == JobBehavior::Poison;
    let destination = state.plan(job).destination;
    // A worker observes the end of an attempt only when the lease that it is taking is there, or lost.
    let unobserved = state.workers[worker].leasing > 0;
    let known_down = state.workers[worker].knows_fault(destination) || unobserved;
    let expires = state.plan(job).expires.is_some();
    let failing = state.workers[worker].failed.len();
    let lost_lease = state.workers[worker].lost_leases.contains(&job);
    if kinds == ["delivered"] {
        state.workers[worker].delivered.insert(job);
    }
    let superseded = state.is_superseded(job);
    let record = &mut state.records[job];
    match settlement {
        Settlement::Ack => {
            let facts = AckFacts { lost_lease, poison, deferrable: known_down || expires, superseded };
            unjustified_ack(record, worker, kinds, facts)
        }
        Settlement::Retry { headers, .. } => {
            if counter(headers, ATTEMPT) != counter(before, ATTEMPT) + 1 {
                return Some("the attempt is not counted exactly once");
            }
            let justified = kinds == ["retrying"] && record.settle(worker, AttemptEnd::is_charged);
            (!justified).then_some("no attempt failed with a charged failure")
        }
        Settlement::Defer { headers, .. } if headers.contains_key(DEFERRALS) => {
            if counter(headers, ATTEMPT) != counter(before, ATTEMPT) {
                return Some("an attempt is charged");
            }
            if headers.contains_key(DEFERRED_SINCE) {
                record.deferred_since.get_or_insert(clock::elapsed());
            }
            let ours = record.settle(worker, |end| end == AttemptEnd::Failed(Class::Destination)) || known_down;
            let all = headers.get(LAST_ERROR_REASON).is_some_and(|reason| reason == Reason::Outage.as_str());
            let alike = all && (record.settle(worker, |end| matches!(end, AttemptEnd::Failed(_))) || failing >= 3);
            let justified = kinds.is_empty() && (ours || alike);
            (!justified).then_some("no attempt failed because of the destination")
        }
        Settlement::Defer { headers, .. } => headers.contains_key(ATTEMPT).then_some("an attempt is charged"),
        Settlement::DeadLetter { .. } => {
            let refused =
                poison || state.scenario.jobs[job].behavior == JobBehavior::Invalid || record.crashes >= MAX_CRASHES;
            let ended = |end| matches!(end, AttemptEnd::Failed(_)) && !AttemptEnd::is_interrupted(end);
            let justified = record.settle(worker, ended) || refused || known_down;
            (!justified).then_some("no attempt ended like this")
        }
        Settlement::HandOff { headers } => {
            record.settle(worker, AttemptEnd::is_interrupted);
            (counter(headers, ATTEMPT) > counter(before, ATTEMPT)).then_some("an attempt is charged")
        }
        Settlement::Requeue => {
            record.settle(worker, AttemptEnd::is_interrupted);
            None
        }
    }
}

/// Circumstances of an acknowledgement.
#[derive(Clone, Copy)]
struct AckFacts {
    /// The worker lost the lease of the job.
    lost_lease: bool,
    poison: bool,
    /// The job may have been deferred until it expired.
    deferrable: bool,
    /// A newer refresh of its object was delivered.
    superseded: bool,
}

fn unjustified_ack(record: &mut JobRecord, worker: usize, kinds: &[&str], facts: AckFacts) -> Option<&'static str> {
    match kinds {
        [] => {
            // An attempt whose job now belongs to another worker has no consequences, however
            // it ended.
            let _ = facts.lost_lease && record.settle(worker, |end| end != AttemptEnd::Delivered);
            None
        }
        ["delivered"] if record.settle(worker, |end| end == AttemptEnd::Delivered) || record.delivered => None,
        ["skipped"] if record.settle(worker, |end| end == AttemptEnd::Skipped) => None,
        ["skipped"] if facts.superseded => {
            // However the attempt ended that was stopped.
            let _ = record.settle(worker, |end| end != AttemptEnd::Delivered);
            None
        }
        ["expired"] if record.settle(worker, |end| end == AttemptEnd::Expired) => None,
        ["expired"] if record.settle(worker, |end| matches!(end, AttemptEnd::Failed(_)) && !end.is_interrupted()) => {
            None
        }
        ["expired"]
            if record.settle(worker, AttemptEnd::is_interrupted) || facts.poison || record.crashes >= MAX_CRASHES =>
        {
            None
        }
        // It was deferred: its destination was down, or at its concurrency limit.
        ["expired"] if facts.deferrable => None,
        _ => Some("no attempt ended like this"),
    }
}

/// Returns the defect of the copy that this settlement makes, if any.
fn copy_defect(state: &SimState, job: usize, delivery: &Delivery, settlement: &Settlement) -> Option<&'static str> {
    let plan = state.plan(job);
    let is_lease = Lease::is_type(delivery.properties.content_type.as_deref());
    match settlement {
        Settlement::Ack | Settlement::Requeue => None,
        Settlement::DeadLetter { headers } => {
            let reason = headers.get(ERROR_REASON);
            let known = reason.is_some_and(|reason| Reason::ALL.iter().any(|known| known.as_str() == reason));
            (!known).then_some("a dead letter without a reason")
        }
        _ if is_lease => match Lease::decode(&delivery.body) {
            Ok(lease) if lease.body != plan.body => Some("the lease holds another body"),
            Ok(lease) if lease.lane != plan.lane => Some("the lease names another lane"),
            Ok(lease) => {
                let key = super::fake_s3::key(state.plan(job).object);
                lease.checkpoint.is_some_and(|it| it.key != key).then_some("the checkpoint is another object's")
            }
            Err(_) => Some("the lease can't be read"),
        },
        _ => (delivery.body != plan.body).then_some("the body is not the job's"),
    }
}

/// Outcome kind of an event: `delivered`, `failed` and so on.
fn kind(event: &OutcomeEvent) -> &str {
    event.routing_key.split('.').nth(1).unwrap_or_default()
}

/// Checks and records an outcome that the broker has accepted.
pub(super) fn check_outcome(state: &mut SimState, job: usize, event: &OutcomeEvent) {
    let kind = kind(event);
    note!(state, "job-{job} has the outcome {kind}");
    if kind == "retrying" {
        return;
    }
    let outcome: Option<Outcome> = serde_json::from_slice(&event.body).ok();
    let Some(outcome) = outcome else {
        return state.report_violation(format!("job-{job}: an outcome that can't be read"));
    };
    if outcome.subject != state.plan(job).id || outcome.id != event.id {
        state.report_violation(format!("job-{job}: an outcome of {} ({})", outcome.subject, outcome.id));
    }
    // The attempt after a defect is granted regardless of the limit.
    let limit = state.scenario.max_attempts + state.records[job].defects;
    if outcome.data.attempts > limit {
        state.report_violation(format!("job-{job}: {} attempts; {limit} are allowed", outcome.data.attempts));
    }
    if kind == "delivered" && !state.has_as_new(job) && !state.is_overtaken(job) {
        state.report_violation(format!("job-{job} is reported as delivered, but its object is missing"));
    }
    let early = |at: Duration| clock::elapsed() + SHORTEST_RETRY_DELAY < at;
    if kind == "expired" && state.plan(job).expires.is_none_or(early) {
        state.report_violation(format!("job-{job} has expired before its time"));
    }
    state.records[job].outcomes.entry(kind.to_owned()).or_default().insert(event.id.clone());
}

/// Checks a dead letter that the broker has accepted.
pub(super) fn check_dead_letter(state: &mut SimState, letter: &SimMessage) {
    let (plan, poison) = (state.plan(letter.job), state.plan(letter.job).behavior == JobBehavior::Poison);
    let reason = letter.properties.headers.get(ERROR_REASON).cloned().unwrap_or_default();
    if letter.body != plan.body || letter.properties.content_type.as_deref() != plan.content_type() {
        state.report_violation(format!("{reason}: the dead letter of job-{} is not what was published", letter.job));
    }
    let reason = Reason::ALL.iter().find(|known| known.as_str() == reason);
    let record = &state.records[letter.job];
    let waited = record.deferred_since.map(|since| clock::elapsed().saturating_sub(since));
    let problem = match reason.map(|reason| (*reason, reason.class())) {
        None => Some("without a reason".to_owned()),
        Some((_, Class::Destination)) if waited.is_none_or(|waited| waited < RetryPolicy::MAX_DEFERRAL_AGE) => {
            Some(format!("the destination was given only {waited:?}"))
        }
        Some((Reason::Exhausted, _)) if record.charged < state.scenario.max_attempts => {
            Some(format!("exhausted after {} failures", record.charged))
        }
        Some((Reason::CrashLoop, _)) if record.delivered => Some("it was delivered".to_owned()),
        Some((Reason::CrashLoop, _)) if poison && record.attempts == 0 => None,
        Some((Reason::CrashLoop, _)) if record.crashes >= MAX_CRASHES => None,
        Some((Reason::CrashLoop, _)) => Some(format!("{} workers crashed on it", record.crashes)),
        Some((_, Class::Defect)) if record.defects < 2 => Some("after one defect".to_owned()),
        Some((_, Class::Interrupted | Class::Worker)) => Some("nothing is wrong with the job".to_owned()),
        Some(_) => None,
    };
    if let Some(problem) = problem {
        state.report_violation(format!("job-{} is dead-lettered as {reason:?}: {problem}", letter.job));
    }
}

/// Checks an acknowledgement: the job must be elsewhere, or have an outcome.
pub(super) fn check_acknowledgement(state: &mut SimState, job: usize) {
    let dead_lettered = state.dead.iter().any(|letter| letter.job == job);
    if !dead_lettered && state.records[job].outcomes.is_empty() && state.message_count(job) == 0 {
        state.report_violation(format!("job-{job} is acknowledged and lost"));
    }
}

/// Checks the first message of a lease.
pub(super) fn check_lease(state: &mut SimState, base: &SimMessage, message: &LeaseMessage) {
    let plan = state.plan(base.job);
    let parsed = Lease::decode(&message.body);
    let complete = Lease::is_type(Some(&message.content_type))
        && parsed.is_ok_and(|lease| lease.body == plan.body && lease.lane == plan.lane);
    if !complete {
        state.report_violation(format!("the lease of job-{} does not hold the job", base.job));
    }
}

/// Checks the start of an attempt.
pub(super) fn check_attempt(
    state: &mut SimState,
    worker: usize,
    job: usize,
    parsed: &Job,
    attempt: &TransferRequest<'_>,
) {
    let running = state.workers[worker].running;
    state.workers[worker].lost_leases.retain(|other| *other != job);
    note!(state, "worker {worker} starts job-{job}, resumed: {}", attempt.resume.is_some());
    if running > state.scenario.slots {
        state.report_violation(format!("worker {worker} runs {running} transfers in {} slots", state.scenario.slots));
    }
    if let Some(board) = state.workers[worker].instance.upgrade().map(|worker| worker.activity().list()) {
        let backfills = board.iter().filter(|running| running.lane == Lane::Backfill.as_str()).count();
        if backfills > state.scenario.backfill_slots as usize {
            state.report_violation(format!("worker {worker} runs {backfills} backfills"));
        }
        let to_destination =
            board.iter().filter(|running| running.destination == DESTINATIONS[state.plan(job).destination]).count();
        if to_destination > state.scenario.destination_slots as usize {
            state.report_violation(format!("worker {worker} runs {to_destination} transfers into one destination"));
        }
        let object = state.plan(job).object;
        let refreshes = |other: &usize| *other != job && state.plan(*other).object == object;
        let others = (0..state.records.len()).filter(refreshes);
        let both: Vec<_> = others.filter(|other| state.records[*other].running.contains(&worker)).collect();
        if !both.is_empty() {
            state.report_violation(format!("worker {worker} runs job-{job} beside {both:?} of the same object"));
        }
        let mut same: Vec<_> = board.iter().filter(|running| running.job_id == parsed.id.as_str()).collect();
        same.sort_by_key(|running| running.attempt);
        let twice = same.windows(2).any(|pair| pair[0].attempt == pair[1].attempt);
        if twice && state.records[job].deferred_since.is_none() {
            state.report_violation(format!("worker {worker} runs one attempt of job-{job} twice at once"));
        }
    }
    // A job that may crash workers waits with its permit, and so was admitted earlier.
    if state.workers[worker].delivered.contains(&job) && state.records[job].crashes == 0 {
        state.report_violation(format!("worker {worker} has delivered job-{job} and starts it again"));
    }
    if state.records[job].running.len() > 1 && !state.records[job].duplicated {
        state.report_violation(format!("job-{job} runs on workers {:?} at once", state.records[job].running));
    }
    if let Some(checkpoint) = &attempt.resume {
        state.workers[worker].unsettled_uploads.retain(|other| *other != checkpoint.upload_id);
    }
    if attempt.resume.as_ref().is_some_and(|checkpoint| checkpoint.key != super::fake_s3::key(state.plan(job).object)) {
        state.report_violation(format!("job-{job} resumes another object's upload"));
    }
}

/// Checks an abort by a worker that lost the job. It must not abort an upload that another worker
/// continues: the upload was lost with its lease, or came with a delivery that was requeued.
pub(super) fn check_abort(state: &mut SimState, worker: usize, checkpoint: &Checkpoint) {
    let id = &checkpoint.upload_id;
    let Some(upload) = state.s3.open(id) else { return };
    let (job, other) = (upload.job, upload.worker);
    let busy = other != worker && state.records[job].running.contains(&other) && !state.records[job].delivered;
    let former = &state.workers[worker];
    let over = former.lost_leases.contains(&job) || former.unsettled_uploads.contains(id);
    let foreign = over && (former.resumed_uploads.contains(id) || former.lease_uploads.contains(id));
    // Past its time no copy of the job uploads any more: one ends the upload that it carries.
    let expired = state.plan(job).expires.is_some_and(|at| at <= clock::elapsed() + SHORTEST_RETRY_DELAY);
    // Nor do copies of a job that a newer refresh superseded.
    let over = expired || state.is_superseded(job);
    if busy && foreign && !over && !state.records[job].released_twice {
        state.report_violation(format!("worker {worker} aborts {id} of job-{job}, which worker {other} continues"));
    }
}
