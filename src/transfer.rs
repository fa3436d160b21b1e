//! One job from start to result: session, source, upload. Knows no queue and no attempts.

mod body;
mod object;
mod transport;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::Timestamp;

use crate::check::{CheckReport, Checker, LIMIT};
use crate::domain::destination::Destination;
use crate::domain::diagnosis::Who;
use crate::domain::job::lease::Checkpoint;
use crate::domain::job::{Job, Source};
use crate::domain::outcome::{Failure, Reason, Symptom, TransferResult};
use crate::metrics::Metrics;
use crate::session::Sessions;
use crate::source::Sources;
use crate::upload::Uploader;
use object::ObjectTransfer;
pub use transport::{TransferRequest, Transport};

/// Everything a transfer uses. Built once, shared by all.
#[derive(Debug)]
pub struct Transfers {
    /// Clients by destination.
    pub sessions: Arc<Sessions>,
    /// Sources of the bytes.
    pub sources: Sources,
    /// Uploads into the destinations.
    pub uploader: Uploader,
    /// Metrics.
    pub metrics: Arc<Metrics>,
}

impl Transport for Transfers {
    fn deliver<'a>(&'a self, job: &'a Job, attempt: TransferRequest<'a>) -> BoxFuture<'a, TransferResult> {
        // Boxed: a future of 16 KiB would be copied at every step outwards.
        Box::pin(self.run(job, attempt))
    }

    fn abort_upload<'a>(&'a self, destination: &'a Arc<Destination>, checkpoint: &'a Checkpoint) -> BoxFuture<'a, ()> {
        Box::pin(self.uploader.abort_upload(destination, checkpoint))
    }

    fn finish_aborts(&self, limit: Duration) -> BoxFuture<'_, ()> {
        Box::pin(self.uploader.finish_aborts(limit))
    }

    fn forget_denials(&self) {
        self.sessions.forget_denials();
    }

    fn confirm_outage<'a>(&'a self, symptom: Symptom, controls: &'a [Arc<Destination>]) -> BoxFuture<'a, bool> {
        Box::pin(self.sessions.confirm_outage(symptom, controls))
    }

    fn test<'a>(&'a self, destination: &'a Arc<Destination>, egress: &'a [String]) -> BoxFuture<'a, CheckReport> {
        Box::pin(async move {
            let checker =
                Checker { sessions: &self.sessions, uploader: &self.uploader, egress, who: Who::Worker, limit: LIMIT };
            checker.run(destination, &|_| ()).await
        })
    }
}

impl Transfers {
    /// See [`Transport::deliver`].
    async fn run(&self, job: &Job, attempt: TransferRequest<'_>) -> TransferResult {
        if job.expires_at.is_some_and(|at| at <= Timestamp::now()) {
            return TransferResult::Expired;
        }
        match self.attempt(job, &attempt).await {
            Ok(result) => result,
            Err(failure) => {
                let failure = may_heal(&job.source, failure);
                TransferResult::Failed(self.sessions.judged_at_home(failure).await)
            }
        }
    }

    async fn attempt(&self, job: &Job, request: &TransferRequest<'_>) -> Result<TransferResult, Failure> {
        let destination = request.destination;
        let key = destination.prefix.join(job.key.as_str());
        let key = key.map_err(|invalid| Failure::new(Reason::InvalidKey, invalid.to_string()))?;
        // Recorded first, so that every later failure resumes or aborts it.
        if let Some(checkpoint) = &request.resume {
            request.open_upload.open(checkpoint.clone());
        }
        let object = ObjectTransfer { transfers: self, job, request, key: &key };
        let used = self.sessions.region(destination);
        let first = object.upload().await;
        let Err(failure) = &first else { return first };
        if self.uploader.learn_equal_parts(destination, failure) {
            tracing::warn!(
                event = "equal_parts_learnt",
                destination = %destination.id,
                next = "uploads of this destination use equal parts",
                remedy = "set equal_parts = true in the destination",
                "the store requires parts of equal size"
            );
        }
        let Some(region) = failure.learnt_region.as_ref().filter(|region| **region != used) else { return first };
        self.sessions.learn_region(destination, region);
        tracing::warn!(
            event = "region_learnt",
            destination = %destination.id,
            configured = %destination.region,
            actual = %region,
            next = "the worker uses the actual region",
            remedy = "correct the region of the destination",
            "the bucket is in another region"
        );
        object.upload().await
    }
}

/// Makes the failure of a source that changed while it was read temporary: the next attempt reads
/// the new content. That is another one than the job wants if the job names its content.
fn may_heal(source: &Source, failure: Failure) -> Failure {
    let named = source.etag.is_some() || source.sha256.is_some();
    match failure.reason {
        Reason::SourceChanged if !named => Failure { reason: Reason::SourceUnavailable, ..failure },
        Reason::SourceChanged if failure.hint.is_empty() => {
            failure.hint("publish the job again, with the etag or sha256 that the source has now")
        }
        _ => failure,
    }
}
