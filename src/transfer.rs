//! One job from start to end: session, source, upload. Knows no queue and no attempts.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use futures_util::future::BoxFuture;
use jiff::Timestamp;

use crate::check::{Checker, LIMIT, Report};
use crate::destination::{Destination, ObjectKey};
use crate::job::lease::Checkpoint;
use crate::job::{Compression, Job, ObjectAttributes};
use crate::metrics::Metrics;
use crate::outcome::{Ended, Failure, Reason, Receipt};
use crate::session::Sessions;
use crate::source::{SourceBody, SourceStream, Sources, compress, counted};
use crate::upload::{Journal, Progress, Stop, Target, Uploaded, Uploader};

/// Everything a transfer uses. Built once, shared by all.
#[derive(Debug)]
pub struct Transfers {
    /// Clients by destination.
    pub sessions: Arc<Sessions>,
    /// Where bytes come from.
    pub sources: Sources,
    /// Where they go.
    pub uploader: Uploader,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

/// What one attempt is told beside the job.
#[derive(Debug)]
pub struct Attempt<'a> {
    /// The job's destination, resolved.
    pub destination: &'a Arc<Destination>,
    /// When an earlier attempt may have written the object; `None` if there was none.
    pub earlier: Option<SystemTime>,
    /// Ends the attempt early, as `shutdown`.
    pub stop: &'a Stop,
    /// What S3 has accepted so far, for the status page.
    pub progress: &'a Progress,
    /// What an earlier attempt left unfinished. It is continued where source and destination are still the same; else it is given up.
    pub resume: Option<Checkpoint>,
    /// How far this attempt's upload has come. What is in it at the end of a failed attempt is still open on S3.
    pub journal: &'a Journal,
}

/// What a worker delivers with. The worker's own rules are tested against one that only pretends.
pub trait Transport: Send + Sync + fmt::Debug {
    /// Makes one attempt.
    ///
    /// What drop does: the requests in flight end; an open upload is aborted in the background, and its journal closed.
    fn deliver<'a>(&'a self, job: &'a Job, attempt: Attempt<'a>) -> BoxFuture<'a, Ended>;

    /// Gives up an upload that nobody will continue. Best effort: a refusal is counted.
    fn abandon<'a>(&'a self, destination: &'a Arc<Destination>, checkpoint: &'a Checkpoint) -> BoxFuture<'a, ()>;

    /// Tests a connection; `egress` are the platform's public addresses.
    fn test<'a>(&'a self, destination: &'a Arc<Destination>, egress: &'a [String]) -> BoxFuture<'a, Report>;
}

impl Transport for Transfers {
    fn deliver<'a>(&'a self, job: &'a Job, attempt: Attempt<'a>) -> BoxFuture<'a, Ended> {
        // Boxed: a future of 16 KiB would be copied at every step outwards.
        Box::pin(self.run(job, attempt))
    }

    fn abandon<'a>(&'a self, destination: &'a Arc<Destination>, checkpoint: &'a Checkpoint) -> BoxFuture<'a, ()> {
        Box::pin(self.uploader.abandon(destination, checkpoint))
    }

    fn test<'a>(&'a self, destination: &'a Arc<Destination>, egress: &'a [String]) -> BoxFuture<'a, Report> {
        Box::pin(async move {
            let checker = Checker { sessions: &self.sessions, uploader: &self.uploader, egress, limit: LIMIT };
            checker.run(destination, &|_| ()).await
        })
    }
}

impl Transfers {
    /// Makes one attempt. Nothing is read from the source before the session is there.
    ///
    /// What drop does: the requests in flight end; an open multipart upload is aborted in the background.
    pub async fn run(&self, job: &Job, attempt: Attempt<'_>) -> Ended {
        if job.expires_at.is_some_and(|at| at <= Timestamp::now()) {
            return Ended::Expired;
        }
        match self.attempt(job, &attempt).await {
            Ok(Uploaded::Stored(receipt)) => Ended::Delivered(receipt),
            Ok(Uploaded::Kept) => Ended::Skipped,
            Err(failure) => Ended::Failed(failure),
        }
    }

    async fn attempt(&self, job: &Job, attempt: &Attempt<'_>) -> Result<Uploaded, Failure> {
        let destination = attempt.destination;
        let key = destination.prefix.join(job.key.as_str());
        let key = key.map_err(|invalid| Failure::new(Reason::InvalidKey, invalid.to_string()))?;
        let used = self.sessions.region(destination);
        let first = self.upload(job, attempt, &key).await;
        let Err(failure) = &first else { return first };
        let Some(region) = failure.learnt_region.as_ref().filter(|region| **region != used) else { return first };
        self.sessions.learn_region(destination, region);
        tracing::warn!(
            destination = %destination.id, configured = %destination.region, actual = %region,
            "the bucket lives in another region; correct the destination"
        );
        self.upload(job, attempt, &key).await
    }

    async fn upload(&self, job: &Job, attempt: &Attempt<'_>, key: &ObjectKey) -> Result<Uploaded, Failure> {
        let started = SystemTime::now();
        let opened = async {
            self.sessions.get(attempt.destination).await?;
            self.sources.open(&job.source).await
        };
        let source = tokio::select! {
            biased;
            () = attempt.stop.cancel.cancelled() => return Err(Failure::new(Reason::Shutdown, "the worker is draining")),
            source = opened => source?,
        };
        if let Some(length) = source.length {
            attempt.progress.source_opened(length);
        }
        let (source, read) = compressed(source, job.compression);
        let attributes = attributes(job);
        let target = Target {
            destination: attempt.destination,
            key,
            attributes: &attributes,
            if_exists: job.if_exists,
            started,
            earlier: attempt.earlier,
            progress: attempt.progress,
        };
        let uploaded = self.uploader.upload(&target, source, &attempt.stop.cancel).await?;
        Ok(match (uploaded, read) {
            (Uploaded::Stored(receipt), Some(read)) => {
                Uploaded::Stored(Receipt { source_bytes: read.load(Ordering::Relaxed), ..receipt })
            }
            (uploaded, _) => uploaded,
        })
    }
}

/// The object's headers, with the Content-Encoding of the compression unless the job gives its own.
fn attributes(job: &Job) -> ObjectAttributes {
    let encoding = match job.compression {
        Compression::None => None,
        Compression::Gzip => Some("gzip".to_owned()),
        Compression::Zstd => Some("zstd".to_owned()),
    };
    let mut attributes = job.object.clone();
    attributes.content_encoding = attributes.content_encoding.or(encoding);
    attributes
}

/// Puts the compression between source and upload; the counter then tells how much was read.
fn compressed(source: SourceStream, compression: Compression) -> (SourceStream, Option<Arc<AtomicU64>>) {
    if compression == Compression::None {
        return (source, None);
    }
    let chunks = match source.body {
        SourceBody::File(file) => file.chunks(),
        SourceBody::Chunks(chunks) => chunks,
    };
    let (chunks, read) = counted(chunks);
    let body = SourceBody::Chunks(compress::compress(chunks, compression));
    (SourceStream { length: None, body, ..source }, Some(read))
}
