//! Every metric there is, by name, with closed label sets; all series are present from the start.
//!
//! Nothing else names a metric: callers say what happened. Gauges that count things in progress are [`Guard`]s that undo
//! themselves on drop, so after any failure they read zero again.

mod destinations;
mod registry;
mod snapshot;

use std::time::Duration;

use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry, TextEncoder};

pub use destinations::DestinationMetrics;
pub use snapshot::{FailureCount, LaneSnapshot, Snapshot};

use crate::domain::destination::DestinationId;
use crate::domain::lane::Lane;
use crate::domain::outcome::{Failure, OutcomeKind, Reason};
use registry::Builder;

/// The outcomes that end a transfer, as label values.
const OUTCOMES: [OutcomeKind; 4] =
    [OutcomeKind::Delivered, OutcomeKind::Failed, OutcomeKind::Skipped, OutcomeKind::Expired];
const LANES: [&str; 3] = ["scheduled", "backfill", "continued"];
const SCHEMES: [&str; 4] = ["file", "https", "http", "s3"];
/// The S3 and STS operations that are counted.
const OPERATIONS: [&str; 8] = [
    "PutObject",
    "CreateMultipartUpload",
    "UploadPart",
    "CompleteMultipartUpload",
    "AbortMultipartUpload",
    "ListObjectsV2",
    "GetObject",
    "DeleteObject",
];
const STATUSES: [&str; 6] = ["2xx", "3xx", "4xx", "5xx", "timeout", "connection"];
/// Why a message may be refused before it is a job for somebody.
const REFUSALS: [Reason; 5] = [
    Reason::InvalidJob,
    Reason::SchemaVersion,
    Reason::InvalidKey,
    Reason::SourceForbidden,
    Reason::UnknownDestination,
];
const SETTLEMENTS: [&str; 6] = ["ack", "retry", "defer", "dead", "lease", "return"];

/// The metrics of one worker. Built once, shared by reference.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    destinations: DestinationMetrics,
    transfers: IntCounterVec,
    failures: IntCounterVec,
    retries: IntCounterVec,
    duration: HistogramVec,
    queue_wait: HistogramVec,
    object_size: Histogram,
    delivered_bytes: IntCounterVec,
    source_read: IntCounterVec,
    in_flight: IntGaugeVec,
    slots: IntGaugeVec,
    oldest_in_flight: prometheus::Gauge,
    deferred: IntCounterVec,
    parts: IntCounterVec,
    part_duration: Histogram,
    multipart_aborted: IntCounter,
    multipart_abort_denied: IntCounter,
    multipart_resumed: IntCounter,
    multipart_orphaned: IntCounter,
    multipart_open: IntGauge,
    s3_requests: IntCounterVec,
    buffer_bytes: IntGauge,
    buffer_limit: IntGauge,
    session_requests: IntCounterVec,
    sessions: IntGauge,
    assume_role: IntCounterVec,
    assume_role_duration: Histogram,
    broker_connected: IntGauge,
    broker_reconnects: IntCounter,
    settlements: IntCounterVec,
    unconfirmed: IntGauge,
    decode_failures: IntCounterVec,
    reload_successful: IntGauge,
    draining: IntGauge,
}

/// How a request for a session was answered: the label of `consign_session_requests_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionRequest {
    /// From the cache.
    Hit,
    /// By a call of STS.
    Miss,
    /// By a call that somebody else was making.
    Coalesced,
    /// By a refusal, cached or fresh.
    Denied,
}

/// Why a job was put off without being charged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeferCause {
    /// The destination is broken.
    Circuit,
    /// The destination has as many transfers as it may.
    Concurrency,
    /// The destination has as many bytes a second as it may.
    Rate,
}

/// A gauge that goes down again on drop by what it went up.
#[derive(Debug)]
pub struct Guard {
    gauge: IntGauge,
    amount: i64,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.gauge.sub(self.amount);
    }
}

fn raise(gauge: &IntGauge, amount: i64) -> Guard {
    gauge.add(amount);
    Guard { gauge: gauge.clone(), amount }
}

impl Metrics {
    /// Registers everything. `max_destinations` bounds the destination label; the rest is `_other`.
    pub fn new(max_destinations: usize) -> Self {
        let b = Builder::new();
        let reasons: Vec<&str> = Reason::ALL.iter().map(|r| r.as_str()).collect();
        let pairs: Vec<[&str; 2]> = Reason::ALL.iter().map(|r| [r.class().as_str(), r.as_str()]).collect();
        let outcomes = OUTCOMES.map(OutcomeKind::as_str);
        let metrics = Self {
            destinations: DestinationMetrics::new(&b, max_destinations),
            transfers: b.counters("consign_transfers_total", "TransferResult transfers.", &["lane", "outcome"]),
            failures: b.counters("consign_transfer_failures_total", "Failed attempts.", &["class", "reason"]),
            retries: b.counters("consign_transfer_retries_total", "Attempts that will be repeated.", &["reason"]),
            duration: b.histograms(
                "consign_transfer_duration_seconds",
                "From taking the job to its outcome.",
                &["lane", "outcome"],
                &[0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0, 7200.0],
            ),
            queue_wait: b.histograms(
                "consign_queue_wait_seconds",
                "From created_at to the first attempt.",
                &["lane"],
                &[0.1, 1.0, 5.0, 30.0, 120.0, 600.0, 3600.0, 21600.0, 86400.0],
            ),
            object_size: b.histogram(
                "consign_object_size_bytes",
                "Sizes of delivered objects.",
                &[1024.0, 65536.0, 1_048_576.0, 16_777_216.0, 268_435_456.0, 4_294_967_296.0, 68_719_476_736.0],
            ),
            delivered_bytes: b.counters("consign_delivered_bytes_total", "Bytes accepted by S3.", &["lane"]),
            source_read: b.counters("consign_source_read_bytes_total", "Bytes read from sources.", &["scheme"]),
            in_flight: b.gauges("consign_transfers_in_flight", "Transfers that run now.", &["lane"]),
            slots: b.gauges("consign_slots", "Transfers that may run at once.", &["lane"]),
            oldest_in_flight: b.float_gauge("consign_oldest_in_flight_seconds", "Age of the oldest running transfer."),
            deferred: b.counters("consign_deferred_total", "Jobs put off without being charged.", &["cause"]),
            parts: b.counters("consign_parts_total", "Parts sent.", &["result"]),
            part_duration: b.histogram(
                "consign_part_duration_seconds",
                "From sending a part to its reply.",
                &[0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0],
            ),
            multipart_aborted: b.counter("consign_multipart_aborted_total", "Uploads that were aborted."),
            multipart_abort_denied: b.counter("consign_multipart_abort_denied_total", "Aborts that were not possible."),
            multipart_resumed: b.counter("consign_multipart_resumed_total", "Uploads continued from a checkpoint."),
            multipart_orphaned: b.counter("consign_multipart_orphaned_total", "Uploads left behind unfinished."),
            multipart_open: b.gauge("consign_multipart_open", "Uploads that are open now."),
            s3_requests: b.counters("consign_s3_requests_total", "Requests sent to S3.", &["operation", "status"]),
            buffer_bytes: b.gauge("consign_buffer_bytes", "Bytes held by part buffers."),
            buffer_limit: b.gauge("consign_buffer_limit_bytes", "Bytes that part buffers may hold."),
            session_requests: b.counters("consign_session_requests_total", "Requests for a session.", &["result"]),
            sessions: b.gauge("consign_sessions", "Sessions in the cache."),
            assume_role: b.counters("consign_sts_assume_role_total", "Calls of AssumeRole.", &["result"]),
            assume_role_duration: b.histogram(
                "consign_sts_assume_role_duration_seconds",
                "How long AssumeRole took.",
                &[0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0],
            ),
            broker_connected: b.gauge("consign_broker_connected", "1 while connected to the broker."),
            broker_reconnects: b.counter("consign_broker_reconnects_total", "Connections made after the first."),
            settlements: b.counters("consign_broker_settlements_total", "Settled deliveries.", &["action"]),
            unconfirmed: b.gauge("consign_broker_unconfirmed", "Messages published and not yet confirmed."),
            decode_failures: b.counters("consign_decode_failures_total", "Messages that were no job.", &["reason"]),
            reload_successful: b.gauge("consign_config_last_reload_successful", "1 unless the last reload failed."),
            draining: b.gauge("consign_draining", "1 while the worker drains."),
            registry: b.into_registry(),
        };
        metrics.present(&reasons, &pairs, &outcomes);
        metrics
    }

    /// Touches every label combination once, so that dashboards and alerts see zeros and not gaps.
    fn present(&self, reasons: &[&str], pairs: &[[&str; 2]], outcomes: &[&str]) {
        for lane in LANES {
            for outcome in outcomes {
                self.transfers.with_label_values(&[lane, outcome]);
                self.duration.with_label_values(&[lane, outcome]);
            }
            self.queue_wait.with_label_values(&[lane]);
            self.delivered_bytes.with_label_values(&[lane]);
            self.in_flight.with_label_values(&[lane]);
            self.slots.with_label_values(&[lane]);
        }
        touch(&self.failures, pairs);
        touch(&self.retries, &reasons.iter().map(|r| [*r]).collect::<Vec<_>>());
        touch(&self.source_read, &SCHEMES.map(|s| [s]));
        touch(&self.deferred, &[["circuit"], ["concurrency"], ["rate"]]);
        touch(&self.parts, &[["ok"], ["failed"], ["retried"]]);
        let requests: Vec<_> = OPERATIONS.iter().flat_map(|o| STATUSES.iter().map(move |s| [*o, *s])).collect();
        touch(&self.s3_requests, &requests);
        touch(&self.session_requests, &[["hit"], ["miss"], ["coalesced"], ["denied"]]);
        touch(&self.assume_role, &[["ok"], ["denied"], ["error"]]);
        touch(&self.settlements, &SETTLEMENTS.map(|s| [s]));
        touch(&self.decode_failures, &REFUSALS.map(|reason| [reason.as_str()]));
        self.reload_successful.set(1);
    }

    /// The text exposition format 0.0.4 of everything, with its exact content type.
    pub fn render(&self) -> (&'static str, String) {
        let text = TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_default();
        (prometheus::TEXT_FORMAT, text)
    }

    /// Per-destination counters.
    pub fn destinations(&self) -> &DestinationMetrics {
        &self.destinations
    }

    /// A transfer has ended for good.
    pub fn transfer_ended(&self, lane: Lane, outcome: OutcomeKind, destination: &DestinationId, took: Duration) {
        let labels = [lane.as_str(), outcome.as_str()];
        self.transfers.with_label_values(&labels).inc();
        self.duration.with_label_values(&labels).observe(took.as_secs_f64());
        self.destinations.transfer_ended(destination, outcome);
    }

    /// An object was accepted by S3.
    pub fn object_delivered(&self, lane: Lane, destination: &DestinationId, bytes: u64) {
        self.delivered_bytes.with_label_values(&[lane.as_str()]).inc_by(bytes);
        #[expect(clippy::cast_precision_loss, reason = "a histogram bucket does not need the last bit")]
        self.object_size.observe(bytes as f64);
        self.destinations.delivered(destination, bytes);
    }

    /// An attempt failed.
    pub fn attempt_failed(&self, destination: &DestinationId, failure: &Failure) {
        self.failures.with_label_values(&[failure.class().as_str(), failure.reason.as_str()]).inc();
        self.destinations.attempt_failed(destination, failure.class());
    }

    /// A message that is no job, or one for nobody, was refused. It counts as a failed transfer of its lane, and of no destination:
    /// names that nobody configured must not use up the labels.
    pub fn decode_failed(&self, lane: Lane, reason: Reason) {
        self.transfers.with_label_values(&[lane.as_str(), OutcomeKind::Failed.as_str()]).inc();
        self.decode_failures.with_label_values(&[reason.as_str()]).inc();
        self.failures.with_label_values(&[reason.class().as_str(), reason.as_str()]).inc();
    }

    /// A failed attempt will be repeated.
    pub fn retry(&self, reason: Reason) {
        self.retries.with_label_values(&[reason.as_str()]).inc();
    }

    /// A job was put off without being charged.
    pub fn deferred(&self, cause: DeferCause) {
        let cause = match cause {
            DeferCause::Circuit => "circuit",
            DeferCause::Concurrency => "concurrency",
            DeferCause::Rate => "rate",
        };
        self.deferred.with_label_values(&[cause]).inc();
    }

    /// A job waited this long before its first attempt.
    pub fn queue_wait(&self, lane: Lane, waited: Duration) {
        self.queue_wait.with_label_values(&[lane.as_str()]).observe(waited.as_secs_f64());
    }

    /// A transfer runs while the guard lives.
    pub fn transfer_running(&self, lane: Lane) -> Guard {
        raise(&self.in_flight.with_label_values(&[lane.as_str()]), 1)
    }

    /// How many transfers of a lane may run at once.
    pub fn set_slots(&self, lane: Lane, slots: u32) {
        self.slots.with_label_values(&[lane.as_str()]).set(i64::from(slots));
    }

    /// The age of the oldest running transfer.
    pub fn set_oldest_in_flight(&self, age: Duration) {
        self.oldest_in_flight.set(age.as_secs_f64());
    }

    /// Bytes were read from a source of this scheme.
    pub fn source_read(&self, scheme: &'static str, bytes: u64) {
        self.source_read.with_label_values(&[scheme]).inc_by(bytes);
    }

    /// A part was accepted after `took`.
    pub fn part_sent(&self, took: Duration) {
        self.parts.with_label_values(&["ok"]).inc();
        self.part_duration.observe(took.as_secs_f64());
    }

    /// A part failed and is sent again.
    pub fn part_retried(&self) {
        self.parts.with_label_values(&["retried"]).inc();
    }

    /// A part failed for good.
    pub fn part_failed(&self) {
        self.parts.with_label_values(&["failed"]).inc();
    }

    /// An upload is open while the guard lives.
    pub fn multipart_open(&self) -> Guard {
        raise(&self.multipart_open, 1)
    }

    /// An upload was aborted.
    pub fn multipart_aborted(&self) {
        self.multipart_aborted.inc();
    }

    /// An upload could not be aborted; the customer's lifecycle rule has to clean up.
    pub fn multipart_abort_denied(&self) {
        self.multipart_abort_denied.inc();
        self.multipart_orphaned.inc();
    }

    /// An upload was left behind for another reason.
    pub fn multipart_orphaned(&self) {
        self.multipart_orphaned.inc();
    }

    /// An upload was continued from a checkpoint.
    pub fn multipart_resumed(&self) {
        self.multipart_resumed.inc();
    }

    /// A request was answered: `operation` is the API's name, `status` one of `2xx` ... `5xx`, `timeout`, `connection`.
    pub fn s3_request(&self, operation: &'static str, status: &'static str) {
        self.s3_requests.with_label_values(&[operation, status]).inc();
    }

    /// Bytes are held by a buffer while the guard lives.
    pub fn buffer(&self, bytes: u64) -> Guard {
        raise(&self.buffer_bytes, i64::try_from(bytes).unwrap_or(i64::MAX))
    }

    /// The most bytes that buffers may hold.
    pub fn set_buffer_limit(&self, bytes: u64) {
        self.buffer_limit.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// Somebody asked for a session.
    pub fn session_request(&self, result: SessionRequest) {
        let result = match result {
            SessionRequest::Hit => "hit",
            SessionRequest::Miss => "miss",
            SessionRequest::Coalesced => "coalesced",
            SessionRequest::Denied => "denied",
        };
        self.session_requests.with_label_values(&[result]).inc();
    }

    /// How many sessions are in the cache.
    pub fn set_sessions(&self, count: u64) {
        self.sessions.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// How often a role was assumed since the start: whether STS still lets us in.
    pub fn roles_assumed(&self) -> u64 {
        self.assume_role.with_label_values(&["ok"]).get()
    }

    /// AssumeRole was called: `result` is `ok`, `denied` or `error`.
    pub fn assume_role(&self, result: &'static str, took: Duration) {
        self.assume_role.with_label_values(&[result]).inc();
        self.assume_role_duration.observe(took.as_secs_f64());
    }

    /// Whether the broker is connected.
    pub fn set_broker_connected(&self, connected: bool) {
        self.broker_connected.set(i64::from(connected));
    }

    /// The broker was connected again.
    pub fn broker_reconnected(&self) {
        self.broker_reconnects.inc();
    }

    /// A delivery was settled: `action` is that of `Settlement::action`.
    pub fn settled(&self, action: &'static str) {
        self.settlements.with_label_values(&[action]).inc();
    }

    /// A message is unconfirmed while the guard lives.
    pub fn unconfirmed(&self) -> Guard {
        raise(&self.unconfirmed, 1)
    }

    /// Whether the last reload of the configuration was good.
    pub fn set_reload_successful(&self, good: bool) {
        self.reload_successful.set(i64::from(good));
    }

    /// The worker drains.
    pub fn set_draining(&self, draining: bool) {
        self.draining.set(i64::from(draining));
    }
}

/// The class of an HTTP status, as a label of [`Metrics::s3_request`].
pub fn status_label(status: u16) -> &'static str {
    match status {
        0..300 => "2xx",
        300..400 => "3xx",
        400..500 => "4xx",
        _ => "5xx",
    }
}

fn touch<const N: usize>(counters: &IntCounterVec, labels: &[[&str; N]]) {
    for combination in labels {
        counters.with_label_values(combination);
    }
}

#[cfg(test)]
mod tests;
