//! Plan of one job in a scenario.

use std::time::Duration;

use bytes::Bytes;

use super::clock;
use super::rng::Rng;
use super::scenario::body;
use crate::domain::lane::Lane;
use crate::domain::outcome::Reason;

/// Transient failures; each is charged.
const TRANSIENT_REASONS: [Reason; 7] = [
    Reason::S3Unavailable,
    Reason::SlowDown,
    Reason::Connection,
    Reason::Timeout,
    Reason::StsUnavailable,
    Reason::SourceUnavailable,
    Reason::SessionExpired,
];
/// Failures of the job itself.
const JOB_REASONS: [Reason; 4] =
    [Reason::SourceNotFound, Reason::SourceMismatch, Reason::TooLarge, Reason::SourceForbidden];

/// Names of the destinations.
pub(super) const DESTINATIONS: [&str; 3] = ["acme", "globex", "initech"];

/// A job of a scenario.
#[derive(Debug)]
pub(super) struct JobPlan {
    pub(super) id: String,
    pub(super) destination: usize,
    /// Number of the object that the job writes. Several jobs may refresh one.
    pub(super) object: usize,
    pub(super) generation: u64,
    pub(super) lane: Lane,
    pub(super) body: Bytes,
    /// Publish times. Some jobs are published twice.
    pub(super) published: Vec<Duration>,
    pub(super) shape: UploadShape,
    /// Behavior of the first attempts, on any worker.
    pub(super) scripted: Vec<ScriptedAttempt>,
    /// Behavior of all later attempts.
    pub(super) behavior: JobBehavior,
    pub(super) existing: ExistingObject,
    pub(super) expires: Option<Duration>,
}

/// Size and duration of the transfer.
#[derive(Debug, Clone, Copy)]
pub(super) enum UploadShape {
    /// One PutObject request.
    Single(Duration),
    /// A multipart upload.
    Multipart {
        count: u32,
        each: Duration,
        part_size: u64,
        /// True if another attempt can resume the upload.
        resumable: bool,
    },
}

/// Behavior of one attempt.
#[derive(Debug, Clone, Copy)]
pub(super) enum ScriptedAttempt {
    /// No fault.
    Normal,
    /// It fails after this time, unless it ends earlier.
    Fail(Duration, Reason),
    /// It panics after this time.
    Panic(Duration),
    /// It hangs until the faults end.
    Hang,
    /// The object is written, but the reply is lost.
    LostReply,
}

/// Behavior of a job, which decides how it must end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum JobBehavior {
    /// It is delivered in the end.
    Succeeds,
    /// Every attempt fails with this reason.
    Fails(Reason),
    /// Every attempt panics.
    Panics,
    /// The message is not a job, or its destination does not exist.
    Invalid,
    /// The message has crashed workers before.
    Poison,
}

/// Object that exists before the job runs, and what the job does with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ExistingObject {
    /// The job replaces an existing object.
    Replace,
    /// The job keeps an existing object; true if there is one.
    Keep(bool),
    /// The job fails on an existing object; true if there is one.
    Fail(bool),
}

impl UploadShape {
    /// Returns the number of parts; `None` for a single request.
    pub(super) fn parts(self) -> Option<u32> {
        match self {
            Self::Single(_) => None,
            Self::Multipart { count, .. } => Some(count),
        }
    }
}

impl ExistingObject {
    pub(super) fn is_present(self) -> bool {
        matches!(self, Self::Keep(true) | Self::Fail(true))
    }
}

impl JobPlan {
    /// Content type set by the producer. Half of the jobs have none.
    pub(super) fn content_type(&self) -> Option<&'static str> {
        self.body.len().is_multiple_of(2).then_some("application/json")
    }
}

/// Draws one job.
pub(super) fn draw(rng: &mut Rng, earlier: &[JobPlan], destinations: usize, faulty: bool) -> JobPlan {
    let number = earlier.len();
    let id = format!("job-{number}");
    let refreshed = refreshed(rng, earlier);
    let destination = refreshed.map_or_else(|| rng.index(destinations), |plan| plan.destination);
    let object = refreshed.map_or(number, |plan| plan.object);
    let behavior = if faulty { behavior(rng) } else { JobBehavior::Succeeds };
    let existing = if refreshed.is_some() { ExistingObject::Replace } else { existing(rng) };
    let expires = (faulty && rng.percent(12)).then(|| rng.seconds(10, 3000));
    let generation = number as u64 + 1;
    let first = match refreshed {
        // Most refreshes come after the last one.
        Some(plan) if rng.percent(80) => plan.published[0] + rng.millis(0, 90_000),
        _ => rng.seconds(0, 120),
    };
    let mut published = vec![first];
    if faulty && rng.percent(10) {
        published.push(first + rng.seconds(0, 90));
    }
    let scripted = if faulty { (0..rng.count(0, 4)).map(|_| scripted_attempt(rng)).collect() } else { Vec::new() };
    let lane = if rng.percent(30) { Lane::Backfill } else { Lane::Scheduled };
    let names = JobNames { id: &id, destination: DESTINATIONS[destination], object, generation };
    let body = text(rng, names, behavior, existing, expires);
    JobPlan {
        id,
        destination,
        object,
        generation,
        lane,
        body,
        published,
        shape: shape(rng),
        scripted,
        behavior,
        existing,
        expires,
    }
}

/// Returns the job whose object is refreshed, if it is.
fn refreshed<'a>(rng: &mut Rng, earlier: &'a [JobPlan]) -> Option<&'a JobPlan> {
    if earlier.is_empty() || rng.percent(40) {
        return None;
    }
    // Often the last one, so that some objects are refreshed often.
    let plan = if rng.percent(60) { &earlier[earlier.len() - 1] } else { rng.choose(earlier) };
    (plan.existing == ExistingObject::Replace).then_some(plan)
}

fn behavior(rng: &mut Rng) -> JobBehavior {
    match rng.below(100) {
        0..80 => JobBehavior::Succeeds,
        80..86 => JobBehavior::Fails(*rng.choose(&TRANSIENT_REASONS)),
        86..92 => JobBehavior::Fails(*rng.choose(&JOB_REASONS)),
        92..96 => JobBehavior::Panics,
        96 => JobBehavior::Poison,
        _ => JobBehavior::Invalid,
    }
}

fn existing(rng: &mut Rng) -> ExistingObject {
    match rng.below(100) {
        0..80 => ExistingObject::Replace,
        80..90 => ExistingObject::Keep(rng.percent(50)),
        _ => ExistingObject::Fail(rng.percent(50)),
    }
}

fn scripted_attempt(rng: &mut Rng) -> ScriptedAttempt {
    let after = rng.millis(0, 200_000);
    match rng.below(100) {
        0..25 => ScriptedAttempt::Normal,
        25..70 => ScriptedAttempt::Fail(after, *rng.choose(&TRANSIENT_REASONS)),
        70..80 => ScriptedAttempt::LostReply,
        80..88 => ScriptedAttempt::Panic(after),
        _ => ScriptedAttempt::Hang,
    }
}

fn shape(rng: &mut Rng) -> UploadShape {
    if rng.percent(50) {
        return UploadShape::Single(rng.millis(20, 60_000));
    }
    let large = rng.percent(40);
    UploadShape::Multipart {
        count: rng.count(2, 12),
        each: rng.millis(500, 60_000),
        // A total of more than 1 GiB, or less.
        part_size: if large { 600 << 20 } else { 8 << 20 },
        resumable: rng.percent(75),
    }
}

/// Names in the document of a job.
struct JobNames<'a> {
    id: &'a str,
    destination: &'a str,
    object: usize,
    generation: u64,
}

fn text(
    rng: &mut Rng,
    names: JobNames<'_>,
    behavior: JobBehavior,
    existing: ExistingObject,
    expires: Option<Duration>,
) -> Bytes {
    let JobNames { id, destination, object, generation } = names;
    let key = format!("job-{object}.csv");
    if behavior == JobBehavior::Invalid {
        return match rng.below(3) {
            0 => "not a job".into(),
            1 => body(id, "nobody", &key, ""),
            _ => body(id, destination, "../up", ""),
        };
    }
    let mut more = format!(r#","generation":{generation}"#);
    match existing {
        ExistingObject::Replace => {}
        ExistingObject::Keep(_) => more.push_str(r#","if_exists":"keep""#),
        ExistingObject::Fail(_) => more.push_str(r#","if_exists":"fail""#),
    }
    if let Some(expires) = expires {
        let at = clock::at(expires).to_string();
        more.extend([r#","expires_at":""#, &at, "\""]);
    }
    body(id, destination, &key, &more)
}
