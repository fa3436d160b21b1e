//! [`Transport`] of one simulated worker. It reads and sends nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use parking_lot::{Mutex, MutexGuard};

use super::fake_s3::{key, written};
use super::job_plan::{ExistingObject, JobBehavior, ScriptedAttempt, UploadShape};
use super::job_record::AttemptEnd;
use super::world::{SimWorld, note};
use super::{clock, invariants};
use crate::check::CheckReport;
use crate::domain::destination::Destination;
use crate::domain::job::Job;
use crate::domain::job::lease::Checkpoint;
use crate::domain::outcome::{Class, Failure, Reason, Receipt, TransferResult};
use crate::transfer::{TransferRequest, Transport};
use crate::upload::{Provenance, WriteGate, judge};

/// Transfers of one worker.
#[derive(Debug)]
pub(super) struct SimTransport {
    pub(super) world: Arc<SimWorld>,
    pub(super) worker: usize,
}

/// One attempt.
pub(super) struct SimAttempt<'a> {
    pub(super) transport: &'a SimTransport,
    pub(super) job: usize,
    pub(super) attempt: &'a TransferRequest<'a>,
    pub(super) scripted: ScriptedAttempt,
    /// True unless this is the first delivery of the job.
    pub(super) late: bool,
    /// True if it was late when it was permitted to write.
    pub(super) wrote_late: AtomicBool,
    pub(super) started: Duration,
    /// Upload that is open now.
    pub(super) upload: Mutex<Option<String>>,
}

impl SimTransport {
    pub(super) async fn while_alive(&self) {
        if !self.world.lock().workers[self.worker].alive {
            std::future::pending::<()>().await;
        }
    }

    /// Waits. Afterwards the process may have stopped.
    pub(super) async fn step(&self, wait: Duration) {
        tokio::time::sleep(wait).await;
        self.while_alive().await;
    }

    async fn run(&self, job: &Job, attempt: TransferRequest<'_>) -> TransferResult {
        self.while_alive().await;
        let number = invariants::job_of(Some(job.id.as_str()));
        let run = SimAttempt {
            transport: self,
            job: number,
            attempt: &attempt,
            scripted: self.start_attempt(number),
            late: attempt.may_be_written.load(Ordering::Relaxed),
            wrote_late: AtomicBool::new(false),
            started: clock::elapsed(),
            upload: Mutex::default(),
        };
        invariants::check_attempt(&mut self.world.lock(), self.worker, number, job, run.attempt);
        if let Some(checkpoint) = &run.attempt.resume {
            let mut state = self.world.lock();
            state.count_fault("resumed");
            state.workers[self.worker].resumed_uploads.push(checkpoint.upload_id.clone());
        }
        let ended =
            if job.expires_at.is_some_and(|at| at <= clock::now()) { TransferResult::Expired } else { run.run().await };
        self.while_alive().await;
        note!(self.world.lock(), "worker {}: job-{number} ends as {}", self.worker, label(&ended));
        run.record_end(AttemptEnd::of(&ended));
        ended
    }

    /// Starts an attempt and returns its scripted behavior.
    fn start_attempt(&self, job: usize) -> ScriptedAttempt {
        let mut state = self.world.lock();
        state.workers[self.worker].running += 1;
        state.records[job].running.push(self.worker);
        let nth = state.records[job].attempts;
        state.records[job].attempts += 1;
        let plan = state.plan(job);
        let scripted =
            plan.scripted.get(nth).copied().filter(|_| !state.faults_over).unwrap_or(ScriptedAttempt::Normal);
        match plan.behavior {
            JobBehavior::Succeeds | JobBehavior::Invalid | JobBehavior::Poison => scripted,
            JobBehavior::Fails(reason) => ScriptedAttempt::Fail(Duration::from_millis(1), reason),
            JobBehavior::Panics => ScriptedAttempt::Panic(Duration::from_millis(1)),
        }
    }
}

impl SimAttempt<'_> {
    async fn run(&self) -> TransferResult {
        // Recorded from here on, so that it is resumed or aborted, and not forgotten.
        if let Some(checkpoint) = &self.attempt.resume {
            self.attempt.open_upload.open(checkpoint.clone());
        }
        let work = async {
            let opening = self.transport.world.lock().latency();
            self.transport.step(opening).await;
            if let Some(reason) = self.refusal() {
                return TransferResult::Failed(Failure::new(reason, "refused"));
            }
            match self.upload_shape() {
                UploadShape::Single(takes) => self.single(takes).await,
                shape @ UploadShape::Multipart { .. } => self.multipart(shape).await,
            }
        };
        let ended = tokio::select! {
            biased;
            () = self.attempt.stop.cancel.cancelled() => shutdown(),
            ended = self.scripted_failure() => ended,
            ended = work => ended,
        };
        self.clean_up(&ended).await;
        ended
    }

    fn record_end(&self, end: AttemptEnd) {
        let mut state = self.transport.world.lock();
        let destination = state.plan(self.job).destination;
        state.workers[self.transport.worker].record_end(destination, end);
        state.records[self.job].ended(self.transport.worker, end, clock::elapsed());
        let percent = state.scenario.fault_rates.lost_at_end;
        if end == AttemptEnd::Delivered && state.fault_occurs("connections lost before a settlement", percent) {
            drop(state);
            self.transport.world.lose_connection(self.transport.worker);
        }
    }

    pub(super) fn upload_shape(&self) -> UploadShape {
        self.transport.world.lock().plan(self.job).shape
    }

    /// Returns the reason for a refusal: of the worker's own identity, or by the destination.
    fn refusal(&self) -> Option<Reason> {
        let state = self.transport.world.lock();
        let identity_refused_until = clock::elapsed() < state.workers[self.transport.worker].identity_refused_until;
        let destination = state.plan(self.job).destination;
        identity_refused_until.then_some(Reason::IdentityDenied).or_else(|| state.scenario.outage_reason(destination))
    }

    /// Waits for the scripted failure of this attempt.
    async fn scripted_failure(&self) -> TransferResult {
        match self.scripted {
            ScriptedAttempt::Fail(after, reason) => {
                self.transport.step(after).await;
                let asked = self.transport.world.lock().rng.percent(20).then_some(Duration::from_secs(40));
                TransferResult::Failed(Failure { retry_after: asked, ..Failure::new(reason, "scripted failure") })
            }
            ScriptedAttempt::Panic(after) => {
                self.transport.step(after).await;
                self.record_end(AttemptEnd::Failed(Class::Defect));
                // Like a panic, but without the message that the hook would print.
                std::panic::resume_unwind(Box::new("a scripted panic"));
            }
            ScriptedAttempt::Normal | ScriptedAttempt::Hang | ScriptedAttempt::LostReply => {
                std::future::pending().await
            }
        }
    }

    /// Hangs until the faults end, if the attempt is scripted to.
    pub(super) async fn hang(&self) {
        while matches!(self.scripted, ScriptedAttempt::Hang) && !self.transport.world.lock().faults_over {
            self.transport.step(Duration::from_secs(10)).await;
            if self.should_hand_off() {
                return;
            }
        }
    }

    /// Returns true if the attempt must end here, for another worker to resume it.
    pub(super) fn should_hand_off(&self) -> bool {
        self.attempt.stop.hand_off.is_cancelled() && self.attempt.open_upload.is_open()
    }

    async fn single(&self, takes: Duration) -> TransferResult {
        self.hang().await;
        self.transport.step(takes).await;
        if let Err(refused) = self.enter_gate().await {
            return TransferResult::Failed(refused);
        }
        let takes = self.transport.world.lock().rng.millis(5, 2000);
        let mut put = PutInFlight { attempt: self, answered: false };
        self.transport.step(takes).await;
        put.answered = true;
        self.make_visible(None)
    }

    pub(super) async fn enter_gate(&self) -> Result<(), Failure> {
        if let Some(gate) = self.attempt.gate {
            gate.enter().await?;
        }
        let leased = clock::elapsed() > self.started + self.transport.world.lock().scenario.lease_after;
        self.wrote_late.store(self.late || leased, Ordering::Relaxed);
        Ok(())
    }

    /// Returns true unless this is a first attempt that no worker could know of.
    pub(super) fn is_late(&self) -> bool {
        self.wrote_late.load(Ordering::Relaxed)
    }

    /// Makes the object visible, unless the key is taken and must not be replaced.
    pub(super) fn make_visible(&self, upload: Option<String>) -> TransferResult {
        let late = self.is_late();
        let reconciles =
            self.attempt.may_be_written.load(Ordering::Relaxed) || self.attempt.gate.is_some_and(WriteGate::has_rival);
        let mut state = self.transport.world.lock();
        let existing = state.plan(self.job).existing;
        let key = key(state.plan(self.job).object);
        let found = state.s3.objects.get(&key).cloned();
        let ours = written(self.job, state.plan(self.job));
        match (existing, found) {
            (ExistingObject::Keep(_) | ExistingObject::Fail(_), Some(found))
                if reconciles && judge(&found.listed, &ours) == Provenance::Ours => {}
            (ExistingObject::Keep(_), Some(_)) => return TransferResult::Skipped,
            (ExistingObject::Fail(_), Some(_)) => {
                return TransferResult::Failed(Failure::new(Reason::ObjectExists, "the key is taken"));
            }
            _ => {
                state.write_object(self.job, late, upload);
            }
        }
        if matches!(self.scripted, ScriptedAttempt::LostReply) {
            return TransferResult::Failed(Failure::new(Reason::S3Unavailable, "the reply is lost"));
        }
        TransferResult::Delivered(Receipt { bytes: 1, ..Receipt::default() })
    }

    pub(super) fn open(&self) -> MutexGuard<'_, Option<String>> {
        self.upload.lock()
    }

    /// Cleans up after an attempt: a resumable upload keeps its checkpoint, any other is aborted.
    async fn clean_up(&self, ended: &TransferResult) {
        let Some(id) = self.open().take() else { return };
        if matches!(ended, TransferResult::Failed(_)) && self.attempt.open_upload.is_open() {
            return;
        }
        let wait = self.transport.world.lock().latency();
        self.transport.step(wait).await;
        self.attempt.open_upload.close();
        self.transport.world.lock().abort(&id);
    }
}

/// Request whose object may become visible although nobody waits for the reply any more.
struct PutInFlight<'a> {
    attempt: &'a SimAttempt<'a>,
    answered: bool,
}

impl Drop for PutInFlight<'_> {
    fn drop(&mut self) {
        let (job, late, transport) = (self.attempt.job, self.attempt.is_late(), self.attempt.transport);
        let mut state = transport.world.lock();
        let replaces = state.plan(job).existing == ExistingObject::Replace;
        if self.answered || !replaces || !state.workers[transport.worker].alive || !state.rng.percent(50) {
            return;
        }
        state.count_fault("abandoned requests that took effect");
        let wait = state.rng.millis(0, 2000);
        drop(state);
        if tokio::runtime::Handle::try_current().is_ok() {
            transport.world.schedule(wait, move |world| world.lock().write_object(job, late, None));
        }
    }
}

/// Aborts the upload of a dropped or panicked attempt in the background.
impl Drop for SimAttempt<'_> {
    fn drop(&mut self) {
        let mut state = self.transport.world.lock();
        state.workers[self.transport.worker].running -= 1;
        let running = &mut state.records[self.job].running;
        if let Some(place) = running.iter().position(|worker| *worker == self.transport.worker) {
            running.remove(place);
        }
        let alive = state.workers[self.transport.worker].alive;
        drop(state);
        if let Some(id) = self.open().take().filter(|_| alive) {
            self.attempt.open_upload.close();
            if tokio::runtime::Handle::try_current().is_ok() {
                self.transport.world.schedule(Duration::from_millis(30), move |world| world.lock().abort(&id));
            }
        }
        self.transport.world.changed.notify_one();
    }
}

pub(super) fn shutdown() -> TransferResult {
    TransferResult::Failed(Failure::new(Reason::Shutdown, "the worker is draining"))
}

fn label(ended: &TransferResult) -> &'static str {
    match ended {
        TransferResult::Delivered(_) => "delivered",
        TransferResult::Skipped | TransferResult::Cancelled(_) | TransferResult::Superseded(_) => "skipped",
        TransferResult::ObjectBusy => "busy",
        TransferResult::Expired => "expired",
        TransferResult::Failed(failure) => failure.reason.as_str(),
    }
}

impl Transport for SimTransport {
    fn deliver<'a>(&'a self, job: &'a Job, attempt: TransferRequest<'a>) -> BoxFuture<'a, TransferResult> {
        Box::pin(self.run(job, attempt))
    }

    fn abort_upload<'a>(&'a self, _destination: &'a Arc<Destination>, checkpoint: &'a Checkpoint) -> BoxFuture<'a, ()> {
        Box::pin(async {
            let wait = self.world.lock().latency();
            self.step(wait).await;
            let mut state = self.world.lock();
            invariants::check_abort(&mut state, self.worker, checkpoint);
            state.abort(&checkpoint.upload_id);
        })
    }

    fn test<'a>(&'a self, _destination: &'a Arc<Destination>, _egress: &'a [String]) -> BoxFuture<'a, CheckReport> {
        Box::pin(async { CheckReport::of_worker(None, clock::now(), 0.0, Vec::new()) })
    }
}
