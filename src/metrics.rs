//! All metrics of the worker, with closed sets of label values. Every series is present from the
//! start.
//!
//! Names, HELP texts, labels and buckets are defined in `metrics/families.rs`, those with a
//! `destination` label in `metrics/destinations.rs`, and the label values in `metrics/labels.rs`.
//! Other modules never name a metric: they call the methods of [`Metrics`], one for each event.
//! Gauges that count work in progress are [`GaugeGuard`]s, so they return to zero after any
//! failure.

mod destinations;
mod families;
mod labels;
mod registry;
mod snapshot;

use std::num::NonZeroU32;
use std::time::Duration;

use prometheus::{Registry, TextEncoder};

pub use destinations::DestinationMetrics;
pub use labels::{DeferCause, GenerationLoss, ReplyResult, SessionRequest, status_label};
pub use registry::GaugeGuard;
pub use snapshot::{FailureCount, LaneSnapshot, Snapshot};

use crate::domain::destination::DestinationId;
use crate::domain::lane::Lane;
use crate::domain::outcome::{Failure, OutcomeKind, Reason};
use families::{BrokerFamilies, ProcessFamilies, SessionFamilies, TransferFamilies, UploadFamilies};
use registry::Builder;

/// The metrics of one worker. Built once, shared by reference.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    destinations: DestinationMetrics,
    transfers: TransferFamilies,
    uploads: UploadFamilies,
    sessions: SessionFamilies,
    broker: BrokerFamilies,
    process: ProcessFamilies,
}

impl Metrics {
    /// Registers all metrics. At most `max_destinations` destinations get a label of their own; the
    /// rest share `_other`.
    pub fn new(max_destinations: usize) -> Self {
        let b = Builder::new();
        Self {
            destinations: DestinationMetrics::new(&b, max_destinations),
            transfers: TransferFamilies::new(&b),
            uploads: UploadFamilies::new(&b),
            sessions: SessionFamilies::new(&b),
            broker: BrokerFamilies::new(&b),
            process: ProcessFamilies::new(&b),
            registry: b.registry,
        }
    }

    /// Returns the content type and the text of all metrics in the text exposition format 0.0.4.
    pub fn render(&self) -> (&'static str, String) {
        let text = TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_default();
        (prometheus::TEXT_FORMAT, text)
    }

    /// Returns the current values as numbers. They are read one after the other, so a transfer that
    /// ends in between may be included in some of them only.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::of(self)
    }

    /// Returns the metrics per destination.
    pub fn destinations(&self) -> &DestinationMetrics {
        &self.destinations
    }

    /// Counts a transfer that ended with a final outcome.
    pub fn transfer_ended(&self, lane: Lane, outcome: OutcomeKind, destination: &DestinationId, took: Duration) {
        let labels = [lane.as_str(), outcome.as_str()];
        self.transfers.ended.with_label_values(&labels).inc();
        self.transfers.duration.with_label_values(&labels).observe(took.as_secs_f64());
        self.destinations.transfer_ended(destination, outcome);
    }

    /// Counts an object that S3 accepted.
    pub fn object_delivered(&self, lane: Lane, destination: &DestinationId, bytes: u64) {
        self.transfers.delivered_bytes.with_label_values(&[lane.as_str()]).inc_by(bytes);
        #[expect(clippy::cast_precision_loss, reason = "a histogram bucket does not need the last bit")]
        self.transfers.object_size.observe(bytes as f64);
        self.destinations.delivered(destination, bytes);
    }

    /// Counts a failed attempt.
    pub fn attempt_failed(&self, destination: &DestinationId, failure: &Failure) {
        let labels = [failure.class().as_str(), failure.reason.as_str()];
        self.transfers.failures.with_label_values(&labels).inc();
        self.destinations.attempt_failed(destination, failure.class());
    }

    /// Counts a message that was rejected because it holds no valid job, or one for an unknown
    /// destination. It counts as a failed transfer of its lane but of no destination: names that
    /// are not configured must not use up the labels.
    pub fn decode_failed(&self, lane: Lane, reason: Reason) {
        let transfers = &self.transfers;
        transfers.ended.with_label_values(&[lane.as_str(), OutcomeKind::Failed.as_str()]).inc();
        transfers.decode_failures.with_label_values(&[reason.as_str()]).inc();
        transfers.failures.with_label_values(&[reason.class().as_str(), reason.as_str()]).inc();
    }

    /// Counts a failed attempt that is scheduled for a retry.
    pub fn retry(&self, reason: Reason) {
        self.transfers.retries.with_label_values(&[reason.as_str()]).inc();
    }

    /// Counts a job that was deferred without charging an attempt.
    pub fn deferred(&self, cause: DeferCause) {
        self.transfers.deferred.with_label_values(&[cause.as_str()]).inc();
    }

    /// Counts a job that was skipped because a newer generation of its object was delivered.
    pub fn superseded(&self) {
        self.transfers.superseded.inc();
    }

    /// Counts a generation that could not be kept or reported.
    pub fn generation_lost(&self, loss: GenerationLoss) {
        self.transfers.generations_lost.with_label_values(&[loss.as_str()]).inc();
    }

    /// Records the time that a job waited for its first attempt.
    pub fn queue_wait(&self, lane: Lane, waited: Duration) {
        self.transfers.queue_wait.with_label_values(&[lane.as_str()]).observe(waited.as_secs_f64());
    }

    /// Counts a running transfer while the guard is held.
    pub fn transfer_running(&self, lane: Lane) -> GaugeGuard {
        GaugeGuard::add(&self.transfers.in_flight.with_label_values(&[lane.as_str()]), 1)
    }

    /// Sets the number of transfers of a lane that can run at the same time.
    pub fn set_slots(&self, lane: Lane, slots: u32) {
        self.transfers.slots.with_label_values(&[lane.as_str()]).set(i64::from(slots));
    }

    /// Records that a lane is consumed, or paused.
    pub fn set_consuming(&self, lane: Lane, consuming: bool) {
        self.broker.consuming.with_label_values(&[lane.as_str()]).set(i64::from(consuming));
    }

    /// Sets the number of live workers in the fleet.
    pub fn set_fleet_workers(&self, workers: NonZeroU32) {
        self.process.fleet_workers.set(i64::from(workers.get()));
    }

    /// Sets the age of the oldest running transfer.
    pub fn set_oldest_in_flight(&self, age: Duration) {
        self.transfers.oldest_in_flight.set(age.as_secs_f64());
    }

    /// Counts bytes read from a source. `scheme` is the scheme of its URL.
    pub fn source_read(&self, scheme: &'static str, bytes: u64) {
        self.transfers.source_read.with_label_values(&[scheme]).inc_by(bytes);
    }

    /// Counts a part that S3 accepted after `took`.
    pub fn part_sent(&self, took: Duration) {
        self.uploads.parts.with_label_values(&["ok"]).inc();
        self.uploads.part_duration.observe(took.as_secs_f64());
    }

    /// Counts a part that failed and is sent again.
    pub fn part_retried(&self) {
        self.uploads.parts.with_label_values(&["retried"]).inc();
    }

    /// Counts a part that failed and is not sent again.
    pub fn part_failed(&self) {
        self.uploads.parts.with_label_values(&["failed"]).inc();
    }

    /// Counts an open multipart upload while the guard is held.
    pub fn multipart_open(&self) -> GaugeGuard {
        GaugeGuard::add(&self.uploads.open, 1)
    }

    /// Counts a multipart upload that was aborted.
    pub fn multipart_aborted(&self) {
        self.uploads.aborted.inc();
    }

    /// Counts a multipart upload that S3 did not allow to abort; the bucket's lifecycle rule has to
    /// remove it.
    pub fn multipart_abort_denied(&self) {
        self.uploads.abort_denied.inc();
        self.uploads.orphaned.inc();
    }

    /// Counts a multipart upload that was left behind for another reason.
    pub fn multipart_orphaned(&self) {
        self.uploads.orphaned.inc();
    }

    /// Counts a multipart upload that was resumed from a checkpoint.
    pub fn multipart_resumed(&self) {
        self.uploads.resumed.inc();
    }

    /// Counts a request to S3. `operation` is the API's name, `status` one of `2xx` ... `5xx`,
    /// `timeout` or `connection`.
    pub fn s3_request(&self, operation: &'static str, status: &'static str) {
        self.uploads.s3_requests.with_label_values(&[operation, status]).inc();
    }

    /// Counts bytes held in a part buffer while the guard is held.
    pub fn buffer(&self, bytes: u64) -> GaugeGuard {
        GaugeGuard::add(&self.uploads.buffer_bytes, gauge_value(bytes))
    }

    /// Sets the number of bytes that part buffers can hold.
    pub fn set_buffer_limit(&self, bytes: u64) {
        self.uploads.buffer_limit.set(gauge_value(bytes));
    }

    /// Counts a request for a session.
    pub fn session_request(&self, result: SessionRequest) {
        self.sessions.requests.with_label_values(&[result.as_str()]).inc();
    }

    /// Sets the number of sessions in the cache.
    pub fn set_sessions(&self, count: u64) {
        self.sessions.cached.set(gauge_value(count));
    }

    /// Returns the number of successful AssumeRole calls since the start.
    pub fn roles_assumed(&self) -> u64 {
        self.sessions.assume_role.with_label_values(&["ok"]).get()
    }

    /// Counts a call to AssumeRole. `result` is `ok`, `denied` or `error`.
    pub fn assume_role(&self, result: &'static str, took: Duration) {
        self.sessions.assume_role.with_label_values(&[result]).inc();
        self.sessions.assume_role_duration.observe(took.as_secs_f64());
    }

    /// Records a change of the connection to the broker.
    pub fn set_broker_connected(&self, connected: bool) {
        self.broker.connected.set(i64::from(connected));
    }

    /// Counts a new connection to the broker after the first one.
    pub fn broker_reconnected(&self) {
        self.broker.reconnects.inc();
    }

    /// Counts a settled delivery. `action` is that of `Settlement::action`.
    pub fn settled(&self, action: &'static str) {
        self.broker.settlements.with_label_values(&[action]).inc();
    }

    /// Counts a reply.
    pub fn replied(&self, result: ReplyResult) {
        self.broker.replies.with_label_values(&[result.as_str()]).inc();
    }

    /// Counts an unconfirmed message while the guard is held.
    pub fn unconfirmed(&self) -> GaugeGuard {
        GaugeGuard::add(&self.broker.unconfirmed, 1)
    }

    /// Records the result of the last reload of the configuration.
    pub fn set_reload_successful(&self, successful: bool) {
        self.process.reload_successful.set(i64::from(successful));
    }

    /// Records the start of a drain.
    pub fn set_draining(&self, draining: bool) {
        self.process.draining.set(i64::from(draining));
    }
}

fn gauge_value(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
