//! Outcome events: CloudEvents 1.0, structured JSON.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::domain::text_enum::text_enum;

/// Namespace of event ids, drawn once. Changing it would give old outcomes new ids.
const NAMESPACE: Uuid = Uuid::from_u128(0x6f1d_2a9c_50c7_4e0b_9a7e_3c1f_0d5e_8b42);

text_enum! {
    /// Kind of an outcome. The texts stand in routing keys and metric labels.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub enum OutcomeKind {
        /// The object is complete. Final. It counts even if the same job has another final outcome.
        Delivered = "delivered",
        /// The job failed permanently. Final.
        Failed = "failed",
        /// An attempt failed and was charged; another follows.
        Retrying = "retrying",
        /// The key was taken, or the job was cancelled or superseded. Final.
        Skipped = "skipped",
        /// `expires_at` was past. Final.
        Expired = "expired",
    }
}

impl OutcomeKind {
    /// CloudEvents `type`.
    pub fn event_type(self) -> String {
        format!("consign.transfer.{}.v1", self.as_str())
    }

    /// Returns true when no other outcome of this run of the job follows.
    pub fn is_terminal(self) -> bool {
        self != Self::Retrying
    }
}

/// Encryption of an object, as S3 reports it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Encryption {
    /// `AES256`, `aws:kms` or `aws:kms:dsse`.
    pub algorithm: Option<String>,
    /// The KMS key, if one was used.
    pub kms_key_arn: Option<String>,
}

/// Reason of a job that was skipped because a newer generation of its object was delivered.
pub const SUPERSEDED: &str = "superseded";

/// Job that was delivered with a higher generation of the same object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SupersededBy {
    /// Id of the job.
    pub job_id: String,
    /// Generation of the job.
    pub generation: u64,
}

/// The `data` of an outcome. Fields that don't apply are left out.
#[serde_with::skip_serializing_none]
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct OutcomeData {
    /// Id of the job.
    pub job_id: String,
    /// Id of the destination.
    pub destination: String,
    /// Tenant of the destination.
    pub tenant: Option<String>,
    /// The bucket.
    pub bucket: Option<String>,
    /// Complete key, including the prefix.
    pub key: Option<String>,
    /// Size of the object in bytes.
    pub bytes: Option<u64>,
    /// Bytes read from the source.
    pub source_bytes: Option<u64>,
    /// Number of parts of the multipart upload; 0 for a single PutObject.
    pub parts: Option<u32>,
    /// ETag of the object; opaque.
    pub etag: Option<String>,
    /// Version id of the object, if the bucket has versioning.
    pub version_id: Option<String>,
    /// CRC-64/NVME of the whole object, in base64 as S3 writes it.
    pub checksum_crc64nvme: Option<String>,
    /// Encryption that S3 reports.
    pub encryption: Option<Encryption>,
    /// Number of charged attempts, including this one. An `expired` job may have none.
    pub attempts: u32,
    /// Start of this attempt.
    #[schemars(with = "Option<String>")]
    pub started_at: Option<Timestamp>,
    /// End of this attempt.
    #[schemars(with = "Option<String>")]
    pub finished_at: Option<Timestamp>,
    /// Duration of this attempt in seconds.
    pub duration_seconds: Option<f64>,
    /// True if an unfinished upload was resumed.
    pub resumed: bool,
    /// True if nothing proved the length of the source, and that was accepted. A broken
    /// connection can't be distinguished from the end of such a source.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub length_unproven: bool,
    /// Labels of the job.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// On failure: the class.
    pub class: Option<String>,
    /// On failure: the reason. `superseded` if the job was skipped because a newer generation of
    /// its object was delivered.
    pub reason: Option<String>,
    /// Job that was delivered instead, if this one was superseded.
    pub superseded_by: Option<SupersededBy>,
    /// Description in plain words: on failure, or if a job was skipped because its backfill was
    /// cancelled or because it was superseded.
    pub message: Option<String>,
    /// On failure: remedy for the customer.
    pub hint: Option<String>,
    /// On failure: request id of AWS.
    pub aws_request_id: Option<String>,
    /// On failure: time of the next attempt.
    #[schemars(with = "Option<String>")]
    pub retry_at: Option<Timestamp>,
}

/// CloudEvents 1.0 envelope of an outcome.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[schemars(title = "consign outcome", rename = "outcome")]
pub struct Outcome {
    /// Always `1.0`.
    pub specversion: String,
    /// Id of the event. Duplicates of a final outcome of one run have the same id.
    pub id: String,
    /// Source of the event: `/consign/<prefix>`.
    pub source: String,
    /// Type of the event: `consign.transfer.<outcome>.v1`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Id of the job.
    pub subject: String,
    /// Time of the outcome.
    #[schemars(with = "String")]
    pub time: Timestamp,
    /// Always `application/json`.
    pub datacontenttype: String,
    /// Trace of the job (W3C Trace Context).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// Data of the outcome.
    pub data: OutcomeData,
}

/// Returns the CloudEvents id of an outcome: the same for each copy, so that consumers can drop
/// duplicates.
///
/// `destination` is its identity: two customers may give their jobs the same id. `run` is the
/// `consign-run` header (0 unless requeued). `.retrying` outcomes of one run differ by their
/// attempt.
pub fn event_id(destination: &str, job_id: &str, run: u32, kind: OutcomeKind, attempt: u32) -> String {
    let attempt = if kind.is_terminal() { 0 } else { attempt };
    let name = format!("{destination}\n{job_id}\n{run}\n{}\n{attempt}", kind.event_type());
    Uuid::new_v5(&NAMESPACE, name.as_bytes()).to_string()
}

/// Renders an outcome. `prefix` is `broker.prefix`; `id` comes from [`event_id`].
pub fn render(
    prefix: &str,
    kind: OutcomeKind,
    id: String,
    time: Timestamp,
    traceparent: Option<String>,
    data: OutcomeData,
) -> Vec<u8> {
    let outcome = Outcome {
        specversion: "1.0".to_owned(),
        id,
        source: format!("/consign/{prefix}"),
        kind: kind.event_type(),
        subject: data.job_id.clone(),
        time,
        datacontenttype: "application/json".to_owned(),
        traceparent,
        data,
    };
    // Strings, numbers and maps with text keys: there is nothing in it that can't be written as JSON.
    serde_json::to_vec(&outcome).unwrap_or_default()
}

/// Returns the JSON Schema of an outcome.
pub fn outcome_schema() -> schemars::Schema {
    schemars::schema_for!(Outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_of_a_terminal_outcome_share_their_id() {
        let id = |run, kind, attempt| event_id("acme", "a/b", run, kind, attempt);
        let other = event_id("acme~00", "a/b", 0, OutcomeKind::Delivered, 1);
        assert_ne!(id(0, OutcomeKind::Delivered, 1), other, "another destination of the same id");
        assert_eq!(id(0, OutcomeKind::Delivered, 1), id(0, OutcomeKind::Delivered, 4));
        assert_ne!(id(0, OutcomeKind::Delivered, 1), id(1, OutcomeKind::Delivered, 1));
        assert_ne!(id(0, OutcomeKind::Delivered, 1), id(0, OutcomeKind::Failed, 1));
        assert_ne!(id(0, OutcomeKind::Retrying, 1), id(0, OutcomeKind::Retrying, 2));
    }

    #[test]
    fn ids_never_change() {
        assert_eq!(event_id("acme", "acme/1", 0, OutcomeKind::Delivered, 1), "fa7f67a0-e300-5f9a-a376-2623e6cca69c");
    }
}
