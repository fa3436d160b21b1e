//! Number of parts of an upload that are in flight at once, adapted to each destination.
//!
//! Each connection brings a share of the throughput, until the network, the disk or the store is
//! the limit. The number is doubled as long as each added connection brings a good share of the
//! mean throughput per connection before. An increase that does not is reverted, and another is
//! tried later. A throttling response halves the number.
//!
//! All uploads of a worker into the same destination share the number.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::config::UploadConfig;

/// Initial limit of parts in flight if `upload.part_concurrency` is not set.
const FIRST: usize = 8;
/// Largest limit if `upload.part_concurrency` is not set.
const MOST: usize = 32;
/// Most parts that all uploads of a worker together have in flight beyond the initial limit of
/// each. Each takes a connection and its buffers.
const MAX_EXTRA: usize = 64;
/// Shortest time over which throughput is measured. At least one part per connection must end in
/// it.
const MIN_WINDOW: Duration = Duration::from_millis(100);
/// Share of a connection's mean throughput that each added one must bring.
const WORTHWHILE: f64 = 0.25;
/// Time until more connections are tried again after an increase that was not worthwhile.
const TRIAL_PAUSE: Duration = Duration::from_secs(15);
/// Time after the number was halved in which it is not halved again. After each throttling
/// response, no increase is tried for as long.
const THROTTLE_PAUSE: Duration = Duration::from_secs(1);

/// Initial and largest number of parts in flight of an upload.
#[derive(Debug, Clone)]
pub(super) struct ConcurrencyLimits {
    first: usize,
    most: usize,
    extra: Arc<Semaphore>,
}

impl ConcurrencyLimits {
    /// A configured number is both the initial and the largest limit.
    pub(super) fn new(config: &UploadConfig) -> Self {
        let fixed = config.part_concurrency.map(|parts| parts.get() as usize);
        let (first, most) = (fixed.unwrap_or(FIRST), fixed.unwrap_or(MOST));
        Self { first, most, extra: Arc::new(Semaphore::new(MAX_EXTRA)) }
    }

    /// Initial limit.
    pub(super) fn first(&self) -> usize {
        self.first
    }
}

/// Number of parts in flight of each upload into one destination.
#[derive(Debug)]
pub(super) struct PartConcurrency {
    limits: ConcurrencyLimits,
    state: Mutex<ConcurrencyState>,
}

/// Permit to send one part. Dropping it releases the permit.
#[derive(Debug)]
pub(super) struct PartPermit {
    _extra: Option<OwnedSemaphorePermit>,
}

impl PartConcurrency {
    pub(super) fn new(limits: ConcurrencyLimits) -> Self {
        let state = Mutex::new(ConcurrencyState::new(&limits));
        Self { limits, state }
    }

    /// Returns a permit for one more part of an upload that has `in_flight` parts; `None` if one of
    /// them must end first. An upload with no part in flight always gets a permit.
    pub(super) fn try_start(&self, in_flight: usize) -> Option<PartPermit> {
        if in_flight >= self.state.lock().recovered(self.limits.first) {
            return None;
        }
        if in_flight < self.limits.first {
            return Some(PartPermit { _extra: None });
        }
        let extra = self.limits.extra.clone().try_acquire_owned().ok()?;
        Some(PartPermit { _extra: Some(extra) })
    }

    /// Observes a part that was accepted when `in_flight` parts of its upload were in flight. Not
    /// for the end of an upload, when no part is left to be started.
    pub(super) fn accepted(&self, bytes: u64, in_flight: usize) {
        self.state.lock().accepted(bytes, in_flight, &self.limits);
    }

    /// Records that an upload begins. The time since the last one does not count, and an increase
    /// that is being tried is reverted: with another number of uploads it can't be judged.
    pub(super) fn upload_begins(&self) {
        let mut state = self.state.lock();
        match state.before.take() {
            Some((limit, _)) => state.set(limit),
            None => state.restart(),
        }
    }

    /// Records a throttling response.
    pub(super) fn throttled(&self) {
        self.state.lock().throttled();
    }
}

/// State of the search for the best number of parts in flight.
#[derive(Debug)]
struct ConcurrencyState {
    limit: usize,
    window: ThroughputWindow,
    /// True while parts that started under the previous limit may still be in the window, which is
    /// then ignored.
    settling: bool,
    /// The number before the increase that is being tried, and its throughput in bytes per second.
    before: Option<(usize, f64)>,
    /// False once an increase was not worthwhile: the next ones are smaller.
    doubling: bool,
    /// Time before which no increase is tried.
    next_trial: Instant,
    halved: Option<Instant>,
    /// Time at which a number below the initial one is raised by one.
    next_recovery: Instant,
}

/// Parts that were accepted since `since`.
#[derive(Debug)]
struct ThroughputWindow {
    since: Instant,
    bytes: u64,
    parts: usize,
    /// Parts that were accepted while their upload was at the limit.
    saturated: usize,
}

impl ThroughputWindow {
    fn new(since: Instant) -> Self {
        Self { since, bytes: 0, parts: 0, saturated: 0 }
    }

    /// The throughput, if the number of connections limited it.
    #[expect(clippy::cast_precision_loss, reason = "bytes of a window are far below 2^53")]
    fn throughput(&self, now: Instant) -> Option<f64> {
        let rate = self.bytes as f64 / now.duration_since(self.since).as_secs_f64();
        (self.saturated * 4 >= self.parts * 3).then_some(rate)
    }
}

impl ConcurrencyState {
    fn new(limits: &ConcurrencyLimits) -> Self {
        let now = Instant::now();
        Self {
            limit: limits.first,
            window: ThroughputWindow::new(now),
            settling: true,
            before: None,
            doubling: true,
            next_trial: now,
            halved: None,
            next_recovery: now,
        }
    }

    fn restart(&mut self) {
        self.settling = true;
        self.window = ThroughputWindow::new(Instant::now());
    }

    /// The number, raised by one for each pause since the last throttling response, up to `first`.
    fn recovered(&mut self, first: usize) -> usize {
        let now = Instant::now();
        while self.limit < first && self.next_recovery <= now {
            self.next_recovery += THROTTLE_PAUSE;
            self.set(self.limit + 1);
        }
        self.limit
    }

    fn accepted(&mut self, bytes: u64, in_flight: usize, limits: &ConcurrencyLimits) {
        let now = Instant::now();
        self.recovered(limits.first);
        self.window.bytes += bytes;
        self.window.parts += 1;
        self.window.saturated += usize::from(in_flight >= self.limit);
        if self.window.parts < self.limit || now.duration_since(self.window.since) < MIN_WINDOW {
            return;
        }
        let window = std::mem::replace(&mut self.window, ThroughputWindow::new(now));
        let settling = std::mem::take(&mut self.settling);
        if let Some(throughput) = window.throughput(now).filter(|_| !settling) {
            self.decide(throughput, now, limits);
        }
    }

    fn decide(&mut self, throughput: f64, now: Instant, limits: &ConcurrencyLimits) {
        let tried = self.before.take();
        match tried {
            Some(before) if !is_worthwhile(before, (self.limit, throughput)) => {
                self.doubling = false;
                self.next_trial = now + TRIAL_PAUSE;
                self.set(before.0);
            }
            _ if (limits.first..limits.most).contains(&self.limit) && now >= self.next_trial => {
                self.before = Some((self.limit, throughput));
                let step = if self.doubling { self.limit } else { self.limit.div_ceil(4) };
                self.set(limits.most.min(self.limit + step));
            }
            _ => {}
        }
    }

    fn throttled(&mut self) {
        let now = Instant::now();
        self.next_trial = now + THROTTLE_PAUSE;
        self.next_recovery = now + THROTTLE_PAUSE;
        if self.halved.is_some_and(|at| at + THROTTLE_PAUSE > now) {
            return;
        }
        self.halved = Some(now);
        (self.before, self.doubling) = (None, false);
        self.set((self.limit / 2).max(1));
    }

    fn set(&mut self, limit: usize) {
        tracing::debug!(
            event = "part_concurrency_changed",
            from = self.limit,
            to = limit,
            "the limit of parts in flight per upload changed"
        );
        self.limit = limit;
        self.restart();
    }
}

/// Returns true if each added connection brought its share.
#[expect(clippy::cast_precision_loss, reason = "numbers of connections")]
fn is_worthwhile((few, slow): (usize, f64), (many, fast): (usize, f64)) -> bool {
    let added = many as f64 / few as f64 - 1.0;
    fast / slow - 1.0 >= WORTHWHILE * added
}

#[cfg(test)]
mod tests;
