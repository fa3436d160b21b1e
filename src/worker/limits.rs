//! How much one destination may have of this worker: so many transfers at once, and so many bytes a second.
//!
//! A job that finds its destination full waits its turn here for seconds, without a slot, if there are few who do, and in its
//! slot if its turn comes within a second; the others are deferred, uncharged. How long follows from how many of that
//! destination's jobs are to come back when, and how fast they end, so that ten thousand jobs for a slow customer come back over
//! the hours it takes, and not every five seconds.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::destination::{Destination, DestinationId};
use crate::lane::Lane;
use crate::metrics::DeferCause;
use crate::outcome::Step;
use crate::upload::Pace;

/// A transfer does not begin while the bytes of those before it take longer than this.
const LONGEST_DEBT: Duration = Duration::from_secs(30);
/// Seconds within which every transfer into a destination with a rate is to have sent a part, and about how long a part is.
const GAP: u64 = 20;
const PART: u64 = 8 << 20;
/// With more destinations than this, those without work are forgotten.
const TRACKED: usize = 10_000;
/// The waits among which the one for a crowded destination is chosen: no longer, since it may become faster meanwhile.
const RUNGS: [Step; 4] = [Step::S5, Step::S30, Step::M2, Step::M10];
const LONGEST_WAIT: Duration = Duration::from_mins(30);
/// A turn that comes within this is waited for in any case.
pub(super) const AT_ONCE: Duration = Duration::from_secs(1);
/// So many jobs a second of one destination may come back by the end of a wait: a fast one rather pauses than has them all sent to
/// and fro.
const CHURN: f64 = 50.0;
/// Seconds of a transfer of which nothing is known yet; those that run soon show it if they take longer.
const UNKNOWN: f64 = 0.1;
/// The weight of the newest transfer in the average time of a destination's transfers.
const WEIGHT: f64 = 0.2;

/// The limits of one worker, shared by all its transfers.
#[derive(Debug)]
pub(super) struct Limits {
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
    /// Jobs that wait without a slot, all destinations together.
    waiting: usize,
}

/// One destination's transfers.
#[derive(Debug, Default)]
struct Crowd {
    limit: u32,
    /// The rate, not the limit of transfers, is what keeps others waiting.
    narrow: bool,
    /// When each running transfer got its pass.
    running: Vec<Instant>,
    queue: Vec<Waiter>,
    /// How many deferred jobs come back when. Those of other workers are not known, nor need they be: each sees its share.
    away: BTreeMap<Instant, u32>,
    /// The average time of a transfer, seconds.
    took: f64,
    pace: Option<Arc<Pace>>,
}

#[derive(Debug)]
struct Waiter {
    lane: Lane,
    in_slot: bool,
    call: oneshot::Sender<Pass>,
}

/// What a job is told.
#[derive(Debug)]
pub(super) enum Turn {
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
pub(super) struct Pass {
    limits: Arc<Limits>,
    destination: DestinationId,
    since: Instant,
    pace: Option<Arc<Pace>>,
}

impl Pass {
    /// What holds the transfer to the destination's bytes a second.
    pub(super) fn pace(&self) -> Option<&Arc<Pace>> {
        self.pace.as_ref()
    }
}

impl Limits {
    /// `usual` is `worker.destination_slots`, `room` how many jobs may wait here.
    pub(super) fn new(usual: NonZeroU32, room: usize) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), usual: usual.get(), room, epoch: Instant::now() })
    }

    /// Asks for a job that is about to begin.
    pub(super) fn ask(self: &Arc<Self>, destination: &Destination, lane: Lane) -> Turn {
        let mut state = self.state();
        let State { crowds, waiting } = &mut *state;
        if crowds.len() >= TRACKED {
            crowds.retain(|_, crowd| !crowd.is_idle());
        }
        let crowd = crowds.entry(destination.id.clone()).or_default();
        crowd.adopt(destination, self.usual);
        // A limit that was raised is for those who wait already.
        let called = self.call(&destination.id, crowd, waiting);
        let turn = self.turn(&destination.id, crowd, waiting, lane);
        drop(state);
        send(called);
        turn
    }

    fn turn(self: &Arc<Self>, id: &DestinationId, crowd: &mut Crowd, waiting: &mut usize, lane: Lane) -> Turn {
        let debt = crowd.pace.as_ref().map_or(Duration::ZERO, |pace| pace.debt());
        if debt > LONGEST_DEBT {
            return Turn::Later(debt.max(crowd.later().0), DeferCause::Rate);
        }
        if !crowd.is_full() {
            return Turn::Now(self.pass(id, crowd));
        }
        let here = *waiting < self.room && crowd.queue.len() < crowd.share(self.room);
        // Those fill the slots in the end, and then nothing more is taken: far cheaper than to send a fast customer's jobs away.
        if !here && crowd.next_turn() > AT_ONCE {
            let (wait, cause) = crowd.later();
            return Turn::Later(wait, cause);
        }
        let (call, called) = oneshot::channel();
        crowd.queue.push(Waiter { lane, in_slot: !here, call });
        *waiting += usize::from(here);
        if here { Turn::Soon(called) } else { Turn::AtOnce(called) }
    }

    /// A job of this destination is deferred, and comes again after `wait`.
    pub(super) fn deferred(&self, destination: &DestinationId, wait: Duration) {
        if let Some(crowd) = self.state().crowds.get_mut(destination) {
            // By the second: ten thousand of them are to be counted quickly.
            let due = self.epoch + Duration::from_secs((self.epoch.elapsed() + wait).as_secs());
            *crowd.away.entry(due).or_default() += 1;
        }
    }

    /// How long a job should stay away that has waited here in vain, and why.
    pub(super) fn later(&self, destination: &DestinationId) -> (Duration, DeferCause) {
        let mut state = self.state();
        state.crowds.get_mut(destination).map_or((Duration::ZERO, DeferCause::Concurrency), Crowd::later)
    }

    /// For `/status`: jobs of each destination that wait here, and that were sent away and are still to come back.
    pub(super) fn waiting(&self) -> HashMap<DestinationId, (usize, u32)> {
        let now = Instant::now();
        let mut state = self.state();
        let counts =
            state.crowds.iter_mut().map(|(id, crowd)| (id.clone(), (crowd.queue.len(), crowd.still_away(now))));
        counts.filter(|(_, counts)| *counts != (0, 0)).collect()
    }

    fn pass(self: &Arc<Self>, destination: &DestinationId, crowd: &mut Crowd) -> Pass {
        let since = Instant::now();
        crowd.running.push(since);
        Pass { limits: self.clone(), destination: destination.clone(), since, pace: crowd.pace.clone() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A transfer has ended: the next one that waits may begin.
    fn left(self: &Arc<Self>, destination: &DestinationId, since: Instant) -> Vec<(Waiter, Pass)> {
        let mut state = self.state();
        let State { crowds, waiting } = &mut *state;
        let Some(crowd) = crowds.get_mut(destination) else { return Vec::new() };
        if let Some(place) = crowd.running.iter().position(|begun| *begun == since) {
            crowd.running.swap_remove(place);
        }
        crowd.measure(since.elapsed());
        self.call(destination, crowd, waiting)
    }

    /// Those who wait and may begin now: by lane, and within a lane whoever came first. They are to be told without the lock.
    fn call(self: &Arc<Self>, id: &DestinationId, crowd: &mut Crowd, waiting: &mut usize) -> Vec<(Waiter, Pass)> {
        let mut called = Vec::new();
        let mut leave = |waiter: &Waiter| *waiting -= usize::from(!waiter.in_slot);
        crowd.queue.retain(|waiter| {
            let gone = waiter.call.is_closed();
            if gone {
                leave(waiter);
            }
            !gone
        });
        while !crowd.is_full() {
            let next = crowd.queue.iter().enumerate().min_by_key(|(place, waiter)| (waiter.lane, *place));
            let Some(place) = next.map(|(place, _)| place) else { break };
            let waiter = crowd.queue.remove(place);
            leave(&waiter);
            called.push((waiter, self.pass(id, crowd)));
        }
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
        send(limits.left(&self.destination, self.since));
    }
}

impl Crowd {
    /// The destination as it is configured now. With a rate it has as many transfers as get a part each within a while: more would only
    /// let their sources wait, which many servers do not.
    fn adopt(&mut self, destination: &Destination, usual: u32) {
        let limit = destination.max_concurrency.map_or(usual, NonZeroU32::get).max(1);
        let rate = destination.max_bytes_per_second;
        let by_rate = rate.map(|rate| u32::try_from(rate.get().saturating_mul(GAP) / PART).unwrap_or(u32::MAX).max(1));
        self.limit = by_rate.map_or(limit, |by_rate| by_rate.min(limit));
        self.narrow = self.limit < limit;
        if self.pace.as_ref().map(|pace| pace.rate()) != rate {
            self.pace = rate.map(Pace::new);
        }
    }

    fn still_away(&mut self, now: Instant) -> u32 {
        // Whoever is due now is on the way back.
        self.away = self.away.split_off(&(now + Duration::from_nanos(1)));
        self.away.values().sum()
    }

    /// How long a job that comes now should stay away, and why.
    fn later(&mut self) -> (Duration, DeferCause) {
        let cause = if self.narrow { DeferCause::Rate } else { DeferCause::Concurrency };
        (self.estimate(Instant::now()), cause)
    }

    /// The shortest wait at whose end the destination still has room for more than comes back by then. Enough come back at the end of one wait to last until the end of the next longer one.
    fn estimate(&mut self, now: Instant) -> Duration {
        self.still_away(now);
        let each = self.each();
        let here = u32::try_from(self.queue.len()).unwrap_or(u32::MAX);
        let has_room = |(wait, next): &(Duration, Duration)| {
            let due: u32 = self.away.range(..=now + *wait).map(|(_, count)| count).sum();
            let due = f64::from(due.saturating_add(here));
            due * each < next.as_secs_f64() && due < wait.as_secs_f64() * CHURN
        };
        let next = RUNGS.into_iter().skip(1).map(Step::duration).chain([LONGEST_WAIT]);
        let found = RUNGS.into_iter().map(Step::duration).zip(next).find(has_room);
        found.map_or(LONGEST_WAIT, |(wait, _)| wait)
    }

    /// Seconds from one turn to the next.
    fn each(&self) -> f64 {
        self.takes() / f64::from(self.limit.max(1))
    }

    /// When a job that joins those who wait here has its turn.
    fn next_turn(&self) -> Duration {
        let before = u32::try_from(self.queue.len()).unwrap_or(u32::MAX).saturating_add(1);
        Duration::try_from_secs_f64(f64::from(before) * self.each()).unwrap_or(Duration::MAX)
    }

    /// How many may wait here: enough to last until those come back that are sent away for the shortest time.
    fn share(&self, room: usize) -> usize {
        let most = u32::try_from(room / 2).unwrap_or(u32::MAX).max(1);
        let wanted = (1..most).find(|count| f64::from(*count) * self.each() >= Step::S5.duration().as_secs_f64());
        wanted.unwrap_or(most) as usize
    }

    fn is_full(&self) -> bool {
        self.running.len() >= self.limit as usize
    }

    /// Seconds of a transfer: those that run may show that it takes longer than it did.
    fn takes(&self) -> f64 {
        let usual = if self.took == 0.0 { UNKNOWN } else { self.took };
        let count = u32::try_from(self.running.len()).unwrap_or(u32::MAX).max(1);
        let age: f64 = self.running.iter().map(|begun| begun.elapsed().as_secs_f64()).sum();
        usual.max(age / f64::from(count))
    }

    fn measure(&mut self, took: Duration) {
        let took = took.as_secs_f64();
        self.took = if self.took == 0.0 { took } else { self.took + WEIGHT * (took - self.took) };
    }

    /// Nothing would be forgotten with it but how long its transfers take.
    fn is_idle(&mut self) -> bool {
        let paid = self.pace.as_ref().is_none_or(|pace| pace.debt().is_zero());
        self.running.is_empty() && self.queue.is_empty() && paid && self.still_away(Instant::now()) == 0
    }
}

#[cfg(test)]
mod tests;
