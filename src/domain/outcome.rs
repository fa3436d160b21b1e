//! Result of a transfer, and the decision that follows from it.
//!
//! A transfer ends in a [`Receipt`], as skipped, or in a [`Failure`]. [`decide`] turns a failure
//! and the history of its job into a [`Disposition`]. [`choose_retry_delay`] is the only function
//! that chooses a retry delay.

mod decide;
mod event;
mod retry_delay;
mod symptom;

use std::time::Duration;

pub use decide::{DecisionContext, Disposition, History, RetryPolicy, decide};
pub use event::{
    Encryption, Outcome, OutcomeData, OutcomeKind, SUPERSEDED, SupersededBy, event_id, outcome_schema, render,
};
pub use retry_delay::{RetryDelay, Wait, choose as choose_retry_delay};
pub use symptom::Symptom;

use crate::domain::backfill_id::BackfillId;
use crate::domain::generation::NewerDelivery;
use crate::domain::text_enum::{table_enum, text_enum};

text_enum! {
    /// Class of a failure: it says who can act on it, and decides what follows. A closed set; also
    /// a metric label.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
    pub enum Class {
        /// Temporary: retried, and the attempt is charged.
        Transient = "transient",
        /// The session expired: refreshed once, then as transient.
        Session = "session",
        /// The customer must fix something: deferred, no attempt is charged.
        Destination = "destination",
        /// The job itself is wrong: dead-lettered at once.
        Job = "job",
        /// Interrupted: another worker continues, no attempt is charged.
        Interrupted = "interrupted",
        /// A bug of consign: retried once, then dead-lettered.
        Defect = "defect",
        /// A fault of this worker: the job stays in the queue, the worker stops consuming.
        Worker = "worker",
    }
}

table_enum! {
    /// Reason of a failed transfer. A closed set; also a metric label. Each reason belongs to
    /// one [`Class`].
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
    pub enum Reason {
        /// Returns the class of the reason.
        fn class() -> Class;

        S3Unavailable "s3_unavailable" Transient "S3 answered 5xx.",
        SlowDown "slow_down" Transient "S3 asked the worker to slow down.",
        Throttled "throttled" Transient "A service throttled the request.",
        Connection "connection" Transient "A connection broke or could not be made.",
        Timeout "timeout" Transient "A request took longer than its time-out.",
        StsUnavailable "sts_unavailable" Transient "STS answered 5xx or not at all.",
        SourceUnavailable "source_unavailable" Transient "The source answered 5xx, throttled, disconnected, or changed while it was read.",
        SourceSlow "source_slow" Transient "The source sent fewer bytes per second than upload.min_rate.",
        Exhausted "exhausted" Transient "All attempts are used up.",
        SessionExpired "session_expired" Session "The token of the session expired or was refused.",
        AssumeRoleDenied "assume_role_denied" Destination "The role can't be assumed.",
        AccessDenied "access_denied" Destination "A permission for the bucket is missing, or the store refuses for another reason; message and hint name it.",
        BucketNotFound "bucket_not_found" Destination "The bucket does not exist.",
        WrongOwner "wrong_owner" Destination "The bucket belongs to another account.",
        WrongRegion "wrong_region" Destination "The bucket is in another region than configured, or the role belongs to a region or partition in which the worker's identity is not valid.",
        KmsDenied "kms_denied" Destination "The use of the KMS key is denied.",
        KmsUnavailable "kms_unavailable" Destination "The KMS key is missing, disabled or pending deletion.",
        AccessKeyInvalid "access_key_invalid" Destination "The access key is unknown or disabled, or its secret does not match.",
        EncryptionMismatch "encryption_mismatch" Destination "S3 encrypted the object in another way than requested.",
        RoleAuthOff "role_auth_off" Destination "This worker does not assume roles (session.role_auth = false).",
        InvalidJob "invalid_job" Job "The job can't be read.",
        SchemaVersion "schema_version" Job "This worker does not know the version of the job.",
        DestinationForbidden "destination_forbidden" Job "This job or its publisher is not permitted to use the destination.",
        UnknownDestination "unknown_destination" Job "The destination is not configured.",
        InvalidKey "invalid_key" Job "The key is not allowed.",
        SourceNotFound "source_not_found" Job "The source does not exist.",
        SourceDenied "source_denied" Job "The source denies access.",
        SourceForbidden "source_forbidden" Job "The configuration of this worker does not permit this source.",
        SourceMismatch "source_mismatch" Job "The source does not match size, sha256 or etag of the job.",
        SourceChanged "source_changed" Job "The source changed while it was read, and the job names its content (sha256 or etag).",
        TooLarge "too_large" Job "The source is larger than allowed.",
        ObjectExists "object_exists" Job "An object with this key exists, and the job has if_exists = fail.",
        Unclassified "unclassified" Job "An unexpected refusal.",
        Shutdown "shutdown" Interrupted "The worker is draining.",
        BrokerLost "broker_lost" Interrupted "The broker channel of the delivery is closed.",
        LeaseLost "lease_lost" Interrupted "Another worker continues.",
        Panic "panic" Defect "The worker panicked, which is a defect of consign.",
        ChecksumMismatch "checksum_mismatch" Defect "The checksum in the reply of S3 differs from that of the sent bytes.",
        CrashLoop "crash_loop" Defect "Several workers in a row crashed or were cut off while they ran this job.",
        IdentityDenied "identity_denied" Worker "AWS refuses the worker's own identity.",
        ClockSkew "clock_skew" Worker "The worker's clock is wrong.",
        DiskFull "disk_full" Worker
            "The worker's disk is full. Not used yet: transfers do not write to disk, and a full disk below an embedded queue makes the worker not ready.",
        Outage "outage" Worker "Many destinations fail in the same way at the same time.",
    }
}

impl Reason {
    /// The reason of this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == name)
    }
}

/// A failed attempt: a closed reason, and plain words for the customer.
///
/// `Display` is the message alone; causes are in it already and in no `source()`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// Reason.
    pub reason: Reason,
    /// Description in plain words, without secrets and without URL queries.
    pub message: String,
    /// Remedy for the customer, with the missing permission by name. Empty where there is none.
    pub hint: String,
    /// Request id of AWS, for their support.
    pub aws_request_id: Option<String>,
    /// Delay that the server asked for. It lengthens our own, up to the longest retry delay.
    pub retry_after: Option<Duration>,
    /// Region that the bucket is really in, learnt from a redirect.
    pub learnt_region: Option<crate::domain::destination::Region>,
    /// Error response of the AWS service, where there was one. The diagnosis is made from it.
    pub answer: Option<Box<AwsError>>,
    /// True for a cached denial: no request was made.
    pub remembered: bool,
}

/// Error response of an AWS service. It is classified, never shown: the text is not ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AwsError {
    /// Name of the API operation.
    pub operation: &'static str,
    /// The HTTP status.
    pub status: u16,
    /// The error code; empty where the server sent none.
    pub code: String,
    /// The message, cut to a bounded length; empty where there was none.
    pub message: String,
}

impl AwsError {
    /// The most characters of a message that are kept.
    const MAX_MESSAGE_LENGTH: usize = 2000;

    /// An answer; an absent code or message is empty. So is a code that does not look like one: it
    /// is shown to users, and the server may be anybody's. The message is put on one line.
    pub fn new(operation: &'static str, status: u16, code: Option<&str>, message: Option<&str>) -> Self {
        let one_line = |c: char| if c.is_control() { ' ' } else { c };
        let message = message.unwrap_or_default().chars().take(Self::MAX_MESSAGE_LENGTH).map(one_line).collect();
        let code = code.filter(|code| Self::is_code(code)).unwrap_or_default().to_owned();
        Self { operation, status, code, message }
    }

    /// Returns true if the text looks like an error code.
    pub fn is_code(text: &str) -> bool {
        let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b':');
        (1..=100).contains(&text.len()) && text.bytes().all(inner)
    }

    /// Returns a request id of a server, if it looks like one: it is shown to users.
    pub fn request_id(text: Option<&str>) -> Option<String> {
        let looks_right = |id: &&str| (1..=200).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic());
        text.filter(looks_right).map(str::to_owned)
    }
}

/// Returns the action that IAM names in `... is not authorized to perform: kms:GenerateDataKey on
/// resource: ...`.
pub fn denied_action(said: &str) -> Option<&str> {
    let (_, rest) = said.split_once("perform: ")?;
    rest.split_whitespace().next()
}

impl Failure {
    /// A failure with a message and nothing else yet.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
            hint: String::new(),
            aws_request_id: None,
            retry_after: None,
            learnt_region: None,
            answer: None,
            remembered: false,
        }
    }

    /// Adds the remedy.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// The class of the reason.
    pub fn class(&self) -> Class {
        self.reason.class()
    }

    /// Returns true for a denial of STS, which is cached (`session.denied_for`).
    pub fn is_denied_by_sts(&self) -> bool {
        let asked = || self.answer.as_deref().is_some_and(|answer| answer.operation == "AssumeRole");
        self.reason == Reason::AssumeRoleDenied || (self.class() == Class::Destination && asked())
    }

    /// Returns true if STS denied the session tags of the worker's own identity. That is for the
    /// platform to fix, yet other roles may allow them.
    pub fn is_about_session_tags(&self) -> bool {
        let denied = self.answer.as_deref().and_then(|answer| denied_action(&answer.message));
        self.reason == Reason::IdentityDenied && denied == Some("sts:TagSession")
    }
}

/// Proof of a delivered object.
#[derive(Debug, Clone, Default)]
pub struct Receipt {
    /// Bytes stored.
    pub bytes: u64,
    /// Bytes read from the source (differs from `bytes` under compression).
    pub source_bytes: u64,
    /// Parts of a multipart upload; 0 for one PutObject.
    pub parts: u32,
    /// The ETag, opaque.
    pub etag: Option<String>,
    /// The version, where the bucket keeps versions.
    pub version_id: Option<String>,
    /// The CRC-64/NVME of the whole object, base64 of 8 big-endian bytes as S3 writes it.
    pub checksum_crc64nvme: Option<String>,
    /// Encryption that S3 reports.
    pub encryption: Option<Encryption>,
    /// True when an unfinished upload was resumed.
    pub resumed: bool,
    /// True if nothing proves that the whole source was read, and that was accepted.
    pub length_unproven: bool,
}

/// Result of a transfer.
#[derive(Debug, Clone)]
pub enum TransferResult {
    /// The object is complete.
    Delivered(Receipt),
    /// The key was taken and `if_exists = keep`.
    Skipped,
    /// Its backfill was cancelled before it started. The outcome is `skipped`.
    Cancelled(BackfillId),
    /// A newer generation of its object was delivered, so it was not written. The outcome is
    /// `skipped`.
    Superseded(NewerDelivery),
    /// Another job writes its object now: it waits for its next turn.
    ObjectBusy,
    /// `expires_at` is past.
    Expired,
    /// It failed.
    Failed(Failure),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_writes_is_bounded_and_on_one_line() {
        let of = |code: &str| AwsError::new("PutObject", 400, Some(code), None).code;
        for code in ["AccessDenied", "KMS.DisabledException", "InvalidParameter_1", "aws:Denied"] {
            assert_eq!(of(code), code);
        }
        for code in ["", "Two Words", "Line\nBreak", "<b>", &"Long".repeat(26)] {
            assert_eq!(of(code), "", "{code}");
        }
        let answer = AwsError::new("PutObject", 400, None, Some(&"a\nlevel=INFO b\u{1b}[2J".repeat(1000)));
        assert!(answer.message.len() <= 2000 && answer.message.starts_with("a level=INFO b [2J"), "{}", answer.message);
        assert_eq!(AwsError::request_id(Some("4442587F-B7D0")).as_deref(), Some("4442587F-B7D0"));
        for id in ["", "a b", "a\nb", &"1".repeat(201)] {
            assert_eq!(AwsError::request_id(Some(id)), None, "{id}");
        }
    }
}
