//! Classification of S3 and KMS errors by code and status, because some servers send no code.

use std::time::Duration;

use aws_sdk_s3::error::{ErrorMetadata, ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::RequestId as _;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;

pub(super) use crate::aws::errors::ErrorSignal;
use crate::aws::errors::{S3Classification, error_response, is_web_page, names_checksum, s3_status};
use crate::domain::destination::{Destination, Region};
use crate::domain::diagnosis;
use crate::domain::outcome::{AwsError, Failure, Reason, denied_action};

/// Failed call: the failure, the signal for the upload, and if the request may have taken effect.
#[derive(Debug)]
pub(crate) struct CallError {
    pub(crate) failure: Failure,
    pub(super) signal: ErrorSignal,
    /// True if no clear answer came: S3 may have done what was asked.
    pub(crate) ambiguous: bool,
}

impl CallError {
    pub(super) fn new(failure: Failure) -> Self {
        Self { failure, signal: ErrorSignal::None, ambiguous: false }
    }
}

/// Classifies an error of `operation` (the API's name).
pub(crate) fn classify<E>(
    operation: &'static str,
    error: &SdkError<E, HttpResponse>,
    destination: &Destination,
) -> CallError
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    match error {
        _ if error.raw_response().is_some_and(is_of_another) => not_s3(&error_response(operation, error), destination),
        SdkError::ServiceError(answer) => {
            answered(error_response(operation, error), answer.err().meta(), answer.raw(), destination)
        }
        SdkError::ResponseError(answer) => {
            let status = answer.raw().status().as_u16();
            let message = format!("{operation}: S3 answered {status} with a body that can't be read");
            CallError {
                ambiguous: true,
                ..CallError::new(Failure::new(s3_status(status).reason_or_broken(status), message))
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

/// Returns true for a refusal that is a web page. Of errors of servers, S3 sends pages, too.
fn is_of_another(raw: &HttpResponse) -> bool {
    (300..500).contains(&raw.status().as_u16()) && is_web_page(raw)
}

/// The failure for an answer of a proxy or web server: S3 was not reached.
fn not_s3(page: &AwsError, destination: &Destination) -> CallError {
    let AwsError { operation, status, .. } = *page;
    let answer = AwsError::new(operation, status, None, None);
    let message = format!("{operation}: a proxy or web server answered instead of S3, with a web page ({status})");
    let hint = diagnosis::hint(Reason::Connection, &answer, destination);
    CallError::new(Failure { answer: Some(Box::new(answer)), ..Failure::new(Reason::Connection, message).hint(hint) })
}

pub(super) fn unanswered(operation: &'static str, reason: Reason, what: &str) -> CallError {
    CallError { ambiguous: true, ..CallError::new(Failure::new(reason, format!("{operation}: {what}"))) }
}

fn answered(answer: AwsError, meta: &ErrorMetadata, raw: &HttpResponse, destination: &Destination) -> CallError {
    let AwsError { operation, status, .. } = answer;
    // The whole message: the one in `answer` is cut.
    let (code, message) = (answer.code.as_str(), meta.message().unwrap_or_default());
    let S3Classification { mut reason, mut signal } = S3Classification::of(operation, code, status, destination);
    if signal == ErrorSignal::None && names_checksum(status, message) {
        signal = ErrorSignal::ChecksumRequired;
    }
    if reason == Reason::AccessDenied && denied_action(message).is_some_and(|action| action.starts_with("kms:")) {
        reason = Reason::KmsDenied;
    }
    let shown = if code.is_empty() { status.to_string() } else { format!("{status} {code}") };
    let mut failure = Failure::new(reason, format!("{operation}: S3 answered {shown}"));
    failure.hint = diagnosis::hint(reason, &answer, destination);
    failure.aws_request_id = AwsError::request_id(meta.request_id());
    failure.retry_after = raw.headers().get("retry-after").and_then(|text| text.parse().ok()).map(Duration::from_secs);
    if reason == Reason::WrongRegion {
        failure.learnt_region = learnt_region(raw, message);
    }
    if reason == Reason::Unclassified && !answer.message.is_empty() {
        failure.message = format!("{}: {}", failure.message, answer.message.chars().take(300).collect::<String>());
    }
    failure.answer = Some(Box::new(answer));
    // A 5xx after the request was read may have taken effect; a refusal has not.
    CallError { failure, signal, ambiguous: !(300..500).contains(&status) && status != 501 }
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
            (501, "NotImplemented", Reason::AccessDenied),
            (400, "NotImplemented", Reason::AccessDenied),
            (501, "", Reason::AccessDenied),
            (403, "QuotaExceeded", Reason::AccessDenied),
            (400, "XMinioAdminBucketQuotaExceeded", Reason::AccessDenied),
            (507, "XMinioStorageFull", Reason::AccessDenied),
            (507, "", Reason::AccessDenied),
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
    fn a_web_page_is_not_an_answer_of_s3() {
        for status in [302, 403, 407] {
            let error = answer(status, "", "", &[("content-type", "text/html; charset=utf-8")]);
            assert_eq!(error.failure.reason, Reason::Connection, "{status}");
            let (message, hint) = (&error.failure.message, &error.failure.hint);
            assert!(message.contains("proxy") && !hint.contains("s3:PutObject"), "{message} {hint}");
        }
        let unavailable = answer(503, "", "", &[("content-type", "text/html")]);
        assert_eq!(unavailable.failure.reason, Reason::S3Unavailable);
        assert_eq!(answer(403, "", "", &[("content-type", "application/xml")]).failure.reason, Reason::AccessDenied);
    }

    #[test]
    fn a_checksum_that_only_the_completion_refuses_is_the_stores() {
        let destination = destination(RawMethod::IamRole);
        let refused = |operation| {
            let meta = ErrorMetadata::builder().code("BadDigest").build();
            let raw = HttpResponse::new(StatusCode::try_from(400).unwrap(), SdkBody::empty());
            classify(operation, &SdkError::service_error(PutObjectError::generic(meta), raw), &destination)
        };
        assert_eq!(refused("UploadPart").failure.reason, Reason::Connection);
        let refused = refused("CompleteMultipartUpload").failure;
        assert_eq!((refused.reason, refused.class()), (Reason::AccessDenied, Class::Destination));
        assert!(refused.hint.contains("checksum = \"none\""), "{}", refused.hint);
    }

    #[test]
    fn a_refusal_for_want_of_a_checksum_header_is_recognised() {
        for (code, said) in [
            (
                "InvalidRequest",
                "Content-MD5 OR x-amz-checksum- HTTP header is required for Put Part requests with Object Lock parameters",
            ),
            (
                "InvalidRequest",
                "Checksum Type mismatch occurred, expected checksum Type: crc64nvme, actual checksum Type: null",
            ),
            ("InvalidArgument", "Invalid arguments provided for b/k: (checksum missing, want \"CRC64NVME\", got \"\")"),
            ("MissingContentMD5", "Missing required header for this request: Content-Md5."),
        ] {
            assert_eq!(answer(400, code, said, &[]).signal, ErrorSignal::ChecksumRequired, "{said}");
        }
        let mismatch = "The CRC64NVME you specified did not match the calculated checksum.";
        assert_eq!(answer(400, "BadDigest", mismatch, &[]).signal, ErrorSignal::BadDigest);
        assert_eq!(answer(400, "InvalidRequest", "the part number is wrong", &[]).signal, ErrorSignal::None);
        assert_eq!(answer(500, "InternalError", "the checksum service is down", &[]).signal, ErrorSignal::None);
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
