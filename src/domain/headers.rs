//! Headers of jobs, leases and dead letters: every name, and their parsing, which happens once per
//! delivery.

use std::collections::BTreeMap;
use std::str::FromStr;

use jiff::Timestamp;

use super::backfill_id::BackfillId;
use super::control::EarlierCancellations;
use super::outcome::{Failure, History, Reason};

/// Text headers by name.
pub type Headers = BTreeMap<String, String>;

/// Charged attempts so far.
pub const ATTEMPT: &str = "x-attempt";
/// Deferrals after an attempt so far; they are not charged.
pub const DEFERRALS: &str = "x-deferrals";
/// Attempts that ended in a defect.
pub const DEFECTS: &str = "x-defects";
/// Deferrals before an attempt: they keep a copy apart from the message it was made of.
pub const TURNS: &str = "x-turns";
/// Time of the first failure.
pub const FIRST_FAILURE_AT: &str = "x-first-failure-at";
/// Time of the last failure.
pub const LAST_FAILURE_AT: &str = "x-last-failure-at";
/// Reason of the last failure.
pub const LAST_ERROR_REASON: &str = "x-last-error-reason";
/// Message of the last failure.
pub const LAST_ERROR_MESSAGE: &str = "x-last-error-message";
/// Start of the first attempt that may have written the object.
pub const STARTED_AT: &str = "x-begun-at";
/// Start of the wait for a destination's recovery. Retries, and jobs that wait for a permit, have
/// none.
pub const DEFERRED_SINCE: &str = "x-deferred-since";
/// Identity of the destination that a delayed copy waits for.
pub const DESTINATION: &str = "consign-destination";
/// User of the broker that published the job first, as consign's own copies carry it. It counts
/// only in a message whose `user_id` is the workers' own.
pub const PUBLISHER: &str = "consign-publisher";
/// Workers lost in a row while they worked on this job.
pub const CRASHES: &str = "x-crashes";
/// Run of the job: raised by a requeue from the dead letters, and by `consign backfill --again`.
pub const RUN: &str = "consign-run";
/// Generation that replaces the job's own: `consign dead requeue --as-new` sets it.
pub const GENERATION: &str = "consign-generation";
/// Retry delay of a copy: the wait queues are bound on it.
pub const WAIT: &str = "consign-wait";
/// Reason of a dead letter.
pub const ERROR_REASON: &str = "x-error-reason";
/// Class of a dead letter.
pub const ERROR_CLASS: &str = "x-error-class";
/// Message of a dead letter.
pub const ERROR_MESSAGE: &str = "x-error-message";
/// Charged attempts of a dead letter.
pub const ATTEMPTS: &str = "x-attempts";
/// Routing key of the job, for messages that travel under another one.
pub const ORIGINAL_ROUTING_KEY: &str = "x-original-routing-key";
/// Names of the producer's headers that did not fit into a copy.
pub const LEFT_OUT: &str = "x-headers-left-out";
/// Epoch of a lease: raised by each worker that takes the job over.
pub const LEASE_EPOCH: &str = "consign-lease-epoch";
/// Owner of a lease.
pub const LEASE_OWNER: &str = "consign-lease-owner";
/// Sequence number of a lease message.
pub const LEASE_SEQ: &str = "consign-lease-seq";
/// Marks the message that informs the former owner of a take-over.
pub const LEASE_NOTICE: &str = "consign-lease-notice";
/// Key of a lease: names the run of a job.
pub const LEASE_KEY: &str = "consign-lease-key";
/// Prefix of all lease headers.
const LEASE_PREFIX: &str = "consign-lease";
/// Id of the backfill that published a job.
pub const BACKFILL: &str = "consign-backfill";
/// Start of the backfill command that published a job.
pub const BACKFILL_STARTED_AT: &str = "consign-backfill-at";
/// Ids of the cancellations of a backfill that were published before that command started.
pub const BACKFILL_CANCELLATIONS: &str = "consign-backfill-cancelled";
/// W3C trace context.
pub const TRACEPARENT: &str = "traceparent";
/// W3C trace state.
pub const TRACESTATE: &str = "tracestate";
/// Number of redeliveries, written by quorum queues.
pub const DELIVERY_COUNT: &str = "x-delivery-count";

/// Headers that one run of a job writes. The next run starts without them.
const OF_THE_RUN: [&str; 19] = [
    ERROR_REASON,
    ERROR_CLASS,
    ERROR_MESSAGE,
    ATTEMPTS,
    FIRST_FAILURE_AT,
    LAST_FAILURE_AT,
    ORIGINAL_ROUTING_KEY,
    RUN,
    STARTED_AT,
    ATTEMPT,
    DEFERRALS,
    DEFECTS,
    TURNS,
    DEFERRED_SINCE,
    DESTINATION,
    LAST_ERROR_REASON,
    LAST_ERROR_MESSAGE,
    CRASHES,
    WAIT,
];

/// Returns true for a header that belongs to one run of a job: `consign dead requeue` drops it.
pub fn belongs_to_run(name: &str) -> bool {
    OF_THE_RUN.contains(&name) || is_of_lease(name)
}

/// Returns true for a header of a lease.
pub fn is_of_lease(name: &str) -> bool {
    name.starts_with(LEASE_PREFIX)
}

/// Returns true for a header that the broker writes, or that would make it route or drop a copy. An
/// `x-death` kept in a copy makes the broker drop it as a cycle.
pub fn is_broker_bookkeeping(name: &str) -> bool {
    name == DELIVERY_COUNT
        || matches!(name, "x-death" | "CC" | "BCC")
        || name.starts_with("x-first-death-")
        || name.starts_with("x-last-death-")
}

/// Headers of one delivery of a job. A header that can't be read counts as absent.
#[derive(Debug, Clone, Default)]
pub struct JobHeaders {
    /// Counters of earlier attempts.
    pub history: History,
    /// Run of the job. Each run is delivered by itself.
    pub run: u32,
    /// Order among the jobs of one destination and key: of those that are delivered, the highest
    /// stays. Set by a header, else the job's own.
    pub generation: Option<u64>,
    /// Deferrals before an attempt.
    pub turns: u32,
    /// Start of the first attempt that may have written the object.
    pub started_at: Option<Timestamp>,
    /// Workers lost in a row while they worked on this job, with nothing to show for it.
    pub crashes: u32,
    /// Failure of the attempt before this one: an expired job is reported with it.
    pub last_failure: Option<Failure>,
    /// Backfill that published the job.
    pub backfill: Option<BackfillId>,
    /// Start of the command that published it.
    pub backfill_started_at: Option<Timestamp>,
    /// Cancellations that were published before that command started, if it could read them.
    pub backfill_cancellations: Option<EarlierCancellations>,
    /// W3C trace context of the producer.
    pub traceparent: Option<String>,
}

impl JobHeaders {
    /// Parses the headers of a delivery.
    pub fn parse(headers: &Headers) -> Self {
        Self {
            history: History {
                attempts: number(headers, ATTEMPT),
                deferrals: number(headers, DEFERRALS),
                defects: number(headers, DEFECTS),
                first_failure_at: parsed(headers, FIRST_FAILURE_AT),
                deferred_since: parsed(headers, DEFERRED_SINCE),
            },
            run: number(headers, RUN),
            generation: parsed(headers, GENERATION),
            turns: number(headers, TURNS),
            started_at: parsed(headers, STARTED_AT),
            crashes: number(headers, CRASHES),
            last_failure: last_failure(headers),
            backfill: headers.get(BACKFILL).and_then(|id| BackfillId::parse(id).ok()),
            backfill_started_at: parsed(headers, BACKFILL_STARTED_AT),
            backfill_cancellations: parsed(headers, BACKFILL_CANCELLATIONS),
            traceparent: headers.get(TRACEPARENT).cloned(),
        }
    }
}

fn last_failure(headers: &Headers) -> Option<Failure> {
    let reason = Reason::parse(headers.get(LAST_ERROR_REASON)?)?;
    Some(Failure::new(reason, headers.get(LAST_ERROR_MESSAGE).cloned().unwrap_or_default()))
}

/// Returns the value of a header that parses as `T`.
pub fn parsed<T: FromStr>(headers: &Headers, name: &str) -> Option<T> {
    headers.get(name).and_then(|text| text.parse().ok())
}

fn number(headers: &Headers, name: &str) -> u32 {
    parsed(headers, name).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_that_cannot_be_read_count_as_absent() {
        let text = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let headers = Headers::from([
            text(ATTEMPT, "-1"),
            text(FIRST_FAILURE_AT, "soon"),
            text(LAST_ERROR_REASON, "mood"),
            text(BACKFILL, "a/b"),
        ]);
        let read = JobHeaders::parse(&headers);
        assert_eq!(read.history, History::default());
        assert!(read.last_failure.is_none() && read.backfill.is_none());
    }
}
