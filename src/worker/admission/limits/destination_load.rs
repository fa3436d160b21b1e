//! Load of one destination: its running transfers, its waiting jobs, and its permits.

use std::collections::BTreeMap;
use std::num::{NonZeroU32, NonZeroU64};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::worker_load::WorkerLoad;
use crate::domain::destination::Destination;
use crate::domain::fleet::FleetShare;
use crate::domain::lane::Lane;
use crate::domain::outcome::RetryDelay;
use crate::metrics::DeferCause;
use crate::upload::RateLimiter;

/// Seconds within which each transfer into a destination with a rate sends a part.
const MAX_PART_INTERVAL_SECS: u64 = 20;
/// Approximate bytes of a part.
const PART_BYTES: u64 = 8 << 20;
/// Waits among which that of a deferred job is chosen. None is longer, since the destination may
/// become faster meanwhile.
const DEFERRAL_DELAYS: [RetryDelay; 4] = [RetryDelay::S5, RetryDelay::S30, RetryDelay::M2, RetryDelay::M10];
const MAX_DEFERRAL: Duration = Duration::from_mins(30);
/// Most deferred jobs of one destination that return per second of their wait. A fast destination
/// pauses rather than having all its jobs circulate.
const MAX_RETURNS_PER_SECOND: f64 = 50.0;
/// Assumed seconds of a transfer before the first one has ended. Those that run soon show whether
/// they take longer.
const UNKNOWN_TRANSFER_SECS: f64 = 0.1;
/// Weight of the newest transfer in the mean.
const MEAN_WEIGHT: f64 = 0.2;

/// Deferral of a job whose destination has all the transfers, or all the bytes per second, that it
/// may have.
#[derive(Debug, Clone, Copy)]
pub(in crate::worker) struct Deferred {
    /// Expected time until a permit is free.
    pub(in crate::worker) wait: Duration,
    pub(in crate::worker) cause: DeferCause,
}

/// Transfers of one destination. `P` is the permit that its jobs wait for.
#[derive(Debug)]
pub(super) struct DestinationLoad<P> {
    configured: ConfiguredLimits,
    /// Zero when other workers have the destination's few transfers, and this one has none.
    pub(super) limit: u32,
    /// Transfers that it may have now: its limit, or its share of the worker.
    allowed: u32,
    /// True when the rate limits the transfers, and not `max_concurrency`.
    rate_bound: bool,
    /// True until the first transfer shows that the destination works. Until then it has one at a
    /// time, so that a broken destination does not get a request from each waiting job.
    pub(super) slow_start: bool,
    /// Start of each running transfer.
    running: Vec<Instant>,
    pub(super) queue: Vec<WaitingJob<P>>,
    /// Deferred jobs by the time of their return. Those of other workers are not known, nor need
    /// they be: each worker sees its share.
    pub(super) deferred: BTreeMap<Instant, u32>,
    /// Mean seconds of a transfer; 0 before the first.
    mean_seconds: f64,
    pub(super) rate_limiter: Option<Arc<RateLimiter>>,
}

/// Limits of a destination as configured, for the whole fleet.
#[derive(Debug, Clone, Copy, Default)]
struct ConfiguredLimits {
    concurrency: Option<NonZeroU32>,
    bytes_per_second: Option<NonZeroU64>,
    /// `worker.destination_slots`: of each worker, where the destination sets no limit.
    default_limit: u32,
    /// True for a destination that came in a job: it can only lower the limit of each worker.
    inline: bool,
    /// Differs between destinations.
    salt: u32,
}

/// Job that waits for a permit.
#[derive(Debug)]
pub(super) struct WaitingJob<P> {
    pub(super) lane: Lane,
    pub(super) in_slot: bool,
    pub(super) grant: oneshot::Sender<P>,
}

impl<P> Default for DestinationLoad<P> {
    fn default() -> Self {
        Self {
            configured: ConfiguredLimits::default(),
            limit: 0,
            allowed: 0,
            rate_bound: false,
            slow_start: true,
            running: Vec::new(),
            queue: Vec::new(),
            deferred: BTreeMap::new(),
            mean_seconds: 0.0,
            rate_limiter: None,
        }
    }
}

impl<P> DestinationLoad<P> {
    /// Takes over the destination's current configuration, of which this worker has its `share`.
    pub(super) fn configure(&mut self, destination: &Destination, default_limit: u32, share: FleetShare) {
        self.configured = ConfiguredLimits {
            concurrency: destination.max_concurrency,
            bytes_per_second: destination.max_bytes_per_second,
            default_limit,
            inline: destination.identity.is_inline(),
            salt: destination.id.as_str().bytes().fold(0, |salt, byte| salt.wrapping_mul(31).wrapping_add(byte.into())),
        };
        self.set_share(share);
    }

    /// Applies this worker's share of the limits. With a rate, the destination has as many
    /// transfers as can each send a part within [`MAX_PART_INTERVAL_SECS`]: more would only make
    /// their sources wait, which many servers do not.
    pub(super) fn set_share(&mut self, share: FleetShare) {
        let ConfiguredLimits { concurrency, bytes_per_second, default_limit, inline, salt } = self.configured;
        let most = if inline { default_limit } else { u32::MAX };
        let limit = concurrency.map_or(default_limit, |limit| share.transfers(limit.get(), salt).min(most));
        let rate = bytes_per_second.map(|rate| share.rate(rate));
        let by_rate = rate.map(|rate| {
            let parts = rate.get().saturating_mul(MAX_PART_INTERVAL_SECS) / PART_BYTES;
            u32::try_from(parts).unwrap_or(u32::MAX).max(1)
        });
        self.limit = by_rate.map_or(limit, |by_rate| by_rate.min(limit));
        self.rate_bound = self.limit < limit;
        self.allowed = self.limit;
        match (&self.rate_limiter, rate) {
            (Some(limiter), Some(rate)) => limiter.set_rate(rate),
            (_, rate) => self.rate_limiter = rate.map(RateLimiter::new),
        }
    }

    /// Records the start of a transfer. The returned time identifies it.
    pub(super) fn start(&mut self, worker: &mut WorkerLoad) -> Instant {
        let since = Instant::now();
        worker.started(self.running.len());
        self.running.push(since);
        since
    }

    /// Records the end of a transfer, and how long it took if it delivered.
    pub(super) fn finish(&mut self, worker: &mut WorkerLoad, since: Instant, took: Option<Duration>) {
        if let Some(index) = self.running.iter().position(|started| *started == since) {
            self.running.swap_remove(index);
            worker.finished(self.running.len());
        }
        if let Some(took) = took {
            self.measure(took.as_secs_f64());
            worker.measure(took.as_secs_f64());
        }
    }

    /// Restarts the clock of a transfer. The returned time identifies it from here on.
    pub(super) fn restart(&mut self, since: Instant) -> Instant {
        let now = Instant::now();
        if let Some(started) = self.running.iter_mut().find(|started| **started == since) {
            *started = now;
        }
        now
    }

    /// Adds a job that waits for a permit.
    pub(super) fn enqueue(&mut self, waiter: WaitingJob<P>, worker: &mut WorkerLoad) {
        worker.waiting += usize::from(!waiter.in_slot);
        self.queue.push(waiter);
    }

    /// Drops the jobs that no longer wait.
    pub(super) fn drop_cancelled(&mut self, worker: &mut WorkerLoad) {
        for cancelled in self.queue.extract_if(.., |waiter| waiter.grant.is_closed()) {
            worker.waiting -= usize::from(!cancelled.in_slot);
        }
    }

    /// Removes the next job: by lane, and within a lane first come, first served.
    pub(super) fn next_waiter(&mut self, worker: &mut WorkerLoad) -> Option<WaitingJob<P>> {
        let (index, _) = self.queue.iter().enumerate().min_by_key(|(index, waiter)| (waiter.lane, *index))?;
        let waiter = self.queue.remove(index);
        worker.waiting -= usize::from(!waiter.in_slot);
        Some(waiter)
    }

    /// Updates the transfers that it may have. A destination that is fast as a rule, and has a long
    /// transfer in flight, may have one more for its next file.
    pub(super) fn update_share(&mut self, worker: &WorkerLoad) {
        self.allowed = if worker.is_slow(self.transfer_seconds()) {
            let more = u32::from(self.mean_seconds != 0.0 && !worker.is_slow(self.mean_seconds));
            self.limit.min(worker.share_of(self.running.len()) + more)
        } else {
            self.limit
        };
    }

    /// Returns true if the next job starts as soon as the slow start is over. It keeps its
    /// slot while it waits, because another job would take a slot that it releases.
    pub(super) fn is_about_to_start(&self) -> bool {
        self.queue.len() < self.started_by_slow_start()
    }

    /// Jobs that wait for transfers to end, and not for the end of the slow start.
    pub(super) fn queued(&self) -> usize {
        self.queue.len().saturating_sub(self.started_by_slow_start())
    }

    /// Number of waiting jobs that start when the slow start ends.
    fn started_by_slow_start(&self) -> usize {
        if self.slow_start { (self.allowed as usize).saturating_sub(self.running.len()) } else { 0 }
    }

    /// Returns true if jobs wait for slots that others need, and not for its own transfers to end.
    pub(super) fn is_slot_bound(&self) -> bool {
        !self.slow_start && !self.queue.is_empty() && self.running.len() < self.limit as usize
    }

    /// Returns the deferred jobs that have not returned yet.
    pub(super) fn still_deferred(&mut self, now: Instant) -> u32 {
        // A job that is due now is on its way back.
        self.deferred = self.deferred.split_off(&(now + Duration::from_nanos(1)));
        self.deferred.values().sum()
    }

    /// Returns the deferral of a job that arrives now.
    pub(super) fn deferral(&mut self) -> Deferred {
        let cause = if self.rate_bound { DeferCause::Rate } else { DeferCause::Concurrency };
        Deferred { wait: self.estimate_wait(Instant::now()), cause }
    }

    /// Returns the shortest wait after which the destination has room for more jobs than return by
    /// then. Enough jobs return at the end of one wait to last until the end of the next longer
    /// one.
    fn estimate_wait(&mut self, now: Instant) -> Duration {
        self.still_deferred(now);
        let interval = self.permit_interval();
        let queued = u32::try_from(self.queue.len()).unwrap_or(u32::MAX);
        let has_room = |(wait, next): &(Duration, Duration)| {
            let due: u32 = self.deferred.range(..=now + *wait).map(|(_, count)| count).sum();
            let due = f64::from(due.saturating_add(queued));
            due * interval < next.as_secs_f64() && due < wait.as_secs_f64() * MAX_RETURNS_PER_SECOND
        };
        let next = DEFERRAL_DELAYS.into_iter().skip(1).map(RetryDelay::duration).chain([MAX_DEFERRAL]);
        let found = DEFERRAL_DELAYS.into_iter().map(RetryDelay::duration).zip(next).find(has_room);
        found.map_or(MAX_DEFERRAL, |(wait, _)| wait)
    }

    /// Returns the mean seconds from one granted permit to the next.
    fn permit_interval(&self) -> f64 {
        self.transfer_seconds() / f64::from(self.allowed.max(1))
    }

    /// Returns the expected wait of a job that joins the queue now.
    pub(super) fn expected_wait(&self) -> Duration {
        let before = u32::try_from(self.queued()).unwrap_or(u32::MAX).saturating_add(1);
        Duration::try_from_secs_f64(f64::from(before) * self.permit_interval()).unwrap_or(Duration::MAX)
    }

    /// Returns how many jobs may wait here: enough to last until those return that are deferred for
    /// the shortest time.
    pub(super) fn share(&self, max_waiting: usize) -> usize {
        let most = u32::try_from(max_waiting / 2).unwrap_or(u32::MAX).max(1);
        let shortest = RetryDelay::S5.duration().as_secs_f64();
        let wanted = (1..most).find(|count| f64::from(*count) * self.permit_interval() >= shortest);
        wanted.unwrap_or(most) as usize
    }

    /// Returns true if no further transfer may start.
    pub(super) fn is_full(&self) -> bool {
        let allowed = if self.slow_start { self.allowed.min(1) } else { self.allowed };
        self.running.len() >= allowed as usize
    }

    /// Returns the seconds of a transfer: the mean, or the median age of the running ones if that
    /// is more. One long transfer among short ones does not count.
    fn transfer_seconds(&self) -> f64 {
        let mean = if self.mean_seconds == 0.0 { UNKNOWN_TRANSFER_SECS } else { self.mean_seconds };
        let mut started = self.running.clone();
        started.sort_unstable();
        // The younger half of them is at most this old.
        let median = started.get(started.len() / 2).map_or(0.0, |started| started.elapsed().as_secs_f64());
        mean.max(median)
    }

    fn measure(&mut self, seconds: f64) {
        self.mean_seconds = if self.mean_seconds == 0.0 {
            seconds
        } else {
            self.mean_seconds + MEAN_WEIGHT * (seconds - self.mean_seconds)
        };
    }

    /// Returns true if jobs run or wait here.
    pub(super) fn has_jobs(&self) -> bool {
        !self.running.is_empty() || !self.queue.is_empty()
    }

    /// Returns true if dropping it would lose nothing but its mean transfer time.
    pub(super) fn is_idle(&mut self) -> bool {
        let paid = self.rate_limiter.as_ref().is_none_or(|limiter| limiter.debt().is_zero());
        !self.has_jobs() && paid && self.still_deferred(Instant::now()) == 0
    }
}
