//! From an error of S3 or KMS to a [`Failure`]: by code AND status, because some servers send no code.

use std::time::Duration;

use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::RequestId as _;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;

use crate::destination::{Auth, Destination, Region};
use crate::outcome::{Failure, Reason};

/// A failed call: the failure, what the upload itself must tell apart, and whether the request may have taken effect.
#[derive(Debug)]
pub(super) struct CallError {
    pub(super) failure: Failure,
    pub(super) signal: Signal,
    /// No clear answer came: S3 may have done what was asked.
    pub(super) ambiguous: bool,
}

/// Answers that mean something to the upload beyond their class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signal {
    /// The upload id is unknown: completed already, aborted, or never there.
    NoSuchUpload,
    /// The key is taken (`If-None-Match`).
    PreconditionFailed,
    /// Bytes arrived that don't fit their checksum.
    BadDigest,
    /// The credentials are refused: worth one renewal.
    Credentials,
    /// Not allowed.
    Denied,
    /// Nothing special.
    None,
}

impl CallError {
    pub(super) fn new(failure: Failure) -> Self {
        Self { failure, signal: Signal::None, ambiguous: false }
    }
}

/// One row of the table: codes (and the status when no code came), and what they mean.
struct Meaning {
    reason: Reason,
    signal: Signal,
}

const fn means(reason: Reason) -> Meaning {
    Meaning { reason, signal: Signal::None }
}

const fn signals(reason: Reason, signal: Signal) -> Meaning {
    Meaning { reason, signal }
}

/// The table. Sources: the S3 error code list (<https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html>) and what
/// S3-compatible stores were seen to answer.
fn meaning(code: &str, status: u16, destination: &Destination) -> Meaning {
    match code {
        // The token ran out, or was made by a session that was revoked.
        "ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired" | "InvalidToken" => {
            signals(Reason::SessionExpired, Signal::Credentials)
        }
        // A long-lived key: the customer rotated or disabled it. One re-read of a secret kept in a file is worth a try.
        "InvalidAccessKeyId" | "SignatureDoesNotMatch" => match destination.auth {
            Auth::AccessKey { .. } => signals(Reason::AccessKeyInvalid, Signal::Credentials),
            Auth::IamRole { .. } => signals(Reason::SessionExpired, Signal::Credentials),
        },
        "RequestTimeTooSkewed" | "RequestExpired" => means(Reason::ClockSkew),
        "AccessDenied" | "AllAccessDisabled" | "AccountProblem" | "UnauthorizedAccess" | "AccessDeniedException" => {
            signals(Reason::AccessDenied, Signal::Denied)
        }
        "KMS.AccessDeniedException" => signals(Reason::KmsDenied, Signal::Denied),
        "KMS.DisabledException"
        | "KMS.NotFoundException"
        | "KMS.KMSInvalidStateException"
        | "KMS.InvalidKeyUsageException"
        | "KMS.InvalidArnException" => means(Reason::KmsUnavailable),
        "NoSuchBucket" => means(Reason::BucketNotFound),
        "PermanentRedirect"
        | "TemporaryRedirect"
        | "Redirect"
        | "AuthorizationHeaderMalformed"
        | "IllegalLocationConstraintException" => means(Reason::WrongRegion),
        "NoSuchUpload" => signals(Reason::S3Unavailable, Signal::NoSuchUpload),
        "PreconditionFailed" => signals(Reason::ObjectExists, Signal::PreconditionFailed),
        // Somebody writes the same key: the upload starts anew.
        "ConditionalRequestConflict" | "OperationAborted" => means(Reason::S3Unavailable),
        "BadDigest" | "XAmzContentChecksumMismatch" | "InvalidDigest" | "IncompleteBody" => {
            signals(Reason::Connection, Signal::BadDigest)
        }
        // A part was replaced or lost under us; a new upload is the remedy.
        "InvalidPart" | "InvalidPartOrder" => means(Reason::S3Unavailable),
        // Also inside the 200 of a CompleteMultipartUpload.
        "InternalError" | "InternalServerError" | "ServiceUnavailable" | "Busy" => means(Reason::S3Unavailable),
        "SlowDown" | "ReduceYourRate" => means(Reason::SlowDown),
        "RequestTimeout" | "RequestTimeoutException" => means(Reason::Timeout),
        "EntityTooLarge" => means(Reason::TooLarge),
        "KeyTooLongError" => means(Reason::InvalidKey),
        code if code.contains("Throttl") => means(Reason::Throttled),
        _ => by_status(status),
    }
}

fn by_status(status: u16) -> Meaning {
    match status {
        301 | 307 => means(Reason::WrongRegion),
        403 => signals(Reason::AccessDenied, Signal::Denied),
        412 => signals(Reason::ObjectExists, Signal::PreconditionFailed),
        429 => means(Reason::Throttled),
        408 => means(Reason::Timeout),
        200..=299 | 500..=599 => means(Reason::S3Unavailable),
        _ => means(Reason::Unclassified),
    }
}

/// Classifies an error of `operation` (the API's name).
pub(super) fn classify<E>(
    operation: &'static str,
    error: &SdkError<E, HttpResponse>,
    destination: &Destination,
) -> CallError
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    match error {
        SdkError::ServiceError(answer) => answered(operation, answer.err().meta(), answer.raw(), destination),
        SdkError::ResponseError(answer) => {
            let status = answer.raw().status().as_u16();
            let message = format!("{operation}: S3 answered {status} with a body that can't be read");
            CallError {
                ambiguous: true,
                ..CallError::new(Failure::new(by_status(status).reason_or_broken(status), message))
            }
        }
        SdkError::TimeoutError(_) => unanswered(operation, Reason::Timeout, "no answer in time"),
        SdkError::DispatchFailure(broken) if broken.is_timeout() => {
            unanswered(operation, Reason::Timeout, "no connection in time")
        }
        SdkError::DispatchFailure(_) => unanswered(operation, Reason::Connection, "the connection broke"),
        _ => CallError::new(Failure::new(
            Reason::Unclassified,
            format!("{operation}: the request could not be built; the key or a header of the object is not allowed"),
        )),
    }
}

impl Meaning {
    /// A 2xx whose body can't be read is a broken reply, not a refusal.
    fn reason_or_broken(&self, status: u16) -> Reason {
        if status < 300 { Reason::Connection } else { self.reason }
    }
}

pub(super) fn unanswered(operation: &'static str, reason: Reason, what: &str) -> CallError {
    CallError { ambiguous: true, ..CallError::new(Failure::new(reason, format!("{operation}: {what}"))) }
}

fn answered(
    operation: &'static str,
    meta: &aws_sdk_s3::error::ErrorMetadata,
    raw: &HttpResponse,
    destination: &Destination,
) -> CallError {
    let status = raw.status().as_u16();
    let code = meta.code().unwrap_or_default();
    let said = meta.message().unwrap_or_default();
    let Meaning { mut reason, signal } = meaning(code, status, destination);
    let denied_action = denied_action(said);
    if reason == Reason::AccessDenied && denied_action.is_some_and(|action| action.starts_with("kms:")) {
        reason = Reason::KmsDenied;
    }
    let shown = if code.is_empty() { status.to_string() } else { format!("{status} {code}") };
    let mut failure = Failure::new(reason, format!("{operation}: S3 answered {shown}"));
    failure.hint = hint(reason, operation, denied_action, destination);
    failure.aws_request_id = meta.request_id().map(str::to_owned);
    failure.retry_after = raw.headers().get("retry-after").and_then(|text| text.parse().ok()).map(Duration::from_secs);
    if reason == Reason::WrongRegion {
        failure.learnt_region = learnt_region(raw, said);
    }
    if reason == Reason::Unclassified && !said.is_empty() {
        failure.message = format!("{}: {}", failure.message, said.chars().take(300).collect::<String>());
    }
    // A 5xx after the request was read may have taken effect; a refusal has not.
    CallError { failure, signal, ambiguous: status >= 500 || status < 300 }
}

/// The action IAM names in `... is not authorized to perform: kms:GenerateDataKey on resource: ...`.
fn denied_action(said: &str) -> Option<&str> {
    let (_, rest) = said.split_once("perform: ")?;
    rest.split_whitespace().next()
}

/// The header is the rule; AuthorizationHeaderMalformed says it only in its text: `expecting 'eu-west-1'`.
fn learnt_region(raw: &HttpResponse, said: &str) -> Option<Region> {
    let quoted = || said.split_once("expecting '").and_then(|(_, rest)| rest.split_once('\'')).map(|(name, _)| name);
    raw.headers().get("x-amz-bucket-region").or_else(quoted).and_then(|name| Region::parse(name).ok())
}

fn hint(reason: Reason, operation: &str, action: Option<&str>, destination: &Destination) -> String {
    let (bucket, prefix) = (&destination.bucket, &destination.prefix);
    match reason {
        Reason::AccessDenied => {
            let action = action.map_or_else(|| permission(operation), str::to_owned);
            format!(
                "allow {action} on arn:{}:s3:::{bucket}/{prefix}* and look for a bucket policy that denies it",
                destination.partition()
            )
        }
        Reason::KmsDenied => {
            let action = action.unwrap_or("kms:GenerateDataKey and kms:Decrypt");
            let key = destination.encryption.as_ref().map_or("the bucket's default key", |kms| kms.key_arn.as_str());
            format!("allow {action} on {key}, in the role's policy and in the key's own policy")
        }
        Reason::KmsUnavailable => "enable the KMS key, or configure another one".to_owned(),
        Reason::BucketNotFound => format!("create the bucket {bucket}, or correct its name"),
        Reason::WrongRegion => "correct the destination's region".to_owned(),
        Reason::AccessKeyInvalid => "create a new access key and configure it".to_owned(),
        Reason::ObjectExists => "use another key, or if_exists = \"replace\"".to_owned(),
        _ => String::new(),
    }
}

/// The permission an operation needs.
fn permission(operation: &str) -> String {
    match operation {
        "CreateMultipartUpload" | "UploadPart" | "CompleteMultipartUpload" | "PutObject" => "s3:PutObject".to_owned(),
        "ListObjectsV2" => "s3:ListBucket".to_owned(),
        other => format!("s3:{other}"),
    }
}
