//! Uploads of one object: single or multipart, with a guaranteed abort and a verified result.
//!
//! Contract: [`Uploader::upload`] ends with a complete object of verified length (and checksum) and
//! a [`Receipt`], or fails. A failed multipart upload leaves nothing visible. A failed PutObject
//! may: S3 shows the object before its reply (which may report the wrong encryption or checksum)
//! can be verified. After every multipart failure the upload is aborted; where the customer does
//! not allow the abort, that is counted. Single requests are retried here (per part, a few times);
//! a whole upload is not.

mod aborts;
mod budget;
mod call;
pub(crate) mod classify;
mod concurrency;
mod gate;
mod learnt;
mod multipart;
mod packed;
mod part;
mod plan;
mod probe;
mod progress;
mod rate_limiter;
mod reader;
mod reconcile;
mod resume;
mod single;
mod stop;
mod verify;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio_util::sync::CancellationToken;

use crate::config::UploadConfig;
use crate::domain::destination::{Checksum, Destination, ObjectKey};
use crate::domain::job::lease::{Checkpoint, PartSizes, SourceMark};
use crate::domain::job::{IfExists, ObjectAttributes};
use crate::domain::outcome::{AwsError, Failure, Reason, Receipt};
use crate::metrics::Metrics;
use crate::session::Sessions;
use crate::source::Chunks;
use crate::source::compress::Packer;
use crate::source::file::FileSource;
use crate::telemetry::spans;
use aborts::BackgroundAborts;
use budget::Budget;
use call::Calls;
use concurrency::ConcurrencyLimits;
pub use gate::WriteGate;
use learnt::LearntStores;
use multipart::{PartStream, UploadRecord};
use packed::PackedReader;
use part::{Part, PartReader, Pool};
use plan::{PlanLimits, UploadPlan};
pub use probe::{BucketProbe, ProbeResidue};
pub use progress::{Length, Progress};
pub use rate_limiter::RateLimiter;
use rate_limiter::{return_unused, wait_for_rate};
use reader::{ChunkReader, remaining};
#[cfg(test)]
pub(crate) use reconcile::{ExpectedObject, ListedObject, Provenance, judge};
pub use resume::{OpenUpload, fits, next_offset};
use resume::{done, unbroken};
pub use stop::StopSignals;

/// Files up to this length are read whole before they are sent.
const MAX_SMALL_FILE: u64 = part::CHUNK as u64;

/// Uploads objects. Built once; holds the one budget of all buffered parts.
#[derive(Debug)]
pub struct Uploader {
    config: UploadConfig,
    limits: PlanLimits,
    sessions: Arc<Sessions>,
    budget: Budget,
    pool: Pool,
    learnt: LearntStores,
    metrics: Arc<Metrics>,
    aborts: Arc<BackgroundAborts>,
}

/// Object to write: destination, key, headers and conditions.
#[derive(Debug)]
pub struct Target<'a> {
    /// The bucket and how it is entered.
    pub destination: &'a Arc<Destination>,
    /// The whole key.
    pub key: &'a ObjectKey,
    /// The object's headers; `content_encoding` is final.
    pub attributes: &'a ObjectAttributes,
    /// Action when an object with the key exists.
    pub if_exists: IfExists,
    /// True if an earlier try or attempt of the same job may have written the object. A lost reply
    /// sets it, for everything that follows in this attempt.
    pub may_be_written: &'a AtomicBool,
    /// Counts what was accepted, for the status page.
    pub progress: &'a Progress,
    /// Holds the destination to its bytes a second.
    pub rate_limiter: Option<&'a Arc<RateLimiter>>,
    /// Permits the write; `None` where nothing competes.
    pub gate: Option<&'a dyn WriteGate>,
}

/// The bytes of an object.
pub enum UploadBody {
    /// A file: any range can be read any number of times, so no part needs a buffer.
    File(Arc<FileSource>),
    /// A stream, read once.
    Chunks {
        /// The bytes.
        chunks: Chunks,
        /// Their number, where it is known; a stream that differs is not completed.
        length: Option<u64>,
    },
    /// A stream that is compressed in stretches, so that the upload can be continued.
    Packed(Box<Packer>),
}

/// Control of one upload: its stop signals, its checkpoint, and the state to resume from.
#[derive(Debug)]
pub struct UploadControl<'a> {
    /// Ends it early.
    pub stop: &'a StopSignals,
    /// Checkpoint of the upload, for the lease.
    pub open_upload: &'a OpenUpload,
    /// Validator of the source, if another worker could read the same bytes; without it the upload
    /// can't be resumed.
    pub mark: Option<SourceMark>,
    /// Checkpoint of an unfinished earlier attempt, which this one resumes.
    pub resume: Option<Checkpoint>,
}

/// Inputs shared by single and multipart uploads.
struct UploadContext<'a> {
    calls: &'a Calls,
    target: &'a Target<'a>,
    mark: Option<SourceMark>,
    checked: bool,
}

impl UploadContext<'_> {
    fn parts_to_send<S>(&self, parts: S, most: usize, sizes: PartSizes) -> PartStream<S> {
        let record = self.mark.clone().map(|source| UploadRecord { sizes, source });
        PartStream { parts, most, record }
    }
}

/// Result of a successful upload.
#[derive(Debug)]
pub enum Uploaded {
    /// The object is stored. `source_bytes` of the receipt counts the uploaded bytes; with
    /// compression the caller replaces it.
    Stored(Receipt),
    /// An object with the key exists, and the job keeps it.
    KeptExisting,
    /// The upload to resume no longer exists, and nothing shows that it was completed: the caller
    /// starts a new one.
    Stale,
}

impl Target<'_> {
    /// Of a call about the object that belongs to no upload in parts.
    fn span(&self, operation: &'static str) -> tracing::Span {
        spans::s3(operation, self.destination.bucket.as_str(), self.key.as_str(), None, None)
    }

    fn wants_checksum(&self) -> bool {
        self.destination.checksum == Checksum::Crc64Nvme
    }

    fn may_be_written(&self) -> bool {
        self.may_be_written.load(Ordering::Relaxed) || self.gate.is_some_and(WriteGate::has_rival)
    }

    /// Waits until the object may be made visible.
    async fn enter_gate(&self) -> Result<(), Failure> {
        match self.gate {
            Some(gate) => gate.enter().await,
            None => Ok(()),
        }
    }

    /// Remembers a write that may have taken effect.
    fn record_write(&self, ambiguous: bool) {
        self.may_be_written.fetch_or(ambiguous, Ordering::Relaxed);
    }
}

impl Uploader {
    /// An uploader with a budget of `memory_budget` bytes for parts that must be held in memory.
    pub fn new(config: UploadConfig, memory_budget: u64, sessions: Arc<Sessions>, metrics: Arc<Metrics>) -> Self {
        let limits = PlanLimits::new(&config, memory_budget, sessions.max_parts().unwrap_or(plan::MAX_PARTS));
        let budget = Budget::new(memory_budget, metrics.clone());
        let learnt = LearntStores::new(ConcurrencyLimits::new(&config));
        Self { config, limits, sessions, budget, pool: Pool::default(), learnt, metrics, aborts: Arc::default() }
    }

    /// Uploads `body` to `target`. With `control.resume` it uploads the rest: the caller has
    /// checked the checkpoint with [`fits`] and opened the source at its [`next_offset`].
    ///
    /// `control.stop` ends it early as `shutdown`. After an error no upload is left open, except
    /// the one in `control.open_upload`.
    pub async fn upload(
        &self,
        target: &Target<'_>,
        body: UploadBody,
        control: UploadControl<'_>,
    ) -> Result<Uploaded, Failure> {
        let calls = self.calls(target.destination);
        let checked = target.wants_checksum();
        let context = UploadContext { calls: &calls, target, mark: control.mark.clone(), checked };
        let after = control.resume.as_ref().map_or(0, unbroken);
        let (reader, length) = match body {
            UploadBody::File(file) => {
                target.progress.begin(Some(file.length()));
                return self.file(&context, file, control).await;
            }
            UploadBody::Chunks { chunks, length } => {
                (ChunkReader::Raw(PartReader::new(chunks, self.budget.clone(), checked, after)), length)
            }
            UploadBody::Packed(packer) => {
                (ChunkReader::Packed(Box::new(PackedReader::new(*packer, self.budget.clone(), after))), None)
            }
        };
        target.progress.begin(length);
        self.chunks(&context, reader, length, control).await
    }

    /// Returns true if all parts but the last must have one length: by configuration, because the
    /// store takes no checksums and so is not S3, or as its refusal showed.
    pub fn wants_equal_parts(&self, destination: &Destination) -> bool {
        destination.equal_parts || destination.checksum == Checksum::None || self.learnt.wants_equal_parts(destination)
    }

    /// Remembers that the store of a destination wants equal parts, if the failure says so.
    pub fn learn_equal_parts(&self, destination: &Destination, failure: &Failure) -> bool {
        let refused = |answer: &AwsError| answer.code == "InvalidPart" && answer.message.contains("same length");
        let learnt = failure.answer.as_deref().is_some_and(refused) && !self.wants_equal_parts(destination);
        if learnt {
            self.learnt.learn_equal_parts(destination);
        }
        learnt
    }

    /// Aborts an upload that nobody will resume. Best effort: a refusal is counted. No call is made
    /// for a checkpoint outside of the destination's bucket and prefix: it may be forged.
    pub async fn abort_upload(&self, destination: &Arc<Destination>, checkpoint: &Checkpoint) {
        if !destination.holds(&checkpoint.bucket, &checkpoint.key) {
            multipart::log_foreign_checkpoint(destination);
            return self.metrics.multipart_orphaned();
        }
        multipart::abort_upload(&self.calls(destination), checkpoint).await;
    }

    /// Gives every abort in the background its last try, and returns when all have ended, or after
    /// `limit`.
    pub async fn finish_aborts(&self, limit: Duration) {
        self.aborts.finish(limit).await;
    }

    /// The calls of the connection test: those of an upload to `key`, one at a time.
    pub fn probe(&self, destination: &Arc<Destination>, key: ObjectKey) -> BucketProbe {
        BucketProbe::new(self.calls(destination), key)
    }

    fn calls(&self, destination: &Arc<Destination>) -> Calls {
        Calls {
            sessions: self.sessions.clone(),
            destination: destination.clone(),
            metrics: self.metrics.clone(),
            min_rate: self.config.min_rate,
            learnt: self.learnt.clone(),
            aborts: self.aborts.clone(),
        }
    }

    async fn file(
        &self,
        context: &UploadContext<'_>,
        file: Arc<FileSource>,
        control: UploadControl<'_>,
    ) -> Result<Uploaded, Failure> {
        let length = file.length();
        let planned = match control.resume.as_ref().map(|checkpoint| checkpoint.sizes) {
            Some(sizes @ PartSizes::Even { .. }) => UploadPlan::Parts(sizes),
            _ => plan::plan(Some(length), false, &self.limits)?,
        };
        match planned {
            UploadPlan::Parts(sizes @ PartSizes::Even { part_size, parts }) => {
                let done = done(control.resume.as_ref());
                let missing = (1..=parts).filter(move |number| !done.contains(number));
                let rate_limiter = context.target.rate_limiter.cloned();
                let parts_to_send = stream::iter(missing).then(|number| {
                    let offset = u64::from(number - 1) * part_size;
                    let size = part_size.min(length - offset);
                    let part = Part::of_file(file.clone(), self.pool.clone(), number, (offset, size));
                    let rate_limiter = rate_limiter.clone();
                    async move {
                        wait_for_rate(rate_limiter.as_ref(), size).await;
                        Ok(part)
                    }
                });
                let parts_to_send = context.parts_to_send(parts_to_send, usize::MAX, sizes);
                let prove = async |sent| proven(sent, length).and_then(|()| file.verify_unchanged());
                multipart::upload(context.calls, context.target, parts_to_send, control, prove).await
            }
            UploadPlan::Single(_) | UploadPlan::Parts(_) => {
                first_turn(control.stop, context.target.rate_limiter, length).await?;
                let part = if length <= MAX_SMALL_FILE {
                    part::read_small(&file, &self.pool, context.checked).await?
                } else {
                    let part = Part::of_file(file.clone(), self.pool.clone(), 1, (0, length));
                    if context.checked { part.with_crc().await? } else { part }
                };
                file.verify_unchanged()?;
                let stored = self.put(context, &part, control.stop).await?;
                file.count_read(length);
                Ok(stored)
            }
        }
    }

    async fn chunks(
        &self,
        context: &UploadContext<'_>,
        mut reader: ChunkReader,
        length: Option<u64>,
        control: UploadControl<'_>,
    ) -> Result<Uploaded, Failure> {
        if let Some(sizes) = control.resume.as_ref().map(|checkpoint| checkpoint.sizes) {
            return self.parts(context, (None, reader), sizes, length, control).await;
        }
        let plan = plan::plan(length, true, &self.limits)?;
        let plan = if self.wants_equal_parts(context.target.destination) { plan.with_equal_parts() } else { plan };
        let (first_size, sizes) = match plan {
            // One byte more than announced is asked for, so that a longer source shows.
            UploadPlan::Single(size) => (size.max(1), None),
            UploadPlan::Parts(sizes) => (plan::size(sizes, 1)?, Some(reader.sizes(sizes))),
        };
        let cancel = &control.stop.cancel;
        let booked = length.map_or(first_size, |length| length.min(first_size));
        first_turn(control.stop, context.target.rate_limiter, booked).await?;
        let first = cancellable(cancel, reader.next(first_size)).await?;
        return_unused(context.target.rate_limiter, booked, first.as_ref().map_or(0, |part| part.length));
        match sizes {
            Some(sizes) if first.is_some() && !reader.ended() => {
                self.parts(context, (first, reader), sizes, length, control).await
            }
            _ => {
                cancellable(cancel, reader.expect_end()).await?;
                let part = first.unwrap_or_else(|| Part::whole(bytes::Bytes::new(), context.checked));
                length.map_or(Ok(()), |length| proven(part.length, length))?;
                self.put(context, &part, control.stop).await
            }
        }
    }

    /// Uploads the parts of a stream, of which the first may have been read already. Parts that S3
    /// has are read and skipped.
    async fn parts(
        &self,
        context: &UploadContext<'_>,
        (first, reader): (Option<Part>, ChunkReader),
        sizes: PartSizes,
        length: Option<u64>,
        control: UploadControl<'_>,
    ) -> Result<Uploaded, Failure> {
        let done = done(control.resume.as_ref());
        let missing = stream::iter(first.map(Ok)).chain(remaining(reader, sizes, context.target.rate_limiter.cloned()));
        let rate_limiter = context.target.rate_limiter.cloned();
        let missing = missing.try_filter(move |part| {
            let there = done.contains(&part.number);
            return_unused(rate_limiter.as_ref(), if there { part.length } else { 0 }, 0);
            std::future::ready(!there)
        });
        let parts_to_send = context.parts_to_send(missing, self.buffered_concurrency(), sizes);
        let prove = async |sent| length.map_or(Ok(()), |length| proven(sent, length));
        multipart::upload(context.calls, context.target, parts_to_send, control, prove).await
    }

    async fn put(&self, context: &UploadContext<'_>, part: &Part, stop: &StopSignals) -> Result<Uploaded, Failure> {
        let span = context.target.span("PutObject");
        let put = spans::within(span, single::put(context.calls, context.target, part));
        let stored = cancellable(&stop.cancel, put).await?;
        context.target.progress.add(part.length, 0);
        Ok(stored)
    }

    /// Concurrency of an upload whose parts are held in memory. One upload into a slow bucket must
    /// not take the whole budget, so beyond two parts it gets an eighth.
    fn buffered_concurrency(&self) -> usize {
        let share = self.limits.largest_buffer / 2 / self.config.part_size.max(1);
        usize::try_from(share).unwrap_or(usize::MAX).clamp(2, self.learnt.limits.first().max(2))
    }
}

/// Nothing is completed whose length is unproven.
fn proven(sent: u64, expected: u64) -> Result<(), Failure> {
    if sent == expected {
        return Ok(());
    }
    let message = format!("the source announced {expected} bytes and sent {sent}");
    Err(Failure::new(Reason::SourceChanged, message))
}

/// Waits until the rate limit admits the first bytes. Nothing was sent yet, so a worker that drains
/// does not wait.
async fn first_turn(stop: &StopSignals, rate_limiter: Option<&Arc<RateLimiter>>, bytes: u64) -> Result<(), Failure> {
    let draining = async {
        tokio::select! {
            () = stop.hand_off.cancelled() => {}
            () = stop.cancel.cancelled() => {}
        }
    };
    tokio::select! {
        biased;
        () = wait_for_rate(rate_limiter, bytes) => Ok(()),
        () = draining => Err(Failure::new(Reason::Shutdown, "the worker is draining")),
    }
}

async fn cancellable<T>(
    cancel: &CancellationToken,
    context: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let result = cancel.run_until_cancelled(context).await;
    result.unwrap_or_else(|| Err(Failure::new(Reason::Shutdown, "the worker is draining")))
}

/// Value of `If-None-Match`: `*` where the key must be free. PutObject and CompleteMultipartUpload
/// send it.
fn conditional(target: &Target<'_>) -> Option<String> {
    (target.if_exists != IfExists::Replace).then(|| "*".to_owned())
}

/// Sets the headers that PutObject and CreateMultipartUpload share; their builders have no common
/// trait.
///
/// Without an encryption no encryption header is sent, and without tags no tagging header, which
/// would need a permission.
macro_rules! object_headers {
    ($request:expr, $target:expr) => {{
        let attributes = $target.attributes;
        let kms = $target.destination.encryption.as_ref();
        $request
            .set_content_type(attributes.content_type.clone())
            .set_content_encoding(attributes.content_encoding.clone())
            .set_metadata($crate::upload::metadata(attributes))
            .set_tagging($crate::upload::tagging(attributes))
            .set_storage_class(attributes.storage_class.as_deref().map(Into::into))
            .set_server_side_encryption($target.destination.algorithm.map(|algorithm| algorithm.as_str().into()))
            .set_ssekms_key_id(kms.map(|kms| kms.key_arn.as_str().to_owned()))
            .set_bucket_key_enabled(kms.and_then(|kms| kms.bucket_key_enabled))
            .set_ssekms_encryption_context(kms.and_then($crate::upload::encryption_context))
    }};
}
use object_headers;

fn metadata(attributes: &ObjectAttributes) -> Option<std::collections::HashMap<String, String>> {
    let given = &attributes.metadata;
    (!given.is_empty()).then(|| given.iter().map(|(name, value)| (name.clone(), value.clone())).collect())
}

/// Tags travel as a query string.
fn tagging(attributes: &ObjectAttributes) -> Option<String> {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    query.extend_pairs(&attributes.tags);
    (!attributes.tags.is_empty()).then(|| query.finish())
}

/// The encryption context travels as base64 of its JSON.
fn encryption_context(kms: &crate::domain::destination::KmsEncryption) -> Option<String> {
    use base64::Engine as _;
    let json = serde_json::to_vec(&kms.context).ok().filter(|_| !kms.context.is_empty())?;
    Some(base64::engine::general_purpose::STANDARD.encode(json))
}
