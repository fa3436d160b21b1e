//! One job from start to result: session, source, upload. Knows no queue and no attempts.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::Timestamp;

use crate::check::{CheckReport, Checker, LIMIT};
use crate::domain::destination::{Destination, ObjectKey};
use crate::domain::diagnosis::Who;
use crate::domain::job::lease::{Checkpoint, PartSizes, SourceMark};
use crate::domain::job::{Compression, DestinationRef, Job, ObjectAttributes, Source};
use crate::domain::outcome::{Failure, Reason, Receipt, Symptom, TransferResult};
use crate::domain::staging::SourceReader;
use crate::metrics::Metrics;
use crate::runtime::failpoints;
use crate::session::Sessions;
use crate::source::compress::{self, Packer};
use crate::source::{SourceBody, SourceStream, Sources, counted, encoding};
use crate::telemetry::spans;
use crate::upload::{
    OpenUpload, Progress, RateLimiter, StopSignals, Target, UploadBody, UploadControl, Uploaded, Uploader, WriteGate,
    fits, next_offset,
};

/// Everything a transfer uses. Built once, shared by all.
#[derive(Debug)]
pub struct Transfers {
    /// Clients by destination.
    pub sessions: Arc<Sessions>,
    /// Sources of the bytes.
    pub sources: Sources,
    /// Uploads into the destinations.
    pub uploader: Uploader,
    /// Metrics.
    pub metrics: Arc<Metrics>,
}

/// Inputs of one attempt, beside the job.
#[derive(Debug)]
pub struct TransferRequest<'a> {
    /// The job's destination, resolved.
    pub destination: &'a Arc<Destination>,
    /// True if an earlier attempt may have written the object, or a try of this one whose reply was
    /// lost.
    pub may_be_written: AtomicBool,
    /// Ends the attempt early, as `shutdown`.
    pub stop: &'a StopSignals,
    /// Bytes that S3 has accepted so far, for the status page.
    pub progress: &'a Progress,
    /// Checkpoint of an unfinished earlier attempt. It is resumed if source and destination are
    /// unchanged, else aborted.
    pub resume: Option<Checkpoint>,
    /// Checkpoint of this attempt's upload. Its content at the end of a failed attempt is still
    /// open on S3.
    pub open_upload: &'a OpenUpload,
    /// Rate limiter of the destination, shared by all its transfers.
    pub rate_limiter: Option<&'a Arc<RateLimiter>>,
    /// Permits the write of the object; `None` where the job has no generation.
    pub gate: Option<&'a dyn WriteGate>,
}

/// Transfers of a worker. The tests of the worker use a simulated implementation.
pub trait Transport: Send + Sync + fmt::Debug {
    /// Makes one attempt. Nothing is read from the source before the session exists.
    ///
    /// If the future is dropped, the requests in flight end; an open upload is aborted in the
    /// background, and the [`OpenUpload`] is cleared.
    fn deliver<'a>(&'a self, job: &'a Job, attempt: TransferRequest<'a>) -> BoxFuture<'a, TransferResult>;

    /// Aborts an upload that nobody will resume. Best effort: a refusal is counted.
    fn abort_upload<'a>(&'a self, destination: &'a Arc<Destination>, checkpoint: &'a Checkpoint) -> BoxFuture<'a, ()>;

    /// Gives each abort that waits in the background its last try, at once. Returns when all have
    /// ended, or after `limit`. For a worker that exits.
    fn finish_aborts(&self, _limit: Duration) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }

    /// Clears the cached denials, once a destination is reported as fixed.
    fn forget_denials(&self) {}

    /// Confirms by calls of our own that a failure which many destinations share is not theirs. See
    /// [`Sessions::confirm_outage`]. A transport that can't ask confirms nothing.
    fn confirm_outage<'a>(&'a self, _symptom: Symptom, _controls: &'a [Arc<Destination>]) -> BoxFuture<'a, bool> {
        Box::pin(std::future::ready(false))
    }

    /// Tests a connection; `egress` holds the public addresses of the platform.
    fn test<'a>(&'a self, destination: &'a Arc<Destination>, egress: &'a [String]) -> BoxFuture<'a, CheckReport>;
}

impl Transport for Transfers {
    fn deliver<'a>(&'a self, job: &'a Job, attempt: TransferRequest<'a>) -> BoxFuture<'a, TransferResult> {
        // Boxed: a future of 16 KiB would be copied at every step outwards.
        Box::pin(self.run(job, attempt))
    }

    fn abort_upload<'a>(&'a self, destination: &'a Arc<Destination>, checkpoint: &'a Checkpoint) -> BoxFuture<'a, ()> {
        Box::pin(self.uploader.abort_upload(destination, checkpoint))
    }

    fn finish_aborts(&self, limit: Duration) -> BoxFuture<'_, ()> {
        Box::pin(self.uploader.finish_aborts(limit))
    }

    fn forget_denials(&self) {
        self.sessions.forget_denials();
    }

    fn confirm_outage<'a>(&'a self, symptom: Symptom, controls: &'a [Arc<Destination>]) -> BoxFuture<'a, bool> {
        Box::pin(self.sessions.confirm_outage(symptom, controls))
    }

    fn test<'a>(&'a self, destination: &'a Arc<Destination>, egress: &'a [String]) -> BoxFuture<'a, CheckReport> {
        Box::pin(async move {
            let checker =
                Checker { sessions: &self.sessions, uploader: &self.uploader, egress, who: Who::Worker, limit: LIMIT };
            checker.run(destination, &|_| ()).await
        })
    }
}

impl Transfers {
    /// Makes one attempt. Nothing is read from the source before the session exists.
    ///
    /// If the future is dropped, the requests in flight end; an open upload is aborted in the
    /// background, and the [`OpenUpload`] is cleared.
    pub async fn run(&self, job: &Job, attempt: TransferRequest<'_>) -> TransferResult {
        if job.expires_at.is_some_and(|at| at <= Timestamp::now()) {
            return TransferResult::Expired;
        }
        match self.attempt(job, &attempt).await {
            Ok(result) => result,
            Err(failure) => {
                let failure = may_heal(&job.source, failure);
                TransferResult::Failed(self.sessions.judged_at_home(failure).await)
            }
        }
    }

    async fn attempt(&self, job: &Job, attempt: &TransferRequest<'_>) -> Result<TransferResult, Failure> {
        let destination = attempt.destination;
        let key = destination.prefix.join(job.key.as_str());
        let key = key.map_err(|invalid| Failure::new(Reason::InvalidKey, invalid.to_string()))?;
        // Recorded first, so that every later failure resumes or aborts it.
        if let Some(checkpoint) = &attempt.resume {
            attempt.open_upload.open(checkpoint.clone());
        }
        let used = self.sessions.region(destination);
        let first = self.upload(job, attempt, &key).await;
        let Err(failure) = &first else { return first };
        if self.uploader.learn_equal_parts(destination, failure) {
            tracing::warn!(
                event = "equal_parts_learnt",
                destination = %destination.id,
                next = "uploads of this destination use equal parts",
                remedy = "set equal_parts = true in the destination",
                "the store requires parts of equal size"
            );
        }
        let Some(region) = failure.learnt_region.as_ref().filter(|region| **region != used) else { return first };
        self.sessions.learn_region(destination, region);
        tracing::warn!(
            event = "region_learnt",
            destination = %destination.id,
            configured = %destination.region,
            actual = %region,
            next = "the worker uses the actual region",
            remedy = "correct the region of the destination",
            "the bucket is in another region"
        );
        self.upload(job, attempt, &key).await
    }

    /// Resumes the recorded upload if it still matches; else starts a new one.
    async fn upload(
        &self,
        job: &Job,
        attempt: &TransferRequest<'_>,
        key: &ObjectKey,
    ) -> Result<TransferResult, Failure> {
        if let Some(checkpoint) = attempt.open_upload.checkpoint()
            && let Some(ended) = self.resume(job, attempt, key, checkpoint).await?
        {
            return Ok(ended);
        }
        let source = self
            .opened(
                attempt,
                (job.source.location.scheme(), self.sources.open(&job.source, reader(job, attempt.destination))),
            )
            .await?;
        let ended = self.send(job, attempt, key, (source, None)).await?;
        ended.ok_or_else(|| Failure::new(Reason::S3Unavailable, "the upload disappeared while it was written"))
    }

    /// Resumes the upload of `checkpoint`; `None` if that is impossible and nothing of it is left.
    async fn resume(
        &self,
        job: &Job,
        attempt: &TransferRequest<'_>,
        key: &ObjectKey,
        mut checkpoint: Checkpoint,
    ) -> Result<Option<TransferResult>, Failure> {
        if let PartSizes::Packed { .. } = checkpoint.sizes {
            // Another build of the compression may cut otherwise: what comes after a gap would not fit what is put into it.
            checkpoint.parts.truncate(checkpoint.unbroken().len());
        }
        let mut source = None;
        let packed = matches!(checkpoint.sizes, PartSizes::Packed { .. });
        let cut_otherwise = packed && self.uploader.wants_equal_parts(attempt.destination);
        if !cut_otherwise && fits(&checkpoint, attempt.destination, key, job.compression) {
            let offset = next_offset(&checkpoint);
            let opening =
                self.sources.open_at(&job.source, reader(job, attempt.destination), &checkpoint.source, offset);
            source = self.opened(attempt, (job.source.location.scheme(), opening)).await?;
            // A checkpoint of a compressed upload counts plain bytes.
            source = source.filter(|source| job.compression == Compression::None || source.content_encoding.is_none());
        }
        let Some(source) = source else {
            tracing::info!(
                event = "upload_restarted",
                job_id = %job.id,
                "source or destination changed; the upload starts again"
            );
            attempt.open_upload.close();
            self.uploader.abort_upload(attempt.destination, &checkpoint).await;
            return Ok(None);
        };
        let (parts, bytes) = (checkpoint.parts.len(), checkpoint.bytes());
        tracing::info!(event = "upload_resumed", job_id = %job.id, parts, bytes, "resuming an unfinished upload");
        let ended = self.send(job, attempt, key, (source, Some(checkpoint))).await?;
        if ended.is_none() {
            tracing::info!(
                event = "upload_restarted",
                job_id = %job.id,
                "the unfinished upload no longer exists; it starts again"
            );
        }
        Ok(ended)
    }

    /// Returns the result of `opening`, once the session exists.
    async fn opened<T>(
        &self,
        attempt: &TransferRequest<'_>,
        (scheme, opening): (&str, impl Future<Output = Result<T, Failure>>),
    ) -> Result<T, Failure> {
        let opened = async {
            let destination = attempt.destination;
            spans::within(spans::session(destination.id.as_str()), self.sessions.get(destination)).await?;
            failpoints::hit("session");
            spans::within(spans::source(scheme), opening).await
        };
        tokio::select! {
            biased;
            () = attempt.stop.cancel.cancelled() => Err(Failure::new(Reason::Shutdown, "the worker is draining")),
            opened = opened => opened,
        }
    }

    /// Uploads the source; `None` if the upload to resume no longer exists.
    async fn send(
        &self,
        job: &Job,
        attempt: &TransferRequest<'_>,
        key: &ObjectKey,
        (source, resume): (SourceStream, Option<Checkpoint>),
    ) -> Result<Option<TransferResult>, Failure> {
        if let Some(length) = source.length {
            attempt.progress.source_opened(length);
        }
        let mark = source.validator.clone().filter(|_| source.resumable);
        let mark = mark.map(|validator| SourceMark { validator, length: source.length });
        // A compressed upload can't have parts of one length and be continued.
        let equal_parts = self.uploader.wants_equal_parts(attempt.destination);
        let attributes = attributes(job, source.content_encoding.as_deref());
        let length_unproven = source.length_unproven;
        let (body, mark, read) = match job.compression {
            Compression::None => (plain(source), mark, None),
            compression if mark.is_none() || equal_parts || source.content_encoding.is_some() => {
                let (body, read) = compressed(source, compression)?;
                (body, None, Some(read))
            }
            compression => (packed(source, compression, resume.as_ref()), mark, None),
        };
        let target = Target {
            destination: attempt.destination,
            key,
            attributes: &attributes,
            if_exists: job.if_exists,
            may_be_written: &attempt.may_be_written,
            progress: attempt.progress,
            rate_limiter: attempt.rate_limiter,
            gate: attempt.gate,
        };
        let control = UploadControl { stop: attempt.stop, open_upload: attempt.open_upload, mark, resume };
        Ok(match self.uploader.upload(&target, body, control).await? {
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

/// Makes the failure of a source that changed while it was read temporary: the next attempt reads
/// the new content. That is another one than the job wants if the job names its content.
fn may_heal(source: &Source, failure: Failure) -> Failure {
    let named = source.etag.is_some() || source.sha256.is_some();
    match failure.reason {
        Reason::SourceChanged if !named => Failure { reason: Reason::SourceUnavailable, ..failure },
        Reason::SourceChanged if failure.hint.is_empty() => {
            failure.hint("publish the job again, with the etag or sha256 that the source has now")
        }
        _ => failure,
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

/// The bytes as they are.
fn plain(source: SourceStream) -> UploadBody {
    match source.body {
        SourceBody::File(file) => UploadBody::File(file),
        SourceBody::Chunks(chunks) => UploadBody::Chunks { chunks, length: source.length },
    }
}

/// Compresses the source on the way, once it is decoded; the counter holds the bytes read.
fn compressed(source: SourceStream, compression: Compression) -> Result<(UploadBody, Arc<AtomicU64>), Failure> {
    let chunks = match source.body {
        SourceBody::File(file) => file.chunks(),
        SourceBody::Chunks(chunks) => chunks,
    };
    let (chunks, read) = counted(chunks);
    let chunks = match source.content_encoding.filter(|_| source.length != Some(0)) {
        Some(encodings) => encoding::decode(chunks, &encodings)?,
        None => chunks,
    };
    Ok((UploadBody::Chunks { chunks: compress::compress(chunks, compression), length: None }, read))
}

/// Like [`compressed`], but resumable after every part; with `resume` it starts at the checkpoint.
fn packed(source: SourceStream, compression: Compression, resume: Option<&Checkpoint>) -> UploadBody {
    let from = resume.and_then(|checkpoint| checkpoint.unbroken().last()).and_then(|part| part.packed);
    let from = from.unwrap_or_default();
    let chunks = match source.body {
        SourceBody::File(file) => file.chunks_from(from.source),
        SourceBody::Chunks(chunks) => chunks,
    };
    UploadBody::Packed(Box::new(Packer::new(chunks, compression, from)))
}
