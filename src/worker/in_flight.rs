//! Which jobs run, and which were delivered lately: a job that is delivered again joins its own work or gets its old outcome.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::join::Spares;
use crate::domain::destination::DestinationId;
use crate::domain::job::JobId;
use crate::queue::OutcomeEvent;

/// How long a delivered job is remembered.
const REMEMBERED: Duration = Duration::from_hours(1);
/// Bytes of outcomes kept for that. Past it the oldest are forgotten: a job that still comes again is delivered again, to
/// the same key and with the same outcome id.
const REMEMBERED_BYTES: u64 = 12 << 20;
/// What an entry costs beside its outcome.
const ENTRY_BYTES: usize = 400;

/// A job and its run (`dead requeue` raises it). The destination is part of it: an id that two customers' jobs share by mistake
/// must not answer one with the other's outcome.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct RunId {
    pub(super) job: JobId,
    pub(super) destination: DestinationId,
    pub(super) run: u32,
}

/// One attempt of a run: its counters tell a copy that comes back from a wait apart from a redelivery of the same message.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct AttemptId {
    pub(super) run: RunId,
    pub(super) attempts: u32,
    pub(super) deferrals: u32,
    pub(super) turns: u32,
}

/// How the work on a job ended for those who joined it.
#[derive(Debug, Clone)]
pub(super) enum Standing {
    /// Its delivery is settled for good: whoever joined just acknowledges. A copy of the job may go on with this upload.
    Settled(Option<Arc<str>>),
    /// It went back, or its delivery was lost: the job is still to be done.
    Open,
}

/// Where those who join wait.
#[derive(Debug)]
pub(super) struct Seat {
    /// When the work began.
    pub(super) begun: Timestamp,
    /// What came again meanwhile.
    pub(super) spares: Spares,
    /// From here on a copy of the job may be under way, which is not to end with this work.
    judged: AtomicBool,
    standing: OnceLock<Standing>,
    over: CancellationToken,
}

impl Seat {
    /// How the work ended; waits for that. Work that vanished without a word (a panic) is still to be done.
    pub(super) async fn end(&self) -> Standing {
        self.over.cancelled().await;
        self.standing.get().cloned().unwrap_or(Standing::Open)
    }
}

/// Those who work on one run: more than one only while the first settles.
type AtWork = Vec<(AttemptId, Arc<Seat>)>;

/// The two tables.
#[derive(Debug)]
pub(super) struct Ledger {
    running: Mutex<HashMap<RunId, AtWork>>,
    delivered: moka::sync::Cache<RunId, Arc<OutcomeEvent>>,
}

/// What a delivery finds.
#[derive(Debug)]
pub(super) enum Entry {
    /// Nobody works on it: here is the place.
    Mine(Running),
    /// Somebody does; on this very message, or on one of which it is a copy or that is a copy of it.
    Joined(Arc<Seat>, bool),
    /// It was delivered; this was the outcome.
    Delivered(Arc<OutcomeEvent>),
}

/// The place of a running job; given back on drop, so that a panic leaves none behind.
#[derive(Debug)]
pub(super) struct Running {
    ledger: Arc<Ledger>,
    id: AttemptId,
    seat: Arc<Seat>,
}

impl Ledger {
    pub(super) fn new() -> Arc<Self> {
        let weigh = |id: &RunId, event: &Arc<OutcomeEvent>| {
            let bytes = ENTRY_BYTES + id.job.as_str().len() + event.body.len() + event.routing_key.len();
            u32::try_from(bytes).unwrap_or(u32::MAX)
        };
        let delivered = moka::sync::Cache::builder()
            .max_capacity(REMEMBERED_BYTES)
            .weigher(weigh)
            .eviction_policy(moka::policy::EvictionPolicy::lru())
            .time_to_live(REMEMBERED)
            .build();
        Arc::new(Self { running: Mutex::default(), delivered })
    }

    /// Enters a job, or finds out who is at it: whoever works on the same run, whatever the counters of its message, unless that
    /// work has ended and this may be the copy that it made.
    pub(super) fn enter(self: &Arc<Self>, id: AttemptId, now: Timestamp) -> Entry {
        let mut running = self.running.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let at_work = running.get(&id.run).into_iter().flatten();
        let joins = |(other, seat): &&(AttemptId, Arc<Seat>)| *other == id || !seat.judged.load(Ordering::Acquire);
        if let Some((other, seat)) = at_work.into_iter().find(joins) {
            return Entry::Joined(seat.clone(), *other == id);
        }
        if let Some(event) = self.delivered.get(&id.run) {
            return Entry::Delivered(event);
        }
        let (spares, standing, over) = (Spares::default(), OnceLock::new(), CancellationToken::new());
        let seat = Arc::new(Seat { begun: now, spares, judged: AtomicBool::new(false), standing, over });
        running.entry(id.run.clone()).or_default().push((id.clone(), seat.clone()));
        Entry::Mine(Running { ledger: self.clone(), id, seat })
    }
}

impl Running {
    /// The run that is worked on.
    pub(super) fn run(&self) -> &RunId {
        &self.id.run
    }

    /// Where those wait who join this work.
    pub(super) fn seat(&self) -> &Seat {
        &self.seat
    }

    /// It is decided what becomes of the delivery. Only the very same message joins from here on.
    pub(super) fn judged(&self) {
        self.seat.judged.store(true, Ordering::Release);
    }

    /// Remembers the job as delivered, before its delivery is settled: from here on it is never uploaded again.
    pub(super) fn delivered(&self, event: OutcomeEvent) {
        self.ledger.delivered.insert(self.id.run.clone(), Arc::new(event));
    }

    /// Tells those who joined whether anything is left to do, and leaves.
    pub(super) fn leave(self, standing: Standing) {
        let _ = self.seat.standing.set(standing);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut running = self.ledger.running.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(at_work) = running.get_mut(&self.id.run) {
            at_work.retain(|(_, seat)| !Arc::ptr_eq(seat, &self.seat));
            if at_work.is_empty() {
                running.remove(&self.id.run);
            }
        }
        drop(running);
        self.seat.over.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(run: u32) -> AttemptId {
        let destination = DestinationId::parse("acme").unwrap();
        AttemptId {
            run: RunId { job: JobId::parse("a").unwrap(), destination, run },
            attempts: 0,
            deferrals: 0,
            turns: 0,
        }
    }

    #[tokio::test]
    async fn a_copy_that_waited_does_not_join_the_attempt_before_it() {
        let ledger = Ledger::new();
        let Entry::Mine(mine) = ledger.enter(id(0), Timestamp::UNIX_EPOCH) else { panic!("not mine") };
        let copies =
            [AttemptId { attempts: 1, ..id(0) }, AttemptId { deferrals: 1, ..id(0) }, AttemptId { turns: 1, ..id(0) }];
        for copy in &copies {
            // While the work goes on, it is somebody else's copy of a message that was lost here.
            assert!(matches!(ledger.enter(copy.clone(), Timestamp::UNIX_EPOCH), Entry::Joined(_, false)), "{copy:?}");
        }
        mine.judged();
        for copy in copies {
            assert!(matches!(ledger.enter(copy.clone(), Timestamp::UNIX_EPOCH), Entry::Mine(_)), "{copy:?}");
        }
        assert!(matches!(ledger.enter(id(0), Timestamp::UNIX_EPOCH), Entry::Joined(_, true)));
    }

    fn event() -> OutcomeEvent {
        OutcomeEvent { routing_key: "r".into(), id: "i".into(), body: "b".into(), reply_to: None }
    }

    #[tokio::test]
    async fn the_second_delivery_joins_the_first() {
        let ledger = Ledger::new();
        let Entry::Mine(mine) = ledger.enter(id(0), Timestamp::UNIX_EPOCH) else { panic!("not mine") };
        let Entry::Joined(joined, true) = ledger.enter(id(0), Timestamp::UNIX_EPOCH) else { panic!("not joined") };
        assert!(matches!(ledger.enter(id(1), Timestamp::UNIX_EPOCH), Entry::Mine(_)));
        mine.leave(Standing::Settled(None));
        assert!(matches!(joined.end().await, Standing::Settled(None)));
        assert!(matches!(ledger.enter(id(0), Timestamp::UNIX_EPOCH), Entry::Mine(_)));
    }

    #[tokio::test]
    async fn a_delivered_job_is_remembered_and_a_vanished_one_is_not() {
        let ledger = Ledger::new();
        let Entry::Mine(mine) = ledger.enter(id(0), Timestamp::UNIX_EPOCH) else { panic!("not mine") };
        let Entry::Joined(joined, true) = ledger.enter(id(0), Timestamp::UNIX_EPOCH) else { panic!("not joined") };
        drop(mine);
        assert!(matches!(joined.end().await, Standing::Open));
        let Entry::Mine(mine) = ledger.enter(id(0), Timestamp::UNIX_EPOCH) else { panic!("not mine") };
        mine.delivered(event());
        mine.leave(Standing::Open);
        let Entry::Delivered(again) = ledger.enter(id(0), Timestamp::UNIX_EPOCH) else { panic!("forgotten") };
        assert_eq!(again.id, "i");
    }
}
