//! Sends of one part. S3 compares the bytes that arrive with the checksum header, or responds with
//! the checksum of what arrived, which is compared here.
//!
//! The header is sent before the bytes, so a part with a header is read from the file twice.
//! Without it, the checksum is computed while the part is sent. This requires a store that computes
//! the CRC-64/NVME of the whole object and responds with that of each part. The first upload sends
//! one part without the header to learn if it does. Until then, and if it does not, all other parts
//! have the header.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aws_sdk_s3::operation::create_multipart_upload::CreateMultipartUploadOutput;
use aws_sdk_s3::operation::upload_part::UploadPartOutput;
use aws_sdk_s3::types::{ChecksumAlgorithm, ChecksumType};
use aws_smithy_types::byte_stream::ByteStream;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::MultipartUpload;
use crate::domain::job::lease::PartDone;
use crate::domain::outcome::{Class, Failure};
use crate::runtime::failpoints;
use crate::upload::classify::{CallError, ErrorSignal};
use crate::upload::learnt::PartProof;
use crate::upload::part::{Part, Passage};
use crate::upload::single::changed_or;
use crate::upload::verify;

/// Parts of an upload that may go without a checksum header.
#[derive(Debug)]
pub(super) enum Headerless {
    /// None: there are no checksums, or S3 does not keep that of the whole object.
    Never,
    /// All, if the store is known to respond with their checksums. For a resumed upload, whose
    /// checkpoint does not contain the response to CreateMultipartUpload.
    IfLearnt,
    /// All, if the store is known to respond with their checksums; one, if that must be learnt.
    /// True once that one was chosen.
    OneToLearn(AtomicBool),
}

/// End of the send of a part without a checksum header.
enum HeaderlessSend {
    Proven(PartDone),
    /// The part, and all later ones, need the header.
    Unproven,
    /// The store refused the part, perhaps because it has no header.
    Refused,
}

impl Headerless {
    /// A store that keeps the checksum of the whole object computes that of each part itself.
    pub(super) fn of_created(reply: &CreateMultipartUploadOutput) -> Self {
        let algorithm = reply.checksum_algorithm() == Some(&ChecksumAlgorithm::Crc64Nvme);
        if algorithm && reply.checksum_type() == Some(&ChecksumType::FullObject) {
            Self::OneToLearn(AtomicBool::new(false))
        } else {
            Self::Never
        }
    }

    fn allows_next(&self, learnt: Option<PartProof>) -> bool {
        match (self, learnt) {
            (Self::Never, _) | (_, Some(PartProof::Header)) | (Self::IfLearnt, None) => false,
            (_, Some(PartProof::Response)) => true,
            (Self::OneToLearn(sent), None) => !sent.swap(true, Ordering::Relaxed),
        }
    }
}

impl MultipartUpload<'_> {
    /// Sends a part, with retries, until it is proven that its bytes arrived intact.
    pub(in crate::upload) async fn send(&self, part: &Part) -> Result<PartDone, Failure> {
        let learnt = self.calls.learnt.part_proof(&self.calls.destination);
        let mut refused = false;
        if part.crc.is_none() && self.headerless.allows_next(learnt) {
            match self.send_without_header(part, learnt).await? {
                HeaderlessSend::Proven(done) => return Ok(done),
                HeaderlessSend::Unproven => {}
                HeaderlessSend::Refused => refused = true,
            }
        }
        let crc = match part.crc {
            None if self.checked => Some(part.compute_crc().await?),
            known => known,
        };
        let started = Instant::now();
        let header = crc.map(verify::crc_text);
        let sent = self.upload_part(part, header.as_deref(), || part.body(None)).await;
        let reply = sent.map_err(|error| self.failed(part, error))?;
        verify::checksum(header.as_deref(), reply.checksum_crc64_nvme())?;
        if refused {
            self.learn_proof_by_header("the store refused a part without a checksum header");
        }
        Ok(self.accepted(part, crc, reply, started.elapsed()))
    }

    /// Sends a part and compares its checksum with that of the response.
    async fn send_without_header(&self, part: &Part, learnt: Option<PartProof>) -> Result<HeaderlessSend, Failure> {
        // That of the last try: each one reads the file from the start.
        let passage = Mutex::new(Passage::default());
        let latest = || passage.lock();
        let body = || {
            let fresh = Passage::default();
            *latest() = fresh.clone();
            part.body(Some(fresh))
        };
        let started = Instant::now();
        let cause = match self.upload_part(part, None, body).await {
            Ok(reply) => {
                let sent = latest().crc();
                let arrived = reply.checksum_crc64_nvme();
                if sent.is_some() && arrived == sent.map(verify::crc_text).as_deref() {
                    self.calls.learnt.learn_proof_by_response(&self.calls.destination);
                    return Ok(HeaderlessSend::Proven(self.accepted(part, sent, reply, started.elapsed())));
                }
                if arrived.is_some() {
                    "the response has another checksum of the part"
                } else {
                    "the store does not respond with the checksum of a part"
                }
            }
            Err(error) if error.signal == ErrorSignal::ChecksumRequired => "the store requires a checksum header",
            // Whatever it says: the header may be what is missing.
            Err(error) if learnt.is_none() && is_refusal(&error) => {
                self.calls.metrics.part_retried();
                return Ok(HeaderlessSend::Refused);
            }
            Err(error) => {
                let failure = self.failed(part, error);
                return Err(latest().failure().unwrap_or(failure));
            }
        };
        self.learn_proof_by_header(cause);
        self.calls.metrics.part_retried();
        Ok(HeaderlessSend::Unproven)
    }

    pub(super) fn learn_proof_by_header(&self, cause: &'static str) {
        self.calls.learnt.learn_proof_by_header(&self.calls.destination, cause);
    }

    async fn upload_part(
        &self,
        part: &Part,
        crc: Option<&str>,
        body: impl Fn() -> ByteStream,
    ) -> Result<UploadPartOutput, CallError> {
        let number = i32::try_from(part.number).unwrap_or(i32::MAX);
        self.calls
            .call("UploadPart", self.calls.limit(part.length), |client| {
                client
                    .upload_part()
                    .bucket(&self.bucket)
                    .key(&self.key)
                    .upload_id(&self.id)
                    .part_number(number)
                    .content_length(i64::try_from(part.length).unwrap_or(i64::MAX))
                    .set_checksum_crc64_nvme(crc.map(str::to_owned))
                    .set_expected_bucket_owner(self.calls.owner())
                    .body(body())
                    .customize()
                    .disable_payload_signing()
                    .send()
            })
            .await
    }

    fn failed(&self, part: &Part, error: CallError) -> Failure {
        self.calls.metrics.part_failed();
        self.gone.fetch_or(error.signal == ErrorSignal::NoSuchUpload, Ordering::Relaxed);
        changed_or(error.failure, error.signal, part)
    }

    fn accepted(&self, part: &Part, crc: Option<u64>, reply: UploadPartOutput, took: Duration) -> PartDone {
        self.calls.metrics.part_sent(took);
        if let Some(file) = part.file() {
            file.count_read(part.length);
        }
        let done = PartDone { number: part.number, length: part.length, crc, etag: reply.e_tag, packed: part.packed };
        if let Some(open_upload) = self.open_upload {
            open_upload.part(done.clone());
        }
        failpoints::hit("part");
        done
    }
}

/// Returns true for an answer that repeating the request does not change.
fn is_refusal(error: &CallError) -> bool {
    let failure = &error.failure;
    let is_final = failure.answer.is_some() && matches!(failure.class(), Class::Job | Class::Destination);
    is_final && error.signal != ErrorSignal::NoSuchUpload
}

#[cfg(test)]
mod tests {
    use super::*;

    fn created(algorithm: Option<ChecksumAlgorithm>, kind: Option<ChecksumType>) -> Headerless {
        let reply = CreateMultipartUploadOutput::builder().set_checksum_algorithm(algorithm).set_checksum_type(kind);
        Headerless::of_created(&reply.build())
    }

    #[test]
    fn only_a_store_that_keeps_the_crc_of_the_whole_object_is_tried() {
        let (crc, full) = (Some(ChecksumAlgorithm::Crc64Nvme), Some(ChecksumType::FullObject));
        assert!(created(crc.clone(), full.clone()).allows_next(None));
        for (algorithm, kind) in [
            (None, None),
            (crc.clone(), None),
            (None, full.clone()),
            (crc, Some(ChecksumType::Composite)),
            (Some(ChecksumAlgorithm::Crc32), full),
        ] {
            let named = format!("{algorithm:?} {kind:?}");
            let headerless = created(algorithm, kind);
            assert!(!headerless.allows_next(None) && !headerless.allows_next(Some(PartProof::Response)), "{named}");
        }
    }

    #[test]
    fn one_part_is_sent_to_learn_and_what_is_learnt_holds_for_all() {
        let new = Headerless::OneToLearn(AtomicBool::new(false));
        assert_eq!([None; 3].map(|learnt| new.allows_next(learnt)), [true, false, false]);
        let resumed = Headerless::IfLearnt;
        assert!(!resumed.allows_next(None));
        for headerless in [new, resumed] {
            assert!(headerless.allows_next(Some(PartProof::Response)));
            assert!(!headerless.allows_next(Some(PartProof::Header)));
        }
    }
}
