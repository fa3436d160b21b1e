//! One destination's transfers, and how many of them there may be.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Pass;
use super::whole::Whole;
use crate::domain::destination::Destination;
use crate::domain::lane::Lane;
use crate::domain::outcome::RetryDelay;
use crate::metrics::DeferCause;
use crate::upload::RateLimiter;

/// Seconds within which every transfer into a destination with a rate is to have sent a part, and about how long a part is.
const GAP: u64 = 20;
const PART: u64 = 8 << 20;
/// The waits among which the one for a crowded destination is chosen: no longer, since it may become faster meanwhile.
const RUNGS: [RetryDelay; 4] = [RetryDelay::S5, RetryDelay::S30, RetryDelay::M2, RetryDelay::M10];
const LONGEST_WAIT: Duration = Duration::from_mins(30);
/// So many jobs a second of one destination may come back by the end of a wait: a fast one rather pauses than has them all sent to
/// and fro.
const CHURN: f64 = 50.0;
/// Seconds of a transfer of which nothing is known yet; those that run soon show it if they take longer.
const UNKNOWN: f64 = 0.1;
/// The weight of the newest transfer in the average time of a destination's transfers.
const WEIGHT: f64 = 0.2;

/// One destination's transfers.
#[derive(Debug, Default)]
pub(super) struct Crowd {
    limit: u32,
    /// What it may have of that as things are.
    may: u32,
    /// The rate, not the limit of transfers, is what keeps others waiting.
    narrow: bool,
    /// When each running transfer got its pass.
    running: Vec<Instant>,
    pub(super) queue: Vec<Waiter>,
    /// How many deferred jobs come back when. Those of other workers are not known, nor need they be: each sees its share.
    pub(super) away: BTreeMap<Instant, u32>,
    /// The average time of a transfer, seconds.
    took: f64,
    pub(super) pace: Option<Arc<RateLimiter>>,
}

#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) lane: Lane,
    pub(super) in_slot: bool,
    pub(super) call: oneshot::Sender<Pass>,
}

impl Crowd {
    /// The destination as it is configured now. With a rate it has as many transfers as get a part each within a while: more would only
    /// let their sources wait, which many servers do not.
    pub(super) fn adopt(&mut self, destination: &Destination, usual: u32) {
        let limit = destination.max_concurrency.map_or(usual, NonZeroU32::get).max(1);
        let rate = destination.max_bytes_per_second;
        let by_rate = rate.map(|rate| u32::try_from(rate.get().saturating_mul(GAP) / PART).unwrap_or(u32::MAX).max(1));
        self.limit = by_rate.map_or(limit, |by_rate| by_rate.min(limit));
        self.narrow = self.limit < limit;
        self.may = self.limit;
        if self.pace.as_ref().map(|pace| pace.rate()) != rate {
            self.pace = rate.map(RateLimiter::new);
        }
    }

    /// A transfer begins; what it is known by when it ends.
    pub(super) fn begin(&mut self, whole: &mut Whole) -> Instant {
        let since = Instant::now();
        whole.begins(self.running.len());
        self.running.push(since);
        since
    }

    /// A transfer has ended, and if it delivered, how long that took.
    pub(super) fn end(&mut self, whole: &mut Whole, since: Instant, took: Option<Duration>) {
        if let Some(place) = self.running.iter().position(|begun| *begun == since) {
            self.running.swap_remove(place);
            whole.ends(self.running.len());
        }
        if let Some(took) = took {
            self.measure(took);
            whole.measure(took.as_secs_f64());
        }
    }

    /// The transfer begins only now; what it is known by from here on.
    pub(super) fn begin_anew(&mut self, since: Instant) -> Instant {
        let now = Instant::now();
        if let Some(begun) = self.running.iter_mut().find(|begun| **begun == since) {
            *begun = now;
        }
        now
    }

    pub(super) fn wait(&mut self, waiter: Waiter, whole: &mut Whole) {
        whole.waiting += usize::from(!waiter.in_slot);
        self.queue.push(waiter);
    }

    /// Whoever has given up waiting.
    pub(super) fn drop_gone(&mut self, whole: &mut Whole) {
        for gone in self.queue.extract_if(.., |waiter| waiter.call.is_closed()) {
            whole.waiting -= usize::from(!gone.in_slot);
        }
    }

    /// By lane, and within a lane whoever came first.
    pub(super) fn next_waiter(&mut self, whole: &mut Whole) -> Option<Waiter> {
        let (place, _) = self.queue.iter().enumerate().min_by_key(|(place, waiter)| (waiter.lane, *place))?;
        let waiter = self.queue.remove(place);
        whole.waiting -= usize::from(!waiter.in_slot);
        Some(waiter)
    }

    /// What it may have as things are. One that is quick as a rule and has a long transfer under way may have one more for the next file.
    pub(super) fn weigh(&mut self, whole: &Whole) {
        self.may = if whole.is_slow(self.takes()) {
            let more = u32::from(self.took != 0.0 && !whole.is_slow(self.took));
            self.limit.min(whole.leaves(self.running.len()) + more)
        } else {
            self.limit
        };
    }

    /// Whether jobs wait for slots that others need, not for its own transfers to end.
    pub(super) fn is_held_back(&self) -> bool {
        !self.queue.is_empty() && self.running.len() < self.limit as usize
    }

    pub(super) fn still_away(&mut self, now: Instant) -> u32 {
        // Whoever is due now is on the way back.
        self.away = self.away.split_off(&(now + Duration::from_nanos(1)));
        self.away.values().sum()
    }

    /// How long a job that comes now should stay away, and why.
    pub(super) fn later(&mut self) -> (Duration, DeferCause) {
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
        let next = RUNGS.into_iter().skip(1).map(RetryDelay::duration).chain([LONGEST_WAIT]);
        let found = RUNGS.into_iter().map(RetryDelay::duration).zip(next).find(has_room);
        found.map_or(LONGEST_WAIT, |(wait, _)| wait)
    }

    /// Seconds from one turn to the next.
    fn each(&self) -> f64 {
        self.takes() / f64::from(self.may.max(1))
    }

    /// When a job that joins those who wait here has its turn.
    pub(super) fn next_turn(&self) -> Duration {
        let before = u32::try_from(self.queue.len()).unwrap_or(u32::MAX).saturating_add(1);
        Duration::try_from_secs_f64(f64::from(before) * self.each()).unwrap_or(Duration::MAX)
    }

    /// How many may wait here: enough to last until those come back that are sent away for the shortest time.
    pub(super) fn share(&self, room: usize) -> usize {
        let most = u32::try_from(room / 2).unwrap_or(u32::MAX).max(1);
        let wanted = (1..most).find(|count| f64::from(*count) * self.each() >= RetryDelay::S5.duration().as_secs_f64());
        wanted.unwrap_or(most) as usize
    }

    pub(super) fn is_full(&self) -> bool {
        self.running.len() >= self.may as usize
    }

    /// Seconds of a transfer: those that run may show that it takes longer than it did, but a long one among quick ones does not.
    fn takes(&self) -> f64 {
        let usual = if self.took == 0.0 { UNKNOWN } else { self.took };
        let mut begun = self.running.clone();
        begun.sort_unstable();
        // The younger half of them is at most this old.
        let median = begun.get(begun.len() / 2).map_or(0.0, |begun| begun.elapsed().as_secs_f64());
        usual.max(median)
    }

    fn measure(&mut self, took: Duration) {
        let took = took.as_secs_f64();
        self.took = if self.took == 0.0 { took } else { self.took + WEIGHT * (took - self.took) };
    }

    /// Nothing would be forgotten with it but how long its transfers take.
    pub(super) fn is_idle(&mut self) -> bool {
        let paid = self.pace.as_ref().is_none_or(|pace| pace.debt().is_zero());
        self.running.is_empty() && self.queue.is_empty() && paid && self.still_away(Instant::now()) == 0
    }
}
