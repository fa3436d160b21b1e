//! `s3://` sources in the staging buckets, read with the worker's own identity.

use std::sync::Arc;

pub(super) use aws_sdk_s3::Client;
use aws_sdk_s3::config::{Builder, ResponseChecksumValidation};
use aws_sdk_s3::error::SdkError;
use aws_sdk_s3::operation::get_object::builders::GetObjectFluentBuilder;
use aws_sdk_s3::operation::get_object::{GetObjectError, GetObjectOutput};
use aws_sdk_s3::primitives::ByteStream;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, stream};

use super::resume::{self, Body, Limits, Opened, Origin, Rest};
use crate::aws::errors::{innermost, staging_failure, status_label};
use crate::domain::destination::BucketName;
use crate::domain::job::lease::SourceMark;
use crate::domain::outcome::{Failure, Reason};
use crate::metrics::Metrics;

/// Reads from the staging buckets; one for all jobs.
#[derive(Debug, Clone)]
pub(super) struct S3Source {
    client: Client,
    buckets: Vec<String>,
    limits: Limits,
    metrics: Arc<Metrics>,
}

impl S3Source {
    pub(super) fn new(client: Client, buckets: Vec<String>, limits: Limits, metrics: Arc<Metrics>) -> Self {
        Self { client, buckets, limits, metrics }
    }

    /// Asks for the whole object. A bucket that is not listed is refused without a request.
    pub(super) async fn open(&self, bucket: &BucketName, key: &str) -> Result<Opened, Failure> {
        let again = self.again(bucket, key, "")?;
        let output = again.get(None).await?;
        let length = output.content_length().and_then(|length| u64::try_from(length).ok());
        let etag = output.e_tag().map(ToOwned::to_owned);
        let resumable = etag.as_deref().is_some_and(resume::is_strong);
        let again = Again { etag: etag.clone().unwrap_or_default(), ..again };
        let whole = Rest { body: body(output.body), length };
        let chunks = resume::chunks(Box::new(again), whole, 0, resumable, self.limits);
        Ok(Opened { length, etag, resumable, chunks })
    }

    /// Asks for the object that `mark` names from byte `from` on, which must be in it; `None` if it can't be had any more.
    pub(super) async fn open_at(
        &self,
        bucket: &BucketName,
        key: &str,
        mark: &SourceMark,
        from: u64,
    ) -> Result<Option<Opened>, Failure> {
        if from == 0 {
            return Ok(self.open(bucket, key).await?.if_is(mark));
        }
        let again = self.again(bucket, key, &mark.validator)?;
        let output = match again.get(Some(from)).await {
            Err(failure) if failure.reason == Reason::SourceChanged => return Ok(None),
            answered => answered?,
        };
        let etag = output.e_tag().map(ToOwned::to_owned);
        // Whatever is wrong with a part: the object begins anew, and is judged then.
        let Ok(rest) = again.rest(output, from) else { return Ok(None) };
        let length = rest.length;
        let chunks = resume::chunks(Box::new(again), rest, from, true, self.limits);
        Ok(Opened { length, etag, resumable: true, chunks }.if_is(mark))
    }

    fn again(&self, bucket: &BucketName, key: &str, etag: &str) -> Result<Again, Failure> {
        if !self.buckets.iter().any(|allowed| allowed == bucket.as_str()) {
            let message = format!("bucket {bucket} is not one that source.s3_buckets allows to read");
            return Err(Failure::new(Reason::SourceForbidden, message));
        }
        Ok(Again { source: self.clone(), bucket: bucket.to_string(), key: key.to_owned(), etag: etag.to_owned() })
    }
}

fn body(body: ByteStream) -> Body {
    Box::pin(stream::unfold(body, |mut body| async move {
        let item = body.next().await?;
        Some((item.map_err(|error| innermost(&error)), body))
    }))
}

struct Again {
    source: S3Source,
    bucket: String,
    key: String,
    etag: String,
}

impl Again {
    async fn get(&self, from: Option<u64>) -> Result<GetObjectOutput, Failure> {
        let mut request = self.source.client.get_object().bucket(&self.bucket).key(&self.key);
        if let Some(from) = from {
            request = request.range(format!("bytes={from}-")).if_match(&self.etag);
        }
        let answered = self.source.limits.in_time(self.name(), send(request)).await;
        self.source.metrics.s3_request("GetObject", status_label(&answered));
        answered?.map_err(|error| staging_failure(&self.name(), &error))
    }

    /// The answer's body, if it is the part that was asked for. Some stores don't know `If-Match`.
    fn rest(&self, output: GetObjectOutput, from: u64) -> Result<Rest, Failure> {
        if output.e_tag().is_some_and(|etag| etag != self.etag) {
            let message = format!("{} changed while it was read", self.name());
            return Err(Failure::new(Reason::SourceChanged, message));
        }
        let range = output.content_range().unwrap_or_default();
        if !range.starts_with(&format!("bytes {from}-")) {
            let message = format!("{} answered with another part than the one that was asked for", self.name());
            return Err(Failure::new(Reason::Unclassified, message));
        }
        let length = range.rsplit_once('/').and_then(|(_, total)| total.parse().ok());
        Ok(Rest { body: body(output.body), length })
    }
}

/// The SDK would check a checksum that S3 keeps for the whole against the part that was asked for; length, tag and the job's
/// own digest are what we go by.
async fn send(request: GetObjectFluentBuilder) -> Result<GetObjectOutput, SdkError<GetObjectError>> {
    let plain = Builder::new().response_checksum_validation(ResponseChecksumValidation::WhenRequired);
    request.customize().config_override(plain).send().await
}

impl Origin for Again {
    fn name(&self) -> String {
        format!("s3://{}/{}", self.bucket, self.key)
    }

    fn reopen(&self, from: u64) -> BoxFuture<'_, Result<Rest, Failure>> {
        async move { self.rest(self.get(Some(from)).await?, from) }.boxed()
    }
}

#[cfg(test)]
pub(super) mod tests;
