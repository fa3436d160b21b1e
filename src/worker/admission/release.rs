//! Release of delayed jobs: when a destination recovers (a reset, or a passed connection test), the
//! jobs that wait for it return to their lanes at once.
//!
//! Every worker reads a reset within a second, so a release waits for as long: a job that returned
//! earlier would meet an open circuit breaker and be deferred again. A release looks through all
//! wait queues (see [`Queue::release_delayed`]), so there are few: none for a destination that has
//! no delayed jobs (a scheduler may test all destinations each night), and one for all destinations
//! that were reset meanwhile.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use super::bounds::Sweeps;
use crate::domain::destination::DestinationIdentity;
use crate::queue::{Queue, Released};

/// Time after which every worker has read a reset.
const RESET_PROPAGATION: Duration = Duration::from_secs(1);
/// Greatest age of a reset that releases jobs: the control stream replays old ones.
const MAX_RESET_AGE: SignedDuration = SignedDuration::from_mins(5);
/// Longest deferral for a destination. A worker that is younger does not know all delayed jobs.
const MAX_DELAY: Duration = Duration::from_mins(10);
/// Pause after a release, as a multiple of its duration and within bounds.
const PAUSE_FACTOR: u32 = 10;
const MIN_PAUSE: Duration = Duration::from_secs(5);
const MAX_PAUSE: Duration = Duration::from_mins(2);
/// Tries of a release that fails.
const MAX_TRIES: u32 = 3;
/// Most tracked destinations, configured ones first. Jobs of others return when their delay is
/// over.
const MAX_TRACKED: usize = 10_000;
/// Most destinations that a log line names.
const MAX_LOGGED: usize = 10;

/// Delayed jobs that this worker deferred, and the destinations whose jobs are to be released.
#[derive(Debug)]
pub(super) struct DelayedJobs {
    requested: Mutex<BTreeSet<DestinationIdentity>>,
    changed: Notify,
    delayed: Mutex<HashMap<DestinationIdentity, ReturnTimes>>,
    sweeps: Sweeps,
    since: Instant,
}

/// Number of jobs of one destination by the time of their return. In whole seconds, so that there
/// are few times, however many jobs there are.
type ReturnTimes = BTreeMap<Instant, u32>;

/// Reset of a destination.
#[derive(Debug, Clone, Copy)]
pub(super) struct DestinationReset {
    /// True if there was evidence against the destination here, so that jobs certainly wait.
    pub(super) known: bool,
    /// Time of the request.
    pub(super) at: Timestamp,
    /// Current time.
    pub(super) now: Timestamp,
}

impl DelayedJobs {
    pub(super) fn new() -> Self {
        let (requested, changed, delayed) = (Mutex::default(), Notify::new(), Mutex::default());
        Self { requested, changed, delayed, sweeps: Sweeps::default(), since: Instant::now() }
    }

    /// Records a job that was deferred for `delay` because of its destination's fault.
    pub(super) fn record(&self, destination: &DestinationIdentity, delay: Duration) {
        let due = self.since.elapsed() + delay;
        let returns = self.since + Duration::from_secs(due.as_secs() + u64::from(due.subsec_nanos() > 0));
        self.add(destination, &ReturnTimes::from([(returns, 1)]));
    }

    fn add(&self, destination: &DestinationIdentity, more: &ReturnTimes) {
        let (now, mut delayed) = (Instant::now(), self.delayed.lock());
        if delayed.len() >= MAX_TRACKED && !delayed.contains_key(destination) {
            if self.sweeps.is_due() {
                delayed.retain(|_, jobs| drop_returned(jobs, now));
            }
            if delayed.len() >= MAX_TRACKED && !destination.is_inline() {
                delayed.retain(|known, _| !known.is_inline());
            }
        }
        if delayed.len() < MAX_TRACKED || delayed.contains_key(destination) {
            let known = delayed.entry(destination.clone()).or_default();
            more.iter().for_each(|(returns, count)| *known.entry(*returns).or_default() += count);
            drop_returned(known, now);
        }
    }

    /// Returns the delayed jobs of each destination that have not returned yet.
    pub(super) fn counts(&self) -> HashMap<DestinationIdentity, u32> {
        let (now, mut delayed) = (Instant::now(), self.delayed.lock());
        delayed.retain(|_, jobs| drop_returned(jobs, now));
        delayed.iter().map(|(destination, jobs)| (destination.clone(), jobs.values().sum())).collect()
    }

    /// Returns the destinations with delayed jobs that a command for `named` is meant for.
    pub(super) fn covered(&self, named: &DestinationIdentity) -> Vec<DestinationIdentity> {
        self.delayed.lock().keys().filter(|known| named.covers(known)).cloned().collect()
    }

    /// Returns true if jobs of this destination may be delayed, as far as is known here.
    fn may_have(&self, destination: &DestinationIdentity) -> bool {
        let now = Instant::now();
        let deferred = || self.delayed.lock().get_mut(destination).is_some_and(|jobs| drop_returned(jobs, now));
        self.since.elapsed() < MAX_DELAY || deferred()
    }

    /// Requests the release of a destination's jobs, if it may have any.
    pub(super) fn request(&self, destination: &DestinationIdentity, reset: DestinationReset) {
        let recent = reset.now.duration_since(reset.at) <= MAX_RESET_AGE;
        let jobs_wait = reset.known || (recent && self.may_have(destination));
        if !jobs_wait {
            return;
        }
        let mut requested = self.requested.lock();
        if requested.len() < MAX_TRACKED {
            requested.insert(destination.clone());
            self.changed.notify_one();
        }
    }

    /// Waits for requests, and until every worker knows of them.
    async fn next_request(&self) -> BTreeSet<DestinationIdentity> {
        self.changed.notified().await;
        sleep(RESET_PROPAGATION).await;
        std::mem::take(&mut *self.requested.lock())
    }

    /// Takes the delayed jobs of these destinations before a release: jobs that are deferred
    /// meanwhile are recorded apart.
    fn take(&self, destinations: &BTreeSet<DestinationIdentity>) -> HashMap<DestinationIdentity, ReturnTimes> {
        self.delayed.lock().extract_if(|destination, _| destinations.contains(destination)).collect()
    }

    /// Restores them after a release that was not complete.
    fn restore(&self, taken: &HashMap<DestinationIdentity, ReturnTimes>) {
        taken.iter().for_each(|(destination, jobs)| self.add(destination, jobs));
    }

    /// Performs the requested releases. Never ends.
    pub(super) async fn run(&self, queue: &Arc<dyn Queue>) {
        let mut tries = MAX_TRIES;
        loop {
            let requested = self.next_request().await;
            let started = Instant::now();
            if !requested.is_empty() {
                tries -= 1;
                if self.release(queue, &requested, tries).await || tries == 0 {
                    tries = MAX_TRIES;
                } else {
                    self.requested.lock().extend(requested);
                    self.changed.notify_one();
                }
            }
            sleep(pause(started.elapsed())).await;
        }
    }

    /// Releases the jobs of these destinations. Returns false if it failed; `tries` are left.
    async fn release(&self, queue: &Arc<dyn Queue>, requested: &BTreeSet<DestinationIdentity>, tries: u32) -> bool {
        let taken = self.take(requested);
        let released = queue.release_delayed(requested.clone()).await;
        let names: Vec<_> = requested.iter().take(MAX_LOGGED).map(|identity| identity.id().as_str()).collect();
        let (count, destinations) = (requested.len(), names.join(", "));
        if !matches!(released, Ok(Released { partly: false, .. })) {
            self.restore(&taken);
        }
        match released {
            Ok(Released { count: jobs, partly }) => {
                tracing::info!(
                    event = "jobs_recalled",
                    jobs,
                    count,
                    destinations,
                    "deferred jobs of recovered destinations were recalled"
                );
                if partly {
                    tracing::warn!(
                        event = "recall_incomplete",
                        destinations,
                        next = "the rest return when their delay is over",
                        remedy = "wait, or repeat `consign status reset DEST`",
                        "too many deferred jobs to examine"
                    );
                }
                true
            }
            Err(error) if tries > 0 => {
                tracing::info!(
                    event = "recall_retried",
                    %error,
                    destinations,
                    "not all deferred jobs were recalled; retrying"
                );
                false
            }
            Err(error) => {
                tracing::warn!(
                    event = "recall_failed",
                    %error,
                    destinations,
                    next = "the rest return when their delay is over",
                    remedy = "wait, or repeat `consign status reset DEST`",
                    "not all deferred jobs were recalled"
                );
                false
            }
        }
    }
}

/// Drops the jobs that have returned. Returns true if any are left.
fn drop_returned(jobs: &mut ReturnTimes, now: Instant) -> bool {
    while let Some(first) = jobs.first_entry().filter(|first| *first.key() <= now) {
        first.remove();
    }
    !jobs.is_empty()
}

fn pause(took: Duration) -> Duration {
    (took * PAUSE_FACTOR).clamp(MIN_PAUSE, MAX_PAUSE)
}

#[cfg(test)]
mod tests;
