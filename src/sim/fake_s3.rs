//! Simulated customer buckets.

use std::collections::BTreeMap;

use super::job_plan::JobPlan;
use super::scenario::Scenario;
use super::world::{SimState, note};
use crate::upload::{ExpectedObject, ListedObject};

/// Objects and multipart uploads.
#[derive(Debug, Default)]
pub(super) struct FakeS3 {
    /// Visible objects by key.
    pub(super) objects: BTreeMap<String, SimObject>,
    /// Every upload of the scenario, open or not, by id.
    pub(super) uploads: BTreeMap<String, SimUpload>,
    /// Number of accepted parts, and of those that had been accepted before for the same object.
    pub(super) parts: u64,
    pub(super) repeated_parts: u64,
}

/// A visible object.
#[derive(Debug, Clone)]
pub(super) struct SimObject {
    /// Job whose content the object has; `None` for an object of another writer.
    pub(super) job: Option<usize>,
    /// Upload that created the object.
    pub(super) upload: Option<String>,
    /// Properties that a listing shows.
    pub(super) listed: ListedObject,
}

/// Returns the object that a job would write. No bucket of a scenario encrypts with a KMS key:
/// ETags are digests.
pub(super) fn written(job: usize, plan: &JobPlan) -> ExpectedObject {
    let parts = plan.shape.parts();
    let etag = parts.map_or_else(|| format!("content{job}"), |parts| format!("content{job}-{parts}"));
    ExpectedObject { length: 1000, parts, etag: Some(etag), digests: parts.is_some(), initiated: None }
}

/// Returns an object of these properties as a listing shows it.
pub(super) fn listed(object: ExpectedObject) -> ListedObject {
    ListedObject { length: Some(object.length), etag: object.etag.unwrap_or_default(), modified: None }
}

/// Returns the object of another writer at the key of a job: half of them have the size and the
/// parts of the job's own.
fn foreign(job: usize, plan: &JobPlan) -> SimObject {
    let ours = written(job, plan);
    let length = if job.is_multiple_of(2) { ours.length } else { ours.length + 1 };
    let etag = ours.etag.map(|etag| etag.replace("content", "foreign"));
    SimObject { job: None, upload: None, listed: listed(ExpectedObject { length, etag, ..ours }) }
}

/// A multipart upload.
#[derive(Debug)]
pub(super) struct SimUpload {
    pub(super) job: usize,
    pub(super) key: String,
    pub(super) open: bool,
    /// Number of times each part was accepted.
    pub(super) parts: BTreeMap<u32, u32>,
    /// Worker that last worked on the upload.
    pub(super) worker: usize,
    /// Reason why the upload may stay open, if it may.
    pub(super) allowed_open: Option<&'static str>,
}

/// Key of an object.
pub(super) fn key(object: usize) -> String {
    format!("in/job-{object}.csv")
}

impl FakeS3 {
    pub(super) fn new(scenario: &Scenario) -> Self {
        let taken = scenario.jobs.iter().enumerate().filter(|(_, plan)| plan.existing.is_present());
        let objects = taken.map(|(job, plan)| (key(plan.object), foreign(job, plan))).collect();
        Self { objects, ..Self::default() }
    }

    /// Returns the upload with this id if it is open.
    pub(super) fn open(&mut self, id: &str) -> Option<&mut SimUpload> {
        self.uploads.get_mut(id).filter(|upload| upload.open)
    }
}

impl SimState {
    /// Job whose content the object of this job has.
    fn visible(&self, job: usize) -> Option<usize> {
        self.s3.objects.get(&key(self.plan(job).object))?.job
    }

    /// Returns true if the job's own content is visible.
    pub(super) fn has(&self, job: usize) -> bool {
        self.visible(job) == Some(job)
    }

    /// Returns true if the content of the job, or of a newer refresh, is visible.
    pub(super) fn has_as_new(&self, job: usize) -> bool {
        let newer = |other: usize| self.plan(other).generation >= self.plan(job).generation;
        self.visible(job).is_some_and(newer)
    }

    /// Returns true if nobody knows that a job was delivered: at that time nothing of its object
    /// was pending, so it was not reported, and its worker has stopped.
    fn is_forgotten(&self, job: usize) -> bool {
        let record = &self.records[job];
        !record.reported && !record.deliverers.iter().any(|worker| self.workers[*worker].alive)
    }

    /// Makes the content of a job visible. A late attempt must not replace a newer refresh that was
    /// reported as delivered; two first attempts may overtake each other.
    pub(super) fn write_object(&mut self, job: usize, late: bool, upload: Option<String>) {
        let key = key(self.plan(job).object);
        let replaced = self.visible(job).filter(|other| self.plan(*other).generation > self.plan(job).generation);
        if let Some(other) = replaced {
            let delivered = self.records[other].outcomes.contains_key("delivered");
            let forgotten = self.is_forgotten(other);
            if late && delivered && !forgotten {
                self.report_violation(format!("a late attempt of job-{job} replaces job-{other}, which is newer"));
            }
            if late && delivered && forgotten {
                self.count_fault("deliveries forgotten with their worker");
            } else if !late {
                self.count_fault("first attempts out of order");
            }
            self.records[other].overtaken |= !late || forgotten;
        }
        note!(self, "{key} is visible with the content of job-{job}, late: {late}");
        let listed = listed(written(job, self.plan(job)));
        self.s3.objects.insert(key, SimObject { job: Some(job), upload, listed });
    }

    /// Aborts an upload, unless the scenario denies that.
    pub(super) fn abort(&mut self, id: &str) {
        let denied = self.scenario.fault_rates.abort_denied;
        note!(self, "{id} is aborted{}", if denied { ", which is denied" } else { "" });
        if let Some(upload) = self.s3.open(id) {
            if denied {
                upload.allowed_open = Some("AbortMultipartUpload is denied");
            } else {
                upload.open = false;
            }
        }
    }

    /// Allows a stopped worker's open uploads whose ids it had not recorded: no other worker can
    /// know them.
    pub(super) fn allow_unrecorded_uploads(&mut self, worker: usize) {
        let open = self.s3.uploads.iter().filter(|(_, upload)| upload.open && upload.worker == worker);
        let open: Vec<_> = open.map(|(id, _)| id.clone()).collect();
        for id in open {
            if !self.is_on_record(&id)
                && let Some(upload) = self.s3.open(&id)
            {
                upload.allowed_open = Some("its worker stopped before the id was recorded");
            }
        }
    }
}
