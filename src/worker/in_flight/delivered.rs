//! Jobs that were delivered within the last hour: the id of each, and the outcomes of the most
//! recent ones.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use parking_lot::Mutex;
use uuid::Uuid;

use crate::queue::OutcomeEvent;

/// Time for which a delivered job is remembered.
const DELIVERED_TTL: Duration = Duration::from_hours(1);
/// Most ids of a generation: what a hash table of 2^14 places holds, in 272 KiB.
const GENERATION_IDS: usize = 14_336;
/// Time after which a new generation begins, at the latest.
const GENERATION_AGE: Duration = Duration::from_mins(5);
/// Most generations. They take less than 9 MiB, and hold an hour of at least 80 jobs a second.
/// Beyond, the oldest is forgotten before its hour is over: a duplicate of such a job is delivered
/// again, to the same key and with the same outcome id.
const MAX_GENERATIONS: usize = 32;
/// Bytes of remembered outcomes. Beyond, the least recently used are dropped: a duplicate of such a
/// job is answered with an outcome of the same id that has no details.
const OUTCOMES_MAX_BYTES: u64 = 4 << 20;
/// Bytes of a remembered outcome beside its texts.
const OUTCOME_ENTRY_BYTES: usize = 400;

/// Memory of delivered jobs.
#[derive(Debug)]
pub(super) struct Delivered {
    ids: Mutex<Ids>,
    outcomes: Cache<Uuid, Arc<OutcomeEvent>>,
    started: Instant,
}

#[derive(Debug, Default)]
struct Ids {
    /// Oldest first: what has its hour over is dropped as a whole.
    generations: VecDeque<Generation>,
    /// True once ids were forgotten before their hour was over.
    overflowed: bool,
}

#[derive(Debug)]
struct Generation {
    /// Second in which it began, since the start of the process.
    began: u32,
    ids: HashSet<Uuid>,
}

impl Delivered {
    pub(super) fn new() -> Self {
        let weigh = |_: &Uuid, event: &Arc<OutcomeEvent>| {
            let bytes = OUTCOME_ENTRY_BYTES + event.body.len() + event.routing_key.len() + event.id.len();
            u32::try_from(bytes).unwrap_or(u32::MAX)
        };
        let outcomes = Cache::builder()
            .max_capacity(OUTCOMES_MAX_BYTES)
            .weigher(weigh)
            .eviction_policy(EvictionPolicy::lru())
            .time_to_live(DELIVERED_TTL)
            .build();
        Self { ids: Mutex::default(), outcomes, started: Instant::now() }
    }

    /// Remembers a job with its outcome.
    pub(super) fn insert(&self, id: Uuid, event: OutcomeEvent) {
        self.outcomes.insert(id, Arc::new(event));
        self.insert_id(id, Duration::ZERO);
    }

    /// Remembers a job that was delivered `age` ago, without its outcome.
    pub(super) fn insert_id(&self, id: Uuid, age: Duration) {
        if age >= DELIVERED_TTL {
            return;
        }
        let now = self.second();
        let mut ids = self.ids.lock();
        if ids.insert(id, now) {
            tracing::warn!(
                event = "delivered_ids_full",
                next = "duplicates of the oldest jobs are delivered again",
                remedy = "run more workers if duplicates are frequent",
                "the memory for delivered job ids is full"
            );
        }
    }

    /// Returns true for a job that was delivered within the last hour.
    pub(super) fn contains(&self, id: Uuid) -> bool {
        let now = self.second();
        self.ids.lock().contains(id, now)
    }

    /// Returns the outcome of such a job; `None` if only its id is remembered.
    pub(super) fn outcome(&self, id: Uuid) -> Option<Arc<OutcomeEvent>> {
        self.outcomes.get(&id)
    }

    fn second(&self) -> u32 {
        u32::try_from(self.started.elapsed().as_secs()).unwrap_or(u32::MAX)
    }
}

impl Ids {
    fn contains(&mut self, id: Uuid, now: u32) -> bool {
        self.expire(now);
        self.generations.iter().any(|generation| generation.ids.contains(&id))
    }

    /// Adds an id. Returns true when others are forgotten before their hour is over, for the first
    /// time.
    fn insert(&mut self, id: Uuid, now: u32) -> bool {
        self.expire(now);
        let current = self.generations.back();
        let begins = current
            .is_none_or(|current| current.ids.len() >= GENERATION_IDS || age(current.began, now) >= GENERATION_AGE);
        if begins {
            self.generations.push_back(Generation { began: now, ids: HashSet::new() });
        }
        if let Some(current) = self.generations.back_mut() {
            current.ids.insert(id);
        }
        let full = self.generations.len() > MAX_GENERATIONS;
        if full {
            self.generations.pop_front();
        }
        full && !std::mem::replace(&mut self.overflowed, true)
    }

    /// Drops generations that ended an hour ago: when the next one began, or by their age.
    fn expire(&mut self, now: u32) {
        while let Some(oldest) = self.generations.front() {
            let ended = match self.generations.get(1) {
                Some(next) => age(next.began, now) >= DELIVERED_TTL,
                None => age(oldest.began, now) >= DELIVERED_TTL + GENERATION_AGE,
            };
            if !ended {
                return;
            }
            self.generations.pop_front();
        }
    }
}

fn age(began: u32, now: u32) -> Duration {
    Duration::from_secs(now.saturating_sub(began).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u32 = 3600;

    fn id(number: usize) -> Uuid {
        Uuid::from_u128(number as u128)
    }

    #[test]
    fn an_id_is_remembered_for_an_hour_and_then_its_place_is_free() {
        let mut ids = Ids::default();
        ids.insert(id(1), 0);
        ids.insert(id(2), 299);
        assert!(ids.contains(id(1), HOUR + 298) && ids.contains(id(2), HOUR + 298));
        ids.insert(id(1), HOUR + 290);
        ids.insert(id(3), HOUR + 291);
        assert_eq!(ids.generations.len(), 2);
        assert!(!ids.contains(id(2), 2 * HOUR + 290) && ids.contains(id(1), 2 * HOUR + 290), "it was delivered again");
        assert!(ids.contains(id(3), 2 * HOUR + 290));
        assert!(!ids.contains(id(3), 2 * HOUR + 590));
        assert!(ids.generations.is_empty());
    }

    /// Measured: what the tables allocate when they are full.
    #[test]
    fn full_tables_take_less_than_nine_mebibytes_and_forget_the_oldest() {
        let mut ids = Ids::default();
        let all = GENERATION_IDS * MAX_GENERATIONS;
        let warned: Vec<_> = (0..all + 2 * GENERATION_IDS).filter(|number| ids.insert(id(*number), 1)).collect();
        assert_eq!(warned, [all], "once, and not before it is full");
        assert!(!ids.contains(id(2 * GENERATION_IDS - 1), 1) && ids.contains(id(2 * GENERATION_IDS), 1));
        assert!(ids.contains(id(all + 2 * GENERATION_IDS - 1), 1));
        // A hash table has a byte for each place beside the entry, and keeps an eighth of its places free.
        let places: usize = ids.generations.iter().map(|generation| generation.ids.capacity() * 8 / 7).sum();
        let bytes = places * (size_of::<Uuid>() + 1);
        assert!(bytes < 9 << 20, "{bytes} bytes for {all} ids");
    }

    /// The worst mixture: as many generations as possible end by their age, with one id each.
    #[test]
    fn an_hour_of_eighty_jobs_a_second_is_remembered() {
        let mut ids = Ids::default();
        let mut number = 0;
        for second in 0..HOUR {
            for _ in 0..80 {
                assert!(!ids.insert(id(number), second));
                number += 1;
            }
        }
        assert!(ids.contains(id(0), HOUR - 1));
    }

    #[test]
    fn an_id_outlives_the_details_of_its_outcome() {
        let event = |number: usize| OutcomeEvent {
            routing_key: "r".into(),
            id: number.to_string(),
            body: vec![b' '; 2000].into(),
            reply_to: None,
        };
        let delivered = Delivered::new();
        for number in 0..5000 {
            delivered.insert(id(number), event(number));
        }
        delivered.outcomes.run_pending_tasks();
        assert!(delivered.contains(id(0)) && delivered.outcome(id(0)).is_none());
        assert_eq!(delivered.outcome(id(4999)).unwrap().id, "4999");
        assert!(!delivered.contains(id(5000)));
        assert!(delivered.outcomes.weighted_size() <= OUTCOMES_MAX_BYTES);
    }
}
