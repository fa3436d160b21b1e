//! Transfer of one object: a new upload, or a resumed one.

use std::sync::atomic::Ordering;

use super::{TransferRequest, Transfers, body};
use crate::domain::destination::{Destination, ObjectKey};
use crate::domain::job::lease::{Checkpoint, PartSizes, SourceMark};
use crate::domain::job::{Compression, DestinationRef, Job, ObjectAttributes};
use crate::domain::outcome::{Failure, Reason, Receipt, TransferResult};
use crate::domain::staging::SourceReader;
use crate::runtime::failpoints;
use crate::source::SourceStream;
use crate::telemetry::spans;
use crate::upload::{Target, UploadControl, Uploaded, fits, next_offset};

/// Object to transfer in one attempt.
pub(super) struct ObjectTransfer<'a> {
    pub(super) transfers: &'a Transfers,
    pub(super) job: &'a Job,
    pub(super) request: &'a TransferRequest<'a>,
    /// Whole key of the object.
    pub(super) key: &'a ObjectKey,
}

impl ObjectTransfer<'_> {
    /// Resumes the recorded upload if it still matches; else starts a new one.
    pub(super) async fn upload(&self) -> Result<TransferResult, Failure> {
        if let Some(checkpoint) = self.request.open_upload.checkpoint()
            && let Some(ended) = self.resume(checkpoint).await?
        {
            return Ok(ended);
        }
        let opening = self.transfers.sources.open(&self.job.source, reader(self.job, self.request.destination));
        let source = self.opened(opening).await?;
        let ended = self.send(source, None).await?;
        ended.ok_or_else(|| Failure::new(Reason::S3Unavailable, "the upload disappeared while it was written"))
    }

    /// Resumes the upload of `checkpoint`; `None` if that is impossible and nothing of it is left.
    async fn resume(&self, mut checkpoint: Checkpoint) -> Result<Option<TransferResult>, Failure> {
        if let PartSizes::Packed { .. } = checkpoint.sizes {
            // Another build of the compression may cut otherwise: what comes after a gap would not fit what is put into it.
            checkpoint.parts.truncate(checkpoint.unbroken().len());
        }
        let mut source = None;
        let packed = matches!(checkpoint.sizes, PartSizes::Packed { .. });
        let cut_otherwise = packed && self.transfers.uploader.wants_equal_parts(self.request.destination);
        if !cut_otherwise && fits(&checkpoint, self.request.destination, self.key, self.job.compression) {
            let offset = next_offset(&checkpoint);
            let opening = self.transfers.sources.open_at(
                &self.job.source,
                reader(self.job, self.request.destination),
                &checkpoint.source,
                offset,
            );
            source = self.opened(opening).await?;
            // A checkpoint of a compressed upload counts plain bytes.
            source =
                source.filter(|source| self.job.compression == Compression::None || source.content_encoding.is_none());
        }
        let Some(source) = source else {
            tracing::info!(
                event = "upload_restarted",
                job_id = %self.job.id,
                "source or destination changed; the upload starts again"
            );
            self.request.open_upload.close();
            self.transfers.uploader.abort_upload(self.request.destination, &checkpoint).await;
            return Ok(None);
        };
        let (parts, bytes) = (checkpoint.parts.len(), checkpoint.bytes());
        tracing::info!(event = "upload_resumed", job_id = %self.job.id, parts, bytes, "resuming an unfinished upload");
        let ended = self.send(source, Some(checkpoint)).await?;
        if ended.is_none() {
            tracing::info!(
                event = "upload_restarted",
                job_id = %self.job.id,
                "the unfinished upload no longer exists; it starts again"
            );
        }
        Ok(ended)
    }

    /// Returns the result of `opening`, once the session exists.
    async fn opened<T>(&self, opening: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        let scheme = self.job.source.location.scheme();
        let opened = async {
            let destination = self.request.destination;
            spans::within(spans::session(destination.id.as_str()), self.transfers.sessions.get(destination)).await?;
            failpoints::hit("session");
            spans::within(spans::source(scheme), opening).await
        };
        tokio::select! {
            biased;
            () = self.request.stop.cancel.cancelled() => Err(Failure::new(Reason::Shutdown, "the worker is draining")),
            opened = opened => opened,
        }
    }

    /// Uploads the source; `None` if the upload to resume no longer exists.
    async fn send(&self, source: SourceStream, resume: Option<Checkpoint>) -> Result<Option<TransferResult>, Failure> {
        if let Some(length) = source.length {
            self.request.progress.source_opened(length);
        }
        let mark = source.validator.clone().filter(|_| source.resumable);
        let mark = mark.map(|validator| SourceMark { validator, length: source.length });
        // A compressed upload can't have parts of one length and be continued.
        let equal_parts = self.transfers.uploader.wants_equal_parts(self.request.destination);
        let attributes = attributes(self.job, source.content_encoding.as_deref());
        let length_unproven = source.length_unproven;
        let (body, mark, read) = match self.job.compression {
            Compression::None => (body::plain(source), mark, None),
            compression if mark.is_none() || equal_parts || source.content_encoding.is_some() => {
                let (body, read) = body::compressed(source, compression)?;
                (body, None, Some(read))
            }
            compression => (body::packed(source, compression, resume.as_ref()), mark, None),
        };
        let target = Target {
            destination: self.request.destination,
            key: self.key,
            attributes: &attributes,
            if_exists: self.job.if_exists,
            may_be_written: &self.request.may_be_written,
            progress: self.request.progress,
            rate_limiter: self.request.rate_limiter,
            gate: self.request.gate,
        };
        let control = UploadControl { stop: self.request.stop, open_upload: self.request.open_upload, mark, resume };
        Ok(match self.transfers.uploader.upload(&target, body, control).await? {
            Uploaded::Stored(receipt) => {
                let source_bytes = read.map_or(receipt.source_bytes, |read| read.load(Ordering::Relaxed));
                Some(TransferResult::Delivered(Receipt { source_bytes, length_unproven, ..receipt }))
            }
            Uploaded::KeptExisting => Some(TransferResult::Skipped),
            Uploaded::Stale => None,
        })
    }
}

/// The destination that the source is read for. Only what is configured says whose it is.
fn reader<'a>(job: &Job, destination: &'a Destination) -> SourceReader<'a> {
    match job.destination {
        DestinationRef::Configured(_) => SourceReader::Configured(destination.tenant.as_deref()),
        DestinationRef::Inline(_) => SourceReader::Inline,
    }
}

/// The object's headers, with the Content-Encoding of the compression or of the source unless the
/// job gives its own.
fn attributes(job: &Job, source: Option<&str>) -> ObjectAttributes {
    let encoding = match job.compression {
        Compression::None => source.map(ToOwned::to_owned),
        Compression::Gzip => Some("gzip".to_owned()),
        Compression::Zstd => Some("zstd".to_owned()),
    };
    let mut attributes = job.object.clone();
    attributes.content_encoding = attributes.content_encoding.or(encoding);
    attributes
}
