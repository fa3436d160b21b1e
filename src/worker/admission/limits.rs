//! How much one destination may have of this worker: so many transfers at once, and so many bytes a second.
//!
//! A job that finds its destination full waits its turn here for seconds, without a slot, if there are few who do, and in its
//! slot if its turn comes within a second; the others are deferred, uncharged. How long follows from how many of that
//! destination's jobs are to come back when, and how fast they end, so that ten thousand jobs for a slow customer come back over
//! the hours it takes, and not every five seconds.
//!
//! While others need the slots, a destination whose transfers take far longer than usual has no more than its share of them,
//! whatever it is allowed: else one slow customer would by and by sit on half of the worker.

mod crowd;
mod whole;

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::domain::destination::{Destination, DestinationId};
use crate::domain::lane::Lane;
use crate::metrics::DeferCause;
use crate::upload::RateLimiter;
use crowd::{Crowd, Waiter};
use whole::Whole;

/// A transfer does not begin while the bytes of those before it take longer than this.
const LONGEST_DEBT: Duration = Duration::from_secs(30);
/// With more destinations than this, those without work are forgotten.
const TRACKED: usize = 10_000;
/// A turn that comes within this is waited for in any case.
pub(in crate::worker) const AT_ONCE: Duration = Duration::from_secs(1);

/// The limits of one worker, shared by all its transfers.
#[derive(Debug)]
pub(in crate::worker) struct Limits {
    state: Mutex<State>,
    /// The most transfers at once into a destination that sets no limit of its own.
    usual: u32,
    /// The most jobs that wait here, all destinations together.
    room: usize,
    epoch: Instant,
}

#[derive(Debug, Default)]
struct State {
    crowds: HashMap<DestinationId, Crowd>,
    whole: Whole,
}

/// What a job is told.
#[derive(Debug)]
pub(in crate::worker) enum Turn {
    /// It may begin.
    Now(Pass),
    /// It waits here, without a slot, until it is called. Dropped, it has left.
    Soon(oneshot::Receiver<Pass>),
    /// It is called so soon that it may keep its slot: sending it away would cost more than it takes.
    AtOnce(oneshot::Receiver<Pass>),
    /// It is to come again after about this time, as the destination has all the transfers, or the bytes a second, that it may have.
    Later(Duration, DeferCause),
}

/// The right to one transfer into a destination; given back on drop.
#[derive(Debug)]
pub(in crate::worker) struct Pass {
    limits: Arc<Limits>,
    destination: DestinationId,
    since: Instant,
    took: Option<Duration>,
    pace: Option<Arc<RateLimiter>>,
}

impl Pass {
    /// The transfer begins only now: what its job waited for until here is not the destination's doing.
    pub(in crate::worker) fn begin(&mut self) {
        if let Some(crowd) = self.limits.state().crowds.get_mut(&self.destination) {
            self.since = crowd.begin_anew(self.since);
        }
    }

    /// The file is delivered, and that took so long. Whatever ends otherwise says nothing about how quick the destination is.
    pub(in crate::worker) fn delivered(&mut self, took: Duration) {
        self.took = Some(took);
    }

    /// What holds the transfer to the destination's bytes a second.
    pub(in crate::worker) fn pace(&self) -> Option<&Arc<RateLimiter>> {
        self.pace.as_ref()
    }
}

impl Limits {
    /// `usual` is `worker.destination_slots`, `slots` is `worker.slots`; as many jobs may wait here.
    pub(in crate::worker) fn new(usual: NonZeroU32, slots: NonZeroU32) -> Arc<Self> {
        let state = State { whole: Whole::new(slots.get()), ..State::default() };
        Arc::new(Self {
            state: Mutex::new(state),
            usual: usual.get(),
            room: slots.get() as usize,
            epoch: Instant::now(),
        })
    }

    /// Asks for a job that is about to begin.
    pub(in crate::worker) fn ask(self: &Arc<Self>, destination: &Destination, lane: Lane) -> Turn {
        let mut state = self.state();
        let State { crowds, whole } = &mut *state;
        if crowds.len() >= TRACKED {
            crowds.retain(|_, crowd| !crowd.is_idle());
        }
        let crowd = crowds.entry(destination.id.clone()).or_default();
        crowd.adopt(destination, self.usual);
        // A limit that was raised is for those who wait already.
        let called = self.call(&destination.id, crowd, whole);
        let turn = self.turn(&destination.id, crowd, whole, lane);
        drop(state);
        send(called);
        turn
    }

    fn turn(self: &Arc<Self>, id: &DestinationId, crowd: &mut Crowd, whole: &mut Whole, lane: Lane) -> Turn {
        let debt = crowd.pace.as_ref().map_or(Duration::ZERO, |pace| pace.debt());
        if debt > LONGEST_DEBT {
            return Turn::Later(debt.max(crowd.later().0), DeferCause::Rate);
        }
        if !crowd.is_full() {
            return Turn::Now(self.pass(id, crowd, whole));
        }
        let here = whole.waiting < self.room && crowd.queue.len() < crowd.share(self.room);
        // Those fill the slots in the end, and then nothing more is taken: far cheaper than to send a fast customer's jobs away.
        if !here && crowd.next_turn() > AT_ONCE {
            let (wait, cause) = crowd.later();
            return Turn::Later(wait, cause);
        }
        let (call, called) = oneshot::channel();
        crowd.wait(Waiter { lane, in_slot: !here, call }, whole);
        whole.note_held_back(id, crowd.is_held_back());
        if here { Turn::Soon(called) } else { Turn::AtOnce(called) }
    }

    /// A job of this destination is deferred, and comes again after `wait`.
    pub(in crate::worker) fn deferred(&self, destination: &DestinationId, wait: Duration) {
        if let Some(crowd) = self.state().crowds.get_mut(destination) {
            // By the second: ten thousand of them are to be counted quickly.
            let due = self.epoch + Duration::from_secs((self.epoch.elapsed() + wait).as_secs());
            *crowd.away.entry(due).or_default() += 1;
        }
    }

    /// How long a job should stay away that has waited here in vain, and why.
    pub(in crate::worker) fn later(&self, destination: &DestinationId) -> (Duration, DeferCause) {
        let mut state = self.state();
        state.crowds.get_mut(destination).map_or((Duration::ZERO, DeferCause::Concurrency), Crowd::later)
    }

    /// For `/status`: jobs of each destination that wait here, and that were sent away and are still to come back.
    pub(in crate::worker) fn waiting(&self) -> HashMap<DestinationId, (usize, u32)> {
        let now = Instant::now();
        let mut state = self.state();
        let counts =
            state.crowds.iter_mut().map(|(id, crowd)| (id.clone(), (crowd.queue.len(), crowd.still_away(now))));
        counts.filter(|(_, counts)| *counts != (0, 0)).collect()
    }

    fn pass(self: &Arc<Self>, destination: &DestinationId, crowd: &mut Crowd, whole: &mut Whole) -> Pass {
        let since = crowd.begin(whole);
        Pass { limits: self.clone(), destination: destination.clone(), since, took: None, pace: crowd.pace.clone() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A transfer has ended: the next one that waits may begin, be it into another destination.
    fn left(
        self: &Arc<Self>,
        destination: &DestinationId,
        since: Instant,
        took: Option<Duration>,
    ) -> Vec<(Waiter, Pass)> {
        let mut state = self.state();
        let State { crowds, whole } = &mut *state;
        let Some(crowd) = crowds.get_mut(destination) else { return Vec::new() };
        crowd.end(whole, since, took);
        let mut called = self.call(destination, crowd, whole);
        for id in whole.held_back() {
            let Some(crowd) = crowds.get_mut(&id) else { continue };
            called.extend(self.call(&id, crowd, whole));
        }
        called
    }

    /// Those who wait and may begin now: by lane, and within a lane whoever came first. They are to be told without the lock.
    fn call(self: &Arc<Self>, id: &DestinationId, crowd: &mut Crowd, whole: &mut Whole) -> Vec<(Waiter, Pass)> {
        crowd.drop_gone(whole);
        crowd.weigh(whole);
        let mut called = Vec::new();
        while !crowd.is_full()
            && let Some(waiter) = crowd.next_waiter(whole)
        {
            called.push((waiter, self.pass(id, crowd, whole)));
        }
        whole.note_held_back(id, crowd.is_held_back());
        called
    }
}

/// Whoever gave up waiting meanwhile gives the pass back, and so calls the next one.
fn send(called: Vec<(Waiter, Pass)>) {
    for (waiter, pass) in called {
        drop(waiter.call.send(pass));
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let limits = self.limits.clone();
        send(limits.left(&self.destination, self.since, self.took));
    }
}

#[cfg(test)]
mod tests;
