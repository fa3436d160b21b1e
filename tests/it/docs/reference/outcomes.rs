//! Kinds of outcomes, and every reason with what the program decides for it.

use std::time::Duration;

use consign::domain::outcome::{
    Class, DecisionContext, Disposition, Failure, History, OutcomeKind, Reason, RetryDelay, RetryPolicy, decide,
};
use jiff::Timestamp;

use crate::docs::generated::table;
use crate::docs::tables::{CLASSES, of};

pub(super) const KINDS: [OutcomeKind; 5] =
    [OutcomeKind::Delivered, OutcomeKind::Failed, OutcomeKind::Skipped, OutcomeKind::Expired, OutcomeKind::Retrying];

pub(super) fn kinds() -> String {
    let row = |kind: OutcomeKind| {
        let meaning = match kind {
            OutcomeKind::Delivered => "The object is complete in the bucket.",
            OutcomeKind::Failed => "The job is a dead letter.",
            OutcomeKind::Skipped => {
                "Nothing was written: the key is taken and `if_exists` is `keep`, the backfill was cancelled, or a newer \
                 generation was delivered (`superseded`)."
            }
            OutcomeKind::Expired => "`expires_at` has passed. Nothing was delivered, and there is no dead letter.",
            OutcomeKind::Retrying => "A charged attempt failed. Another one follows at `retry_at`.",
        };
        let last = if kind.is_terminal() { "yes" } else { "no" };
        [format!("`{}`", kind.as_str()), format!("`{}`", kind.event_type()), last.to_owned(), meaning.to_owned()]
    };
    table(["outcome", "CloudEvents `type`", "final", "meaning"], KINDS.map(row))
}

pub(super) fn classes() -> String {
    let row = |class: Class| {
        let (meaning, acts) = match class {
            Class::Destination => ("The customer's account refuses the delivery.", "customer"),
            Class::Job => ("The job itself is wrong.", "author of the scheduler"),
            Class::Transient => ("A service, a source or a connection fails temporarily.", "nobody"),
            Class::Session => ("The session expired early. It is renewed once, and the request is repeated.", "nobody"),
            Class::Interrupted => ("The worker had to stop the attempt. Another attempt continues it.", "nobody"),
            Class::Defect => ("A bug of consign, or a defect of the machine.", "operator"),
            Class::Worker => {
                ("This worker can't deliver anything. It pauses, and other workers take its jobs.", "operator")
            }
        };
        [format!("`{}`", class.as_str()), meaning.to_owned(), acts.to_owned()]
    };
    table(["class", "meaning", "who acts"], CLASSES.map(row))
}

/// Who acts on a reason where that is not who acts on its class.
fn who(reason: Reason) -> &'static str {
    match (reason, reason.class()) {
        (Reason::RoleAuthOff, _) => "operator",
        (Reason::Exhausted, _) => "operator: requeue once the cause is resolved",
        (Reason::SchemaVersion, _) => "operator: upgrade the workers",
        (Reason::UnknownDestination | Reason::DestinationForbidden, _) => "author of the scheduler, or operator",
        (_, Class::Destination) => "customer",
        (_, Class::Job) => "author of the scheduler",
        (_, Class::Defect | Class::Worker) => "operator",
        (_, Class::Transient | Class::Session | Class::Interrupted) => "nobody",
    }
}

const MAX_ATTEMPTS: u32 = 8;

fn decided(reason: Reason, history: &History) -> Disposition {
    let policy = RetryPolicy {
        max_attempts: MAX_ATTEMPTS,
        denied_for: Duration::from_secs(60),
        max_deferral_age: RetryPolicy::MAX_DEFERRAL_AGE,
    };
    let now = Timestamp::UNIX_EPOCH + RetryPolicy::MAX_DEFERRAL_AGE;
    let context = DecisionContext { now, expires_at: None, next_probe: None, last_success_at: None };
    decide(&Failure::new(reason, "x"), history, &policy, &context)
}

/// Next step for a new job, and the last one, as the program decides them.
fn next(reason: Reason) -> String {
    if reason == Reason::Exhausted {
        return "the reason of the dead letter after the last attempt".to_owned();
    }
    let new = History::default();
    let worn = History { attempts: MAX_ATTEMPTS - 1, ..History::default() };
    let old = History { deferred_since: Some(Timestamp::UNIX_EPOCH), deferrals: 99, ..History::default() };
    let again = History { defects: 1, ..History::default() };
    let all = [&new, &worn, &old, &again].map(|history| decided(reason, history));
    let delay = |delay: RetryDelay| delay.as_str().replace('s', " s").replace('m', " min").replace('h', " h");
    match all {
        [Disposition::DeadLetter(_), ..] => "dead-lettered immediately".to_owned(),
        [Disposition::Requeue, ..] => requeued(reason).to_owned(),
        [Disposition::Retry(first), Disposition::DeadLetter(Reason::Exhausted), _, _] => {
            format!("retried, first after {}; after `worker.max_attempts` dead-lettered as `exhausted`", delay(first))
        }
        [Disposition::Retry(first), _, _, Disposition::DeadLetter(_)] => {
            format!("retried once, after {}; then dead-lettered", delay(first))
        }
        [Disposition::Defer(first), _, Disposition::DeadLetter(_), _] => {
            format!("deferred, first for {}; after 24 h dead-lettered", delay(first))
        }
        [Disposition::Defer(first), ..] => format!("deferred for {} at a time", delay(first)),
        other => panic!("no words for {reason:?}: {other:?}"),
    }
}

/// What becomes of a job that is requeued: an interrupted one is not always in its queue again.
fn requeued(reason: Reason) -> &'static str {
    match reason {
        Reason::Shutdown => "requeued, or handed off with the parts that S3 has",
        Reason::BrokerLost => "redelivered by the broker",
        Reason::LeaseLost => "continued by the worker that has the lease, which publishes the outcome",
        _ => "requeued for other workers",
    }
}

pub(super) fn reasons() -> String {
    let row = |reason: Reason| {
        let names = [reason.as_str(), reason.class().as_str()].map(|name| format!("`{name}`"));
        let [reason_name, class] = names;
        [reason_name, class, reason.meaning().to_owned(), next(reason), who(reason).to_owned()]
    };
    table(["reason", "class", "meaning", "what follows", "who acts"], CLASSES.into_iter().flat_map(of).map(row))
}

pub(super) fn delays() -> String {
    RetryDelay::ALL.map(|delay| format!("`{}`", delay.as_str())).join(", ") + "\n"
}
