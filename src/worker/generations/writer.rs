//! Write of one attempt: its permission, and its end.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout, timeout_at};
use uuid::Uuid;

use super::table::{GenerationTable, Turn, UNKNOWN_WRITE_TIME};
use super::{ANSWER_TIME, CONFIRM_TIMEOUT, Generations};
use crate::domain::control::GenerationChange;
use crate::domain::generation::{NewerDelivery, ObjectGeneration};
use crate::domain::job::JobId;
use crate::domain::outcome::{Failure, Reason, TransferResult};
use crate::queue::DeliveryTag;

/// Time in which a report must be read back. Beyond, the attempt ends as interrupted; where nothing
/// was ever read, it writes, which is counted: no delivery depends on the control stream.
const READ_BACK_TIMEOUT: Duration = Duration::from_secs(30);
/// Time that an attempt waits for the end of another worker's write. Beyond, its job is deferred.
const TURN_TIMEOUT: Duration = Duration::from_secs(10);

/// Interval at which it looks for writes that expired.
const TURN_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Job that writes.
#[derive(Debug, Clone)]
pub(in crate::worker) struct WritingJob {
    pub(in crate::worker) id: JobId,
    /// Digest of its run.
    pub(in crate::worker) run: Uuid,
    /// True unless this is the first delivery of the job as it was published.
    pub(in crate::worker) late: bool,
    /// Time from which on the attempt is a late one: it is leased by then.
    pub(in crate::worker) late_from: Instant,
    /// Delivery of the job.
    pub(in crate::worker) ticket: DeliveryTag,
}

/// Report of a delivery on its way to the other workers.
#[derive(Debug)]
pub(in crate::worker) struct DeliveryReport(oneshot::Receiver<bool>);

impl DeliveryReport {
    /// Waits for the confirm, for a limited time.
    pub(in crate::worker) async fn confirmed(self) {
        let _ = timeout(CONFIRM_TIMEOUT, self.0).await;
    }
}

/// Write of the object by one attempt. It ends in [`ObjectWriter::end`], or on drop.
#[derive(Debug)]
pub(in crate::worker) struct ObjectWriter {
    generations: Arc<Generations>,
    this: ObjectGeneration,
    job: WritingJob,
    state: Mutex<WriterState>,
}

#[derive(Debug, Default)]
struct WriterState {
    write: WriteState,
    refusal: Option<Refusal>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum WriteState {
    /// Nothing was written.
    #[default]
    Outside,
    /// It is permitted, and was not reported.
    Unreported,
    /// It is, or will be, reported under this id.
    Reported {
        id: Uuid,
        /// True once it is permitted.
        permitted: bool,
    },
}

#[derive(Debug, Clone)]
enum Refusal {
    Superseded(NewerDelivery),
    Busy,
    /// The broker is unavailable.
    Unavailable,
}

impl ObjectWriter {
    /// A writer that was not permitted anything yet.
    pub(in crate::worker) fn new(generations: &Arc<Generations>, this: ObjectGeneration, job: WritingJob) -> Self {
        Self { generations: generations.clone(), this, job, state: Mutex::default() }
    }

    /// Reports a late attempt, so that others answer while it still reads its source. Resolves when
    /// a newer generation is delivered.
    pub(in crate::worker) async fn superseded(&self) {
        let newer = loop {
            let unreported = |table: &GenerationTable| self.job.late && table.announced_since(self.this).is_none();
            let change = |table: &mut GenerationTable| {
                let newer = table.newer_than(self.this);
                (newer.is_some() || unreported(table)).then_some(newer)
            };
            if let Some(newer) = self.generations.wait_for(change).await {
                break newer;
            }
            // Also when a duplicate of the job has ended, which closes its report: this one may still write.
            self.generations.announce(self.this).await;
            let known = |table: &mut GenerationTable| {
                (table.newer_than(self.this).is_some() || !unreported(table)).then_some(())
            };
            self.generations.wait_for(known).await;
        };
        self.state.lock().refusal.get_or_insert(Refusal::Superseded(newer));
    }

    /// Returns the result of the attempt: what was refused here did not fail.
    pub(in crate::worker) fn conclude(&self, result: TransferResult) -> TransferResult {
        let refusal = self.state.lock().refusal.clone();
        match (result, refusal) {
            (TransferResult::Failed(failure), _) if failure.reason == Reason::LeaseLost => {
                TransferResult::Failed(failure)
            }
            (TransferResult::Failed(_) | TransferResult::Expired, Some(Refusal::Superseded(newer))) => {
                TransferResult::Superseded(newer)
            }
            (TransferResult::Failed(failure), Some(Refusal::Busy)) if failure.reason == Reason::Shutdown => {
                TransferResult::ObjectBusy
            }
            (result, _) => result,
        }
    }

    /// Ends the write. A delivery is remembered, and reported if a lower generation may come late:
    /// the job must not be settled before that is confirmed.
    pub(in crate::worker) fn end(&self, delivered: bool) -> Option<DeliveryReport> {
        let write_state = std::mem::take(&mut self.state.lock().write);
        let mut table = self.generations.table.lock();
        let id = match write_state {
            WriteState::Outside => None,
            WriteState::Unreported => table.end_own_write(self.this.object),
            WriteState::Reported { id, .. } => {
                table.end_own_write(self.this.object);
                Some(id)
            }
        };
        let awaited = delivered && table.delivered(self.this, self.job.id.as_str().into());
        drop(table);
        self.generations.changed.notify_waiters();
        let (generation, reporter) = (self.this.generation, &self.generations.reporter);
        let job = || self.job.id.as_str().into();
        match id {
            Some(write) if !delivered => {
                let unknown = !matches!(write_state, WriteState::Reported { permitted: false, .. });
                let wait = if unknown { UNKNOWN_WRITE_TIME } else { Duration::ZERO };
                reporter.report_after(wait, self.this.object, GenerationChange::Ended { write });
                None
            }
            write if awaited || write.is_some() => {
                let report = GenerationChange::Delivered { generation, job: job(), write };
                Some(DeliveryReport(reporter.report(self.this.object, report)))
            }
            _ => None,
        }
    }

    /// Waits until the object may be written.
    ///
    /// # Errors
    /// A failure of class `interrupted`: the object must not be written now.
    pub(in crate::worker) async fn enter(&self) -> Result<(), Failure> {
        self.permit().await.map_err(|refusal| {
            let message = match &refusal {
                Refusal::Superseded(newer) => format!("a newer generation was delivered: {newer}"),
                Refusal::Busy => "another job writes the object".to_owned(),
                Refusal::Unavailable => "the broker does not take the report of a late write".to_owned(),
            };
            if matches!(refusal, Refusal::Unavailable) {
                return Failure::new(Reason::BrokerLost, message);
            }
            self.state.lock().refusal.get_or_insert(refusal);
            Failure::new(Reason::Shutdown, message)
        })
    }

    async fn permit(&self) -> Result<(), Refusal> {
        if let Some(newer) = self.generations.newer_than(self.this) {
            return Err(Refusal::Superseded(newer));
        }
        let entered = self.state.lock().write;
        match entered {
            WriteState::Unreported | WriteState::Reported { permitted: true, .. } => return Ok(()),
            WriteState::Outside | WriteState::Reported { .. } => {}
        }
        let latest = Instant::now() + READ_BACK_TIMEOUT;
        if !self.is_late() {
            let _ = timeout_at(latest, self.generations.backlog.wait()).await;
        }
        if self.begin_unreported() {
            return Ok(());
        }
        if !self.wait_for_answers(latest).await? {
            self.write_unordered(Uuid::new_v4());
            return Ok(());
        }
        let Some(id) = self.wait_for_turn(latest).await? else { return Ok(()) };
        // Meanwhile another attempt of the job may have ended what was reported. A newer job that began then knows of
        // neither.
        if !self.wait_for_answers(Instant::now() + READ_BACK_TIMEOUT).await? {
            self.write_unordered(id);
            return Ok(());
        }
        if self.generations.table.lock().turn(self.this.object, id) != Some(Turn::First) {
            return Err(Refusal::Busy);
        }
        self.state.lock().write = WriteState::Reported { id, permitted: true };
        Ok(())
    }

    /// Returns true unless this is certainly the only delivery of the job. A delivery that was lost
    /// with its connection is redelivered, perhaps to another worker. While the connection is lost,
    /// that is not known, and a report would only keep the attempt waiting.
    fn is_late(&self) -> bool {
        let generations = &self.generations;
        let is_redelivered = || generations.backlog.is_current() && !generations.reporter.can_settle(self.job.ticket);
        self.job.late || Instant::now() >= self.job.late_from || is_redelivered()
    }

    /// Begins a write that nobody needs to know of.
    fn begin_unreported(&self) -> bool {
        let known = self.generations.backlog.is_read();
        if self.is_late() || !known || !self.generations.table.lock().begin_unreported(self.this, self.job.run) {
            return false;
        }
        self.state.lock().write = WriteState::Unreported;
        true
    }

    /// Reports a late attempt, and waits until every worker had the time to answer that a newer
    /// generation was delivered. Returns false if the control stream is unusable.
    async fn wait_for_answers(&self, latest: Instant) -> Result<bool, Refusal> {
        let (generations, this) = (&self.generations, self.this);
        loop {
            let is_late = self.is_late();
            if is_late && !generations.announce(this).await {
                return Ok(false);
            }
            let since = if is_late {
                let known = |table: &mut GenerationTable| {
                    let newer = table.newer_than(this).map(|newer| Err(Refusal::Superseded(newer)));
                    newer.or_else(|| table.announced_since(this).map(Ok))
                };
                match timeout_at(latest, generations.wait_for(known)).await {
                    Ok(since) => Some(since?),
                    Err(_) if generations.readable.load(Ordering::Relaxed) => return Err(Refusal::Unavailable),
                    Err(_) => return Ok(false),
                }
            } else {
                generations.table.lock().pending_since(this)
            };
            let answered = since.filter(|_| !generations.is_alone()).map(|since| since + ANSWER_TIME);
            let Some(answered) = answered.filter(|at| *at > Instant::now()) else { return Ok(true) };
            let newer = timeout_at(answered, generations.wait_for(|table| table.newer_than(this))).await;
            if let Ok(newer) = newer {
                return Err(Refusal::Superseded(newer));
            }
        }
    }

    /// Reports the write, and waits until it is the first. Returns its id; `None` where it began
    /// without a turn.
    async fn wait_for_turn(&self, latest: Instant) -> Result<Option<Uuid>, Refusal> {
        let (generations, object) = (&self.generations, self.this.object);
        let id = Uuid::new_v4();
        self.state.lock().write = WriteState::Reported { id, permitted: false };
        let report = generations.table.lock().enter_write(self.this, self.job.run, id);
        let reported = generations.reporter.report(object, report);
        let read_back = generations.wait_for(|table| table.turn(object, id));
        let read_back = timeout_at(latest, unless_refused(read_back, reported)).await;
        if matches!(read_back, Ok(None)) || read_back.is_err() && !generations.readable.load(Ordering::Relaxed) {
            self.write_unordered(id);
            return Ok(None);
        }
        if read_back.is_err() {
            return Err(Refusal::Unavailable);
        }
        let latest = Instant::now() + TURN_TIMEOUT;
        loop {
            let turn = generations.wait_for(|table| {
                let newer = table.newer_than(self.this).map(|newer| Err(Refusal::Superseded(newer)));
                // One that expired is reported again, and waits for that.
                newer.or_else(|| (table.turn(object, id) == Some(Turn::First)).then_some(Ok(())))
            });
            match timeout(TURN_CHECK_INTERVAL, turn).await {
                Ok(turn) => break turn?,
                Err(_) if Instant::now() >= latest => return Err(Refusal::Busy),
                Err(_) => {}
            }
        }
        Ok(Some(id))
    }

    /// Begins a write without a turn: nobody can be informed of it.
    fn write_unordered(&self, id: Uuid) {
        tracing::warn!(
            event = "generation_unordered",
            job_id = %self.job.id,
            next = "a late job writes its object without a comparison of generations",
            remedy = "check the stream `<prefix>.control`, and publish the newest file of the object again if it was overwritten",
            "the control stream is unusable"
        );
        self.generations.reporter.count_unordered();
        self.state.lock().write = WriteState::Reported { id, permitted: true };
    }
}

/// Waits for what is read back; `None` when the broker refuses the report.
async fn unless_refused<T>(read_back: impl Future<Output = T>, reported: oneshot::Receiver<bool>) -> Option<T> {
    let refused = async {
        // One that found no place in the buffer was not refused.
        if reported.await.unwrap_or(true) {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        biased;
        read = read_back => Some(read),
        () = refused => None,
    }
}

/// An attempt that was dropped or panicked must not keep others waiting.
impl Drop for ObjectWriter {
    fn drop(&mut self) {
        drop(self.end(false));
    }
}
