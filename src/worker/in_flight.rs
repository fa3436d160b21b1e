//! Table of jobs in flight: one owner per run of a job. Duplicates join the owner, and jobs that
//! were delivered recently are answered from memory.

mod delivered;
mod duplicates;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::decode::DecodedJob;
use crate::domain::destination::DestinationIdentity;
use crate::domain::job::JobId;
use crate::queue::{Delivery, OutcomeEvent};
use delivered::Delivered;
pub(super) use duplicates::Duplicates;

/// Time that a duplicate waits for the owner. Each takes a place of the prefetch meanwhile.
const JOIN_TIMEOUT: Duration = Duration::from_secs(30);

/// Namespace of the digests of runs, drawn once.
const RUN_NAMESPACE: Uuid = Uuid::from_u128(0x1f5b_86c2_7b0d_4a53_8f0e_94d2_6a3c_e771);

/// Run of a job (`dead requeue` and `backfill --again` raise it). The destination is part of it: an
/// id that jobs of two customers share by mistake must not answer one with the outcome of the
/// other.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct RunId {
    pub(super) job: JobId,
    pub(super) destination: DestinationIdentity,
    pub(super) run: u32,
}

impl RunId {
    /// Returns a digest, the same in every worker.
    pub(super) fn digest(&self) -> Uuid {
        let name = format!("{}\n{}\n{}", self.job, self.destination, self.run);
        Uuid::new_v5(&RUN_NAMESPACE, name.as_bytes())
    }
}

/// Attempt of a run. The counters tell a copy that returns from a wait queue from a redelivery of
/// the same message.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct AttemptId {
    pub(super) run: RunId,
    pub(super) attempts: u32,
    pub(super) deferrals: u32,
    pub(super) turns: u32,
}

impl AttemptId {
    pub(super) fn of(decoded: &DecodedJob) -> Self {
        let DecodedJob { job, destination, headers, .. } = decoded;
        Self {
            run: RunId { job: job.id.clone(), destination: destination.identity.clone(), run: headers.run },
            attempts: headers.history.attempts,
            deferrals: headers.history.deferrals,
            turns: headers.turns,
        }
    }
}

/// End of a job in flight, for its duplicates.
#[derive(Debug, Clone)]
pub(super) enum JobEnd {
    /// The job has ended, with the upload of this id: duplicates are acknowledged.
    Ended(Option<Arc<str>>),
    /// A copy of the job waits for its next attempt, which may resume the upload with this id:
    /// duplicates that carry no other upload are acknowledged.
    Continued(Option<Arc<str>>),
    /// The owner's delivery was requeued or lost: the job is still to be done.
    Open,
}

/// Job in flight, as its duplicates see it.
#[derive(Debug, Default)]
pub(super) struct InFlightJob {
    pub(super) started_at: Timestamp,
    pub(super) duplicates: Duplicates,
    /// True from the moment when a copy of the job may be published, which must not end with this
    /// job.
    settling: AtomicBool,
    end: OnceLock<JobEnd>,
    over: CancellationToken,
}

impl InFlightJob {
    /// Waits for the end. A job that ended without notice (a panic) is still to be done.
    async fn end(&self) -> JobEnd {
        self.over.cancelled().await;
        self.end.get().cloned().unwrap_or(JobEnd::Open)
    }

    /// Waits for the end, at most [`JOIN_TIMEOUT`]. Only the `same` message can replace the
    /// owner's: a copy that was made of it elsewhere has other counters.
    ///
    /// A duplicate that joins before the owner settles is continued by the copy that the owner
    /// publishes then. One that joins later may itself be the only message left: another worker
    /// may have acknowledged that copy in favour of this very delivery.
    pub(super) async fn join(&self, delivery: Delivery, same: bool, upload_id: Option<&str>) -> Joined {
        let (tag, settles) = (delivery.ticket, self.settling.load(Ordering::Acquire));
        let kept = if same {
            self.duplicates.park(delivery, upload_id.map(str::to_owned));
            None
        } else {
            Some(delivery)
        };
        let end = timeout(JOIN_TIMEOUT, self.end()).await.ok();
        let end = end.filter(|end| !(settles && matches!(end, JobEnd::Continued(_))));
        match kept.or_else(|| self.duplicates.reclaim(tag)) {
            Some(delivery) => Joined::Returned(Box::new(delivery), end),
            None => Joined::Taken,
        }
    }
}

/// Result of waiting for a job in flight.
#[derive(Debug)]
pub(super) enum Joined {
    /// The owner took the delivery, and settles it.
    Taken,
    /// The delivery is still the caller's, which settles it; `None` when the owner is still at
    /// work, or when the copy that it published may be gone.
    Returned(Box<Delivery>, Option<JobEnd>),
}

/// Owners of one run: more than one only while the first settles.
type Owners = Vec<(AttemptId, Arc<InFlightJob>)>;

/// Jobs in flight, and jobs that were delivered recently.
#[derive(Debug)]
pub(super) struct InFlight {
    jobs: Mutex<HashMap<RunId, Owners>>,
    delivered: Delivered,
}

/// Result of claiming a job.
#[derive(Debug)]
pub(super) enum Claim {
    /// The caller owns the job.
    Owned(JobOwner),
    /// Another delivery owns it.
    Duplicate {
        /// Job in flight.
        job: Arc<InFlightJob>,
        /// True for the very same message; false for a copy of it, or one of which it is a copy.
        same: bool,
    },
    /// It was delivered recently, with this outcome; `None` if its details are no longer
    /// remembered.
    Delivered(Option<Arc<OutcomeEvent>>),
}

/// Ownership of a job in flight. Released on drop, so that a panic leaves no owner.
#[derive(Debug)]
pub(super) struct JobOwner {
    table: Arc<InFlight>,
    id: AttemptId,
    job: Arc<InFlightJob>,
}

impl InFlight {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { jobs: Mutex::default(), delivered: Delivered::new() })
    }

    /// Claims a job, or finds its owner: any delivery of the same run, whatever its counters,
    /// unless that owner settles and this may be the copy that it published.
    pub(super) fn claim(self: &Arc<Self>, id: AttemptId, now: Timestamp) -> Claim {
        let mut jobs = self.jobs.lock();
        let owners = jobs.get(&id.run).into_iter().flatten();
        let joins =
            |(other, job): &&(AttemptId, Arc<InFlightJob>)| *other == id || !job.settling.load(Ordering::Acquire);
        if let Some((other, job)) = owners.into_iter().find(joins) {
            return Claim::Duplicate { job: job.clone(), same: *other == id };
        }
        let digest = id.run.digest();
        if self.delivered.contains(digest) {
            return Claim::Delivered(self.delivered.outcome(digest));
        }
        let job = Arc::new(InFlightJob { started_at: now, ..InFlightJob::default() });
        jobs.entry(id.run.clone()).or_default().push((id.clone(), job.clone()));
        Claim::Owned(JobOwner { table: self.clone(), id, job })
    }

    /// Remembers a run that another worker delivered at `at`.
    pub(super) fn delivered_elsewhere(&self, run: Uuid, at: Timestamp, now: Timestamp) {
        let age = Duration::try_from(now.duration_since(at)).unwrap_or_default();
        self.delivered.insert_id(run, age);
    }
}

impl JobOwner {
    /// Run that is owned.
    pub(super) fn run(&self) -> &RunId {
        &self.id.run
    }

    /// Deliveries of the same run that wait for its end.
    pub(super) fn duplicates(&self) -> &Duplicates {
        &self.job.duplicates
    }

    /// Marks the job as settling: from here on only the very same message joins.
    pub(super) fn settling(&self) {
        self.job.settling.store(true, Ordering::Release);
    }

    /// Remembers the job as delivered, before its delivery is settled: from here on it is never
    /// uploaded again.
    pub(super) fn delivered(&self, event: OutcomeEvent) {
        self.table.delivered.insert(self.id.run.digest(), event);
    }

    /// Notifies the duplicates of the end, and releases the job.
    pub(super) fn release(self, end: JobEnd) {
        let _ = self.job.end.set(end);
    }
}

impl Drop for JobOwner {
    fn drop(&mut self) {
        let mut jobs = self.table.jobs.lock();
        if let Some(owners) = jobs.get_mut(&self.id.run) {
            owners.retain(|(_, job)| !Arc::ptr_eq(job, &self.job));
            if owners.is_empty() {
                jobs.remove(&self.id.run);
            }
        }
        drop(jobs);
        self.job.over.cancel();
    }
}

#[cfg(test)]
mod tests;
