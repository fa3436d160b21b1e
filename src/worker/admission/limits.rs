//! Limits of each destination in this worker: concurrent transfers, and bytes per second.
//!
//! A job whose destination has no free permit waits here for seconds, without a slot, if few do,
//! and in its slot if a permit comes within a second. The others are deferred, uncharged. The
//! length of the deferral follows from when that destination's deferred jobs return and how fast
//! its transfers end: ten thousand jobs for a slow customer return over the hours they take, and
//! not every five seconds.
//!
//! A destination that this worker has not used yet has a slow start: one transfer, until that one
//! shows that the destination works.
//!
//! While others need the slots, a destination whose transfers take far longer than the mean has no
//! more than its share of them, whatever its own limit. One slow customer would otherwise hold half
//! of the worker.

mod destination_load;
mod worker_load;

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::domain::destination::{Destination, DestinationIdentity};
use crate::domain::fleet::FleetShare;
use crate::domain::lane::Lane;
use crate::metrics::DeferCause;
use crate::upload::RateLimiter;
pub(in crate::worker) use destination_load::Deferred;
use destination_load::{DestinationLoad, WaitingJob};
use worker_load::WorkerLoad;

/// Longest time that the bytes of earlier transfers may take before another one starts.
const MAX_RATE_DEBT: Duration = Duration::from_secs(30);
/// Number of destinations beyond which idle ones are dropped, and inline ones without a job here.
const MAX_TRACKED: usize = 10_000;
/// Wait for a permit that is accepted in any case.
pub(super) const IMMINENT_WAIT: Duration = Duration::from_secs(1);

type Granted = Vec<(WaitingJob<DestinationPermit>, DestinationPermit)>;

/// DestinationLimits of one worker, shared by all its transfers.
#[derive(Debug)]
pub(super) struct DestinationLimits {
    state: Mutex<LimitState>,
    /// Concurrent transfers into a destination that sets no limit of its own.
    default_limit: u32,
    /// Most jobs that wait here, all destinations together.
    max_waiting: usize,
    epoch: Instant,
}

#[derive(Debug, Default)]
struct LimitState {
    share: FleetShare,
    destinations: HashMap<DestinationIdentity, DestinationLoad<DestinationPermit>>,
    worker: WorkerLoad,
}

/// Answer to a job that is about to start.
#[derive(Debug)]
pub(super) enum LimitDecision {
    /// It may start.
    Granted(DestinationPermit),
    /// It waits here, without a slot. Dropping the receiver cancels the wait.
    Queued(oneshot::Receiver<DestinationPermit>),
    /// It keeps its slot: the permit comes so soon that a deferral would cost more.
    Imminent(oneshot::Receiver<DestinationPermit>),
    /// It is deferred.
    Deferred(Deferred),
}

/// Jobs of a destination that wait for a permit, for `/status`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WaitingJobs {
    /// Jobs that wait in this worker.
    pub queued: usize,
    /// Jobs that this worker deferred and that have not returned yet.
    pub deferred: u32,
}

/// Permit for one transfer into a destination. Dropping it releases the permit.
#[derive(Debug)]
pub(super) struct DestinationPermit {
    limits: Arc<DestinationLimits>,
    destination: DestinationIdentity,
    since: Instant,
    took: Option<Duration>,
    /// True if other jobs wait until this one shows that the destination works.
    pub(super) slow_start: bool,
    /// Rate limiter of the destination, if it has a rate limit.
    pub(super) rate_limiter: Option<Arc<RateLimiter>>,
}

impl DestinationPermit {
    /// Ends the slow start of the destination, and grants permits to the jobs that wait for it.
    pub(super) fn end_slow_start(&mut self) {
        if std::mem::take(&mut self.slow_start) {
            send(self.limits.end_slow_start(&self.destination));
        }
    }

    /// Restarts the clock of the transfer: its wait until now is not the destination's.
    pub(super) fn restart(&mut self) {
        if let Some(load) = self.limits.state.lock().destinations.get_mut(&self.destination) {
            self.since = load.restart(self.since);
        }
    }

    /// Records a delivery that took this long. Any other result says nothing about the speed of the
    /// destination.
    pub(super) fn delivered(&mut self, took: Duration) {
        self.took = Some(took);
        self.end_slow_start();
    }
}

impl DestinationLimits {
    /// `default_limit` is `worker.destination_slots`, `slots` is `worker.slots`; as many jobs may
    /// wait here.
    pub(super) fn new(default_limit: NonZeroU32, slots: NonZeroU32) -> Arc<Self> {
        let state = LimitState { worker: WorkerLoad::new(slots.get()), ..LimitState::default() };
        Arc::new(Self {
            state: Mutex::new(state),
            default_limit: default_limit.get(),
            max_waiting: slots.get() as usize,
            epoch: Instant::now(),
        })
    }

    /// Asks for a permit for a job that is about to start.
    pub(super) fn acquire(self: &Arc<Self>, destination: &Destination, lane: Lane) -> LimitDecision {
        let mut state = self.state.lock();
        let LimitState { share, destinations, worker } = &mut *state;
        if destinations.len() >= MAX_TRACKED && !destinations.contains_key(&destination.identity) {
            make_room(destinations);
        }
        let load = destinations.entry(destination.identity.clone()).or_default();
        load.configure(destination, self.default_limit, *share);
        // A limit that was raised is first for those who wait already.
        let granted = self.grant_waiting(&destination.identity, load, worker);
        let decision = self.decide(&destination.identity, load, worker, lane);
        drop(state);
        send(granted);
        decision
    }

    fn decide(
        self: &Arc<Self>,
        id: &DestinationIdentity,
        load: &mut DestinationLoad<DestinationPermit>,
        worker: &mut WorkerLoad,
        lane: Lane,
    ) -> LimitDecision {
        let debt = load.rate_limiter.as_ref().map_or(Duration::ZERO, |limiter| limiter.debt());
        if debt > MAX_RATE_DEBT {
            let wait = debt.max(load.deferral().wait);
            return LimitDecision::Deferred(Deferred { wait, cause: DeferCause::Rate });
        }
        if load.limit == 0 {
            return LimitDecision::Deferred(load.deferral());
        }
        if !load.is_full() {
            return LimitDecision::Granted(self.permit(id, load, worker));
        }
        let (about_to_start, queued) = (load.is_about_to_start(), load.queued());
        let without_slot =
            !about_to_start && worker.waiting < self.max_waiting && queued < load.share(self.max_waiting);
        // Jobs that wait in their slots fill the worker in the end, and then nothing more is consumed:
        // far cheaper than deferring the jobs of a fast customer.
        if !without_slot && !about_to_start && load.expected_wait() > IMMINENT_WAIT {
            return LimitDecision::Deferred(load.deferral());
        }
        let (grant, granted) = oneshot::channel();
        load.enqueue(WaitingJob { lane, in_slot: !without_slot, grant }, worker);
        worker.set_slot_bound(id, load.is_slot_bound());
        if without_slot { LimitDecision::Queued(granted) } else { LimitDecision::Imminent(granted) }
    }

    /// Divides the limits of destinations again. Running transfers keep their permits; their rate
    /// changes at once.
    pub(super) fn set_share(&self, share: FleetShare) {
        let mut state = self.state.lock();
        state.share = share;
        state.destinations.values_mut().for_each(|load| load.set_share(share));
    }

    /// Records a deferred job of this destination, which returns after `wait`.
    pub(super) fn record_deferral(&self, destination: &DestinationIdentity, wait: Duration) {
        if let Some(load) = self.state.lock().destinations.get_mut(destination) {
            // In whole seconds, so that ten thousand of them are counted quickly.
            let due = self.epoch + Duration::from_secs((self.epoch.elapsed() + wait).as_secs());
            *load.deferred.entry(due).or_default() += 1;
        }
    }

    /// Returns the deferral of a job whose wait here timed out.
    pub(super) fn deferral(&self, destination: &DestinationIdentity) -> Deferred {
        let mut state = self.state.lock();
        let none = Deferred { wait: Duration::ZERO, cause: DeferCause::Concurrency };
        state.destinations.get_mut(destination).map_or(none, DestinationLoad::deferral)
    }

    /// Returns the jobs of each destination that wait for a permit.
    pub(super) fn waiting(&self) -> HashMap<DestinationIdentity, WaitingJobs> {
        let now = Instant::now();
        let mut state = self.state.lock();
        let jobs = state.destinations.iter_mut().map(|(id, load)| {
            let jobs = WaitingJobs { queued: load.queue.len(), deferred: load.still_deferred(now) };
            (id.clone(), jobs)
        });
        jobs.filter(|(_, jobs)| (jobs.queued, jobs.deferred) != (0, 0)).collect()
    }

    fn permit(
        self: &Arc<Self>,
        destination: &DestinationIdentity,
        load: &mut DestinationLoad<DestinationPermit>,
        worker: &mut WorkerLoad,
    ) -> DestinationPermit {
        let since = load.start(worker);
        DestinationPermit {
            limits: self.clone(),
            destination: destination.clone(),
            since,
            took: None,
            slow_start: load.slow_start,
            rate_limiter: load.rate_limiter.clone(),
        }
    }

    /// Releases a permit, and grants it to the next job that waits, be it for another destination.
    fn release(self: &Arc<Self>, permit: &DestinationPermit) -> Granted {
        let mut state = self.state.lock();
        let LimitState { destinations, worker, .. } = &mut *state;
        let Some(load) = destinations.get_mut(&permit.destination) else { return Vec::new() };
        load.finish(worker, permit.since, permit.took);
        let mut granted = self.grant_waiting(&permit.destination, load, worker);
        for id in worker.slot_bound() {
            let Some(load) = destinations.get_mut(&id) else { continue };
            granted.extend(self.grant_waiting(&id, load, worker));
        }
        granted
    }

    fn end_slow_start(self: &Arc<Self>, destination: &DestinationIdentity) -> Granted {
        let mut state = self.state.lock();
        let LimitState { destinations, worker, .. } = &mut *state;
        let Some(load) = destinations.get_mut(destination) else { return Vec::new() };
        load.slow_start = false;
        self.grant_waiting(destination, load, worker)
    }

    /// Grants free permits to jobs that wait: by lane, and within a lane first come, first served.
    /// The permits are sent after the lock is released.
    fn grant_waiting(
        self: &Arc<Self>,
        id: &DestinationIdentity,
        load: &mut DestinationLoad<DestinationPermit>,
        worker: &mut WorkerLoad,
    ) -> Granted {
        load.drop_cancelled(worker);
        load.update_share(worker);
        let mut granted = Vec::new();
        while !load.is_full()
            && let Some(waiter) = load.next_waiter(worker)
        {
            granted.push((waiter, self.permit(id, load, worker)));
        }
        worker.set_slot_bound(id, load.is_slot_bound());
        granted
    }
}

/// Drops idle destinations. If most are busy, those that came with jobs and have none here go, too,
/// so that there is room for many more: of them, deferred jobs and owed bytes are forgotten.
fn make_room(destinations: &mut HashMap<DestinationIdentity, DestinationLoad<DestinationPermit>>) {
    destinations.retain(|_, load| !load.is_idle());
    if destinations.len() > MAX_TRACKED / 2 {
        destinations.retain(|id, load| !id.is_inline() || load.has_jobs());
    }
}

/// Sends permits to their jobs. One whose job has left is dropped, and so granted to the next.
fn send(granted: Granted) {
    for (waiter, permit) in granted {
        drop(waiter.grant.send(permit));
    }
}

impl Drop for DestinationPermit {
    fn drop(&mut self) {
        let limits = self.limits.clone();
        send(limits.release(self));
    }
}

#[cfg(test)]
mod tests;
