//! Multipart uploads of a story: part by part, with a journal, and continued where another attempt has left off.

use std::collections::BTreeMap;
use std::time::Duration;

use super::bucket::{Upload, key};
use super::cloud::{Run, shutdown};
use super::plan::Shape;
use super::world::note;
use crate::domain::job::lease::{Checkpoint, PartDone, PartSizes, SourceMark};
use crate::domain::outcome::{Encryption, Failure, Reason, TransferResult};

impl Run<'_> {
    /// Sends what is missing, and completes.
    pub(super) async fn parts(&self, shape: Shape) -> TransferResult {
        let Shape::Parts { count, each, resumable, part_size } = shape else { return shutdown() };
        // An upload that is gone is begun anew, once.
        let mut resume = self.attempt.resume.clone();
        for _ in 0..2 {
            let (id, done) = match resume.take() {
                Some(checkpoint) if self.is_open(&checkpoint.upload_id) => self.take_up(checkpoint),
                Some(checkpoint) if self.is_shown(&checkpoint.upload_id) => return self.found(checkpoint.upload_id),
                _ => (self.create(shape).await, Vec::new()),
            };
            self.hang().await;
            for number in (1..=count).filter(|number| !done.contains(number)) {
                if self.gives_over() {
                    return shutdown();
                }
                if !self.send(&id, number, each, resumable.then_some(part_size)).await {
                    break;
                }
            }
            self.cloud.step(Duration::from_millis(100)).await;
            if self.complete(&id, count) {
                return self.show(Some(id));
            }
            if self.is_shown(&id) {
                return self.found(id);
            }
            self.forget();
        }
        TransferResult::Failed(Failure::new(Reason::S3Unavailable, "the upload is gone"))
    }

    fn is_open(&self, id: &str) -> bool {
        self.cloud.world.lock().buckets.open(id).is_some()
    }

    /// Whether the object that is there was made of this upload.
    fn is_shown(&self, id: &str) -> bool {
        let state = self.cloud.world.lock();
        state.buckets.objects.get(&key(self.job)).is_some_and(|object| object.upload.as_deref() == Some(id))
    }

    /// Somebody else has completed the upload.
    fn found(&self, id: String) -> TransferResult {
        self.forget();
        self.show(Some(id))
    }

    /// The upload is there no more.
    fn forget(&self) {
        self.open().take();
        self.attempt.open_upload.close();
    }

    fn take_up(&self, checkpoint: Checkpoint) -> (String, Vec<u32>) {
        let id = checkpoint.upload_id.clone();
        let done = checkpoint.parts.iter().map(|part| part.number).collect();
        self.attempt.open_upload.open(checkpoint);
        *self.open() = Some(id.clone());
        let mut state = self.cloud.world.lock();
        note!(state, "worker {} goes on with {id}", self.cloud.member);
        if let Some(upload) = state.buckets.open(&id) {
            upload.member = self.cloud.member;
            upload.excused = None;
        }
        (id, done)
    }

    async fn create(&self, shape: Shape) -> String {
        let wait = self.cloud.world.lock().latency();
        self.cloud.step(wait).await;
        let mut state = self.cloud.world.lock();
        let id = format!("upload-{}", state.number());
        note!(state, "worker {} opens {id} for job-{}", self.cloud.member, self.job);
        let (job, member) = (self.job, self.cloud.member);
        let upload = Upload { job, key: key(job), open: true, parts: BTreeMap::new(), member, excused: None };
        state.buckets.uploads.insert(id.clone(), upload);
        drop(state);
        *self.open() = Some(id.clone());
        if let Shape::Parts { count, part_size, resumable: true, .. } = shape {
            self.attempt.open_upload.open(self.checkpoint(&id, part_size, count));
        }
        id
    }

    fn checkpoint(&self, id: &str, part_size: u64, parts: u32) -> Checkpoint {
        Checkpoint {
            bucket: self.attempt.destination.bucket.to_string(),
            key: key(self.job),
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

    /// Sends one part; false where the upload is gone.
    async fn send(&self, id: &str, number: u32, each: Duration, recorded: Option<u64>) -> bool {
        self.cloud.step(each).await;
        let mut state = self.cloud.world.lock();
        let Some(upload) = state.buckets.open(id) else { return false };
        let times = upload.parts.entry(number).or_default();
        *times += 1;
        let again = *times > 1;
        state.buckets.parts += 1;
        state.buckets.twice += u64::from(again);
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

    /// Completes the upload, if it is still there and whole.
    fn complete(&self, id: &str, count: u32) -> bool {
        let mut state = self.cloud.world.lock();
        let Some(upload) = state.buckets.open(id) else { return false };
        if upload.job != self.job || !(1..=count).all(|number| upload.parts.contains_key(&number)) {
            let what = format!("{id} of job-{} is completed by job-{} with {:?}", upload.job, self.job, upload.parts);
            state.wrong(what);
        }
        if let Some(upload) = state.buckets.open(id) {
            upload.open = false;
        }
        drop(state);
        self.forget();
        true
    }
}
