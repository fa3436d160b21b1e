//! A multipart upload: create, bounded parallel parts, complete, and abort on every failing path after create.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::error::BoxError;
use aws_sdk_s3::types::{ChecksumAlgorithm, ChecksumType, CompletedMultipartUpload, CompletedPart};
use aws_smithy_runtime_api::client::interceptors::context::BeforeDeserializationInterceptorContextRef;
use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;
use futures_util::{Stream, StreamExt as _, TryStreamExt as _};
use tokio_util::sync::CancellationToken;

use super::call::Calls;
use super::classify::{CallError, Signal};
use super::part::{Part, combined_crc};
use super::reconcile::{self, Expected};
use super::single::changed_or;
use super::{Progress, Target, Uploaded, conditional, object_headers, verify};
use crate::destination::Checksum;
use crate::job::lease::Checkpoint;
use crate::metrics::Guard;
use crate::outcome::{Encryption, Failure, Reason, Receipt};

/// Tries of CompleteMultipartUpload whose reply says nothing, each with the same arguments.
const EMPTY_REPLIES: u32 = 3;
/// Assembling many parts may take S3 minutes
/// (<https://docs.aws.amazon.com/AmazonS3/latest/API/API_CompleteMultipartUpload.html>): a try gets this long at least, and more
/// for each part.
const COMPLETE_TIMEOUT: Duration = Duration::from_secs(300);
const COMPLETE_PER_PART: Duration = Duration::from_millis(100);
/// Waits between looks at what became of an upload whose answer was lost: it may still be assembled.
const LOOKS: [Duration; 3] = [Duration::ZERO, Duration::from_secs(2), Duration::from_secs(6)];

/// An upload that is open on S3. It ends in [`Open::complete`] or [`Open::abort`]; dropped in between (a panic, a cancelled
/// task), it aborts itself in the background.
pub(super) struct Open {
    calls: Calls,
    bucket: String,
    key: String,
    id: String,
    encryption: Encryption,
    /// When it was initiated, on S3's clock: what S3 will report as the object's time.
    initiated: SystemTime,
    settled: bool,
    _counted: Guard,
}

/// A part that S3 has accepted.
#[derive(Debug)]
pub(super) struct Sent {
    number: u32,
    length: u64,
    crc: Option<u64>,
    etag: Option<String>,
}

/// Uploads `parts` as one object. `concurrency` bounds the parts in flight; `prove` runs when all parts are there and before
/// anything becomes visible: its error aborts.
pub(super) async fn upload<S, P>(
    calls: &Calls,
    target: &Target<'_>,
    parts: S,
    concurrency: usize,
    prove: P,
    cancel: &CancellationToken,
) -> Result<Uploaded, Failure>
where
    S: Stream<Item = Result<Part, Failure>>,
    P: AsyncFnOnce(u64) -> Result<(), Failure>,
{
    let open = Open::create(calls, target).await?;
    let sending = async {
        let mut sent = send_all(&open, target.progress, parts, concurrency).await?;
        sent.sort_unstable_by_key(|part| part.number);
        prove(sent.iter().map(|part| part.length).sum()).await?;
        Ok(sent)
    };
    let sent = tokio::select! {
        biased;
        () = cancel.cancelled() => Err(Failure::new(Reason::Shutdown, "the worker is draining")),
        sent = sending => sent,
    };
    match sent {
        Ok(sent) => open.complete(target, sent).await,
        Err(failure) => {
            open.abort().await;
            Err(failure)
        }
    }
}

async fn send_all<S>(open: &Open, progress: &Progress, parts: S, concurrency: usize) -> Result<Vec<Sent>, Failure>
where
    S: Stream<Item = Result<Part, Failure>>,
{
    parts
        .map(|part| async move {
            let sent = open.send(&part?).await?;
            progress.add(sent.length, 1);
            Ok(sent)
        })
        .buffer_unordered(concurrency)
        .try_collect()
        .await
}

impl Open {
    pub(super) async fn create(calls: &Calls, target: &Target<'_>) -> Result<Self, Failure> {
        let checked = target.destination.checksum == Checksum::Crc64Nvme;
        let date = DateHeader::default();
        let reply = calls
            .call("CreateMultipartUpload", 0, |client| {
                let request = client
                    .create_multipart_upload()
                    .bucket(target.destination.bucket.as_str())
                    .key(target.key.as_str())
                    .set_checksum_algorithm(checked.then_some(ChecksumAlgorithm::Crc64Nvme))
                    .set_checksum_type(checked.then_some(ChecksumType::FullObject))
                    .set_expected_bucket_owner(target.owner());
                object_headers!(request, target).customize().interceptor(date.clone()).send()
            })
            .await?;
        let id = reply.upload_id.clone().filter(|id| !id.is_empty());
        let id =
            id.ok_or_else(|| Failure::new(Reason::S3Unavailable, "CreateMultipartUpload: S3 gave no upload id"))?;
        let mut open = Self {
            calls: calls.clone(),
            bucket: target.destination.bucket.as_str().to_owned(),
            key: target.key.as_str().to_owned(),
            id,
            encryption: Encryption::default(),
            initiated: date.get().unwrap_or_else(|| reconcile::no_later_than(target.started)),
            settled: false,
            _counted: calls.metrics.multipart_open(),
        };
        // Compared here already, where nothing is visible yet and it can still be aborted.
        match verify::encryption(target.destination, reply.server_side_encryption(), reply.ssekms_key_id()) {
            Ok(encryption) => open.encryption = encryption,
            Err(mismatch) => {
                open.abort().await;
                return Err(mismatch);
            }
        }
        Ok(open)
    }

    pub(super) async fn send(&self, part: &Part) -> Result<Sent, Failure> {
        let number = i32::try_from(part.number).unwrap_or(i32::MAX);
        let crc = part.crc.map(verify::crc_text);
        let started = tokio::time::Instant::now();
        let answer = self
            .calls
            .call("UploadPart", part.length, |client| {
                client
                    .upload_part()
                    .bucket(&self.bucket)
                    .key(&self.key)
                    .upload_id(&self.id)
                    .part_number(number)
                    .content_length(i64::try_from(part.length).unwrap_or(i64::MAX))
                    .set_checksum_crc64_nvme(crc.clone())
                    .set_expected_bucket_owner(self.owner())
                    .body(part.body())
                    .customize()
                    .disable_payload_signing()
                    .send()
            })
            .await;
        let reply = match answer {
            Ok(reply) => reply,
            Err(error) => {
                self.calls.metrics.part_failed();
                return Err(changed_or(error.failure, error.signal, part));
            }
        };
        verify::checksum(crc.as_deref(), reply.checksum_crc64_nvme())?;
        self.calls.metrics.part_sent(started.elapsed());
        if let Some(file) = part.file() {
            file.count_read(part.length);
        }
        Ok(Sent { number: part.number, length: part.length, crc: part.crc, etag: reply.e_tag })
    }

    /// Completes the upload, and reconciles when the answer was lost.
    pub(super) async fn complete(mut self, target: &Target<'_>, sent: Vec<Sent>) -> Result<Uploaded, Failure> {
        let length = sent.iter().map(|part| part.length).sum();
        let crc = combined_crc(sent.iter().map(|part| (part.crc, part.length))).map(verify::crc_text);
        let count = u32::try_from(sent.len()).unwrap_or(u32::MAX);
        let expected = Expected { length, parts: Some(count), since: self.initiated };
        match self.ask_to_complete(target, &sent, length, crc.as_deref()).await {
            Ok(mut receipt) => {
                self.settled = true;
                verify::checksum(crc.as_deref(), receipt.checksum_crc64nvme.as_deref())?;
                receipt.checksum_crc64nvme = crc;
                Ok(Uploaded::Stored(receipt))
            }
            Err(error) if error.signal == Signal::PreconditionFailed => {
                let calls = self.calls.clone();
                let since = self.initiated;
                self.abort().await;
                reconcile::taken(&calls, target, error, length, crc, Some((count, since))).await
            }
            Err(error) => {
                let unknown = error.ambiguous || error.signal == Signal::NoSuchUpload;
                let found = if unknown { self.look_for(target, &expected).await } else { None };
                let Some(object) = found else {
                    self.abort().await;
                    return Err(error.failure);
                };
                self.settled = true;
                let encryption = Some(self.encryption.clone());
                Ok(Uploaded::Stored(Receipt { encryption, ..reconcile::receipt(object, &expected, crc) }))
            }
        }
    }

    /// What became of the upload, by a listing; `None` when it is not there, or listing is not allowed.
    async fn look_for(&self, target: &Target<'_>, expected: &Expected) -> Option<aws_sdk_s3::types::Object> {
        for wait in LOOKS {
            tokio::time::sleep(wait).await;
            if let Some(object) = reconcile::find(&self.calls, target, expected).await {
                return Some(object);
            }
        }
        None
    }

    /// Asks until there is an answer with an ETag in it: an empty 200 says nothing.
    async fn ask_to_complete(
        &self,
        target: &Target<'_>,
        sent: &[Sent],
        length: u64,
        crc: Option<&str>,
    ) -> Result<Receipt, CallError> {
        let parts =
            CompletedMultipartUpload::builder().set_parts(Some(sent.iter().map(Sent::completed).collect())).build();
        let each = COMPLETE_PER_PART * u32::try_from(sent.len()).unwrap_or(u32::MAX);
        let limit = COMPLETE_TIMEOUT.max(each);
        let mut ambiguous = false;
        for _ in 0..EMPTY_REPLIES {
            let answer = self
                .calls
                .call_within("CompleteMultipartUpload", limit, |client| {
                    client
                        .complete_multipart_upload()
                        .bucket(&self.bucket)
                        .key(&self.key)
                        .upload_id(&self.id)
                        .multipart_upload(parts.clone())
                        .set_checksum_crc64_nvme(crc.map(str::to_owned))
                        .set_checksum_type(crc.map(|_| ChecksumType::FullObject))
                        .set_mpu_object_size(crc.map(|_| i64::try_from(length).unwrap_or(i64::MAX)))
                        .set_expected_bucket_owner(self.owner())
                        .set_if_none_match(conditional(target))
                        .send()
                })
                .await;
            let reply = answer.map_err(|error| CallError { ambiguous: error.ambiguous || ambiguous, ..error })?;
            if reply.e_tag().is_some_and(|etag| !etag.is_empty()) {
                return Ok(self.receipt(reply, length, sent.len()));
            }
            ambiguous = true;
        }
        let failure = Failure::new(Reason::S3Unavailable, "CompleteMultipartUpload: S3 answered without an ETag");
        Err(CallError { ambiguous, ..CallError::new(failure) })
    }

    fn receipt(
        &self,
        reply: aws_sdk_s3::operation::complete_multipart_upload::CompleteMultipartUploadOutput,
        length: u64,
        parts: usize,
    ) -> Receipt {
        Receipt {
            bytes: length,
            source_bytes: length,
            parts: u32::try_from(parts).unwrap_or(u32::MAX),
            etag: reply.e_tag,
            version_id: reply.version_id,
            checksum_crc64nvme: reply.checksum_crc64_nvme,
            encryption: Some(self.encryption.clone()),
        }
    }

    /// Gives the upload up. A refusal is expected where the customer grants s3:PutObject alone: it is counted, and the
    /// bucket's lifecycle rule has to clean up.
    async fn abort(mut self) {
        self.try_abort().await;
    }

    /// As [`Open::abort`], and says what came of it; where it is denied, the upload can still be completed.
    pub(super) async fn try_abort(&mut self) -> Aborted {
        self.settled = true;
        abort(&self.calls, &self.bucket, &self.key, &self.id).await
    }

    fn owner(&self) -> Option<String> {
        self.calls.destination.expected_bucket_owner.as_ref().map(|owner| owner.as_str().to_owned())
    }
}

/// Gives up an upload of an earlier attempt.
pub(super) async fn abandon(calls: &Calls, checkpoint: &Checkpoint) {
    abort(calls, &checkpoint.bucket, &checkpoint.key, &checkpoint.upload_id).await;
}

/// What came of giving an upload up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Aborted {
    /// Nothing is left behind.
    Gone,
    /// It is still open: the customer does not allow it to be aborted.
    Denied,
    /// Nobody knows; most likely it is still open.
    Unknown,
}

async fn abort(calls: &Calls, bucket: &str, key: &str, id: &str) -> Aborted {
    let owner = calls.destination.expected_bucket_owner.as_ref().map(|owner| owner.as_str().to_owned());
    let answer = calls
        .call("AbortMultipartUpload", 0, |client| {
            client
                .abort_multipart_upload()
                .bucket(bucket)
                .key(key)
                .upload_id(id)
                .set_expected_bucket_owner(owner.clone())
                .send()
        })
        .await;
    match answer {
        Ok(_) => {
            calls.metrics.multipart_aborted();
            Aborted::Gone
        }
        // Completed or aborted by an earlier try whose answer was lost: nothing is left behind.
        Err(error) if error.signal == Signal::NoSuchUpload => {
            calls.metrics.multipart_aborted();
            Aborted::Gone
        }
        Err(error) if error.signal == Signal::Denied => {
            tracing::warn!(
                destination = %calls.destination.id,
                "an unfinished upload could not be aborted; allow s3:AbortMultipartUpload, or give the bucket a lifecycle \
                 rule for incomplete uploads"
            );
            calls.metrics.multipart_abort_denied();
            Aborted::Denied
        }
        Err(error) => {
            tracing::warn!(destination = %calls.destination.id, cause = %error.failure, "an unfinished upload is left behind");
            calls.metrics.multipart_orphaned();
            Aborted::Unknown
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if self.settled {
            return;
        }
        let (calls, bucket) = (self.calls.clone(), std::mem::take(&mut self.bucket));
        let (key, id) = (std::mem::take(&mut self.key), std::mem::take(&mut self.id));
        runtime.spawn(async move { abort(&calls, &bucket, &key, &id).await });
    }
}

impl Sent {
    fn completed(&self) -> CompletedPart {
        CompletedPart::builder()
            .part_number(i32::try_from(self.number).unwrap_or(i32::MAX))
            .set_e_tag(self.etag.clone())
            .set_checksum_crc64_nvme(self.crc.map(verify::crc_text))
            .build()
    }
}

/// Keeps the `Date` of a reply: the clock an object's time is compared with must be S3's own.
#[derive(Debug, Clone, Default)]
struct DateHeader(Arc<Mutex<Option<SystemTime>>>);

impl DateHeader {
    /// The time of the reply, in whole seconds.
    fn get(&self) -> Option<SystemTime> {
        let time = self.0.lock().ok().and_then(|time| *time)?;
        let since = time.duration_since(SystemTime::UNIX_EPOCH).ok()?;
        Some(SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs()))
    }
}

impl Intercept for DateHeader {
    fn name(&self) -> &'static str {
        "DateHeader"
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let header = context.response().headers().get("date");
        let date = header.and_then(|text| DateTime::from_str(text, Format::HttpDate).ok());
        if let Ok(mut time) = self.0.lock() {
            *time = date.and_then(|date| SystemTime::try_from(date).ok());
        }
        Ok(())
    }
}
