//! One attempt: the transfer with everything that guards it.
//!
//! Wrappers, from the outside: probe (a first success lets other jobs start), in-flight gauge and
//! activity entry, crash-loop check, lease, deadline, panic boundary, transfer.

use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tokio::sync::OwnedMutexGuard;
use tokio::time::{Instant, timeout};

use super::activity::{Activity, TransferEntry};
use super::admission::{Admission, Permit};
use super::decode::DecodedJob;
use super::generations::{DeliveryReport, Generations, ObjectWriter, WritingJob};
use super::in_flight::JobOwner;
use super::lease::{AttemptState, LeaseGuard, LeaseStatus, MAX_CRASHES};
use super::parts::WorkerParts;
use crate::domain::job::Job;
use crate::domain::lane::Lane;
use crate::domain::outcome::{Failure, History, Reason, TransferResult};
use crate::queue::{Delivery, DeliveryTag, Queue};
use crate::runtime::failpoints;
use crate::transfer::TransferRequest;
use crate::upload::{Progress, RateLimiter, WriteGate};

/// Deadline of a transfer. No broker keeps a delivery that long, and such a transfer is stuck.
const TRANSFER_DEADLINE: Duration = Duration::from_hours(24);
/// Time in which a transfer that is stopped must end.
const STOP_TIMEOUT: Duration = Duration::from_mins(1);
/// Longest time for which the first job of a destination keeps its other jobs waiting. Most broken
/// destinations have failed by then.
const SLOW_START_TIMEOUT: Duration = Duration::from_secs(1);
/// Interval at which a job that others wait for is checked for its first success.
const PROBE_CHECK_INTERVAL: Duration = Duration::from_millis(200);

/// Job that is attempted.
#[derive(Debug, Clone, Copy)]
pub(super) struct OwnedJob<'a> {
    pub(super) job: &'a DecodedJob,
    pub(super) owner: &'a JobOwner,
    pub(super) state: &'a Arc<AttemptState>,
}

/// Facts about an attempt that has ended, beside its result.
#[derive(Debug)]
pub(super) struct AttemptFacts {
    /// Time until the destination's next probe, when its circuit breaker is open.
    pub(super) next_probe: Option<Duration>,
    pub(super) took: Duration,
    pub(super) finished_at: Timestamp,
    pub(super) progress: Arc<Progress>,
    /// Held until the delivery is settled.
    pub(super) quarantine: Option<OwnedMutexGuard<()>>,
}

/// Runs attempts.
#[derive(Debug)]
pub(super) struct Attempts {
    pub(super) parts: Arc<WorkerParts>,
    pub(super) admission: Arc<Admission>,
    pub(super) activity: Arc<Activity>,
    pub(super) generations: Arc<Generations>,
}

impl Attempts {
    /// Runs one attempt. Returns its result as admission has observed it. A `delivery` that was
    /// lost is replaced by a duplicate. The permit is released, but for the quarantine.
    pub(super) async fn run(
        &self,
        delivery: &mut Delivery,
        owned: OwnedJob<'_>,
        mut permit: Permit,
    ) -> (TransferResult, AttemptFacts) {
        let started = Instant::now();
        let progress = Arc::new(Progress::default());
        let (rate_limiter, probe) = (permit.rate_limiter(), permit.probe_number());
        // The attempt may end later, when a lease was being written.
        let transfer_ended = OnceLock::new();
        let (result, report) = {
            let mut attempt = pin!(self.guarded(delivery, owned, &progress, rate_limiter.as_ref(), &transfer_ended));
            tokio::select! {
                biased;
                end = &mut attempt => end,
                () = first_success(&permit, &progress) => {
                    if permit.is_probe() && transfer_ended.get().is_none() {
                        self.admission.destination_accepts(&owned.job.destination, &mut permit);
                    }
                    permit.end_slow_start();
                    attempt.await
                }
            }
        };
        owned.state.end();
        self.replace_lost(delivery, owned);
        failpoints::hit("ended");
        permit.ended(&result, started.elapsed());
        let finished_at = self.parts.now();
        let ended_at = transfer_ended.into_inner().unwrap_or_else(Instant::now);
        let observed = self.admission.observe(owned.job, ended_at, probe, result).await;
        let facts = AttemptFacts {
            next_probe: observed.next_probe,
            took: started.elapsed(),
            finished_at,
            progress,
            // The slot is for transfers. What waits for the broker's confirm is bounded by the prefetch.
            quarantine: permit.into_quarantine(),
        };
        if let Some(report) = report {
            report.confirmed().await;
        }
        (observed.result, facts)
    }

    async fn guarded(
        &self,
        delivery: &mut Delivery,
        owned: OwnedJob<'_>,
        progress: &Arc<Progress>,
        rate_limiter: Option<&Arc<RateLimiter>>,
        transfer_ended: &OnceLock<Instant>,
    ) -> (TransferResult, Option<DeliveryReport>) {
        let OwnedJob { job, owner, state } = owned;
        if let Some(failure) = crash_loop(job) {
            return (TransferResult::Failed(failure), None);
        }
        let _in_flight = self.parts.metrics.transfer_running(delivery.lane);
        let _entry = self.activity.enter(TransferEntry {
            job_id: job.job.id.to_string(),
            destination: job.destination.identity.clone(),
            lane: delivery.lane,
            attempt: job.headers.history.attempts.saturating_add(1),
            size: job.job.source.size,
            progress: progress.clone(),
        });
        let late = may_have_begun(delivery, job);
        let (written, ticket) = (job.written(), delivery.ticket);
        let writing = || WritingJob {
            id: job.job.id.clone(),
            run: owner.run().digest(),
            late,
            late_from: Instant::now() + self.parts.lease_after,
            ticket,
        };
        let writer = written.map(|written| ObjectWriter::new(&self.generations, written, writing()));
        let gate = AttemptGate { writer: writer.as_ref(), queue: &*self.parts.queue, ticket, state };
        let request = TransferRequest {
            destination: &job.destination,
            may_be_written: late.into(),
            stop: &state.stop,
            progress,
            resume: job.checkpoint().cloned(),
            open_upload: &state.open_upload,
            rate_limiter,
            gate: Some(&gate),
        };
        let lease = LeaseGuard { parts: &self.parts, owner, state, written, generations: &self.generations };
        let transfer = async {
            let result = unless_superseded(writer.as_ref(), state, self.bounded(&job.job, request)).await;
            let _ = transfer_ended.set(Instant::now());
            result
        };
        let result = lease.run(delivery, transfer).await;
        let Some(writer) = &writer else { return (result, None) };
        let result = writer.conclude(result);
        let report = writer.end(matches!(result, TransferResult::Delivered(_)));
        (result, report)
    }

    /// Runs the transfer behind its panic boundary and its deadline. At the deadline it is stopped
    /// as by a drain: an upload that can be resumed is kept.
    async fn bounded(&self, job: &Job, request: TransferRequest<'_>) -> TransferResult {
        let stop = request.stop.clone();
        let mut transfer = pin!(AssertUnwindSafe(self.parts.transport.deliver(job, request)).catch_unwind());
        let late = || TransferResult::Failed(Failure::new(Reason::Timeout, "the transfer took more than 24 hours"));
        let ended = if let Ok(ended) = timeout(TRANSFER_DEADLINE, &mut transfer).await {
            ended
        } else {
            stop.cancel.cancel();
            let stopped = timeout(STOP_TIMEOUT, transfer).await.unwrap_or_else(|_| Ok(late()));
            stopped.map(|result| if matches!(result, TransferResult::Failed(_)) { late() } else { result })
        };
        ended.unwrap_or_else(|_| {
            let message = "the transfer panicked, which is a defect of consign; the log of the worker has the place";
            TransferResult::Failed(Failure::new(Reason::Panic, message))
        })
    }

    /// Replaces a delivery that was lost with its channel by a duplicate, if there is one. Not
    /// where another worker has the job: then the duplicate settles it, and this attempt's end is
    /// not the job's.
    fn replace_lost(&self, delivery: &mut Delivery, owned: OwnedJob<'_>) {
        while owned.state.lease_state() != LeaseStatus::Lost && !self.parts.queue.can_settle(delivery.ticket) {
            let Some(duplicate) = owned.owner.duplicates().take(owned.state.carried_upload()) else { return };
            tracing::debug!(event = "delivery_replaced", "the delivery was lost; its redelivery is settled instead");
            *delivery = duplicate;
        }
    }
}

/// Gate of the writes of one attempt.
#[derive(Debug)]
struct AttemptGate<'a> {
    /// `None` where the job is not ordered.
    writer: Option<&'a ObjectWriter>,
    queue: &'a dyn Queue,
    ticket: DeliveryTag,
    state: &'a AttemptState,
}

impl WriteGate for AttemptGate<'_> {
    fn enter(&self) -> BoxFuture<'_, Result<(), Failure>> {
        match self.writer {
            Some(writer) => Box::pin(writer.enter()),
            None => Box::pin(std::future::ready(Ok(()))),
        }
    }

    /// A delivery that was lost is redelivered, perhaps to another worker. A lease that could not
    /// be renewed is taken over.
    fn has_rival(&self) -> bool {
        self.state.lease_state() != LeaseStatus::Absent || !self.queue.can_settle(self.ticket)
    }
}

/// Runs a transfer, and stops it when a newer generation of its object is delivered.
async fn unless_superseded(
    writer: Option<&ObjectWriter>,
    state: &AttemptState,
    transfer: impl Future<Output = TransferResult>,
) -> TransferResult {
    let Some(writer) = writer else { return transfer.await };
    let mut transfer = pin!(transfer);
    tokio::select! {
        biased;
        result = &mut transfer => result,
        () = writer.superseded() => {
            state.stop.cancel.cancel();
            transfer.await
        }
    }
}

/// Resolves when a job that others wait for has sent data that S3 accepted; never for any other
/// job. The first job of a destination keeps the others waiting for [`SLOW_START_TIMEOUT`] at most:
/// its source may be slow.
async fn first_success(permit: &Permit, progress: &Progress) {
    let accepted = async {
        while !progress.has_sent() {
            tokio::time::sleep(PROBE_CHECK_INTERVAL).await;
        }
    };
    if permit.is_probe() {
        accepted.await;
    } else if permit.is_slow_start() {
        // Elapsed or not, the slow start is over.
        drop(timeout(SLOW_START_TIMEOUT, accepted).await);
    } else {
        std::future::pending::<()>().await;
    }
}

/// Returns the failure of a job that crashes workers. Only workers that were lost while they worked
/// on it count: redeliveries alone say nothing about the job.
fn crash_loop(job: &DecodedJob) -> Option<Failure> {
    let crashes = job.headers.crashes;
    let message = || format!("{crashes} workers in a row crashed or were cut off while they ran this job");
    (crashes >= MAX_CRASHES).then(|| Failure::new(Reason::CrashLoop, message()))
}

/// Returns true unless this is the first delivery of a job as it was published: then an earlier
/// attempt may have written the object, and an object that takes the key is compared with the job's
/// content. It proves nothing more: a message that was only requeued looks the same, and so does a
/// copy of a message that was redelivered as well.
fn may_have_begun(delivery: &Delivery, job: &DecodedJob) -> bool {
    let redelivered = delivery.redelivered || delivery.delivery_count > 0 || delivery.lane == Lane::Continued;
    let headers = &job.headers;
    let copied = headers.turns > 0 || headers.history != History::default() || headers.started_at.is_some();
    redelivered || copied || job.checkpoint().is_some()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::domain::headers::{Headers, JobHeaders};
    use crate::domain::job;
    use crate::worker::sample;

    fn first_delivery() -> Delivery {
        sample::delivery(Bytes::new())
    }

    fn with_header(name: &str, value: &str) -> DecodedJob {
        let body = br#"{"version":1,"id":"a","source":{"url":"https://example.com/a"},"destination":"acme","key":"a",
            "created_at":"2026-11-22T00:00:00Z"}"#;
        let headers = JobHeaders::parse(&Headers::from([(name.to_owned(), value.to_owned())]));
        let destination = Arc::new(sample::destination("acme", "123456789012"));
        DecodedJob { job: job::parse(None, None, body).unwrap(), destination, lease: None, headers }
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_job_of_a_destination_keeps_others_waiting_for_a_limited_time() {
        let (permit, progress) = (Permit::of_first_job(), Progress::default());
        let begun = Instant::now();
        first_success(&permit, &progress).await;
        assert_eq!(begun.elapsed(), SLOW_START_TIMEOUT, "its source is slow");
        progress.add(1, 1);
        first_success(&permit, &progress).await;
        assert_eq!(begun.elapsed(), SLOW_START_TIMEOUT, "S3 has accepted data");
    }

    #[test]
    fn only_the_first_delivery_of_a_published_job_has_no_attempt_before_it() {
        let published = with_header("traceparent", "");
        assert!(!may_have_begun(&first_delivery(), &published), "that it was created says nothing");
        for delivery in [
            Delivery { redelivered: true, ..first_delivery() },
            Delivery { delivery_count: 1, ..first_delivery() },
            Delivery { lane: Lane::Continued, ..first_delivery() },
        ] {
            assert!(may_have_begun(&delivery, &published), "{delivery:?}");
        }
        let at = "2026-11-22T00:00:00Z";
        for (name, value) in
            [("x-turns", "1"), ("x-attempt", "1"), ("x-deferrals", "1"), ("x-begun-at", at), ("x-first-failure-at", at)]
        {
            assert!(may_have_begun(&first_delivery(), &with_header(name, value)), "{name}");
        }
        assert!(!may_have_begun(&first_delivery(), &with_header("consign-run", "1")), "a run of its own");
    }
}
