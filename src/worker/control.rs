//! Control messages: which backfills are cancelled, and which destinations are reset.
//!
//! A task reads them beside the jobs. Before the first delivery is consumed, those of the past are
//! read, so that a worker that starts knows what was cancelled while it was away; the queue reports
//! when that is done ([`ControlEvent::CaughtUp`]). Each may be read more than once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::Clock;
use super::admission::Admission;
use crate::domain::control::{BackfillId, Control, ControlCommand, KEPT_DAYS};
use crate::domain::headers::JobHeaders;
use crate::domain::outcome::TransferResult;
use crate::queue::{ControlEvent, Queue};

/// Most cancellations that are remembered; beyond, the oldest are dropped.
const MAX_CANCELLATIONS: usize = 10_000;
/// Time in which a connected queue reports that control messages are read, which it promises
/// within 5 s.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(10);

/// Cancelled backfills.
#[derive(Debug, Default)]
pub(super) struct Cancellations {
    /// Last cancellation of each backfill.
    cancelled: Mutex<HashMap<BackfillId, Timestamp>>,
}

impl Cancellations {
    /// Returns the result of a job whose backfill was cancelled, if it was.
    pub(super) fn result_of(&self, headers: &JobHeaders) -> Option<TransferResult> {
        self.covering(headers).map(TransferResult::Cancelled)
    }

    /// Returns the job's backfill if it was cancelled after the job was published.
    fn covering(&self, headers: &JobHeaders) -> Option<BackfillId> {
        let backfill = headers.backfill.as_ref()?;
        let at = *self.lock().get(backfill)?;
        headers.backfill_started_at.is_none_or(|started| started <= at).then(|| backfill.clone())
    }

    /// Remembers a cancellation for as long as the stream keeps it. Returns true if it is new.
    fn cancel(&self, backfill: BackfillId, at: Timestamp, now: Timestamp) -> bool {
        let mut cancelled = self.lock();
        let day = SignedDuration::from_hours(24);
        let oldest = now.checked_sub(day * i32::try_from(KEPT_DAYS).unwrap_or(i32::MAX)).unwrap_or(Timestamp::MIN);
        cancelled.retain(|_, at| *at >= oldest);
        if at < oldest || cancelled.get(&backfill).is_some_and(|known| *known >= at) {
            return false;
        }
        if cancelled.len() >= MAX_CANCELLATIONS
            && let Some(oldest) = cancelled.iter().min_by_key(|(_, at)| **at).map(|(id, _)| id.clone())
        {
            cancelled.remove(&oldest);
        }
        cancelled.insert(backfill, at);
        true
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<BackfillId, Timestamp>> {
        self.cancelled.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reader of control messages.
#[derive(Debug, Clone)]
pub(super) struct ControlReader {
    queue: Arc<dyn Queue>,
    admission: Arc<Admission>,
    cancellations: Arc<Cancellations>,
    clock: Clock,
}

impl ControlReader {
    pub(super) fn new(
        queue: Arc<dyn Queue>,
        admission: Arc<Admission>,
        cancellations: Arc<Cancellations>,
        clock: Clock,
    ) -> Self {
        Self { queue, admission, cancellations, clock }
    }

    /// Starts the task that reads control messages. Returns when those of the past are read, or at
    /// `drain`.
    pub(super) async fn start(&self, drain: &CancellationToken) -> JoinHandle<()> {
        let (sender, caught_up) = oneshot::channel();
        let task = tokio::spawn(self.clone().read(sender));
        tokio::select! {
            biased;
            () = drain.cancelled() => {}
            // The sender is dropped when all are read, and when nothing more can be read.
            _ = caught_up => {}
            () = self.timed_out() => tracing::warn!("the queue does not report that control messages are read; consuming jobs all the same"),
        }
        task
    }

    async fn timed_out(&self) {
        while self.queue.wait_connected(CATCH_UP_TIMEOUT).await.is_err() {
            // A permanent error returns at once.
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        tokio::time::sleep(CATCH_UP_TIMEOUT).await;
    }

    async fn read(self, caught_up: oneshot::Sender<()>) {
        let mut caught_up = Some(caught_up);
        while let Some(event) = self.queue.next_control().await {
            match event {
                ControlEvent::Message(body) => self.perform(&body),
                ControlEvent::CaughtUp => drop(caught_up.take()),
            }
        }
    }

    fn perform(&self, body: &[u8]) {
        let Control { at, command, .. } = match Control::parse(body) {
            Ok(control) => control,
            Err(error) => return tracing::warn!(%error, "a control message can't be read; it is ignored"),
        };
        match command {
            ControlCommand::CancelBackfill(backfill) => {
                if self.cancellations.cancel(backfill.clone(), at, (self.clock)()) {
                    tracing::info!(%backfill, %at, "backfill cancelled; its jobs that have not started are skipped");
                }
            }
            ControlCommand::ResetCircuit(destination) => self.admission.reset_as_of(&destination, at),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn id(name: &str) -> BackfillId {
        BackfillId::parse(name).unwrap()
    }

    fn job(backfill: &str, started: Option<Timestamp>) -> JobHeaders {
        JobHeaders { backfill: Some(id(backfill)), backfill_started_at: started, ..JobHeaders::default() }
    }

    #[test]
    fn a_cancellation_covers_jobs_that_were_published_before_it() {
        let cancellations = Cancellations::default();
        assert!(cancellations.covering(&job("b", Some(at(0)))).is_none());
        assert!(cancellations.cancel(id("b"), at(10), at(11)));
        assert_eq!(cancellations.covering(&job("b", Some(at(10)))), Some(id("b")));
        assert_eq!(cancellations.covering(&job("b", None)), Some(id("b")), "without a time it is as old as can be");
        assert!(cancellations.covering(&job("b", Some(at(11)))).is_none(), "published again on purpose");
        assert!(cancellations.covering(&job("c", Some(at(0)))).is_none());
        assert!(cancellations.covering(&JobHeaders::default()).is_none());
        assert!(!cancellations.cancel(id("b"), at(5), at(12)), "an older one says nothing new");
        assert!(cancellations.cancel(id("b"), at(20), at(21)));
        assert_eq!(cancellations.covering(&job("b", Some(at(11)))), Some(id("b")));
    }

    #[test]
    fn cancellations_expire_with_the_stream_and_are_bounded() {
        let cancellations = Cancellations::default();
        let days = |days: i64| at(days * 24 * 3600);
        cancellations.cancel(id("old"), days(0), days(0));
        assert!(!cancellations.cancel(id("older"), days(0), days(8)), "the stream does not keep it");
        assert!(cancellations.covering(&job("old", None)).is_none());
        for n in 0..=MAX_CANCELLATIONS {
            cancellations.cancel(id(&n.to_string()), at(i64::try_from(n).unwrap()), at(20_000));
        }
        assert_eq!(cancellations.lock().len(), MAX_CANCELLATIONS);
        assert!(cancellations.covering(&job("0", None)).is_none());
        assert!(cancellations.covering(&job("1", None)).is_some());
    }
}
