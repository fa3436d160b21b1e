//! Headers that the worker writes into the copy of a job: its history, and the marks that keep a
//! copy apart from its original.

use std::time::Duration;

use jiff::Timestamp;

use crate::domain::headers::{self, Headers, JobHeaders};
use crate::domain::outcome::{Class, Failure, History, Reason};

/// Characters of an error message in a header: a frame of the broker has bounds.
const MAX_MESSAGE_CHARS: usize = 1000;

/// Returns the history after a failure. A job that was not attempted is the same attempt when it
/// returns.
pub(super) fn after_failure(before: &History, failure: &Failure, attempted: bool, now: Timestamp) -> History {
    let class = failure.class();
    let deferred = class == Class::Destination;
    let charged = !matches!(class, Class::Destination | Class::Interrupted | Class::Worker);
    History {
        attempts: before.attempts.saturating_add((attempted && charged).into()),
        deferrals: before.deferrals.saturating_add((attempted && deferred).into()),
        defects: before.defects.saturating_add((attempted && class == Class::Defect).into()),
        first_failure_at: before.first_failure_at.or(attempted.then_some(now)),
        // The age limit is for a destination that stays broken. An attempt that ended otherwise shows
        // that it did not.
        deferred_since: before.deferred_since.filter(|_| deferred || !attempted).or(deferred.then_some(now)),
    }
}

/// Returns the headers of a copy that waits. `history` is the one after `failure`.
pub(super) fn of_waiting_copy(history: &History, failure: &Failure, now: Timestamp) -> Headers {
    let text = |at: Option<Timestamp>| at.map(|at| at.to_string());
    let first = text(history.first_failure_at).map(|first| (headers::FIRST_FAILURE_AT.to_owned(), first));
    let counters = Headers::from([
        (headers::ATTEMPT.to_owned(), history.attempts.to_string()),
        (headers::DEFERRALS.to_owned(), history.deferrals.to_string()),
        (headers::DEFECTS.to_owned(), history.defects.to_string()),
        (headers::LAST_FAILURE_AT.to_owned(), now.to_string()),
        (headers::LAST_ERROR_REASON.to_owned(), failure.reason.as_str().to_owned()),
        (headers::LAST_ERROR_MESSAGE.to_owned(), message_and_hint(failure)),
        // Empty where it no longer counts: a copy keeps the headers that are not overwritten.
        (headers::DEFERRED_SINCE.to_owned(), text(history.deferred_since).unwrap_or_default()),
    ]);
    counters.into_iter().chain(first).collect()
}

/// Returns the headers of a dead letter. `reason` is why the job ends, `failure` its last failure.
pub(super) fn of_dead_letter(history: &History, reason: Reason, failure: &Failure, now: Timestamp) -> Headers {
    let first = history.first_failure_at.unwrap_or(now);
    Headers::from([
        (headers::ERROR_REASON.to_owned(), reason.as_str().to_owned()),
        (headers::ERROR_CLASS.to_owned(), reason.class().as_str().to_owned()),
        (headers::ERROR_MESSAGE.to_owned(), message_and_hint(failure)),
        (headers::ATTEMPTS.to_owned(), history.attempts.to_string()),
        (headers::FIRST_FAILURE_AT.to_owned(), first.to_string()),
        (headers::LAST_FAILURE_AT.to_owned(), now.to_string()),
    ])
}

/// Returns the header that keeps a copy which was not attempted apart from its original.
pub(super) fn next_turn(before: &JobHeaders) -> Headers {
    Headers::from([(headers::TURNS.to_owned(), before.turns.saturating_add(1).to_string())])
}

/// Returns the header of a copy that is made before the job has ended: an attempt that started at
/// `started_at` may have written the object.
pub(super) fn started_at(started_at: Timestamp) -> Headers {
    Headers::from([(headers::STARTED_AT.to_owned(), started_at.to_string())])
}

/// Returns the header that counts lost workers.
pub(super) fn crashes(count: u32) -> Headers {
    Headers::from([(headers::CRASHES.to_owned(), count.to_string())])
}

/// Returns the time `wait` after `now`.
pub(super) fn time_after(now: Timestamp, wait: Duration) -> Option<Timestamp> {
    jiff::SignedDuration::try_from(wait).ok().and_then(|wait| now.checked_add(wait).ok())
}

fn message_and_hint(failure: &Failure) -> String {
    let hint = Some(failure.hint.as_str()).filter(|hint| !hint.is_empty());
    let text = hint.map_or_else(|| failure.message.clone(), |hint| format!("{}; {hint}", failure.message));
    text.chars().take(MAX_MESSAGE_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_survives_its_journey() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let first = Timestamp::from_second(1_799_999_000).unwrap();
        let history =
            History { attempts: 3, deferrals: 2, defects: 1, first_failure_at: Some(first), deferred_since: Some(now) };
        let read = JobHeaders::parse(&of_waiting_copy(&history, &Failure::new(Reason::SlowDown, "slow"), now));
        assert_eq!(read.history, history);
        assert_eq!(read.last_failure.unwrap().reason, Reason::SlowDown);
        assert_eq!(read.started_at, None);
        assert_eq!(JobHeaders::parse(&started_at(first)).started_at, Some(first));
    }

    #[test]
    fn every_header_of_a_run_ends_with_it() {
        let now = Timestamp::UNIX_EPOCH;
        let (history, failure) =
            (History { deferred_since: Some(now), ..History::default() }, Failure::new(Reason::SlowDown, "slow"));
        let written = [
            of_waiting_copy(&history, &failure, now),
            of_dead_letter(&history, Reason::Exhausted, &failure, now),
            started_at(now),
            next_turn(&JobHeaders::default()),
            crashes(1),
            Headers::from([(headers::RUN.to_owned(), "1".to_owned())]),
        ];
        for name in written.iter().flat_map(Headers::keys) {
            assert!(headers::belongs_to_run(name), "`consign dead requeue` would carry {name} into the next run");
        }
    }
}
