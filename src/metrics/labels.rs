//! The closed sets of label values, and the names of label values that callers pass.

use crate::domain::outcome::{OutcomeKind, Reason};
use crate::domain::text_enum::text_enum;

/// The outcomes that end a transfer: `outcome`.
pub(super) const OUTCOMES: [OutcomeKind; 4] =
    [OutcomeKind::Delivered, OutcomeKind::Failed, OutcomeKind::Skipped, OutcomeKind::Expired];
/// The lanes: `lane`.
pub(super) const LANES: [&str; 3] = ["scheduled", "backfill", "continued"];
/// The URL schemes of sources: `scheme`.
pub(super) const SCHEMES: [&str; 4] = ["file", "https", "http", "s3"];
/// The S3 operations that are counted: `operation`.
pub(super) const OPERATIONS: [&str; 8] = [
    "PutObject",
    "CreateMultipartUpload",
    "UploadPart",
    "CompleteMultipartUpload",
    "AbortMultipartUpload",
    "ListObjectsV2",
    "GetObject",
    "DeleteObject",
];
/// The classes of an S3 response: `status`.
pub(super) const STATUSES: [&str; 6] = ["2xx", "3xx", "4xx", "5xx", "timeout", "connection"];
/// The reasons for rejecting a message before it becomes a job: `reason` of the decode failures.
pub(super) const DECODE_FAILURES: [Reason; 6] = [
    Reason::InvalidJob,
    Reason::SchemaVersion,
    Reason::InvalidKey,
    Reason::SourceForbidden,
    Reason::DestinationForbidden,
    Reason::UnknownDestination,
];
/// The settlements of a delivery: `action`.
pub(super) const SETTLEMENTS: [&str; 6] = ["ack", "retry", "defer", "dead", "lease", "return"];
/// The results of sending a part: `result`.
pub(super) const PARTS: [&str; 3] = ["ok", "failed", "retried"];
/// The results of calling AssumeRole: `result`.
pub(super) const ASSUME_ROLE: [&str; 3] = ["ok", "denied", "error"];

text_enum! {
    /// The results of a reply: `result` of `consign_replies_total`.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum ReplyResult {
        /// The broker has it.
        Sent = "sent",
        /// Its address is not permitted.
        Refused = "refused",
        /// The queue does not exist, is full, or did not confirm in time.
        Failed = "failed",
    }

    /// The source of the answer to a session request: `result` of `consign_session_requests_total`.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum SessionRequest {
        /// The cache.
        Hit = "hit",
        /// A call to STS.
        Miss = "miss",
        /// A call to STS that another request had already started.
        Coalesced = "coalesced",
        /// A refusal, cached or fresh.
        Denied = "denied",
    }

    /// The reason for deferring a job without charging an attempt: `cause` of
    /// `consign_deferred_total`.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum DeferCause {
        /// The destination's circuit breaker is open.
        Circuit = "circuit",
        /// The destination is at its concurrency limit.
        Concurrency = "concurrency",
        /// The destination is at its rate limit in bytes per second.
        Rate = "rate",
    }

    /// The reason why an older generation may have replaced a newer one: `cause` of
    /// `consign_generations_lost_total`.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum GenerationLoss {
        /// More objects are known than a worker remembers; the oldest was forgotten.
        Evicted = "evicted",
        /// A report did not reach the other workers.
        Unreported = "unreported",
        /// The control stream was not readable when a late job wrote its object.
        Unordered = "unordered",
    }
}

/// Returns the class of an HTTP status, as the `status` label of [`super::Metrics::s3_request`].
pub fn status_label(status: u16) -> &'static str {
    match status {
        0..300 => "2xx",
        300..400 => "3xx",
        400..500 => "4xx",
        _ => "5xx",
    }
}
