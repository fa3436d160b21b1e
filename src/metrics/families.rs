//! The metric families: names, HELP texts, labels and buckets, grouped by subject.
//!
//! The families with a `destination` label are in [`super::destinations`], `consign_build_info` and
//! the `process_*` metrics in [`super::registry`].

use prometheus::{Gauge, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use super::labels::{
    ASSUME_ROLE, DECODE_FAILURES, DeferCause, GenerationLoss, LANES, OPERATIONS, OUTCOMES, PARTS, ReplyResult, SCHEMES,
    SETTLEMENTS, STATUSES, SessionRequest,
};
use super::registry::Builder;
use crate::domain::outcome::Reason;

/// Defines a group of families: a field for each, and `registered`, which registers them.
macro_rules! families {
    ($(#[$meta:meta])* $name:ident { $($field:ident: $kind:ident = $register:ident($($argument:expr),+);)* }) => {
        $(#[$meta])*
        #[derive(Debug)]
        pub(super) struct $name {
            $(pub(super) $field: $kind,)*
        }

        impl $name {
            fn registered(b: &Builder) -> Self {
                Self { $($field: b.$register($($argument),+),)* }
            }
        }
    };
}

families! {
    /// Jobs, attempts and the objects they deliver.
    TransferFamilies {
        ended: IntCounterVec = counters(
            "consign_transfers_total",
            "Transfers that ended, by lane and outcome.",
            &["lane", "outcome"]
        );
        failures: IntCounterVec = counters("consign_transfer_failures_total", "Failed attempts.", &["class", "reason"]);
        retries: IntCounterVec = counters(
            "consign_transfer_retries_total",
            "Failed attempts that are retried.",
            &["reason"]
        );
        deferred: IntCounterVec = counters(
            "consign_deferred_total",
            "Jobs deferred without charging an attempt.",
            &["cause"]
        );
        superseded: IntCounter = counter(
            "consign_superseded_total",
            "Jobs skipped because a newer generation of their object was delivered."
        );
        generations_lost: IntCounterVec = counters(
            "consign_generations_lost_total",
            "Generations that were not kept or reported, so that a late job may overwrite a newer object.",
            &["cause"]
        );
        decode_failures: IntCounterVec = counters(
            "consign_decode_failures_total",
            "Messages rejected because they hold no valid job.",
            &["reason"]
        );
        duration: HistogramVec = histograms(
            "consign_transfer_duration_seconds",
            "Time from receiving a job to its outcome.",
            &["lane", "outcome"],
            &[0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0, 7200.0]
        );
        queue_wait: HistogramVec = histograms(
            "consign_queue_wait_seconds",
            "Time from created_at of a job to its first attempt.",
            &["lane"],
            &[0.1, 1.0, 5.0, 30.0, 120.0, 600.0, 3600.0, 21600.0, 86400.0]
        );
        object_size: Histogram = histogram(
            "consign_object_size_bytes",
            "Sizes of delivered objects.",
            &[1024.0, 65536.0, 1_048_576.0, 16_777_216.0, 268_435_456.0, 4_294_967_296.0, 68_719_476_736.0]
        );
        delivered_bytes: IntCounterVec = counters(
            "consign_delivered_bytes_total",
            "Bytes of delivered objects.",
            &["lane"]
        );
        source_read: IntCounterVec = counters("consign_source_read_bytes_total", "Bytes read from sources.", &["scheme"]);
        in_flight: IntGaugeVec = gauges("consign_transfers_in_flight", "Transfers running now.", &["lane"]);
        slots: IntGaugeVec = gauges("consign_slots", "Transfers that can run at the same time.", &["lane"]);
        oldest_in_flight: Gauge = float_gauge("consign_oldest_in_flight_seconds", "Age of the oldest running transfer.");
    }
}

impl TransferFamilies {
    pub(super) fn new(b: &Builder) -> Self {
        let families = Self::registered(b);
        for lane in LANES {
            for outcome in OUTCOMES {
                families.ended.with_label_values(&[lane, outcome.as_str()]);
                families.duration.with_label_values(&[lane, outcome.as_str()]);
            }
            families.queue_wait.with_label_values(&[lane]);
            families.delivered_bytes.with_label_values(&[lane]);
            families.in_flight.with_label_values(&[lane]);
            families.slots.with_label_values(&[lane]);
        }
        for reason in Reason::ALL {
            families.failures.with_label_values(&[reason.class().as_str(), reason.as_str()]);
            families.retries.with_label_values(&[reason.as_str()]);
        }
        initialize(&families.decode_failures, DECODE_FAILURES.map(Reason::as_str));
        initialize(&families.deferred, DeferCause::ALL.map(DeferCause::as_str));
        initialize(&families.generations_lost, GenerationLoss::ALL.map(GenerationLoss::as_str));
        initialize(&families.source_read, SCHEMES);
        families
    }
}

families! {
    /// Requests to S3, multipart uploads and part buffers.
    UploadFamilies {
        parts: IntCounterVec = counters("consign_parts_total", "Parts sent to S3.", &["result"]);
        part_duration: Histogram = histogram(
            "consign_part_duration_seconds",
            "Time from sending a part to its response.",
            &[0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0]
        );
        aborted: IntCounter = counter("consign_multipart_aborted_total", "Multipart uploads that were aborted.");
        abort_denied: IntCounter = counter(
            "consign_multipart_abort_denied_total",
            "Multipart uploads left behind because S3 denied the abort."
        );
        resumed: IntCounter = counter("consign_multipart_resumed_total", "Multipart uploads resumed from a checkpoint.");
        orphaned: IntCounter = counter("consign_multipart_orphaned_total", "Multipart uploads left behind unfinished.");
        open: IntGauge = gauge("consign_multipart_open", "Multipart uploads open now.");
        s3_requests: IntCounterVec = counters(
            "consign_s3_requests_total",
            "Requests sent to S3.",
            &["operation", "status"]
        );
        buffer_bytes: IntGauge = gauge("consign_buffer_bytes", "Bytes held in part buffers.");
        buffer_limit: IntGauge = gauge("consign_buffer_limit_bytes", "Bytes that part buffers can hold.");
    }
}

impl UploadFamilies {
    pub(super) fn new(b: &Builder) -> Self {
        let families = Self::registered(b);
        initialize(&families.parts, PARTS);
        for operation in OPERATIONS {
            for status in STATUSES {
                families.s3_requests.with_label_values(&[operation, status]);
            }
        }
        families
    }
}

families! {
    /// Sessions for destinations, and the STS calls that create them.
    SessionFamilies {
        requests: IntCounterVec = counters("consign_session_requests_total", "Requests for a session.", &["result"]);
        cached: IntGauge = gauge("consign_sessions", "Sessions in the cache.");
        assume_role: IntCounterVec = counters("consign_sts_assume_role_total", "Calls to AssumeRole.", &["result"]);
        assume_role_duration: Histogram = histogram(
            "consign_sts_assume_role_duration_seconds",
            "Duration of calls to AssumeRole.",
            &[0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0]
        );
    }
}

impl SessionFamilies {
    pub(super) fn new(b: &Builder) -> Self {
        let families = Self::registered(b);
        initialize(&families.requests, SessionRequest::ALL.map(SessionRequest::as_str));
        initialize(&families.assume_role, ASSUME_ROLE);
        families
    }
}

families! {
    /// The connection to the broker, and messages on it.
    BrokerFamilies {
        connected: IntGauge = gauge("consign_broker_connected", "1 while the worker is connected to the broker.");
        reconnects: IntCounter = counter(
            "consign_broker_reconnects_total",
            "Connections to the broker after the first one."
        );
        settlements: IntCounterVec = counters("consign_broker_settlements_total", "Settled deliveries.", &["action"]);
        replies: IntCounterVec = counters(
            "consign_replies_total",
            "Copies of outcomes, and answers to connection tests, for the queue that reply_to names.",
            &["result"]
        );
        unconfirmed: IntGauge = gauge(
            "consign_broker_unconfirmed",
            "Published messages that the broker has not confirmed yet."
        );
        consuming: IntGaugeVec = gauges(
            "consign_consuming",
            "1 while the worker consumes the lane, 0 while it is paused.",
            &["lane"]
        );
    }
}

impl BrokerFamilies {
    pub(super) fn new(b: &Builder) -> Self {
        let families = Self::registered(b);
        for lane in LANES {
            families.consuming.with_label_values(&[lane]);
        }
        initialize(&families.settlements, SETTLEMENTS);
        initialize(&families.replies, ReplyResult::ALL.map(ReplyResult::as_str));
        families
    }
}

families! {
    /// The worker process itself.
    ProcessFamilies {
        reload_successful: IntGauge = gauge(
            "consign_config_last_reload_successful",
            "1 unless the last reload of the configuration failed."
        );
        draining: IntGauge = gauge("consign_draining", "1 while the worker is draining.");
        fleet_workers: IntGauge = gauge("consign_fleet_workers", "Live workers of the fleet, this one included.");
    }
}

impl ProcessFamilies {
    pub(super) fn new(b: &Builder) -> Self {
        let families = Self::registered(b);
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
