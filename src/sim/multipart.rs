//! Simulated multipart uploads: sent part by part, checkpointed, and resumed by later attempts.

use std::collections::BTreeMap;
use std::time::Duration;

use super::fake_s3::{SimUpload, key};
use super::job_plan::UploadShape;
use super::transport::{SimAttempt, shutdown};
use super::world::note;
use crate::domain::job::lease::{Checkpoint, PartDone, PartSizes, SourceMark};
use crate::domain::outcome::{Encryption, Failure, Reason, TransferResult};

impl SimAttempt<'_> {
    /// Sends the missing parts and completes the upload.
    pub(super) async fn multipart(&self, shape: UploadShape) -> TransferResult {
        let UploadShape::Multipart { count, each, resumable, part_size } = shape else { return shutdown() };
        // An upload that no longer exists is started again, once.
        let mut resume = self.attempt.resume.clone();
        for _ in 0..2 {
            let (id, done) = match resume.take() {
                Some(checkpoint) if self.is_open(&checkpoint.upload_id) => self.resume_upload(checkpoint),
                Some(checkpoint) if self.is_visible(&checkpoint.upload_id) => {
                    return self.completed_elsewhere(checkpoint.upload_id);
                }
                _ => (self.create(shape).await, Vec::new()),
            };
            self.hang().await;
            for number in (1..=count).filter(|number| !done.contains(number)) {
                if self.should_hand_off() {
                    return shutdown();
                }
                if !self.send(&id, number, each, resumable.then_some(part_size)).await {
                    break;
                }
            }
            if let Err(refused) = self.enter_gate().await {
                return TransferResult::Failed(refused);
            }
            self.transport.step(Duration::from_millis(100)).await;
            if self.complete(&id, count) {
                return self.make_visible(Some(id));
            }
            if self.is_visible(&id) {
                return self.completed_elsewhere(id);
            }
            self.close_upload();
        }
        TransferResult::Failed(Failure::new(Reason::S3Unavailable, "the upload no longer exists"))
    }

    fn is_open(&self, id: &str) -> bool {
        self.transport.world.lock().s3.open(id).is_some()
    }

    /// Returns true if the visible object was created by this upload.
    fn is_visible(&self, id: &str) -> bool {
        let state = self.transport.world.lock();
        state
            .s3
            .objects
            .get(&key(state.plan(self.job).object))
            .is_some_and(|object| object.upload.as_deref() == Some(id))
    }

    /// Handles an upload that another worker completed.
    fn completed_elsewhere(&self, id: String) -> TransferResult {
        self.close_upload();
        self.make_visible(Some(id))
    }

    /// Closes the checkpoint of an upload that no longer exists.
    fn close_upload(&self) {
        self.open().take();
        self.attempt.open_upload.close();
    }

    fn resume_upload(&self, checkpoint: Checkpoint) -> (String, Vec<u32>) {
        let id = checkpoint.upload_id.clone();
        let done = checkpoint.parts.iter().map(|part| part.number).collect();
        self.attempt.open_upload.open(checkpoint);
        *self.open() = Some(id.clone());
        let mut state = self.transport.world.lock();
        note!(state, "worker {} resumes {id}", self.transport.worker);
        if let Some(upload) = state.s3.open(&id) {
            upload.worker = self.transport.worker;
            upload.allowed_open = None;
        }
        (id, done)
    }

    async fn create(&self, shape: UploadShape) -> String {
        let wait = self.transport.world.lock().latency();
        self.transport.step(wait).await;
        let mut state = self.transport.world.lock();
        let id = format!("upload-{}", state.next_number());
        note!(state, "worker {} creates {id} for job-{}", self.transport.worker, self.job);
        let (job, worker) = (self.job, self.transport.worker);
        let key = key(state.plan(job).object);
        let upload = SimUpload { job, key, open: true, parts: BTreeMap::new(), worker, allowed_open: None };
        state.s3.uploads.insert(id.clone(), upload);
        drop(state);
        *self.open() = Some(id.clone());
        if let UploadShape::Multipart { count, part_size, resumable: true, .. } = shape {
            self.attempt.open_upload.open(self.checkpoint(&id, part_size, count));
        }
        id
    }

    fn checkpoint(&self, id: &str, part_size: u64, parts: u32) -> Checkpoint {
        Checkpoint {
            bucket: self.attempt.destination.bucket.to_string(),
            key: key(self.transport.world.lock().plan(self.job).object),
            upload_id: id.to_owned(),
            initiated: super::clock::now().as_second().unsigned_abs(),
            kms_key_arn: None,
            encryption: Encryption::default(),
            checked: true,
            sizes: PartSizes::Even { part_size, parts },
            source: SourceMark { validator: "v1".to_owned(), length: Some(part_size * u64::from(parts)) },
            parts: Vec::new(),
        }
    }

    /// Sends one part. Returns false if the upload no longer exists.
    async fn send(&self, id: &str, number: u32, each: Duration, recorded: Option<u64>) -> bool {
        self.transport.step(each).await;
        let mut state = self.transport.world.lock();
        let Some(upload) = state.s3.open(id) else { return false };
        let times = upload.parts.entry(number).or_default();
        *times += 1;
        let again = *times > 1;
        state.s3.parts += 1;
        state.s3.repeated_parts += u64::from(again);
        drop(state);
        self.attempt.progress.add(1, 1);
        if let Some(length) = recorded {
            self.attempt.open_upload.part(PartDone {
                number,
                length,
                crc: Some(number.into()),
                etag: Some(format!("{id}-{number}")),
                packed: None,
            });
        }
        true
    }

    /// Completes the upload. Returns false if it no longer exists.
    fn complete(&self, id: &str, count: u32) -> bool {
        let mut state = self.transport.world.lock();
        let Some(upload) = state.s3.open(id) else { return false };
        if upload.job != self.job || !(1..=count).all(|number| upload.parts.contains_key(&number)) {
            let what = format!("{id} of job-{} is completed by job-{} with {:?}", upload.job, self.job, upload.parts);
            state.report_violation(what);
        }
        if let Some(upload) = state.s3.open(id) {
            upload.open = false;
        }
        drop(state);
        self.close_upload();
        true
    }
}
