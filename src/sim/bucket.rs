//! What is in the customers' buckets.

use std::collections::BTreeMap;

use super::story::Story;
use super::world::{State, note};

/// Objects and unfinished uploads.
#[derive(Debug, Default)]
pub(super) struct Buckets {
    /// Visible objects by key.
    pub(super) objects: BTreeMap<String, Object>,
    /// Every upload that ever was, by its id.
    pub(super) uploads: BTreeMap<String, Upload>,
    /// Parts that were accepted, and those of them that had been accepted before for the same object.
    pub(super) parts: u64,
    pub(super) twice: u64,
}

/// A visible object.
#[derive(Debug, Clone)]
pub(super) struct Object {
    /// The job whose content it has; `None` for somebody else's.
    pub(super) job: Option<usize>,
    /// The upload that it was made of.
    pub(super) upload: Option<String>,
}

/// A multipart upload.
#[derive(Debug)]
pub(super) struct Upload {
    pub(super) job: usize,
    pub(super) key: String,
    pub(super) open: bool,
    /// How often each part was accepted.
    pub(super) parts: BTreeMap<u32, u32>,
    /// The worker that worked on it last.
    pub(super) member: usize,
    /// Why it may stay open, if it may.
    pub(super) excused: Option<&'static str>,
}

/// The key of a job's object.
pub(super) fn key(job: usize) -> String {
    format!("in/job-{job}.csv")
}

impl Buckets {
    pub(super) fn new(story: &Story) -> Self {
        let taken = story.jobs.iter().enumerate().filter(|(_, plan)| plan.taken.is_taken());
        let objects = taken.map(|(job, _)| (key(job), Object { job: None, upload: None })).collect();
        Self { objects, ..Self::default() }
    }

    /// Whether the job's own content is visible.
    pub(super) fn has(&self, job: usize) -> bool {
        self.objects.get(&key(job)).is_some_and(|object| object.job == Some(job))
    }

    /// An open upload of this id.
    pub(super) fn open(&mut self, id: &str) -> Option<&mut Upload> {
        self.uploads.get_mut(id).filter(|upload| upload.open)
    }
}

impl State {
    /// An upload is given up, where that is allowed.
    pub(super) fn abort(&mut self, id: &str) {
        let denied = self.story.weather.abort_denied;
        note!(self, "{id} is aborted{}", if denied { ", which is denied" } else { "" });
        if let Some(upload) = self.buckets.open(id) {
            if denied {
                upload.excused = Some("nobody may abort it");
            } else {
                upload.open = false;
            }
        }
    }

    /// A worker is gone: uploads whose id it had not written down yet can't be known to anybody.
    pub(super) fn forgive_uploads(&mut self, member: usize) {
        let open = self.buckets.uploads.iter().filter(|(_, upload)| upload.open && upload.member == member);
        let open: Vec<_> = open.map(|(id, _)| id.clone()).collect();
        for id in open {
            if !self.on_record(&id)
                && let Some(upload) = self.buckets.open(&id)
            {
                upload.excused = Some("its worker died before the id was on record");
            }
        }
    }
}
