//! Open multipart upload: create, send, complete, and reconciliation when a reply was lost.

mod send;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use aws_sdk_s3::operation::complete_multipart_upload::CompleteMultipartUploadOutput;
use aws_sdk_s3::types::{ChecksumAlgorithm, ChecksumType, CompletedMultipartUpload, CompletedPart};

use super::UploadRecord;
use super::abort::{Aborted, abort, abort_in_background};
use super::date::time_of;
use crate::aws::headers::KeptHeader;
use crate::domain::job::lease::{Checkpoint, PartDone, PartSizes};
use crate::domain::outcome::{Encryption, Failure, Reason, Receipt};
use crate::metrics::GaugeGuard;
use crate::runtime::failpoints;
use crate::telemetry::spans;
use crate::upload::call::{BASE_TIMEOUT, Calls};
use crate::upload::classify::{CallError, ErrorSignal};
use crate::upload::learnt::PartProof;
use crate::upload::part::combined_crc;
use crate::upload::reconcile::{self, ExpectedObject};
use crate::upload::{OpenUpload, Target, Uploaded, conditional, object_headers, verify};
use send::Headerless;

/// Tries of CompleteMultipartUpload while the reply has no ETag, each with the same arguments.
const MAX_COMPLETE_TRIES: u32 = 3;
/// Time-out of a CompleteMultipartUpload, and its addition per part: assembling many parts may take
/// S3 minutes (<https://docs.aws.amazon.com/AmazonS3/latest/API/API_CompleteMultipartUpload.html>).
const COMPLETE_TIMEOUT: Duration = Duration::from_secs(300);
const COMPLETE_PER_PART: Duration = Duration::from_millis(100);
/// Delays before each listing that looks for the object after a lost reply: S3 may still be
/// assembling it.
const RECONCILE_DELAYS: [Duration; 3] = [Duration::ZERO, Duration::from_secs(2), Duration::from_secs(6)];

/// Multipart upload that is open on S3. It ends in [`MultipartUpload::complete`],
/// [`MultipartUpload::try_abort`] or [`MultipartUpload::end`]. Dropped before that (a panic, a
/// cancelled task), it aborts itself in the background.
pub(in crate::upload) struct MultipartUpload<'a> {
    calls: Calls,
    bucket: String,
    key: String,
    id: String,
    encryption: Encryption,
    /// Time of its initiation on the clock of S3, which S3 will report as the modification time of
    /// the object.
    initiated: SystemTime,
    /// Parts of earlier attempts.
    done: Vec<PartDone>,
    /// Checkpoint for other workers; `None` if nobody could resume the upload.
    open_upload: Option<&'a OpenUpload>,
    /// Length and number of parts of the whole object, if known beforehand.
    whole: Option<(u64, u32)>,
    /// True if an earlier attempt created the upload: another worker may be using it, or have used
    /// it.
    again: bool,
    /// True for an upload with checksums.
    checked: bool,
    headerless: Headerless,
    gone: AtomicBool,
    settled: bool,
    _counted: GaugeGuard,
}

impl<'a> MultipartUpload<'a> {
    /// Creates an upload. With `record`, its checkpoint is recorded, so that it can be resumed.
    pub(in crate::upload) async fn create(
        calls: &Calls,
        target: &Target<'_>,
        record: Option<(&'a OpenUpload, Option<&UploadRecord>)>,
    ) -> Result<Self, Failure> {
        let checked = target.wants_checksum();
        let date = KeptHeader::new("date");
        let reply = calls
            .call("CreateMultipartUpload", BASE_TIMEOUT, |client| {
                let request = client
                    .create_multipart_upload()
                    .bucket(target.destination.bucket.as_str())
                    .key(target.key.as_str())
                    .set_checksum_algorithm(checked.then_some(ChecksumAlgorithm::Crc64Nvme))
                    .set_checksum_type(checked.then_some(ChecksumType::FullObject))
                    .set_expected_bucket_owner(calls.owner());
                object_headers!(request, target).customize().interceptor(date.clone()).send()
            })
            .await?;
        let id = reply.upload_id.clone().filter(|id| !id.is_empty());
        let id =
            id.ok_or_else(|| Failure::new(Reason::S3Unavailable, "CreateMultipartUpload: S3 gave no upload id"))?;
        failpoints::hit("created");
        let mut open = Self {
            calls: calls.clone(),
            bucket: target.destination.bucket.as_str().to_owned(),
            key: target.key.as_str().to_owned(),
            id,
            encryption: Encryption::default(),
            initiated: date.get().as_deref().and_then(time_of).unwrap_or_else(SystemTime::now),
            done: Vec::new(),
            open_upload: None,
            whole: None,
            again: false,
            checked,
            headerless: if checked { Headerless::of_created(&reply) } else { Headerless::Never },
            gone: AtomicBool::new(false),
            settled: false,
            _counted: calls.metrics.multipart_open(),
        };
        // Compared here already, where nothing is visible yet and it can still be aborted.
        match verify::encryption(target.destination, reply.server_side_encryption(), reply.ssekms_key_id()) {
            Ok(encryption) => open.encryption = encryption,
            Err(mismatch) => {
                open.try_abort().await;
                return Err(mismatch);
            }
        }
        if let Some((open_upload, Some(record))) = record {
            open_upload.open(open.checkpoint(record));
            open.open_upload = Some(open_upload);
            open.whole = whole(record.sizes, record.source.length);
            failpoints::hit("recorded");
        }
        Ok(open)
    }

    /// Resumes the upload of an earlier attempt. S3 is not asked: most customers would not allow
    /// that.
    pub(super) fn again(calls: &Calls, open_upload: &'a OpenUpload, checkpoint: Checkpoint) -> Self {
        calls.metrics.multipart_resumed();
        open_upload.open(checkpoint.clone());
        Self {
            calls: calls.clone(),
            whole: whole(checkpoint.sizes, checkpoint.source.length),
            bucket: checkpoint.bucket,
            key: checkpoint.key,
            id: checkpoint.upload_id,
            encryption: checkpoint.encryption,
            initiated: SystemTime::UNIX_EPOCH + Duration::from_secs(checkpoint.initiated),
            done: checkpoint.parts,
            open_upload: Some(open_upload),
            again: true,
            checked: checkpoint.checked,
            headerless: if checkpoint.checked { Headerless::IfLearnt } else { Headerless::Never },
            gone: AtomicBool::new(false),
            settled: false,
            _counted: calls.metrics.multipart_open(),
        }
    }

    fn checkpoint(&self, record: &UploadRecord) -> Checkpoint {
        let kms = self.calls.destination.encryption.as_ref();
        Checkpoint {
            bucket: self.bucket.clone(),
            key: self.key.clone(),
            upload_id: self.id.clone(),
            initiated: self.initiated.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs(),
            kms_key_arn: kms.map(|kms| kms.key_arn.as_str().to_owned()),
            encryption: self.encryption.clone(),
            checked: self.checked,
            sizes: record.sizes,
            source: record.source.clone(),
            parts: Vec::new(),
        }
    }

    /// Returns the span of a call that belongs to this upload.
    pub(super) fn span(&self, operation: &'static str, part: Option<u32>) -> tracing::Span {
        spans::s3(operation, &self.bucket, &self.key, Some(&self.id), part)
    }

    /// Parts that earlier attempts have sent.
    pub(super) fn done(&self) -> &[PartDone] {
        &self.done
    }

    /// Returns true if so many parts are all of them; false if the number is unknown.
    pub(super) fn has_all(&self, parts: u32) -> bool {
        self.whole.is_some_and(|(_, count)| count == parts)
    }

    /// Returns true if S3 no longer knows the upload.
    pub(super) fn is_gone(&self) -> bool {
        self.again && self.gone.load(Ordering::Relaxed)
    }

    /// Completes the upload, and reconciles when the reply was lost.
    ///
    /// After an error the upload is still open, unless S3 replied otherwise;
    /// [`MultipartUpload::end`] then aborts it or leaves it open.
    pub(in crate::upload) async fn complete(
        &mut self,
        target: &Target<'_>,
        sent: Vec<PartDone>,
    ) -> Result<Uploaded, Failure> {
        failpoints::hit("parts");
        let length = sent.iter().map(|part| part.length).sum();
        let crc = combined_crc(sent.iter().map(|part| (part.crc, part.length))).map(verify::crc_text);
        let expected = ExpectedObject::of_parts(&sent, &self.encryption, self.initiated);
        let read = sent.last().and_then(|last| last.packed).map_or(length, |end| end.source);
        let uploaded = match self.ask_to_complete(target, &sent, length, crc.as_deref()).await {
            Ok(receipt) => {
                failpoints::hit("completed");
                self.settle();
                verify::checksum(crc.as_deref(), receipt.checksum_crc64nvme.as_deref())
                    .inspect_err(|_| self.learn_proof_by_header("the response has another checksum of the object"))?;
                Uploaded::Stored(Receipt { checksum_crc64nvme: crc, ..receipt })
            }
            Err(error) => {
                if matches!(error.signal, ErrorSignal::BadDigest | ErrorSignal::InvalidPart)
                    && self.calls.learnt.part_proof(&self.calls.destination) == Some(PartProof::Response)
                {
                    self.learn_proof_by_header("the store refused to complete an upload of parts without the header");
                }
                // What takes the key may be what an earlier attempt completed.
                target.record_write(error.ambiguous || self.again);
                if error.signal == ErrorSignal::PreconditionFailed {
                    let taken = reconcile::taken(&self.calls, target, error, (expected, crc), None).await?;
                    self.try_abort().await;
                    taken
                } else {
                    self.reconciled(target, &expected, crc, error).await?
                }
            }
        };
        Ok(match uploaded {
            Uploaded::Stored(receipt) => {
                Uploaded::Stored(Receipt { source_bytes: read, resumed: self.again, ..receipt })
            }
            other => other,
        })
    }

    /// Reconciles after a failed complete: an earlier call or another worker may have completed the
    /// upload.
    async fn reconciled(
        &mut self,
        target: &Target<'_>,
        expected: &ExpectedObject,
        crc: Option<String>,
        error: CallError,
    ) -> Result<Uploaded, Failure> {
        let missing = error.signal == ErrorSignal::NoSuchUpload;
        // Two workers that send the same part get different tags where KMS encrypts; the later one stays.
        let overwritten = self.again && error.signal == ErrorSignal::InvalidPart;
        let unknown = error.ambiguous || missing || overwritten;
        let found = if unknown { self.look_for(target, expected).await } else { None };
        if let Some(object) = found {
            // An earlier attempt or another worker wrote an object of another age: then this upload is
            // still open.
            if !missing && !reconcile::is_of_upload(&object, self.initiated) {
                self.try_abort().await;
            }
            self.settle();
            return Ok(Uploaded::Stored(self.found(object, expected, crc)));
        }
        if missing {
            self.settle();
        } else if overwritten {
            self.try_abort().await;
        }
        if self.again && (missing || overwritten) { Ok(Uploaded::Stale) } else { Err(error.failure) }
    }

    /// Reconciles when S3 no longer knows the upload to resume: another worker completed it, or it
    /// was aborted.
    pub(super) async fn missing(&mut self, target: &Target<'_>) -> Result<Uploaded, Failure> {
        self.settle();
        let Some((length, parts)) = self.whole else { return Ok(Uploaded::Stale) };
        let known = ExpectedObject::of_parts(&self.done, &self.encryption, self.initiated);
        let etag = known.etag.filter(|_| known.parts == Some(parts));
        let expected = ExpectedObject { length, parts: Some(parts), etag, ..known };
        let found = self.look_for(target, &expected).await;
        Ok(found.map_or(Uploaded::Stale, |object| {
            Uploaded::Stored(Receipt { resumed: true, ..self.found(object, &expected, None) })
        }))
    }

    fn found(&self, object: aws_sdk_s3::types::Object, expected: &ExpectedObject, crc: Option<String>) -> Receipt {
        Receipt { encryption: Some(self.encryption.clone()), ..reconcile::receipt(object, expected, crc) }
    }

    /// Lists the object; `None` when it is not there, or listing is not allowed.
    async fn look_for(&self, target: &Target<'_>, expected: &ExpectedObject) -> Option<aws_sdk_s3::types::Object> {
        for wait in RECONCILE_DELAYS {
            tokio::time::sleep(wait).await;
            if let Some(object) = reconcile::find(&self.calls, target, expected).await {
                return Some(object);
            }
        }
        None
    }

    /// Retries until a reply proves that the object is there: an empty 200 does not.
    async fn ask_to_complete(
        &self,
        target: &Target<'_>,
        sent: &[PartDone],
        length: u64,
        crc: Option<&str>,
    ) -> Result<Receipt, CallError> {
        let parts = CompletedMultipartUpload::builder().set_parts(Some(sent.iter().map(completed).collect())).build();
        let each = COMPLETE_PER_PART * u32::try_from(sent.len()).unwrap_or(u32::MAX);
        let limit = COMPLETE_TIMEOUT.max(each);
        let mut ambiguous = false;
        reconcile::check_free(&self.calls, target, "CompleteMultipartUpload").await?;
        for _ in 0..MAX_COMPLETE_TRIES {
            let answer = self
                .calls
                .call("CompleteMultipartUpload", limit, |client| {
                    client
                        .complete_multipart_upload()
                        .bucket(&self.bucket)
                        .key(&self.key)
                        .upload_id(&self.id)
                        .multipart_upload(parts.clone())
                        .set_checksum_crc64_nvme(crc.map(str::to_owned))
                        .set_checksum_type(crc.map(|_| ChecksumType::FullObject))
                        .set_mpu_object_size(crc.map(|_| i64::try_from(length).unwrap_or(i64::MAX)))
                        .set_expected_bucket_owner(self.calls.owner())
                        .set_if_none_match(conditional(target))
                        .send()
                })
                .await;
            let reply = answer.map_err(|error| CallError { ambiguous: error.ambiguous || ambiguous, ..error })?;
            if proves_completion(&reply, &self.key) {
                return Ok(self.receipt(reply, length, sent.len()));
            }
            ambiguous = true;
        }
        let failure = Failure::new(Reason::S3Unavailable, "CompleteMultipartUpload: S3 answered without an ETag");
        Err(CallError { ambiguous, ..CallError::new(failure) })
    }

    fn receipt(&self, reply: CompleteMultipartUploadOutput, length: u64, parts: usize) -> Receipt {
        Receipt {
            bytes: length,
            source_bytes: length,
            parts: u32::try_from(parts).unwrap_or(u32::MAX),
            etag: reply.e_tag.filter(|etag| !etag.is_empty()),
            version_id: reply.version_id,
            checksum_crc64nvme: reply.checksum_crc64_nvme,
            encryption: Some(self.encryption.clone()),
            resumed: self.again,
            length_unproven: false,
        }
    }

    /// Ends the upload after a failure: leaves it open with its checkpoint recorded if that is
    /// wanted and another attempt could resume it, else aborts it. A refused abort is expected
    /// where the customer grants s3:PutObject alone: it is counted, and the lifecycle rule of the
    /// bucket has to clean up.
    pub(super) async fn end(&mut self, leave: bool) {
        if self.settled {
            return;
        }
        if leave && self.open_upload.is_some_and(OpenUpload::is_open) {
            self.settled = true;
        } else {
            self.try_abort().await;
        }
    }

    /// Aborts the upload and returns the result. If the abort is denied, the upload can still be
    /// completed.
    pub(in crate::upload) async fn try_abort(&mut self) -> Aborted {
        // No other attempt may resume it from here on. If this is cancelled, drop aborts it in the background.
        if let Some(open_upload) = self.open_upload {
            open_upload.close();
        }
        let aborted = abort(&self.calls, &self.bucket, &self.key, &self.id).await;
        self.settled = true;
        aborted
    }

    /// Nothing is left to be done about it, by anybody.
    fn settle(&mut self) {
        self.settled = true;
        if let Some(open_upload) = self.open_upload {
            open_upload.close();
        }
    }
}

impl Drop for MultipartUpload<'_> {
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        self.settle();
        let (bucket, key) = (std::mem::take(&mut self.bucket), std::mem::take(&mut self.key));
        abort_in_background(self.calls.clone(), bucket, key, std::mem::take(&mut self.id));
    }
}

/// Returns true for a reply with the ETag of the object. Ceph leaves that empty, and names the key.
fn proves_completion(reply: &CompleteMultipartUploadOutput, key: &str) -> bool {
    reply.e_tag().is_some_and(|etag| !etag.is_empty() || reply.key() == Some(key))
}

/// Length and number of parts of the whole object, if known beforehand.
fn whole(sizes: PartSizes, length: Option<u64>) -> Option<(u64, u32)> {
    match sizes {
        PartSizes::Even { parts, .. } => length.map(|length| (length, parts)),
        PartSizes::Growing { .. } | PartSizes::Packed { .. } => None,
    }
}

fn completed(part: &PartDone) -> CompletedPart {
    CompletedPart::builder()
        .part_number(i32::try_from(part.number).unwrap_or(i32::MAX))
        .set_e_tag(part.etag.clone())
        .set_checksum_crc64_nvme(part.crc.map(verify::crc_text))
        .build()
}
