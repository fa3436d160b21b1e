//! The history of a job as it travels in the headers of its copies.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use crate::domain::outcome::{Failure, History, Reason};
use crate::queue::DEFERRED_SINCE;

const ATTEMPT: &str = "x-attempt";
const DEFERRALS: &str = "x-deferrals";
const DEFECTS: &str = "x-defects";
const TURNS: &str = "x-turns";
const FIRST_FAILURE: &str = "x-first-failure-at";
const BEGUN: &str = "x-begun-at";
const LAST_FAILURE: &str = "x-last-failure-at";
const LAST_REASON: &str = "x-last-error-reason";
const LAST_MESSAGE: &str = "x-last-error-message";
const RUN: &str = "consign-run";
const CRASHES: &str = "x-crashes";
/// Longer messages are cut in headers: a frame of the broker has bounds.
const MESSAGE_LIMIT: usize = 1000;

/// Headers by name.
pub(super) type Headers = BTreeMap<String, String>;

/// Reads the history; what can't be read counts as absent.
pub(super) fn history(headers: &Headers) -> History {
    History {
        attempts: number(headers, ATTEMPT),
        deferrals: number(headers, DEFERRALS),
        defects: number(headers, DEFECTS),
        first_failure_at: instant(headers, FIRST_FAILURE),
        deferred_since: instant(headers, DEFERRED_SINCE),
    }
}

/// How often this job was requeued from the dead letters.
pub(super) fn run(headers: &Headers) -> u32 {
    number(headers, RUN)
}

/// How often this job was sent away before it was tried.
pub(super) fn turns(headers: &Headers) -> u32 {
    number(headers, TURNS)
}

/// What a copy carries that is sent away untried: it is not to be taken for the message of which it is a copy.
pub(super) fn another_turn(headers: &Headers) -> Headers {
    Headers::from([(TURNS.to_owned(), turns(headers).saturating_add(1).to_string())])
}

/// When the first attempt began, as far as a copy says so.
pub(super) fn begun(headers: &Headers) -> Option<Timestamp> {
    instant(headers, BEGUN)
}

/// What a copy carries that is made before the job has ended: an attempt that began at `begun` may have written the object.
pub(super) fn begun_at(begun: Timestamp) -> Headers {
    Headers::from([(BEGUN.to_owned(), begun.to_string())])
}

/// How often in a row a worker was lost while it worked on this very job, and nothing lasting had come of it.
pub(super) fn crashes(headers: &Headers) -> u32 {
    number(headers, CRASHES)
}

/// The header of that count.
pub(super) fn counted_crashes(crashes: u32) -> (String, String) {
    (CRASHES.to_owned(), crashes.to_string())
}

/// Why the attempt before this one failed: an expired job is reported with it.
pub(super) fn last_failure(headers: &Headers) -> Option<Failure> {
    let reason = headers.get(LAST_REASON)?;
    let reason = Reason::ALL.iter().find(|known| known.as_str() == reason)?;
    Some(Failure::new(*reason, headers.get(LAST_MESSAGE).cloned().unwrap_or_default()))
}

fn instant(headers: &Headers, name: &str) -> Option<Timestamp> {
    headers.get(name).and_then(|text| text.parse().ok())
}

fn number(headers: &Headers, name: &str) -> u32 {
    headers.get(name).and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// The headers of a copy that waits: `history` is the one after this failure.
pub(super) fn waiting(history: &History, failure: &Failure, now: Timestamp) -> Headers {
    let instant = |at: Option<Timestamp>| at.map(|at| at.to_string());
    let first = instant(history.first_failure_at).map(|first| (FIRST_FAILURE.to_owned(), first));
    // Empty where it counts no more: a copy keeps what it is not given anew.
    let since = (DEFERRED_SINCE.to_owned(), instant(history.deferred_since).unwrap_or_default());
    let counters = Headers::from([
        (ATTEMPT.to_owned(), history.attempts.to_string()),
        (DEFERRALS.to_owned(), history.deferrals.to_string()),
        (DEFECTS.to_owned(), history.defects.to_string()),
        (LAST_FAILURE.to_owned(), now.to_string()),
        (LAST_REASON.to_owned(), failure.reason.as_str().to_owned()),
        (LAST_MESSAGE.to_owned(), cut(&full_message(failure))),
        since,
    ]);
    counters.into_iter().chain(first).collect()
}

/// The headers of a dead letter. `reason` is why the job was given up, `failure` the last thing that happened.
pub(super) fn dead(history: &History, reason: Reason, failure: &Failure, now: Timestamp) -> Headers {
    let first = history.first_failure_at.unwrap_or(now);
    Headers::from([
        ("x-error-reason".to_owned(), reason.as_str().to_owned()),
        ("x-error-class".to_owned(), reason.class().as_str().to_owned()),
        ("x-error-message".to_owned(), cut(&full_message(failure))),
        ("x-attempts".to_owned(), history.attempts.to_string()),
        (FIRST_FAILURE.to_owned(), first.to_string()),
        (LAST_FAILURE.to_owned(), now.to_string()),
    ])
}

/// Message and remedy in one.
fn full_message(failure: &Failure) -> String {
    if failure.hint.is_empty() { failure.message.clone() } else { format!("{}; {}", failure.message, failure.hint) }
}

fn cut(text: &str) -> String {
    text.chars().take(MESSAGE_LIMIT).collect()
}

/// The instant `wait` after `now`.
pub(super) fn after(now: Timestamp, wait: Duration) -> Option<Timestamp> {
    jiff::SignedDuration::try_from(wait).ok().and_then(|wait| now.checked_add(wait).ok())
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
        let headers = waiting(&history, &Failure::new(Reason::SlowDown, "slow"), now);
        assert_eq!(super::history(&headers), history);
        assert_eq!(last_failure(&headers).unwrap().reason, Reason::SlowDown);
        assert_eq!(begun(&headers), None);
        assert_eq!(begun(&begun_at(first)), Some(first));
    }

    #[test]
    fn whatever_a_run_writes_ends_with_it() {
        let now = Timestamp::UNIX_EPOCH;
        let (history, failure) =
            (History { deferred_since: Some(now), ..History::default() }, Failure::new(Reason::SlowDown, "slow"));
        let written = [
            waiting(&history, &failure, now),
            dead(&history, Reason::Exhausted, &failure, now),
            begun_at(now),
            another_turn(&Headers::new()),
            Headers::from([counted_crashes(1), (RUN.to_owned(), "1".to_owned())]),
        ];
        for name in written.iter().flat_map(Headers::keys) {
            assert!(crate::queue::is_of_the_past(name), "`consign dead requeue` would carry {name} into the next run");
        }
    }

    #[test]
    fn nonsense_counts_as_absent() {
        let headers =
            Headers::from([(ATTEMPT.to_owned(), "-1".to_owned()), (FIRST_FAILURE.to_owned(), "soon".to_owned())]);
        assert_eq!(super::history(&headers), History::default());
        assert!(last_failure(&headers).is_none());
    }
}
