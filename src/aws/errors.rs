//! Errors of AWS: the tables of error codes of S3, KMS, STS and the staging buckets, one commented
//! row per cause, and the parsed error response.

use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::RequestId as _;
use aws_sdk_s3::operation::get_object::GetObjectError;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;

use crate::domain::destination::{Auth, Destination, Region, RoleArn};
use crate::domain::outcome::{AwsError, Failure, Reason, denied_action};
use crate::metrics;
use crate::runtime::causes::innermost;

/// Returns the label of a request in the metrics; the outer error is a time-out of the caller.
pub(crate) fn status_label<T, E, X>(answer: &Result<Result<T, SdkError<E>>, X>) -> &'static str {
    match answer {
        Ok(Ok(_)) => "2xx",
        Ok(Err(SdkError::DispatchFailure(broken))) if broken.is_timeout() => "timeout",
        Ok(Err(SdkError::TimeoutError(_))) | Err(_) => "timeout",
        Ok(Err(error)) => error.raw_response().map_or("connection", |raw| metrics::status_label(raw.status().as_u16())),
    }
}

/// Builds the error response of a failed call of `operation`. The status is 0 if there was no
/// answer.
pub(crate) fn error_response<E: ProvideErrorMetadata>(operation: &'static str, error: &SdkError<E>) -> AwsError {
    let status = error.raw_response().map_or(0, |raw| raw.status().as_u16());
    AwsError::new(operation, status, error.code(), error.message())
}

/// Answers that change the sequence of an upload, beyond the class of the failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ErrorSignal {
    /// The upload id is unknown: completed already, aborted, or never there.
    NoSuchUpload,
    /// A part is not what it was: somebody else sent it again.
    InvalidPart,
    /// The key is taken (`If-None-Match`).
    PreconditionFailed,
    /// Bytes arrived that don't fit their checksum.
    BadDigest,
    /// The request has no checksum header, and needs one.
    ChecksumRequired,
    /// The credentials are refused: worth one renewal.
    Credentials,
    /// Not allowed.
    Denied,
    /// Nothing special.
    None,
}

/// Result of a row of the table.
pub(crate) struct S3Classification {
    pub(crate) reason: Reason,
    pub(crate) signal: ErrorSignal,
}

const fn means(reason: Reason) -> S3Classification {
    S3Classification { reason, signal: ErrorSignal::None }
}

const fn signals(reason: Reason, signal: ErrorSignal) -> S3Classification {
    S3Classification { reason, signal }
}

/// Table of S3 and KMS error codes. Sources: the S3 error code list
/// (<https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html>) and the observed answers
/// of S3-compatible stores.
fn s3_table(code: &str, status: u16, destination: &Destination) -> S3Classification {
    match code {
        // The token ran out, or was made by a session that was revoked.
        "ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired" | "InvalidToken" => {
            signals(Reason::SessionExpired, ErrorSignal::Credentials)
        }
        // A long-lived key: the customer rotated or disabled it. One re-read of a secret kept in a file is worth a try.
        "InvalidAccessKeyId" | "SignatureDoesNotMatch" => match destination.auth {
            Auth::AccessKey { .. } => signals(Reason::AccessKeyInvalid, ErrorSignal::Credentials),
            Auth::IamRole { .. } => signals(Reason::SessionExpired, ErrorSignal::Credentials),
        },
        "RequestTimeTooSkewed" | "RequestExpired" => means(Reason::ClockSkew),
        "AccessDenied" | "AllAccessDisabled" | "AccountProblem" | "UnauthorizedAccess" | "AccessDeniedException" => {
            signals(Reason::AccessDenied, ErrorSignal::Denied)
        }
        "KMS.AccessDeniedException" => signals(Reason::KmsDenied, ErrorSignal::Denied),
        "KMS.DisabledException"
        | "KMS.NotFoundException"
        | "KMS.KMSInvalidStateException"
        | "KMS.InvalidKeyUsageException"
        | "KMS.InvalidArnException" => means(Reason::KmsUnavailable),
        // Any other KMS error is for the owner of the key to fix, and never a fault of the job.
        code if code.starts_with("KMS.") && !code.contains("Throttl") => means(Reason::KmsUnavailable),
        "NoSuchBucket" => means(Reason::BucketNotFound),
        "PermanentRedirect"
        | "TemporaryRedirect"
        | "Redirect"
        | "AuthorizationHeaderMalformed"
        | "IllegalLocationConstraintException" => means(Reason::WrongRegion),
        "NoSuchUpload" => signals(Reason::S3Unavailable, ErrorSignal::NoSuchUpload),
        "PreconditionFailed" => signals(Reason::ObjectExists, ErrorSignal::PreconditionFailed),
        // Another client writes the same key: the upload starts again.
        "ConditionalRequestConflict" | "OperationAborted" => means(Reason::S3Unavailable),
        "BadDigest" | "XAmzContentChecksumMismatch" | "InvalidDigest" | "IncompleteBody" => {
            signals(Reason::Connection, ErrorSignal::BadDigest)
        }
        // Every try gets the same answer, until the destination is configured otherwise. No reason is closer; the diagnosis
        // names the cause.
        "NotImplemented" => means(Reason::AccessDenied),
        code if is_quota(code, status) => means(Reason::AccessDenied),
        // A part was replaced or lost under us; a new upload is the remedy.
        "InvalidPart" | "InvalidPartOrder" => signals(Reason::S3Unavailable, ErrorSignal::InvalidPart),
        // Also inside the 200 of a CompleteMultipartUpload.
        "InternalError" | "InternalServerError" | "ServiceUnavailable" | "Busy" => means(Reason::S3Unavailable),
        "SlowDown" | "ReduceYourRate" => means(Reason::SlowDown),
        "RequestTimeout" | "RequestTimeoutException" => means(Reason::Timeout),
        "EntityTooLarge" => means(Reason::TooLarge),
        "KeyTooLongError" => means(Reason::InvalidKey),
        code if code.contains("Throttl") => means(Reason::Throttled),
        _ => s3_status(status),
    }
}

pub(crate) fn s3_status(status: u16) -> S3Classification {
    match status {
        301 | 307 => means(Reason::WrongRegion),
        401 | 403 => signals(Reason::AccessDenied, ErrorSignal::Denied),
        412 => signals(Reason::ObjectExists, ErrorSignal::PreconditionFailed),
        429 => means(Reason::Throttled),
        408 => means(Reason::Timeout),
        501 | 507 => means(Reason::AccessDenied),
        200..=299 | 500..=599 => means(Reason::S3Unavailable),
        _ => means(Reason::Unclassified),
    }
}

/// Returns true if the quota of the bucket or its owner is used up.
fn is_quota(code: &str, status: u16) -> bool {
    code.ends_with("QuotaExceeded") || code == "XMinioStorageFull" || status == 507
}

/// Returns true if a refusal names the checksum. So are requests without a checksum header refused:
/// - S3 with Object Lock: `Content-MD5 OR x-amz-checksum- HTTP header is required for Put Part
///   requests with Object Lock parameters`
/// - S3 for an upload with a composite checksum: `Checksum Type mismatch occurred, expected
///   checksum Type: sha256, actual checksum Type: null`
/// - MinIO: `checksum missing, want "CRC64NVME", got ""`
pub(crate) fn names_checksum(status: u16, message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    status == 400 && ["checksum", "content-md5"].iter().any(|name| message.contains(name))
}

/// Returns true for an answer with a web page: it comes from a proxy or a web server in between,
/// and its status says nothing about permissions.
pub(crate) fn is_web_page(raw: &HttpResponse) -> bool {
    let html = |kind: &str| kind.trim_start().to_ascii_lowercase().starts_with("text/html");
    raw.headers().get("content-type").is_some_and(html)
}

impl S3Classification {
    /// Returns the row for an answer to `operation`. A store that took every part and refuses the
    /// checksum of the whole can't combine checksums.
    pub(crate) fn of(operation: &str, code: &str, status: u16, destination: &Destination) -> Self {
        match s3_table(code, status, destination) {
            Self { signal: ErrorSignal::BadDigest, .. } if operation == "CompleteMultipartUpload" => {
                means(Reason::AccessDenied)
            }
            row => row,
        }
    }

    /// A 2xx whose body can't be read is a broken reply, not a refusal.
    pub(crate) fn reason_or_broken(&self, status: u16) -> Reason {
        if status < 300 { Reason::Connection } else { self.reason }
    }
}

/// Role of an AssumeRole call; `None` in its place for GetCallerIdentity.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AssumedRole<'a> {
    pub(crate) arn: &'a RoleArn,
    pub(crate) region: &'a Region,
}

/// Table of STS error codes: the reason of a failure and its message.
pub(crate) fn sts_table(answer: &AwsError, role: Option<AssumedRole<'_>>) -> (Reason, String) {
    let (code, status, said) = (answer.code.as_str(), answer.status, answer.message.as_str());
    match code {
        // The tags are those of the worker's own identity: no customer asked for them.
        "AccessDenied" | "AccessDeniedException" if denied_action(said) == Some("sts:TagSession") => (
            Reason::IdentityDenied,
            "STS denies the session tags of the worker's own identity (sts:TagSession)".to_owned(),
        ),
        "AccessDenied" | "AccessDeniedException" => sts_denied(role),
        // Some servers send no code at all.
        "" if matches!(status, 401 | 403) => sts_denied(role),
        // The token or key that signed this call is the worker's own.
        "ExpiredToken"
        | "ExpiredTokenException"
        | "InvalidClientTokenId"
        | "UnrecognizedClientException"
        | "MissingAuthenticationToken"
        | "InvalidAccessKeyId"
        | "IncompleteSignature" => {
            (Reason::IdentityDenied, format!("STS refuses the worker's own credentials ({code})"))
        }
        "RequestTimeTooSkewed" | "RequestExpired" => (Reason::ClockSkew, format!("the worker's clock is off ({code})")),
        // STS tells a clock that is off by the words of a signature that is not of now.
        "SignatureDoesNotMatch" if said.starts_with("Signature expired") || said.starts_with("Signature not yet") => {
            (Reason::ClockSkew, "the worker's clock is off".to_owned())
        }
        "SignatureDoesNotMatch" => (
            Reason::IdentityDenied,
            "the worker's own secret key does not match its key id, or its clock is off".to_owned(),
        ),
        "RegionDisabledException" => {
            let region = role.map_or("this region", |role| role.region.as_str());
            (Reason::AssumeRoleDenied, format!("STS is not enabled in {region} for the account of the role"))
        }
        "PackedPolicyTooLarge" | "PackedPolicyTooLargeException" | "MalformedPolicyDocument" | "ValidationError" => {
            (Reason::AssumeRoleDenied, format!("STS refuses the request for the role: {said}"))
        }
        code if code.contains("Throttl") || status == 429 => {
            (Reason::Throttled, "STS throttles the request".to_owned())
        }
        _ if status >= 500 || status == 0 => (Reason::StsUnavailable, format!("STS answered {status} {code}")),
        _ => (Reason::AssumeRoleDenied, format!("STS refuses the role: {code}")),
    }
}

fn sts_denied(role: Option<AssumedRole<'_>>) -> (Reason, String) {
    match role {
        Some(role) => (Reason::AssumeRoleDenied, format!("the role {} can't be assumed", role.arn.as_str())),
        None => (Reason::IdentityDenied, "STS denies access to the worker's own credentials".to_owned()),
    }
}

/// Hint for a staged object that does not exist.
const MISSING: &str = "correct source.url in the job, or publish the job once the object exists";

/// Failed request for a staged object.
pub(crate) type StagedReadError = SdkError<GetObjectError>;

/// Table of error codes of the staging buckets, by code and by status: some stores send no code.
pub(crate) fn staging_failure(name: &str, error: &StagedReadError) -> Failure {
    let answer = error_response("GetObject", error);
    let code = answer.code.as_str();
    let status = error.raw_response().map(|response| response.status().as_u16());
    let failure = |reason, what: &str| Failure::new(reason, format!("{name} {what}{}", shown(code, status)));
    let mut failure = match (code, status) {
        ("NoSuchKey" | "NoSuchBucket" | "NoSuchVersion", _) => {
            failure(Reason::SourceNotFound, "does not exist").hint(MISSING)
        }
        ("PreconditionFailed", _) | (_, Some(412)) => failure(Reason::SourceChanged, "changed while it was read"),
        ("InvalidRange", _) | (_, Some(416)) => failure(Reason::SourceChanged, "is shorter than it was"),
        ("RequestTimeTooSkewed", _) => failure(Reason::ClockSkew, "rejects the time of this worker's clock"),
        ("InvalidAccessKeyId" | "SignatureDoesNotMatch", _) => {
            failure(Reason::IdentityDenied, "does not accept this worker's own credentials")
        }
        // The SDK renews what has run out before the next try.
        ("ExpiredToken" | "TokenRefreshRequired" | "InvalidToken", _) => {
            failure(Reason::SourceUnavailable, "refused expired credentials")
        }
        ("InvalidObjectState", _) => failure(Reason::SourceDenied, "is archived; restore it first"),
        (code, _) if code.contains("Throttl") || matches!(code, "SlowDown" | "RequestTimeout") => {
            failure(Reason::SourceUnavailable, "throttles the worker")
        }
        (_, Some(300..=499)) if error.raw_response().is_some_and(is_web_page) => {
            failure(Reason::SourceUnavailable, "can't be reached: a proxy or web server answered in its place")
        }
        (_, Some(401 | 403)) => failure(Reason::SourceDenied, "may not be read")
            .hint("allow the worker's own identity s3:GetObject (and kms:Decrypt) on the staging bucket"),
        (_, Some(404 | 410)) => failure(Reason::SourceNotFound, "does not exist").hint(MISSING),
        (_, Some(408 | 429 | 500..=599)) => failure(Reason::SourceUnavailable, "is unavailable"),
        // The platform's own setting is wrong, not the job.
        (_, Some(301 | 307)) | ("AuthorizationHeaderMalformed", _) => failure(
            Reason::SourceUnavailable,
            "is in another region than aws.region; set aws.region to the region of the bucket",
        ),
        (_, Some(300..=499)) => failure(Reason::Unclassified, "refuses the request"),
        _ => failure(Reason::SourceUnavailable, &format!("can't be reached: {}", innermost(error))),
    };
    failure.aws_request_id = AwsError::request_id(error.request_id());
    failure
}

fn shown(code: &str, status: Option<u16>) -> String {
    match (code, status) {
        ("", None) => String::new(),
        ("", Some(status)) => format!(" (HTTP {status})"),
        (code, _) => format!(" ({code})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_denial_of_sts_is_the_roles_unless_it_is_about_our_session_tags() {
        let role = RoleArn::parse("arn:aws:iam::123456789012:role/r").unwrap();
        let region = Region::parse("eu-west-1").unwrap();
        let denied = |action: &str| {
            let said =
                format!("User: arn:aws:sts::999999999999:assumed-role/w/s is not authorized to perform: {action} on r");
            let answer = AwsError::new("AssumeRole", 403, Some("AccessDenied"), Some(&said));
            sts_table(&answer, Some(AssumedRole { arn: &role, region: &region }))
        };
        assert_eq!(denied("sts:AssumeRole").0, Reason::AssumeRoleDenied);
        let (reason, message) = denied("sts:TagSession");
        assert_eq!(reason, Reason::IdentityDenied);
        assert!(message.contains("sts:TagSession") && !message.contains("role/r"), "{message}");
    }
}
