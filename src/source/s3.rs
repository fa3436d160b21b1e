//! `s3://` sources in the staging buckets, read with the worker's own identity.

use std::sync::Arc;

use async_trait::async_trait;
pub(super) use aws_sdk_s3::Client;
use aws_sdk_s3::config::{Builder, ResponseChecksumValidation};
use aws_sdk_s3::error::SdkError;
use aws_sdk_s3::operation::get_object::builders::GetObjectFluentBuilder;
use aws_sdk_s3::operation::get_object::{GetObjectError, GetObjectOutput};
use aws_sdk_s3::primitives::ByteStream;
use futures_util::stream;

use super::https::{covers_the_whole, is_chunked};
use super::resume::{self, OpenedSource, Origin, OriginResponse, ReadLimits, ResponseBody};
use crate::aws::errors::{staging_failure, status_label};
use crate::aws::headers::KeptHeader;
use crate::domain::destination::{AccountId, BucketName};
use crate::domain::job::lease::SourceMark;
use crate::domain::outcome::{Failure, Reason};
use crate::domain::staging::{SourceReader, StagingPlace};
use crate::metrics::Metrics;
use crate::runtime::causes::innermost;

/// Reads from the staging buckets; one for all jobs.
#[derive(Debug, Clone)]
pub(super) struct S3Source {
    client: Client,
    places: Vec<StagingPlace>,
    limits: ReadLimits,
    metrics: Arc<Metrics>,
}

impl S3Source {
    pub(super) fn new(client: Client, places: Vec<StagingPlace>, limits: ReadLimits, metrics: Arc<Metrics>) -> Self {
        Self { client, places, limits, metrics }
    }

    /// Requests the whole object. What is in no place of the reader is refused without a request.
    pub(super) async fn open(
        &self,
        bucket: &BucketName,
        key: &str,
        reader: SourceReader<'_>,
    ) -> Result<OpenedSource, Failure> {
        let origin = self.origin(bucket, key, reader, "")?;
        let (output, end_marked) = origin.get(None).await?;
        let length = output.content_length().and_then(|length| u64::try_from(length).ok());
        let etag = output.e_tag().map(ToOwned::to_owned);
        let content_encoding = output.content_encoding.clone();
        if let Some(range) = output.content_range().filter(|range| !covers_the_whole(range)) {
            let message = format!("{} sent only a part although all was requested ({range})", origin.name());
            return Err(Failure::new(Reason::SourceUnavailable, message));
        }
        let resumable = etag.as_deref().is_some_and(resume::is_strong);
        let origin = S3Origin { etag: etag.clone().unwrap_or_default(), ..origin };
        let whole = OriginResponse { body: body(output.body), length, end_marked };
        let chunks = resume::chunks(Box::new(origin), whole, 0, resumable, self.limits);
        Ok(OpenedSource { length, etag, content_encoding, end_marked, resumable, chunks })
    }

    /// Requests the object that `checkpoint` identifies from byte `from` on, which must be in it.
    /// Returns `None` if that object is not available any more.
    pub(super) async fn open_at(
        &self,
        bucket: &BucketName,
        key: &str,
        reader: SourceReader<'_>,
        checkpoint: &SourceMark,
        from: u64,
    ) -> Result<Option<OpenedSource>, Failure> {
        if from == 0 {
            return Ok(self.open(bucket, key, reader).await?.matching(checkpoint));
        }
        let origin = self.origin(bucket, key, reader, &checkpoint.validator)?;
        let output = match origin.get(Some(from)).await {
            Err(failure) if failure.reason == Reason::SourceChanged => return Ok(None),
            answered => answered?,
        };
        let (etag, content_encoding) = (output.0.e_tag.clone(), output.0.content_encoding.clone());
        // A wrong range of any kind: the job starts from the beginning, and fails then if it must.
        let Ok(rest) = origin.range(output, from) else { return Ok(None) };
        let (length, end_marked) = (rest.length, rest.end_marked);
        let chunks = resume::chunks(Box::new(origin), rest, from, true, self.limits);
        Ok(OpenedSource { length, etag, content_encoding, end_marked, resumable: true, chunks }.matching(checkpoint))
    }

    fn origin(
        &self,
        bucket: &BucketName,
        key: &str,
        reader: SourceReader<'_>,
        etag: &str,
    ) -> Result<S3Origin, Failure> {
        let owner = self.place(bucket, key, reader)?.owner.clone();
        let (bucket, key, etag) = (bucket.to_string(), key.to_owned(), etag.to_owned());
        Ok(S3Origin { source: self.clone(), bucket, key, etag, owner })
    }

    /// Returns the place of an object that the reader may read.
    fn place(&self, bucket: &BucketName, key: &str, reader: SourceReader<'_>) -> Result<&StagingPlace, Failure> {
        let refused = |message: String| Failure::new(Reason::SourceForbidden, message);
        if !self.places.iter().any(|place| place.bucket == *bucket) {
            let denied = refused(format!("source.s3 does not list the bucket {bucket}"));
            return Err(denied.hint(format!("add {bucket} to [[source.s3]]")));
        }
        let mut denied = String::new();
        for place in self.places.iter().filter(|place| place.bucket == *bucket) {
            match place.prefix.filled(reader) {
                Ok(prefix) if key.starts_with(&prefix) => return Ok(place),
                Ok(_) => denied = format!("the object is outside of the folders of source.s3 in the bucket {bucket}"),
                Err(why) => denied = format!("the place in the bucket {bucket} (source.s3) {why}"),
            }
        }
        Err(refused(denied))
    }
}

fn body(body: ByteStream) -> ResponseBody {
    Box::pin(stream::unfold(body, |mut body| async move {
        let item = body.next().await?;
        Some((item.map_err(|error| innermost(&error).to_string()), body))
    }))
}

/// One object, identified by its entity tag.
struct S3Origin {
    source: S3Source,
    bucket: String,
    key: String,
    etag: String,
    owner: Option<AccountId>,
}

impl S3Origin {
    /// Returns the response, and true if the transport marks the end of its body.
    async fn get(&self, from: Option<u64>) -> Result<(GetObjectOutput, bool), Failure> {
        // Chunks mark the end of a body. The SDK's output does not tell.
        let codings = KeptHeader::new("transfer-encoding");
        let mut request = self.source.client.get_object().bucket(&self.bucket).key(&self.key);
        request = request.set_expected_bucket_owner(self.owner.as_ref().map(ToString::to_string));
        if let Some(from) = from {
            request = request.range(format!("bytes={from}-")).if_match(&self.etag);
        }
        let answered = self.source.limits.in_time(self.name(), send(request, codings.clone())).await;
        self.source.metrics.s3_request("GetObject", status_label(&answered));
        let output = answered?.map_err(|error| staging_failure(&self.name(), &error))?;
        Ok((output, codings.get().as_deref().is_some_and(is_chunked)))
    }

    /// Returns the body, if it is the requested range. The entity tag is checked because some
    /// stores ignore `If-Match`.
    fn range(&self, (output, end_marked): (GetObjectOutput, bool), from: u64) -> Result<OriginResponse, Failure> {
        if output.e_tag().is_some_and(|etag| etag != self.etag) {
            let message = format!("{} changed while it was read", self.name());
            return Err(Failure::new(Reason::SourceChanged, message));
        }
        let range = output.content_range().unwrap_or_default();
        if !range.starts_with(&format!("bytes {from}-")) {
            let message = format!("{} answered with another range than the requested one", self.name());
            return Err(Failure::new(Reason::SourceUnavailable, message));
        }
        let length = range.rsplit_once('/').and_then(|(_, total)| total.parse().ok());
        Ok(OriginResponse { body: body(output.body), length, end_marked })
    }
}

/// Sends the request without checksum validation: the SDK would compare the checksum of the whole
/// object with the requested range. Length, entity tag and the job's digest are checked instead.
async fn send(
    request: GetObjectFluentBuilder,
    codings: KeptHeader,
) -> Result<GetObjectOutput, SdkError<GetObjectError>> {
    let plain = Builder::new().response_checksum_validation(ResponseChecksumValidation::WhenRequired);
    request.customize().config_override(plain).interceptor(codings).send().await
}

#[async_trait]
impl Origin for S3Origin {
    fn name(&self) -> String {
        format!("s3://{}/{}", self.bucket, self.key)
    }

    async fn reopen(&self, from: u64) -> Result<OriginResponse, Failure> {
        self.range(self.get(Some(from)).await?, from)
    }
}

#[cfg(test)]
pub(super) mod tests;
