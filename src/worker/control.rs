//! Control messages: which backfills are cancelled, and whose circuit is to be closed.
//!
//! They are read by a task beside the work. Before the first delivery is taken, what there is is read, so that a worker that starts
//! knows what was cancelled while it was away; the queue says when that is so ([`ControlEvent::CaughtUp`]). Each may come again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::Worker;
use crate::domain::control::{
    BACKFILL_BEGUN_HEADER as BEGUN, BACKFILL_HEADER as BACKFILL, BackfillId, Control, ControlCommand, KEPT_DAYS,
};
use crate::domain::destination::DestinationId;
use crate::domain::outcome::TransferResult;
use crate::queue::{ControlEvent, Properties};

/// The most cancellations that are remembered; past it the oldest are forgotten.
const REMEMBERED: usize = 10_000;
/// A queue that is connected says within 5 s that its control messages are read. This one broke its promise.
const UNREAD: Duration = Duration::from_secs(10);

/// What operators asked for.
#[derive(Debug, Default)]
pub(super) struct Cancellations {
    /// When each backfill was cancelled last.
    cancelled: Mutex<HashMap<BackfillId, Timestamp>>,
}

impl Cancellations {
    fn cancelled(&self) -> MutexGuard<'_, HashMap<BackfillId, Timestamp>> {
        self.cancelled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers a cancellation for as long as the stream keeps it. True if it is new.
    fn cancel(&self, backfill: BackfillId, at: Timestamp, now: Timestamp) -> bool {
        let mut cancelled = self.cancelled();
        let day = SignedDuration::from_hours(24);
        let over = now.checked_sub(day * i32::try_from(KEPT_DAYS).unwrap_or(i32::MAX)).unwrap_or(Timestamp::MIN);
        cancelled.retain(|_, at| *at >= over);
        if at < over || cancelled.get(&backfill).is_some_and(|known| *known >= at) {
            return false;
        }
        if cancelled.len() >= REMEMBERED
            && let Some(oldest) = cancelled.iter().min_by_key(|(_, at)| **at).map(|(id, _)| id.clone())
        {
            cancelled.remove(&oldest);
        }
        cancelled.insert(backfill, at);
        true
    }

    /// The backfill to which a job belongs, if it was cancelled after the job was published.
    fn of(&self, properties: &Properties) -> Option<BackfillId> {
        let backfill = BackfillId::parse(properties.headers.get(BACKFILL)?).ok()?;
        let at = *self.cancelled().get(&backfill)?;
        let begun: Option<Timestamp> = properties.headers.get(BEGUN).and_then(|text| text.parse().ok());
        begun.is_none_or(|begun| begun <= at).then_some(backfill)
    }
}

impl Worker {
    /// Reads control messages from now on. Returns when those of the past are read, or at `drain`.
    pub(super) async fn follow_control(self: &Arc<Self>, drain: &CancellationToken) -> JoinHandle<()> {
        let (read, up_to_date) = oneshot::channel();
        let task = tokio::spawn(self.clone().read_control(read));
        tokio::select! {
            biased;
            () = drain.cancelled() => {}
            // Either way: nobody reads any more, or all is read.
            _ = up_to_date => {}
            () = self.unread() => tracing::warn!("the queue does not say that control messages are read; taking jobs all the same"),
        }
        task
    }

    async fn unread(&self) {
        while self.parts.queue.wait_connected(UNREAD).await.is_err() {
            // What waiting does not mend fails at once.
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        tokio::time::sleep(UNREAD).await;
    }

    async fn read_control(self: Arc<Self>, up_to_date: oneshot::Sender<()>) {
        let mut up_to_date = Some(up_to_date);
        while let Some(announced) = self.parts.queue.next_control().await {
            match announced {
                ControlEvent::Message(body) => self.obey(&body),
                ControlEvent::CaughtUp => drop(up_to_date.take()),
            }
        }
    }

    fn obey(&self, body: &[u8]) {
        let Control { at, command, .. } = match Control::parse(body) {
            Ok(control) => control,
            Err(problem) => return tracing::warn!(%problem, "a control message can't be read; it is left out"),
        };
        match command {
            ControlCommand::CancelBackfill(backfill) => {
                if self.wishes.cancel(backfill.clone(), at, (self.parts.clock)()) {
                    tracing::info!(%backfill, %at, "a backfill is cancelled; its jobs that have not begun are skipped");
                }
            }
            ControlCommand::ResetCircuit(destination) => self.circuit_reset(&destination, at),
        }
    }

    /// How the job of a backfill that was cancelled ends, before it begins.
    pub(super) fn cancelled(&self, properties: &Properties) -> Option<TransferResult> {
        self.wishes.of(properties).map(TransferResult::Cancelled)
    }

    /// It may be read more than once, and long after `at`: it is for what was known of the destination then.
    fn circuit_reset(&self, destination: &DestinationId, at: Timestamp) {
        let known = self.circuits.reset_as_of(destination, at, (self.parts.clock)());
        if known {
            self.parts.transport.forget_denials();
        }
        self.call_back(destination, known, at);
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

    fn job(backfill: &str, begun: Option<Timestamp>) -> Properties {
        let begun = begun.map(|begun| (BEGUN.to_owned(), begun.to_string()));
        let headers = [(BACKFILL.to_owned(), backfill.to_owned())].into_iter().chain(begun).collect();
        Properties { headers, ..Properties::default() }
    }

    #[test]
    fn a_cancellation_is_for_what_was_begun_before_it() {
        let wishes = Cancellations::default();
        assert!(wishes.of(&job("b", Some(at(0)))).is_none());
        assert!(wishes.cancel(id("b"), at(10), at(11)));
        assert_eq!(wishes.of(&job("b", Some(at(10)))), Some(id("b")));
        assert_eq!(wishes.of(&job("b", None)), Some(id("b")), "without a time it is as old as can be");
        assert!(wishes.of(&job("b", Some(at(11)))).is_none(), "published again on purpose");
        assert!(wishes.of(&job("c", Some(at(0)))).is_none());
        assert!(wishes.of(&Properties::default()).is_none());
        assert!(!wishes.cancel(id("b"), at(5), at(12)), "an older one says nothing new");
        assert!(wishes.cancel(id("b"), at(20), at(21)));
        assert_eq!(wishes.of(&job("b", Some(at(11)))), Some(id("b")));
    }

    #[test]
    fn cancellations_are_forgotten_with_the_stream_and_bounded() {
        let wishes = Cancellations::default();
        let days = |days: i64| at(days * 24 * 3600);
        wishes.cancel(id("old"), days(0), days(0));
        assert!(!wishes.cancel(id("older"), days(0), days(8)), "the stream does not keep it");
        assert!(wishes.of(&job("old", None)).is_none());
        for n in 0..=REMEMBERED {
            wishes.cancel(id(&n.to_string()), at(i64::try_from(n).unwrap()), at(20_000));
        }
        assert_eq!(wishes.cancelled().len(), REMEMBERED);
        assert!(wishes.of(&job("0", None)).is_none());
        assert!(wishes.of(&job("1", None)).is_some());
    }
}
