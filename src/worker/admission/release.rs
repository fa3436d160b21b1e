//! Jobs that wait for a destination are called back when somebody says that it is mended: a reset, or a check that passed.
//!
//! A reset is read by every worker within a second, and so a recall waits for as long: a job that came back before would meet an open
//! circuit and be sent away again. A recall looks through all that waits (see [`Queue::release_delayed`](crate::queue::Queue::release_delayed)), so there are
//! few: none for a destination of which nothing is known to wait (a scheduler may check all of them each night), and one for all
//! destinations that were reset meanwhile.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::domain::destination::DestinationId;
use crate::domain::outcome::Class;
use crate::queue::{Released, Settlement};
use crate::worker::Worker;
use crate::worker::settlement::Verdict;

/// By then every worker has read a reset.
const READ: Duration = Duration::from_secs(1);
/// Recalls are for resets of this age at most: the stream of control messages gives old ones again.
const RECENT: SignedDuration = SignedDuration::from_mins(5);
/// Jobs that wait for a repair are back by then. A worker that is younger does not know what waits.
const LONGEST: Duration = Duration::from_mins(10);
/// After a recall there is none for so many times as long as it took, within bounds: they never take much of the time.
const REST: u32 = 10;
/// One that fails is tried so often.
const TRIES: u32 = 3;
const SHORTEST_REST: Duration = Duration::from_secs(5);
const LONGEST_REST: Duration = Duration::from_mins(2);
/// The most destinations that are remembered. Beyond, jobs come when their wait is over.
const TRACKED: usize = 10_000;
/// So many are named in the log.
const NAMED: usize = 10;

/// Whose jobs wait, and whose are to be called back.
#[derive(Debug)]
pub(in crate::worker) struct Recalls {
    wanted: Mutex<BTreeSet<DestinationId>>,
    changed: Notify,
    /// Jobs that this worker sent away, because they had failed or their destination was broken.
    away: Mutex<HashMap<DestinationId, Away>>,
    since: Instant,
}

/// How many jobs of one destination come back when. By the second, so that there are few moments, however many jobs there are.
type Away = BTreeMap<Instant, u32>;

impl Recalls {
    /// Nothing is known yet.
    pub(in crate::worker) fn new() -> Self {
        let (wanted, changed, away) = (Mutex::default(), Notify::new(), Mutex::default());
        Self { wanted, changed, away, since: Instant::now() }
    }

    /// Remembers until when a job waits for its destination to be mended. Retries, and who only waits for its turn, are not called back.
    pub(in crate::worker) fn note(&self, destination: &DestinationId, verdict: &Verdict) {
        if let (Some(failure), Settlement::Defer { delay, .. }) = (&verdict.failure, &verdict.settlement)
            && failure.class() == Class::Destination
        {
            self.sent_away(destination, delay.duration());
        }
    }

    fn sent_away(&self, destination: &DestinationId, wait: Duration) {
        let due = self.since.elapsed() + wait;
        let back = self.since + Duration::from_secs(due.as_secs() + u64::from(due.subsec_nanos() > 0));
        self.away_until(destination, &Away::from([(back, 1)]));
    }

    fn away_until(&self, destination: &DestinationId, more: &Away) {
        let (now, mut away) = (Instant::now(), self.away());
        if away.len() >= TRACKED && !away.contains_key(destination) {
            away.retain(|_, jobs| any_left(jobs, now));
        }
        if away.len() < TRACKED || away.contains_key(destination) {
            let known = away.entry(destination.clone()).or_default();
            more.iter().for_each(|(back, count)| *known.entry(*back).or_default() += count);
            any_left(known, now);
        }
    }

    /// For `/status`: how many jobs of each destination this worker sent away that are still to come back, by what it knows.
    pub(in crate::worker) fn counts(&self) -> HashMap<DestinationId, u32> {
        let (now, mut away) = (Instant::now(), self.away());
        away.retain(|_, jobs| any_left(jobs, now));
        away.iter().map(|(destination, jobs)| (destination.clone(), jobs.values().sum())).collect()
    }

    /// Whether jobs of this destination may wait, as far as is known here.
    fn may_wait(&self, destination: &DestinationId) -> bool {
        let now = Instant::now();
        self.since.elapsed() < LONGEST || self.away().get_mut(destination).is_some_and(|jobs| any_left(jobs, now))
    }

    /// A destination was reset at `at`. `known`: something was held against it here, so that its jobs wait for sure.
    fn reset(&self, destination: &DestinationId, known: bool, (at, now): (Timestamp, Timestamp)) {
        let recent = now.duration_since(at) <= RECENT;
        let jobs_wait = known || (recent && self.may_wait(destination));
        if !jobs_wait {
            return;
        }
        let mut wanted = self.wanted();
        if wanted.len() < TRACKED {
            wanted.insert(destination.clone());
            self.changed.notify_one();
        }
    }

    /// Those that are wanted, once every worker knows.
    async fn next(&self) -> BTreeSet<DestinationId> {
        self.changed.notified().await;
        sleep(READ).await;
        std::mem::take(&mut *self.wanted())
    }

    /// What is known of these, before it is called back: what is sent away meanwhile is known anew.
    fn take(&self, destinations: &BTreeSet<DestinationId>) -> HashMap<DestinationId, Away> {
        self.away().extract_if(|destination, _| destinations.contains(destination)).collect()
    }

    /// Not all of them came back.
    fn put_back(&self, taken: HashMap<DestinationId, Away>) {
        for (destination, jobs) in taken {
            self.away_until(&destination, &jobs);
        }
    }

    /// They are wanted still.
    fn want_again(&self, destinations: BTreeSet<DestinationId>) {
        self.wanted().extend(destinations);
        self.changed.notify_one();
    }

    fn wanted(&self) -> MutexGuard<'_, BTreeSet<DestinationId>> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn away(&self) -> MutexGuard<'_, HashMap<DestinationId, Away>> {
        self.away.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Worker {
    /// A destination was reset at `at`: its jobs are called back, if any may wait. `known`: something was held against it here.
    pub(in crate::worker) fn call_back(&self, destination: &DestinationId, known: bool, at: Timestamp) {
        self.recalls.reset(destination, known, (at, (self.parts.clock)()));
    }

    /// Calls back what is wanted, until the drain.
    pub(in crate::worker) async fn recall_until(&self, drain: &CancellationToken) {
        let recalling = async {
            let mut tries = TRIES;
            loop {
                let wanted = self.recalls.next().await;
                let begun = Instant::now();
                if !wanted.is_empty() {
                    tries -= 1;
                    if self.release_delayed(&wanted, tries).await || tries == 0 {
                        tries = TRIES;
                    } else {
                        self.recalls.want_again(wanted);
                    }
                }
                sleep(rest(begun.elapsed())).await;
            }
        };
        tokio::select! {
            biased;
            () = drain.cancelled() => {}
            () = recalling => {}
        }
    }

    /// Whether it could be done; else it is tried so many times more.
    async fn release_delayed(&self, wanted: &BTreeSet<DestinationId>, tries: u32) -> bool {
        let taken = self.recalls.take(wanted);
        let recalled = self.parts.queue.release_delayed(wanted.clone()).await;
        let names: Vec<_> = wanted.iter().take(NAMED).map(DestinationId::as_str).collect();
        let (count, destinations) = (wanted.len(), names.join(", "));
        if !matches!(recalled, Ok(Released { partly: false, .. })) {
            self.recalls.put_back(taken);
        }
        match recalled {
            Ok(Released { count: jobs, partly }) => {
                tracing::info!(jobs, count, destinations, "jobs that waited for destinations that were reset are back");
                if partly {
                    tracing::warn!(destinations, "too much waits to look through all of it; the rest comes in time");
                }
                true
            }
            Err(problem) if tries > 0 => {
                tracing::info!(%problem, destinations, "jobs that wait were not all called back; it is tried again");
                false
            }
            Err(problem) => {
                tracing::warn!(%problem, destinations, "jobs that wait were not all called back; the rest comes in time");
                false
            }
        }
    }
}

/// Whether some are still away; the others are forgotten.
fn any_left(jobs: &mut Away, now: Instant) -> bool {
    while let Some(first) = jobs.first_entry().filter(|first| *first.key() <= now) {
        first.remove();
    }
    !jobs.is_empty()
}

fn rest(took: Duration) -> Duration {
    (took * REST).clamp(SHORTEST_REST, LONGEST_REST)
}

#[cfg(test)]
mod tests;
