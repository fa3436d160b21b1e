//! The work on one job: its turn, one attempt, what that says, and how its delivery is settled.

use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::FutureExt as _;
use jiff::Timestamp;
use tokio::sync::SemaphorePermit;
use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout};

use super::admission::acquire::{Away, Told};
use super::admission::outage::Seen;
use super::decode::Admitted;
use super::in_flight::{Running, Standing};
use super::lease::{self, Held};
use super::settlement::{self, Case, Verdict};
use super::{CRASH_LOOP, DEADLINE, Permits, QUARANTINE, STOPPING, Worker, activity, admission::circuit, history};
use crate::domain::destination::Destination;
use crate::domain::job::Job;
use crate::domain::job::lease::Checkpoint;
use crate::domain::lane::Lane;
use crate::domain::outcome::{Failure, OutcomeKind, Reason, RetryDelay, TransferResult};
use crate::queue::{Delivery, Settlement};
use crate::runtime::failpoints;
use crate::telemetry::spans::{self, Trace};
use crate::transfer::TransferRequest;
use crate::upload::{Progress, RateLimiter};

/// How often a job that others wait for is looked at.
const LOOK: Duration = Duration::from_millis(200);

impl Worker {
    /// [`Worker::work`] in the trace that the job belongs to.
    pub(super) async fn traced(&self, delivery: Delivery, admitted: &Admitted, running: Running, permits: Permits) {
        self.trace(&delivery, admitted).run(self.work(delivery, admitted, running, permits)).await;
    }

    /// The place of a delivery in the trace of its job.
    pub(super) fn trace(&self, delivery: &Delivery, admitted: &Admitted) -> Trace {
        self.trace_of(delivery, admitted.job.id.as_str(), admitted.destination.id.as_str())
    }

    /// As [`Worker::trace`], with what is known of the job; empty where nothing is.
    pub(super) fn trace_of(&self, delivery: &Delivery, job_id: &str, destination: &str) -> Trace {
        Trace::of(&spans::MessageAttributes {
            system: self.parts.queue.system(),
            exchange: &self.parts.prefix,
            routing_key: &delivery.routing_key,
            job_id,
            destination,
            headers: &delivery.properties.headers,
        })
    }

    async fn work(&self, mut delivery: Delivery, admitted: &Admitted, running: Running, permits: Permits) {
        let Admitted { job, destination, lease } = admitted;
        let Ok(_quarantine) = self.quarantined(&delivery).await else {
            drop(permits);
            running.judged();
            let headers = history::another_turn(&delivery.properties.headers);
            let later = Settlement::Defer { delay: RetryDelay::S30, headers };
            let settled = self.settle(delivery, later, Vec::new()).await;
            let kept = lease.as_ref().and_then(|lease| lease.checkpoint.as_ref()).map(|c| c.upload_id.as_str().into());
            return running.leave(if settled { Standing::Settled(kept) } else { Standing::Open });
        };
        let told = match self.cancelled(&delivery.properties) {
            Some(cancelled) => Told::Away(Away::Cancelled(Box::new(cancelled))),
            None => self.turn(&delivery, admitted, permits).await,
        };
        let started_at = (self.parts.clock)();
        let history = history::history(&delivery.properties.headers);
        let properties = delivery.properties.clone();
        let held = Held::new(&delivery, lease.as_ref(), &self.stop, started_at);
        let case = Case {
            prefix: &self.parts.prefix,
            policy: &self.policy,
            lane: delivery.lane,
            properties: &properties,
            job,
            destination,
            history: &history,
            started_at,
            now: started_at,
            took: Duration::ZERO,
            next_probe: None,
            worked_at: self.circuits.worked_at(&destination.id),
            tried: false,
        };
        let (verdict, tried) = match told {
            Told::Begin(permits) => {
                self.note_wait(&delivery, job, started_at);
                (self.tried(&mut delivery, admitted, &running, (&held, case), permits).await, true)
            }
            Told::Away(away) => (self.turned_away(away, case), false),
        };
        let outcome = verdict.kind.map_or_else(|| verdict.settlement.action(), OutcomeKind::as_str);
        spans::ended(outcome, verdict.failure.as_ref());
        if let (Some(OutcomeKind::Delivered), Some(event)) = (verdict.kind, &verdict.event) {
            running.delivered(event.clone());
        }
        self.recalls.note(&destination.id, &verdict);
        running.judged();
        let events = verdict.event.into_iter().collect();
        // Another worker has the job, and its upload: nothing of it is ours any more. Or what took it away is a lease that came here and
        // has joined this work: then it is all that is left of the job.
        let gone = matches!(verdict.settlement, Settlement::Requeue) && held.is_lost();
        let settlement = match verdict.settlement {
            _ if gone => Settlement::Ack,
            // What was not begun goes on as it came.
            settlement @ (Settlement::Defer { .. } | Settlement::Requeue) if !tried => settlement,
            settlement => self.pack(&mut delivery, settlement, &held, destination).await,
        };
        let returned = gone || matches!(settlement, Settlement::Requeue | Settlement::HandOff { .. });
        let kept = held.journal.checkpoint().map(|checkpoint| checkpoint.upload_id.into());
        let settled = self.settle(delivery, settlement, events).await;
        if tried && (!settled || held.is_lost()) {
            self.unsettled(&held, destination).await;
        }
        running.leave(if settled && !returned { Standing::Settled(kept) } else { Standing::Open });
    }

    /// Makes one attempt and judges its end.
    async fn tried(
        &self,
        delivery: &mut Delivery,
        admitted: &Admitted,
        running: &Running,
        (held, case): (&Arc<Held>, Case<'_>),
        mut permits: Permits,
    ) -> Verdict {
        let (started, metrics) = (Instant::now(), &self.parts.metrics);
        let progress = Arc::new(Progress::default());
        let pace = permits.pass.as_ref().and_then(|pass| pass.pace().cloned());
        let probe = permits.probe.as_ref().map(circuit::Probe::number);
        let ended = {
            let mut attempt = pin!(self.attempt(delivery, admitted, running, held, (&progress, pace)));
            tokio::select! {
                biased;
                ended = &mut attempt => ended,
                () = accepted(&permits, &progress) => {
                    self.works(&admitted.destination, &mut permits);
                    attempt.await
                }
            }
        };
        self.replace_lost(delivery, running.seat(), held);
        failpoints::hit("ended");
        if let (TransferResult::Delivered(_), Some(pass)) = (&ended, &mut permits.pass) {
            pass.delivered(started.elapsed());
        }
        let now = (self.parts.clock)();
        let (ended, next_probe) = self.learn(&admitted.destination, (&admitted.job, probe), ended, now);
        let case = Case { now, took: started.elapsed(), next_probe, tried: true, ..case };
        let verdict = case.judge(ended, metrics);
        settlement::log(&case, &verdict, &progress);
        self.board.ended(&case, &verdict, &progress);
        // The slot is for transfers; what waits for the broker's confirm is bounded by what may be fetched.
        drop(permits);
        verdict
    }

    /// What the end of an attempt says about the worker, about its destination and about everybody.
    fn learn(
        &self,
        destination: &Destination,
        (job, probe): (&Job, Option<u64>),
        ended: TransferResult,
        now: Timestamp,
    ) -> (TransferResult, Option<Duration>) {
        let ended = match self.outage.see(destination, ended, self.parts.metrics.roles_assumed()) {
            Seen::AsIs(ended) => ended,
            Seen::Begun(ended, evidence) => {
                self.circuits.forgive(evidence);
                ended
            }
        };
        // A delivery with a session from before shows nothing where STS refuses everybody.
        if !matches!(ended, TransferResult::Delivered(_) | TransferResult::Skipped) || !self.outage.is_declared() {
            self.health.note(&ended);
        }
        let next_probe = self.circuits.note(&destination.id, (job.key.as_str(), probe), &ended, now);
        if self.outage.covers(&ended) {
            // Others found out meanwhile; what was forgiven then must not be blamed now.
            self.circuits.reset(&destination.id);
            return (ended, None);
        }
        (ended, next_probe)
    }

    /// S3 has accepted a part of the one job that was to find out whether all is well: nobody needs to wait for its end.
    fn works(&self, destination: &Destination, permits: &mut Permits) {
        self.circuits.works(&destination.id, (self.parts.clock)());
        self.outage.works(destination, self.parts.metrics.roles_assumed());
        if !self.outage.is_declared() {
            self.health.heal();
            permits.alone = None;
        }
    }

    /// Judges a job that may not begin.
    fn turned_away(&self, away: Away, case: Case<'_>) -> Verdict {
        let next_probe = match &away {
            Away::Broken(_, left) => Some(*left),
            Away::Full(..) | Away::Draining | Away::Cancelled(_) => None,
        };
        let full = matches!(away, Away::Full(..));
        let case = Case { next_probe, ..case };
        let verdict = case.turned_away(away, &self.parts.metrics);
        if let (true, Settlement::Defer { delay, .. }) = (full, &verdict.settlement) {
            self.limits.deferred(&case.destination.id, delay.duration());
        }
        if verdict.kind.is_some() {
            let nothing = Progress::default();
            settlement::log(&case, &verdict, &nothing);
            self.board.ended(&case, &verdict, &nothing);
        } else {
            let (job_id, destination, action) = (&case.job.id, &case.destination.id, verdict.settlement.action());
            tracing::debug!(%job_id, %destination, action, "a job may not begin now");
        }
        verdict
    }

    async fn attempt(
        &self,
        delivery: &mut Delivery,
        admitted: &Admitted,
        running: &Running,
        held: &Arc<Held>,
        (progress, pace): (&Arc<Progress>, Option<Arc<RateLimiter>>),
    ) -> TransferResult {
        let Admitted { job, destination, lease } = admitted;
        let resume = lease.as_ref().and_then(|lease| lease.checkpoint.clone());
        if let Some(failure) = crash_loop(delivery) {
            return TransferResult::Failed(failure);
        }
        let history = history::history(&delivery.properties.headers);
        let _in_flight = self.parts.metrics.transfer_running(delivery.lane);
        let _pin = self.board.pin(activity::Card {
            job_id: job.id.as_str(),
            destination: destination.id.as_str(),
            lane: delivery.lane,
            attempt: history.attempts.saturating_add(1),
            size: job.source.size,
            progress: progress.clone(),
        });
        let earlier = earlier(delivery, job, history.first_failure_at, resume.as_ref());
        let (stop, journal) = (&held.stop, &held.journal);
        let pace = pace.as_ref();
        let attempt = TransferRequest { destination, earlier, stop, progress, resume, journal, pace };
        self.under_lease(delivery, running, held, self.bounded(job, attempt)).await
    }

    /// Jobs over which workers were lost more than once go one at a time, so that the guilty one is told from its neighbours. `Err`
    /// where another one takes long: nobody waits for that with a slot in hand.
    async fn quarantined(&self, delivery: &Delivery) -> Result<Option<SemaphorePermit<'_>>, Elapsed> {
        if history::crashes(&delivery.properties.headers) < 2 {
            return Ok(None);
        }
        timeout(QUARANTINE, self.quarantine.acquire()).await.map(Result::ok)
    }

    /// How long a job that comes for the first time has waited.
    fn note_wait(&self, delivery: &Delivery, job: &Job, now: Timestamp) {
        let first = history::history(&delivery.properties.headers) == crate::domain::outcome::History::default();
        if let Some(created) = job.created_at.filter(|_| first && delivery.lane != Lane::Continued) {
            let waited = Duration::try_from(now.duration_since(created)).unwrap_or_default();
            self.parts.metrics.queue_wait(delivery.lane, waited);
        }
    }

    /// The transfer behind its panic boundary and its deadline, at which it is stopped as by a drain: what can be continued is kept.
    async fn bounded(&self, job: &Job, attempt: TransferRequest<'_>) -> TransferResult {
        let stop = attempt.stop.clone();
        let mut transfer = pin!(AssertUnwindSafe(self.parts.transport.deliver(job, attempt)).catch_unwind());
        let late = || TransferResult::Failed(Failure::new(Reason::Timeout, "the transfer took more than 24 hours"));
        let ended = if let Ok(ended) = timeout(DEADLINE, &mut transfer).await {
            ended
        } else {
            stop.cancel.cancel();
            let stopped = timeout(STOPPING, transfer).await.unwrap_or_else(|_| Ok(late()));
            stopped.map(|ended| if matches!(ended, TransferResult::Failed(_)) { late() } else { ended })
        };
        ended.unwrap_or_else(|_| {
            let message = "the worker broke one of its own rules in this transfer; its log says where";
            TransferResult::Failed(Failure::new(Reason::Panic, message))
        })
    }
}

/// Resolves when the one job that others wait for has sent something; never for any other.
async fn accepted(permits: &Permits, progress: &Progress) {
    if permits.alone.is_none() && permits.probe.is_none() {
        return std::future::pending().await;
    }
    while !progress.has_sent() {
        tokio::time::sleep(LOOK).await;
    }
}

/// The failure of a job that ends workers.
fn crash_loop(delivery: &Delivery) -> Option<Failure> {
    let crashes = history::crashes(&delivery.properties.headers);
    let message = if crashes >= lease::CRASHES {
        format!("{crashes} workers in a row were lost or cut off while they worked on this job, and nothing came of it")
    } else if delivery.redelivered && delivery.delivery_count >= CRASH_LOOP {
        format!("the message came back {} times without an end; it ends workers", delivery.delivery_count)
    } else {
        return None;
    };
    Some(Failure::new(Reason::CrashLoop, message))
}

/// When an earlier attempt of this very job may have written its object: known only for a job that came before.
fn earlier(
    delivery: &Delivery,
    job: &Job,
    first_failure_at: Option<Timestamp>,
    resume: Option<&Checkpoint>,
) -> Option<SystemTime> {
    let initiated =
        resume.and_then(|checkpoint| Timestamp::from_second(i64::try_from(checkpoint.initiated).ok()?).ok());
    let before = [history::begun(&delivery.properties.headers), first_failure_at, initiated];
    let returned = delivery.redelivered || delivery.delivery_count > 0 || delivery.lane == Lane::Continued;
    let again = returned || before.iter().any(Option::is_some);
    let since = before.into_iter().chain([job.created_at]).flatten().min();
    let since = since.filter(|_| again)?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::try_from(since.as_duration()).ok()?)
}
