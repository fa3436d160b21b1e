//! Port through which the worker makes transfers.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::check::CheckReport;
use crate::domain::destination::Destination;
use crate::domain::job::Job;
use crate::domain::job::lease::Checkpoint;
use crate::domain::outcome::{Symptom, TransferResult};
use crate::upload::{OpenUpload, Progress, RateLimiter, StopSignals, WriteGate};

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
    /// [`crate::session::Sessions::confirm_outage`]. A transport that can't ask confirms nothing.
    fn confirm_outage<'a>(&'a self, _symptom: Symptom, _controls: &'a [Arc<Destination>]) -> BoxFuture<'a, bool> {
        Box::pin(std::future::ready(false))
    }

    /// Tests a connection; `egress` holds the public addresses of the platform.
    fn test<'a>(&'a self, destination: &'a Arc<Destination>, egress: &'a [String]) -> BoxFuture<'a, CheckReport>;
}
