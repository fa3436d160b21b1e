//! The cloud as one worker has it: an implementation of [`Transport`] that only pretends to read and to send.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::bucket::{Object, key};
use super::plan::{Act, Fate, Shape, Taken};
use super::record::End;
use super::world::{World, note};
use super::{clock, rules};
use crate::check::CheckReport;
use crate::domain::destination::Destination;
use crate::domain::job::Job;
use crate::domain::job::lease::Checkpoint;
use crate::domain::outcome::{Class, Failure, Reason, Receipt, TransferResult};
use crate::queue::BoxFuture;
use crate::transfer::{TransferRequest, Transport};

/// What a worker's transfers do in a story.
#[derive(Debug)]
pub(super) struct Cloud {
    pub(super) world: Arc<World>,
    pub(super) member: usize,
}

/// One attempt.
pub(super) struct Run<'a> {
    pub(super) cloud: &'a Cloud,
    pub(super) job: usize,
    pub(super) attempt: &'a TransferRequest<'a>,
    pub(super) act: Act,
    /// The upload that is open now.
    pub(super) upload: Mutex<Option<String>>,
}

impl Cloud {
    pub(super) async fn while_alive(&self) {
        if !self.world.lock().members[self.member].alive {
            std::future::pending::<()>().await;
        }
    }

    /// Something that takes time; afterwards the process may be gone.
    pub(super) async fn step(&self, wait: Duration) {
        tokio::time::sleep(wait).await;
        self.while_alive().await;
    }

    async fn run(&self, job: &Job, attempt: TransferRequest<'_>) -> TransferResult {
        self.while_alive().await;
        let number = rules::job_of(Some(job.id.as_str()));
        let run =
            Run { cloud: self, job: number, attempt: &attempt, act: self.begin(number), upload: Mutex::default() };
        rules::beginning(&mut self.world.lock(), self.member, number, job, run.attempt);
        if let Some(checkpoint) = &run.attempt.resume {
            let mut state = self.world.lock();
            state.happened("resumed");
            state.members[self.member].resumed.push(checkpoint.upload_id.clone());
        }
        let ended = if job.expires_at.is_some_and(|at| at <= clock::now()) {
            TransferResult::Expired
        } else {
            run.play().await
        };
        self.while_alive().await;
        note!(self.world.lock(), "worker {}: job-{number} ends as {}", self.member, word(&ended));
        run.over(End::of(&ended));
        ended
    }

    /// An attempt begins: what will happen in it.
    fn begin(&self, job: usize) -> Act {
        let mut state = self.world.lock();
        state.members[self.member].running += 1;
        state.records[job].running.push(self.member);
        let nth = state.records[job].attempts;
        state.records[job].attempts += 1;
        let plan = state.plan(job);
        let scripted = plan.acts.get(nth).copied().filter(|_| !state.calm).unwrap_or(Act::Go);
        match plan.fate {
            Fate::Delivered | Fate::Refused | Fate::Poison => scripted,
            Fate::Fails(reason) => Act::Fail(Duration::from_millis(1), reason),
            Fate::Panics => Act::Panic(Duration::from_millis(1)),
        }
    }
}

impl Run<'_> {
    async fn play(&self) -> TransferResult {
        // On record from here on: it is continued or given up, and not forgotten.
        if let Some(checkpoint) = &self.attempt.resume {
            self.attempt.open_upload.open(checkpoint.clone());
        }
        let work = async {
            let opening = self.cloud.world.lock().latency();
            self.cloud.step(opening).await;
            if let Some(reason) = self.refused() {
                return TransferResult::Failed(Failure::new(reason, "refused"));
            }
            match self.plan_shape() {
                Shape::Single(takes) => self.single(takes).await,
                shape @ Shape::Parts { .. } => self.parts(shape).await,
            }
        };
        let ended = tokio::select! {
            biased;
            () = self.attempt.stop.cancel.cancelled() => shutdown(),
            ended = self.trouble() => ended,
            ended = work => ended,
        };
        self.tidy(&ended).await;
        ended
    }

    fn over(&self, end: End) {
        let mut state = self.cloud.world.lock();
        let destination = state.plan(self.job).destination;
        state.members[self.cloud.member].answered(destination, end);
        state.records[self.job].ended(self.cloud.member, end, clock::elapsed());
    }

    pub(super) fn plan_shape(&self) -> Shape {
        self.cloud.world.lock().plan(self.job).shape
    }

    /// Who refuses this attempt, if anybody: the worker's own identity, or the destination.
    fn refused(&self) -> Option<Reason> {
        let state = self.cloud.world.lock();
        let sick = clock::elapsed() < state.members[self.cloud.member].sick;
        let destination = state.plan(self.job).destination;
        sick.then_some(Reason::IdentityDenied).or_else(|| state.story.besieged(destination))
    }

    /// What ends this attempt before it is done.
    async fn trouble(&self) -> TransferResult {
        match self.act {
            Act::Fail(after, reason) => {
                self.cloud.step(after).await;
                let asked = self.cloud.world.lock().dice.percent(20).then_some(Duration::from_secs(40));
                TransferResult::Failed(Failure { retry_after: asked, ..Failure::new(reason, "it fails") })
            }
            Act::Panic(after) => {
                self.cloud.step(after).await;
                self.over(End::Failed(Class::Defect));
                // As a panic, though without the message that the hook would print.
                std::panic::resume_unwind(Box::new("a panic of the story"));
            }
            Act::Go | Act::Hang | Act::LostReply => std::future::pending().await,
        }
    }

    /// Nothing moves in this attempt until the calm.
    pub(super) async fn hang(&self) {
        while matches!(self.act, Act::Hang) && !self.cloud.world.lock().calm {
            self.cloud.step(Duration::from_secs(10)).await;
            if self.gives_over() {
                return;
            }
        }
    }

    /// Whether the attempt is to end here, for another worker to go on.
    pub(super) fn gives_over(&self) -> bool {
        self.attempt.stop.hand_off.is_cancelled() && self.attempt.open_upload.is_open()
    }

    async fn single(&self, takes: Duration) -> TransferResult {
        self.hang().await;
        self.cloud.step(takes).await;
        self.show(None)
    }

    /// The object becomes visible, unless the key is taken.
    pub(super) fn show(&self, upload: Option<String>) -> TransferResult {
        let mut state = self.cloud.world.lock();
        let wants = state.plan(self.job).taken;
        let key = key(self.job);
        let there = state.buckets.objects.get(&key).cloned();
        let known = self.attempt.earlier.is_some() || self.attempt.resume.is_some();
        match (wants, there) {
            (Taken::Keep(_) | Taken::Fail(_), Some(found)) if found.job == Some(self.job) && known => {}
            (Taken::Keep(_), Some(_)) => return TransferResult::Skipped,
            (Taken::Fail(_), Some(_)) => return TransferResult::Failed(Failure::new(Reason::ObjectExists, "taken")),
            _ => {
                note!(state, "{key} is visible");
                state.buckets.objects.insert(key, Object { job: Some(self.job), upload });
            }
        }
        if matches!(self.act, Act::LostReply) {
            return TransferResult::Failed(Failure::new(Reason::S3Unavailable, "the reply is lost"));
        }
        TransferResult::Delivered(Receipt { bytes: 1, ..Receipt::default() })
    }

    pub(super) fn open(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.upload.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a failed attempt leaves behind: an upload that can be continued stays in the journal, another is aborted.
    async fn tidy(&self, ended: &TransferResult) {
        let Some(id) = self.open().take() else { return };
        if matches!(ended, TransferResult::Failed(_)) && self.attempt.open_upload.is_open() {
            return;
        }
        let wait = self.cloud.world.lock().latency();
        self.cloud.step(wait).await;
        self.attempt.open_upload.close();
        self.cloud.world.lock().abort(&id);
    }
}

/// A dropped attempt, or one that panicked: its upload is aborted in the background.
impl Drop for Run<'_> {
    fn drop(&mut self) {
        let mut state = self.cloud.world.lock();
        state.members[self.cloud.member].running -= 1;
        let running = &mut state.records[self.job].running;
        if let Some(place) = running.iter().position(|member| *member == self.cloud.member) {
            running.remove(place);
        }
        let alive = state.members[self.cloud.member].alive;
        drop(state);
        if let Some(id) = self.open().take().filter(|_| alive) {
            self.attempt.open_upload.close();
            if tokio::runtime::Handle::try_current().is_ok() {
                self.cloud.world.after(Duration::from_millis(30), move |world| world.lock().abort(&id));
            }
        }
        self.cloud.world.changed.notify_one();
    }
}

pub(super) fn shutdown() -> TransferResult {
    TransferResult::Failed(Failure::new(Reason::Shutdown, "the worker is draining"))
}

fn word(ended: &TransferResult) -> &'static str {
    match ended {
        TransferResult::Delivered(_) => "delivered",
        TransferResult::Skipped | TransferResult::Cancelled(_) => "skipped",
        TransferResult::Expired => "expired",
        TransferResult::Failed(failure) => failure.reason.as_str(),
    }
}

impl Transport for Cloud {
    fn deliver<'a>(&'a self, job: &'a Job, attempt: TransferRequest<'a>) -> BoxFuture<'a, TransferResult> {
        Box::pin(self.run(job, attempt))
    }

    fn abort_upload<'a>(&'a self, _destination: &'a Arc<Destination>, checkpoint: &'a Checkpoint) -> BoxFuture<'a, ()> {
        Box::pin(async {
            let wait = self.world.lock().latency();
            self.step(wait).await;
            let mut state = self.world.lock();
            rules::abandoning(&mut state, self.member, checkpoint);
            state.abort(&checkpoint.upload_id);
        })
    }

    fn test<'a>(&'a self, _destination: &'a Arc<Destination>, _egress: &'a [String]) -> BoxFuture<'a, CheckReport> {
        Box::pin(async { CheckReport::of_worker(None, clock::now(), 0.0, Vec::new()) })
    }
}
