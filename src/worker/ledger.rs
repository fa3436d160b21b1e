//! Which jobs run, and which were delivered lately: a job that is delivered again joins its own work or gets its old outcome.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;

use crate::job::JobId;
use crate::queue::Event;

/// How long a delivered job is remembered.
const REMEMBERED: Duration = Duration::from_hours(1);
/// Bytes of outcomes kept for that. Past it the oldest are forgotten: a job that still comes again is delivered again, to
/// the same key and with the same outcome id.
const REMEMBERED_BYTES: u64 = 12 << 20;
/// What an entry costs beside its outcome.
const ENTRY_BYTES: usize = 400;

/// A job and its run (`dead requeue` raises it).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct RunId {
    pub(super) job: JobId,
    pub(super) run: u32,
}

/// How the work on a job stands for those who joined it.
#[derive(Debug, Clone)]
pub(super) enum Standing {
    /// It goes on.
    Running,
    /// Its delivery is settled: whoever joined just acknowledges.
    Settled,
    /// It ended and its delivery was lost: whoever joined takes the job over.
    Lost,
}

/// The two tables.
#[derive(Debug)]
pub(super) struct Ledger {
    running: Mutex<HashMap<RunId, watch::Receiver<Standing>>>,
    delivered: moka::sync::Cache<RunId, Arc<Event>>,
}

/// What a delivery finds.
#[derive(Debug)]
pub(super) enum Entry {
    /// Nobody works on it: here is the place.
    Mine(Running),
    /// Somebody does.
    Joined(watch::Receiver<Standing>),
    /// It was delivered; this was the outcome.
    Delivered(Arc<Event>),
}

/// The place of a running job; given back on drop, so that a panic leaves none behind.
#[derive(Debug)]
pub(super) struct Running {
    ledger: Arc<Ledger>,
    id: RunId,
    standing: watch::Sender<Standing>,
}

impl Ledger {
    pub(super) fn new() -> Arc<Self> {
        let weigh = |id: &RunId, event: &Arc<Event>| {
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

    /// Enters a job, or finds out who is at it.
    pub(super) fn enter(self: &Arc<Self>, id: RunId) -> Entry {
        let mut running = self.running.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(standing) = running.get(&id) {
            return Entry::Joined(standing.clone());
        }
        if let Some(event) = self.delivered.get(&id) {
            return Entry::Delivered(event);
        }
        let (standing, watcher) = watch::channel(Standing::Running);
        running.insert(id.clone(), watcher);
        Entry::Mine(Running { ledger: self.clone(), id, standing })
    }
}

impl Running {
    /// Remembers the job as delivered, before its delivery is settled: from here on it is never uploaded again.
    pub(super) fn delivered(&self, event: Event) {
        self.ledger.delivered.insert(self.id.clone(), Arc::new(event));
    }

    /// Tells those who joined how it ended, and leaves.
    pub(super) fn leave(self, settled: bool) {
        self.standing.send_replace(if settled { Standing::Settled } else { Standing::Lost });
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut running = self.ledger.running.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        running.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(run: u32) -> RunId {
        RunId { job: JobId::parse("a").unwrap(), run }
    }

    fn event() -> Event {
        Event { routing_key: "r".into(), id: "i".into(), body: "b".into(), reply_to: None }
    }

    #[tokio::test]
    async fn the_second_delivery_joins_the_first() {
        let ledger = Ledger::new();
        let Entry::Mine(mine) = ledger.enter(id(0)) else { panic!("not mine") };
        let Entry::Joined(mut joined) = ledger.enter(id(0)) else { panic!("not joined") };
        assert!(matches!(ledger.enter(id(1)), Entry::Mine(_)));
        mine.leave(true);
        assert!(matches!(*joined.wait_for(|s| !matches!(s, Standing::Running)).await.unwrap(), Standing::Settled));
        assert!(matches!(ledger.enter(id(0)), Entry::Mine(_)));
    }

    #[tokio::test]
    async fn a_delivered_job_is_remembered_and_a_vanished_one_is_not() {
        let ledger = Ledger::new();
        let Entry::Mine(mine) = ledger.enter(id(0)) else { panic!("not mine") };
        let Entry::Joined(mut joined) = ledger.enter(id(0)) else { panic!("not joined") };
        drop(mine);
        assert!(joined.changed().await.is_err());
        let Entry::Mine(mine) = ledger.enter(id(0)) else { panic!("not mine") };
        mine.delivered(event());
        mine.leave(false);
        let Entry::Delivered(again) = ledger.enter(id(0)) else { panic!("forgotten") };
        assert_eq!(again.id, "i");
    }
}
