//! The metric families: names, HELP texts, labels and buckets, grouped by subject.
//!
//! The families with a `destination` label are in [`super::destinations`], `consign_build_info` and
//! the `process_*` metrics in [`super::registry`].

use prometheus::{Gauge, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry};

use super::destinations::DestinationMetrics;
use super::labels::{
    ASSUME_ROLE, DECODE_FAILURES, DeferCause, GenerationLoss, LANES, OPERATIONS, OUTCOMES, PARTS, ReplyResult, SCHEMES,
    SETTLEMENTS, STATUSES, SessionRequest,
};
use super::registry::Builder;
use crate::domain::outcome::Reason;

/// All families of one worker.
#[derive(Debug)]
pub(super) struct Families {
    pub(super) registry: Registry,
    pub(super) destinations: DestinationMetrics,
    pub(super) transfers: TransferFamilies,
    pub(super) uploads: UploadFamilies,
    pub(super) sessions: SessionFamilies,
    pub(super) broker: BrokerFamilies,
    pub(super) process: ProcessFamilies,
}

impl Families {
    /// Registers every family, with every label combination at zero. At most `max_destinations`
    /// destinations get a label of their own.
    pub(super) fn new(max_destinations: usize) -> Self {
        let b = Builder::new();
        Self {
            destinations: DestinationMetrics::new(&b, max_destinations),
            transfers: TransferFamilies::new(&b),
            uploads: UploadFamilies::new(&b),
            sessions: SessionFamilies::new(&b),
            broker: BrokerFamilies::new(&b),
            process: ProcessFamilies::new(&b),
            registry: b.into_registry(),
        }
    }
}

/// Jobs, attempts and the objects they deliver.
#[derive(Debug)]
pub(super) struct TransferFamilies {
    pub(super) ended: IntCounterVec,
    pub(super) failures: IntCounterVec,
    pub(super) retries: IntCounterVec,
    pub(super) deferred: IntCounterVec,
    pub(super) superseded: IntCounter,
    pub(super) generations_lost: IntCounterVec,
    pub(super) decode_failures: IntCounterVec,
    pub(super) duration: HistogramVec,
    pub(super) queue_wait: HistogramVec,
    pub(super) object_size: Histogram,
    pub(super) delivered_bytes: IntCounterVec,
    pub(super) source_read: IntCounterVec,
    pub(super) in_flight: IntGaugeVec,
    pub(super) slots: IntGaugeVec,
    pub(super) oldest_in_flight: Gauge,
}

impl TransferFamilies {
    fn new(b: &Builder) -> Self {
        let families = Self {
            ended: b.counters(
                "consign_transfers_total",
                "Transfers that ended, by lane and outcome.",
                &["lane", "outcome"],
            ),
            failures: b.counters("consign_transfer_failures_total", "Failed attempts.", &["class", "reason"]),
            retries: b.counters("consign_transfer_retries_total", "Failed attempts that are retried.", &["reason"]),
            deferred: b.counters("consign_deferred_total", "Jobs deferred without charging an attempt.", &["cause"]),
            superseded: b.counter(
                "consign_superseded_total",
                "Jobs skipped because a newer generation of their object was delivered.",
            ),
            generations_lost: b.counters(
                "consign_generations_lost_total",
                "Generations that were not kept or reported, so that a late job may overwrite a newer object.",
                &["cause"],
            ),
            decode_failures: b.counters(
                "consign_decode_failures_total",
                "Messages rejected because they hold no valid job.",
                &["reason"],
            ),
            duration: b.histograms(
                "consign_transfer_duration_seconds",
                "Time from receiving a job to its outcome.",
                &["lane", "outcome"],
                &[0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0, 7200.0],
            ),
            queue_wait: b.histograms(
                "consign_queue_wait_seconds",
                "Time from created_at of a job to its first attempt.",
                &["lane"],
                &[0.1, 1.0, 5.0, 30.0, 120.0, 600.0, 3600.0, 21600.0, 86400.0],
            ),
            object_size: b.histogram(
                "consign_object_size_bytes",
                "Sizes of delivered objects.",
                &[1024.0, 65536.0, 1_048_576.0, 16_777_216.0, 268_435_456.0, 4_294_967_296.0, 68_719_476_736.0],
            ),
            delivered_bytes: b.counters("consign_delivered_bytes_total", "Bytes of delivered objects.", &["lane"]),
            source_read: b.counters("consign_source_read_bytes_total", "Bytes read from sources.", &["scheme"]),
            in_flight: b.gauges("consign_transfers_in_flight", "Transfers running now.", &["lane"]),
            slots: b.gauges("consign_slots", "Transfers that can run at the same time.", &["lane"]),
            oldest_in_flight: b.float_gauge("consign_oldest_in_flight_seconds", "Age of the oldest running transfer."),
        };
        families.initialize();
        families
    }

    fn initialize(&self) {
        for lane in LANES {
            for outcome in OUTCOMES {
                self.ended.with_label_values(&[lane, outcome.as_str()]);
                self.duration.with_label_values(&[lane, outcome.as_str()]);
            }
            self.queue_wait.with_label_values(&[lane]);
            self.delivered_bytes.with_label_values(&[lane]);
            self.in_flight.with_label_values(&[lane]);
            self.slots.with_label_values(&[lane]);
        }
        for reason in Reason::ALL {
            self.failures.with_label_values(&[reason.class().as_str(), reason.as_str()]);
            self.retries.with_label_values(&[reason.as_str()]);
        }
        initialize(&self.decode_failures, DECODE_FAILURES.map(Reason::as_str));
        initialize(&self.deferred, DeferCause::ALL.map(DeferCause::as_str));
        initialize(&self.generations_lost, GenerationLoss::ALL.map(GenerationLoss::as_str));
        initialize(&self.source_read, SCHEMES);
    }
}

/// Requests to S3, multipart uploads and part buffers.
#[derive(Debug)]
pub(super) struct UploadFamilies {
    pub(super) parts: IntCounterVec,
    pub(super) part_duration: Histogram,
    pub(super) aborted: IntCounter,
    pub(super) abort_denied: IntCounter,
    pub(super) resumed: IntCounter,
    pub(super) orphaned: IntCounter,
    pub(super) open: IntGauge,
    pub(super) s3_requests: IntCounterVec,
    pub(super) buffer_bytes: IntGauge,
    pub(super) buffer_limit: IntGauge,
}

impl UploadFamilies {
    fn new(b: &Builder) -> Self {
        let families = Self {
            parts: b.counters("consign_parts_total", "Parts sent to S3.", &["result"]),
            part_duration: b.histogram(
                "consign_part_duration_seconds",
                "Time from sending a part to its response.",
                &[0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0],
            ),
            aborted: b.counter("consign_multipart_aborted_total", "Multipart uploads that were aborted."),
            abort_denied: b.counter(
                "consign_multipart_abort_denied_total",
                "Multipart uploads left behind because S3 denied the abort.",
            ),
            resumed: b.counter("consign_multipart_resumed_total", "Multipart uploads resumed from a checkpoint."),
            orphaned: b.counter("consign_multipart_orphaned_total", "Multipart uploads left behind unfinished."),
            open: b.gauge("consign_multipart_open", "Multipart uploads open now."),
            s3_requests: b.counters("consign_s3_requests_total", "Requests sent to S3.", &["operation", "status"]),
            buffer_bytes: b.gauge("consign_buffer_bytes", "Bytes held in part buffers."),
            buffer_limit: b.gauge("consign_buffer_limit_bytes", "Bytes that part buffers can hold."),
        };
        initialize(&families.parts, PARTS);
        for operation in OPERATIONS {
            for status in STATUSES {
                families.s3_requests.with_label_values(&[operation, status]);
            }
        }
        families
    }
}

/// Sessions for destinations, and the STS calls that create them.
#[derive(Debug)]
pub(super) struct SessionFamilies {
    pub(super) requests: IntCounterVec,
    pub(super) cached: IntGauge,
    pub(super) assume_role: IntCounterVec,
    pub(super) assume_role_duration: Histogram,
}

impl SessionFamilies {
    fn new(b: &Builder) -> Self {
        let families = Self {
            requests: b.counters("consign_session_requests_total", "Requests for a session.", &["result"]),
            cached: b.gauge("consign_sessions", "Sessions in the cache."),
            assume_role: b.counters("consign_sts_assume_role_total", "Calls to AssumeRole.", &["result"]),
            assume_role_duration: b.histogram(
                "consign_sts_assume_role_duration_seconds",
                "Duration of calls to AssumeRole.",
                &[0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0],
            ),
        };
        initialize(&families.requests, SessionRequest::ALL.map(SessionRequest::as_str));
        initialize(&families.assume_role, ASSUME_ROLE);
        families
    }
}

/// The connection to the broker, and messages on it.
#[derive(Debug)]
pub(super) struct BrokerFamilies {
    pub(super) connected: IntGauge,
    pub(super) reconnects: IntCounter,
    pub(super) settlements: IntCounterVec,
    pub(super) replies: IntCounterVec,
    pub(super) unconfirmed: IntGauge,
    pub(super) consuming: IntGaugeVec,
}

impl BrokerFamilies {
    fn new(b: &Builder) -> Self {
        let families = Self {
            connected: b.gauge("consign_broker_connected", "1 while the worker is connected to the broker."),
            reconnects: b.counter("consign_broker_reconnects_total", "Connections to the broker after the first one."),
            settlements: b.counters("consign_broker_settlements_total", "Settled deliveries.", &["action"]),
            replies: b.counters(
                "consign_replies_total",
                "Copies of outcomes, and answers to connection tests, for the queue that reply_to names.",
                &["result"],
            ),
            unconfirmed: b
                .gauge("consign_broker_unconfirmed", "Published messages that the broker has not confirmed yet."),
            consuming: b.gauges(
                "consign_consuming",
                "1 while the worker consumes the lane, 0 while it is paused.",
                &["lane"],
            ),
        };
        for lane in LANES {
            families.consuming.with_label_values(&[lane]);
        }
        initialize(&families.settlements, SETTLEMENTS);
        initialize(&families.replies, ReplyResult::ALL.map(ReplyResult::as_str));
        families
    }
}

/// The worker process itself.
#[derive(Debug)]
pub(super) struct ProcessFamilies {
    pub(super) reload_successful: IntGauge,
    pub(super) draining: IntGauge,
    pub(super) fleet_workers: IntGauge,
}

impl ProcessFamilies {
    fn new(b: &Builder) -> Self {
        let families = Self {
            reload_successful: b.gauge(
                "consign_config_last_reload_successful",
                "1 unless the last reload of the configuration failed.",
            ),
            draining: b.gauge("consign_draining", "1 while the worker is draining."),
            fleet_workers: b.gauge("consign_fleet_workers", "Live workers of the fleet, this one included."),
        };
        families.reload_successful.set(1);
        families
    }
}

/// Creates the series of every label value, so that dashboards and alerts see zeros instead of
/// gaps.
fn initialize<const N: usize>(counters: &IntCounterVec, values: [&str; N]) {
    for value in values {
        counters.with_label_values(&[value]);
    }
}
