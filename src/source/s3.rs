//! `s3://` sources in the staging buckets, read with the worker's own identity.

use std::sync::Arc;

pub(super) use aws_sdk_s3::Client;
use aws_sdk_s3::config::{Builder, ResponseChecksumValidation};
use aws_sdk_s3::error::{ProvideErrorMetadata as _, SdkError};
use aws_sdk_s3::operation::get_object::{GetObjectError, GetObjectOutput};
use aws_sdk_s3::operation::{RequestId as _, get_object::builders::GetObjectFluentBuilder};
use aws_sdk_s3::primitives::ByteStream;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, stream};

use super::resume::{self, OpenedSource, Origin, OriginResponse, ReadLimits, ResponseBody};
use crate::domain::destination::BucketName;
use crate::domain::job::lease::SourceMark;
use crate::domain::outcome::{Failure, Reason};
use crate::metrics::{self, Metrics};

/// Reads from the staging buckets; one for all jobs.
#[derive(Debug, Clone)]
pub(super) struct S3Source {
    client: Client,
    buckets: Vec<String>,
    limits: ReadLimits,
    metrics: Arc<Metrics>,
}

impl S3Source {
    pub(super) fn new(client: Client, buckets: Vec<String>, limits: ReadLimits, metrics: Arc<Metrics>) -> Self {
        Self { client, buckets, limits, metrics }
    }

    /// Requests the whole object. A bucket that is not listed is refused without a request.
    pub(super) async fn open(&self, bucket: &BucketName, key: &str) -> Result<OpenedSource, Failure> {
        let origin = self.origin(bucket, key, "")?;
        let output = origin.get(None).await?;
        let length = output.content_length().and_then(|length| u64::try_from(length).ok());
        let etag = output.e_tag().map(ToOwned::to_owned);
        let resumable = etag.as_deref().is_some_and(resume::is_strong);
        let origin = S3Origin { etag: etag.clone().unwrap_or_default(), ..origin };
        let whole = OriginResponse { body: body(output.body), length };
        let chunks = resume::chunks(Box::new(origin), whole, 0, resumable, self.limits);
        Ok(OpenedSource { length, etag, resumable, chunks })
    }

    /// Requests the object that `checkpoint` identifies from byte `from` on, which must be in it.
    /// Returns `None` if that object is not available any more.
    pub(super) async fn open_at(
        &self,
        bucket: &BucketName,
        key: &str,
        checkpoint: &SourceMark,
        from: u64,
    ) -> Result<Option<OpenedSource>, Failure> {
        if from == 0 {
            return Ok(self.open(bucket, key).await?.matching(checkpoint));
        }
        let origin = self.origin(bucket, key, &checkpoint.validator)?;
        let output = match origin.get(Some(from)).await {
            Err(failure) if failure.reason == Reason::SourceChanged => return Ok(None),
            answered => answered?,
        };
        let etag = output.e_tag().map(ToOwned::to_owned);
        // A wrong range of any kind: the job starts from the beginning, and fails then if it must.
        let Ok(rest) = origin.range(output, from) else { return Ok(None) };
        let length = rest.length;
        let chunks = resume::chunks(Box::new(origin), rest, from, true, self.limits);
        Ok(OpenedSource { length, etag, resumable: true, chunks }.matching(checkpoint))
    }

    fn origin(&self, bucket: &BucketName, key: &str, etag: &str) -> Result<S3Origin, Failure> {
        if !self.buckets.iter().any(|allowed| allowed == bucket.as_str()) {
            let message = format!("source.s3_buckets does not list the bucket {bucket}");
            return Err(Failure::new(Reason::SourceForbidden, message));
        }
        Ok(S3Origin { source: self.clone(), bucket: bucket.to_string(), key: key.to_owned(), etag: etag.to_owned() })
    }
}

fn body(body: ByteStream) -> ResponseBody {
    Box::pin(stream::unfold(body, |mut body| async move {
        let item = body.next().await?;
        Some((item.map_err(|error| innermost(&error)), body))
    }))
}

/// One object, identified by its entity tag.
struct S3Origin {
    source: S3Source,
    bucket: String,
    key: String,
    etag: String,
}

impl S3Origin {
    async fn get(&self, from: Option<u64>) -> Result<GetObjectOutput, Failure> {
        let mut request = self.source.client.get_object().bucket(&self.bucket).key(&self.key);
        if let Some(from) = from {
            request = request.range(format!("bytes={from}-")).if_match(&self.etag);
        }
        let answered = self.source.limits.in_time(self.name(), send(request)).await;
        self.source.metrics.s3_request("GetObject", status_label(&answered));
        answered?.map_err(|error| classify(&self.name(), &error))
    }

    /// Returns the body, if it is the requested range. The entity tag is checked because some
    /// stores ignore `If-Match`.
    fn range(&self, output: GetObjectOutput, from: u64) -> Result<OriginResponse, Failure> {
        if output.e_tag().is_some_and(|etag| etag != self.etag) {
            let message = format!("{} changed while it was read", self.name());
            return Err(Failure::new(Reason::SourceChanged, message));
        }
        let range = output.content_range().unwrap_or_default();
        if !range.starts_with(&format!("bytes {from}-")) {
            let message = format!("{} answered with another range than the requested one", self.name());
            return Err(Failure::new(Reason::Unclassified, message));
        }
        let length = range.rsplit_once('/').and_then(|(_, total)| total.parse().ok());
        Ok(OriginResponse { body: body(output.body), length })
    }
}

/// Sends the request without checksum validation: the SDK would compare the checksum of the whole
/// object with the requested range. Length, entity tag and the job's digest are checked instead.
async fn send(request: GetObjectFluentBuilder) -> Result<GetObjectOutput, SdkError<GetObjectError>> {
    let plain = Builder::new().response_checksum_validation(ResponseChecksumValidation::WhenRequired);
    request.customize().config_override(plain).send().await
}

impl Origin for S3Origin {
    fn name(&self) -> String {
        format!("s3://{}/{}", self.bucket, self.key)
    }

    fn reopen(&self, from: u64) -> BoxFuture<'_, Result<OriginResponse, Failure>> {
        async move { self.range(self.get(Some(from)).await?, from) }.boxed()
    }
}

/// Returns the status label of a request for the metrics. The outer error is the response timeout.
fn status_label<T, E>(answered: &Result<Result<T, SdkError<E>>, Failure>) -> &'static str {
    match answered {
        Ok(Ok(_)) => "2xx",
        Ok(Err(SdkError::DispatchFailure(broken))) if broken.is_timeout() => "timeout",
        Ok(Err(SdkError::TimeoutError(_))) | Err(_) => "timeout",
        Ok(Err(error)) => error.raw_response().map_or("connection", |raw| metrics::status_label(raw.status().as_u16())),
    }
}

/// What a refusal of the staging bucket means. By code and by status: some stores send no code.
fn classify(name: &str, error: &SdkError<GetObjectError>) -> Failure {
    let code = error.code().unwrap_or_default();
    let status = error.raw_response().map(|response| response.status().as_u16());
    let failure = |reason, what: &str| Failure::new(reason, format!("{name} {what}{}", shown(code, status)));
    let mut failure = match (code, status) {
        ("NoSuchKey" | "NoSuchBucket" | "NoSuchVersion", _) => failure(Reason::SourceNotFound, "does not exist"),
        ("PreconditionFailed", _) | (_, Some(412)) => failure(Reason::SourceChanged, "changed while it was read"),
        ("InvalidRange", _) | (_, Some(416)) => failure(Reason::SourceChanged, "is shorter than it was"),
        ("RequestTimeTooSkewed", _) => failure(Reason::ClockSkew, "refuses this worker's clock"),
        ("InvalidAccessKeyId" | "SignatureDoesNotMatch", _) => {
            failure(Reason::IdentityDenied, "does not accept this worker's own credentials")
        }
        // The SDK renews what has run out before the next try.
        ("ExpiredToken" | "TokenRefreshRequired" | "InvalidToken", _) => {
            failure(Reason::SourceUnavailable, "refused credentials that had run out")
        }
        ("InvalidObjectState", _) => failure(Reason::SourceDenied, "is archived; restore it first"),
        (code, _) if code.contains("Throttl") || matches!(code, "SlowDown" | "RequestTimeout") => {
            failure(Reason::SourceUnavailable, "asks for patience")
        }
        (_, Some(401 | 403)) => failure(Reason::SourceDenied, "may not be read")
            .hint("Allow the worker's own identity s3:GetObject (and kms:Decrypt) on the staging bucket."),
        (_, Some(404 | 410)) => failure(Reason::SourceNotFound, "does not exist"),
        (_, Some(408 | 429 | 500..=599)) => failure(Reason::SourceUnavailable, "is unavailable"),
        // The platform's own setting is wrong, not the job.
        (_, Some(301 | 307)) | ("AuthorizationHeaderMalformed", _) => failure(
            Reason::SourceUnavailable,
            "lives in another region than aws.region; correct this worker's configuration",
        ),
        (_, Some(300..=499)) => failure(Reason::Unclassified, "refuses the request"),
        _ => failure(Reason::SourceUnavailable, &format!("can't be reached: {}", innermost(error))),
    };
    failure.aws_request_id = error.request_id().map(ToOwned::to_owned);
    failure
}

fn shown(code: &str, status: Option<u16>) -> String {
    match (code, status) {
        ("", None) => String::new(),
        ("", Some(status)) => format!(" (HTTP {status})"),
        (code, _) => format!(" ({code})"),
    }
}

/// The innermost cause, which is the one in plain words.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut innermost = error;
    while let Some(inner) = innermost.source() {
        innermost = inner;
    }
    innermost.to_string()
}

#[cfg(test)]
pub(super) mod tests;
