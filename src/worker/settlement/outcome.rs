//! Outcome that a settlement publishes.

use bytes::Bytes;
use jiff::Timestamp;

use super::plan::PlannedOutcome;
use crate::domain::destination::DestinationId;
use crate::domain::headers::JobHeaders;
use crate::domain::outcome::{Failure, OutcomeData, OutcomeKind, Receipt, event_id, render};
use crate::domain::routing_key;
use crate::queue::{OutcomeEvent, Properties};
use crate::worker::decode::DecodedJob;

/// Data of an outcome, as far as the job gives it.
pub(super) fn data_of(job: &DecodedJob) -> OutcomeData {
    let DecodedJob { job, destination, .. } = job;
    OutcomeData {
        job_id: job.id.to_string(),
        destination: destination.id.to_string(),
        tenant: destination.tenant.clone(),
        bucket: Some(destination.bucket.to_string()),
        key: destination.prefix.join(job.key.as_str()).ok().map(|key| key.to_string()),
        labels: job.labels.clone(),
        ..OutcomeData::default()
    }
}

/// Adds what was delivered.
pub(super) fn delivered(data: OutcomeData, receipt: Receipt) -> OutcomeData {
    OutcomeData {
        bytes: Some(receipt.bytes),
        source_bytes: Some(receipt.source_bytes),
        parts: Some(receipt.parts),
        etag: receipt.etag,
        version_id: receipt.version_id,
        checksum_crc64nvme: receipt.checksum_crc64nvme,
        encryption: receipt.encryption,
        resumed: receipt.resumed,
        length_unproven: receipt.length_unproven,
        ..data
    }
}

/// Adds a failure.
pub(super) fn with_failure(data: OutcomeData, failure: &Failure) -> OutcomeData {
    OutcomeData {
        class: Some(failure.class().as_str().to_owned()),
        reason: Some(failure.reason.as_str().to_owned()),
        message: Some(failure.message.clone()),
        hint: Some(failure.hint.clone()).filter(|hint| !hint.is_empty()),
        aws_request_id: failure.aws_request_id.clone(),
        ..data
    }
}

/// Origin of an outcome event.
pub(super) struct EventSource<'a> {
    pub(super) prefix: &'a str,
    pub(super) destination: &'a DestinationId,
    /// Text that stands for the destination in the ids of events.
    pub(super) identity: String,
    pub(super) headers: &'a JobHeaders,
    pub(super) properties: &'a Properties,
    pub(super) now: Timestamp,
}

impl EventSource<'_> {
    /// Returns the outcome, with its event.
    pub(super) fn outcome(&self, kind: OutcomeKind, data: OutcomeData) -> PlannedOutcome {
        let id = event_id(&self.identity, &data.job_id, self.headers.run, kind, data.attempts);
        let body = render(self.prefix, kind, id.clone(), self.now, self.headers.traceparent.clone(), data);
        let event = OutcomeEvent {
            routing_key: routing_key::outcome(kind.as_str(), self.destination),
            id,
            body: Bytes::from(body),
            reply_to: reply_to(self.properties),
        };
        PlannedOutcome { kind, bytes: 0, event }
    }
}

/// Returns the queue that a copy of the outcome goes to, with its correlation id.
pub(in crate::worker) fn reply_to(properties: &Properties) -> Option<(String, Option<String>)> {
    properties.reply_to.clone().map(|to| (to, properties.correlation_id.clone()))
}
