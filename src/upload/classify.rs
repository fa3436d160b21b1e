//! Classification of S3 and KMS errors by code and status, because some servers send no code.

use std::time::Duration;

use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::RequestId as _;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;

use crate::domain::destination::{Auth, Destination, Region};
use crate::domain::diagnosis;
use crate::domain::outcome::{AwsError, Failure, Reason};

/// Failed call: the failure, the signal for the upload, and if the request may have taken effect.
#[derive(Debug)]
pub(super) struct CallError {
    pub(super) failure: Failure,
    pub(super) signal: ErrorSignal,
    /// True if no clear answer came: S3 may have done what was asked.
    pub(super) ambiguous: bool,
}

/// Answers that change the sequence of an upload, beyond the class of the failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ErrorSignal {
    /// The upload id is unknown: completed already, aborted, or never there.
    NoSuchUpload,
    /// A part is not what it was: somebody else sent it again.
    InvalidPart,
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
        Self { failure, signal: ErrorSignal::None, ambiguous: false }
    }
}

/// Result of a row of the table.
struct Classification {
    reason: Reason,
    signal: ErrorSignal,
}

const fn means(reason: Reason) -> Classification {
    Classification { reason, signal: ErrorSignal::None }
}

const fn signals(reason: Reason, signal: ErrorSignal) -> Classification {
    Classification { reason, signal }
}

/// Table of S3 and KMS error codes. Sources: the S3 error code list
/// (<https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html>) and the observed answers
/// of S3-compatible stores.
#[expect(clippy::match_same_arms, reason = "a table: one commented row for each cause")]
fn meaning(code: &str, status: u16, destination: &Destination) -> Classification {
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
        // A part was replaced or lost under us; a new upload is the remedy.
        "InvalidPart" | "InvalidPartOrder" => signals(Reason::S3Unavailable, ErrorSignal::InvalidPart),
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

fn by_status(status: u16) -> Classification {
    match status {
        301 | 307 => means(Reason::WrongRegion),
        401 | 403 => signals(Reason::AccessDenied, ErrorSignal::Denied),
        412 => signals(Reason::ObjectExists, ErrorSignal::PreconditionFailed),
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

impl Classification {
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
    let Classification { mut reason, signal } = meaning(code, status, destination);
    if reason == Reason::AccessDenied && diagnosis::denied_action(said).is_some_and(|action| action.starts_with("kms:"))
    {
        reason = Reason::KmsDenied;
    }
    let shown = if code.is_empty() { status.to_string() } else { format!("{status} {code}") };
    let mut failure = Failure::new(reason, format!("{operation}: S3 answered {shown}"));
    let answer = AwsError::new(operation, status, meta.code(), meta.message());
    failure.hint = diagnosis::hint(reason, &answer, destination);
    failure.answer = Some(Box::new(answer));
    failure.aws_request_id = meta.request_id().map(str::to_owned);
    failure.retry_after = raw.headers().get("retry-after").and_then(|text| text.parse().ok()).map(Duration::from_secs);
    if reason == Reason::WrongRegion {
        failure.learnt_region = learnt_region(raw, said);
    }
    if reason == Reason::Unclassified && !said.is_empty() {
        failure.message = format!("{}: {}", failure.message, said.chars().take(300).collect::<String>());
    }
    // A 5xx after the request was read may have taken effect; a refusal has not.
    CallError { failure, signal, ambiguous: !(300..500).contains(&status) }
}

/// Returns the region of the bucket. The header names it; AuthorizationHeaderMalformed names it in
/// its text alone: `expecting 'eu-west-1'`.
fn learnt_region(raw: &HttpResponse, said: &str) -> Option<Region> {
    let quoted = || said.split_once("expecting '").and_then(|(_, rest)| rest.split_once('\'')).map(|(name, _)| name);
    raw.headers().get("x-amz-bucket-region").or_else(quoted).and_then(|name| Region::parse(name).ok())
}

#[cfg(test)]
mod tests {
    use aws_sdk_s3::error::ErrorMetadata;
    use aws_sdk_s3::operation::put_object::PutObjectError;
    use aws_smithy_runtime_api::http::StatusCode;
    use aws_smithy_types::body::SdkBody;

    use super::*;
    use crate::domain::destination::DestinationId;
    use crate::domain::destination::raw::{RawAuth, RawDestination, RawMethod};
    use crate::domain::outcome::Class;

    fn destination(method: RawMethod) -> Destination {
        let auth = match method {
            RawMethod::IamRole => {
                RawAuth { method, role_arn: Some("arn:aws:iam::123456789012:role/r".into()), ..RawAuth::default() }
            }
            RawMethod::AccessKey => RawAuth {
                method,
                access_key_id: Some("AKIA1234567890ABCDEF".into()),
                secret_access_key: Some("secret".to_owned().into()),
                ..RawAuth::default()
            },
        };
        let raw =
            RawDestination { bucket: "bucket".into(), region: "eu-west-1".into(), auth, ..RawDestination::default() };
        raw.validate(DestinationId::parse("acme").unwrap()).unwrap()
    }

    fn answer(status: u16, code: &str, message: &str, headers: &[(&'static str, &'static str)]) -> CallError {
        answer_to(&destination(RawMethod::IamRole), status, code, message, headers)
    }

    fn answer_to(
        destination: &Destination,
        status: u16,
        code: &str,
        message: &str,
        headers: &[(&'static str, &'static str)],
    ) -> CallError {
        let mut raw = HttpResponse::new(StatusCode::try_from(status).unwrap(), SdkBody::empty());
        for (name, value) in headers {
            raw.headers_mut().insert(*name, *value);
        }
        let mut meta = ErrorMetadata::builder().message(message);
        if !code.is_empty() {
            meta = meta.code(code);
        }
        classify("PutObject", &SdkError::service_error(PutObjectError::generic(meta.build()), raw), destination)
    }

    #[test]
    fn the_table_row_by_row() {
        let rows = [
            (400, "ExpiredToken", Reason::SessionExpired),
            (400, "TokenRefreshRequired", Reason::SessionExpired),
            (400, "InvalidToken", Reason::SessionExpired),
            (403, "InvalidAccessKeyId", Reason::SessionExpired),
            (403, "RequestTimeTooSkewed", Reason::ClockSkew),
            (403, "AccessDenied", Reason::AccessDenied),
            (403, "", Reason::AccessDenied),
            (403, "SomethingNew", Reason::AccessDenied),
            (403, "KMS.AccessDeniedException", Reason::KmsDenied),
            (400, "KMS.DisabledException", Reason::KmsUnavailable),
            (400, "KMS.NotFoundException", Reason::KmsUnavailable),
            (400, "KMS.ThrottlingException", Reason::Throttled),
            (400, "KMS.KeyUnavailableException", Reason::KmsUnavailable),
            (401, "", Reason::AccessDenied),
            (404, "NoSuchBucket", Reason::BucketNotFound),
            (301, "PermanentRedirect", Reason::WrongRegion),
            (301, "", Reason::WrongRegion),
            (307, "TemporaryRedirect", Reason::WrongRegion),
            (400, "AuthorizationHeaderMalformed", Reason::WrongRegion),
            (412, "PreconditionFailed", Reason::ObjectExists),
            (409, "ConditionalRequestConflict", Reason::S3Unavailable),
            (400, "BadDigest", Reason::Connection),
            (503, "SlowDown", Reason::SlowDown),
            (503, "", Reason::S3Unavailable),
            (500, "InternalError", Reason::S3Unavailable),
            (200, "InternalError", Reason::S3Unavailable),
            (400, "RequestTimeout", Reason::Timeout),
            (400, "RequestThrottled", Reason::Throttled),
            (400, "ThrottlingException", Reason::Throttled),
            (429, "", Reason::Throttled),
            (400, "EntityTooLarge", Reason::TooLarge),
            (400, "KeyTooLongError", Reason::InvalidKey),
            (400, "SomethingNew", Reason::Unclassified),
            (405, "", Reason::Unclassified),
            (599, "SomethingNew", Reason::S3Unavailable),
        ];
        for (status, code, reason) in rows {
            assert_eq!(answer(status, code, "", &[]).failure.reason, reason, "{status} {code}");
        }
    }

    #[test]
    fn an_access_key_that_is_refused_is_the_customers() {
        let destination = destination(RawMethod::AccessKey);
        for code in ["InvalidAccessKeyId", "SignatureDoesNotMatch"] {
            let error = answer_to(&destination, 403, code, "", &[]);
            assert_eq!(error.failure.reason, Reason::AccessKeyInvalid);
            assert_eq!(error.signal, ErrorSignal::Credentials);
        }
    }

    #[test]
    fn the_denied_action_is_named() {
        let said =
            "User: arn:aws:sts::1:assumed-role/r/s is not authorized to perform: kms:GenerateDataKey on resource: k";
        let error = answer(403, "AccessDenied", said, &[]);
        assert_eq!(error.failure.reason, Reason::KmsDenied);
        assert!(error.failure.hint.contains("kms:GenerateDataKey"), "{}", error.failure.hint);
        let said = "User: u is not authorized to perform: s3:PutObject on resource: x";
        assert_eq!(answer(403, "AccessDenied", said, &[]).failure.reason, Reason::AccessDenied);
        assert!(answer(403, "AccessDenied", "", &[]).failure.hint.contains("s3:PutObject on arn:aws:s3:::bucket/*"));
    }

    #[test]
    fn the_region_is_learnt_from_the_header_or_the_text() {
        let header = answer(301, "PermanentRedirect", "", &[("x-amz-bucket-region", "us-west-2")]);
        assert_eq!(header.failure.learnt_region.unwrap().as_str(), "us-west-2");
        let text = answer(400, "AuthorizationHeaderMalformed", "the region 'a' is wrong; expecting 'eu-north-1'", &[]);
        assert_eq!(text.failure.learnt_region.unwrap().as_str(), "eu-north-1");
        let evil = answer(301, "PermanentRedirect", "", &[("x-amz-bucket-region", "x@evil/#")]);
        assert!(evil.failure.learnt_region.is_none());
    }

    #[test]
    fn the_servers_delay_is_kept() {
        let error = answer(503, "SlowDown", "", &[("retry-after", "17")]);
        assert_eq!(error.failure.retry_after, Some(Duration::from_secs(17)));
    }

    #[test]
    fn only_a_clear_refusal_is_unambiguous() {
        assert!(!answer(403, "AccessDenied", "", &[]).ambiguous);
        assert!(answer(500, "InternalError", "", &[]).ambiguous);
        assert!(answer(200, "InternalError", "", &[]).ambiguous);
        let lost: SdkError<PutObjectError, HttpResponse> = SdkError::timeout_error("slow");
        let lost = classify("PutObject", &lost, &destination(RawMethod::IamRole));
        assert!(lost.ambiguous && lost.failure.class() == Class::Transient);
    }
}
