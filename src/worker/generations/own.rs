//! Deliveries of this worker within the last hour, which it can answer with.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::domain::generation::{NewerDelivery, ObjectDigest};

/// Time for which a delivery is remembered, at least.
const OWN_TTL: Duration = Duration::from_hours(1);
/// Time after which deliveries go into the next bucket, at the latest.
const BUCKET_AGE: Duration = Duration::from_mins(5);
/// Most objects of a bucket: what a hash table of 2^13 places holds.
const BUCKET_OBJECTS: usize = 7_168;
/// Most buckets. They take about 20 MiB when full, and hold an hour of 50 objects a second. Beyond,
/// the oldest is forgotten.
const MAX_BUCKETS: usize = 26;

/// Highest delivery of each object, by the time of the delivery: what has its hour over is dropped
/// as a whole.
#[derive(Debug, Default)]
pub(super) struct OwnDeliveries {
    buckets: VecDeque<DeliveryBucket>,
}

#[derive(Debug)]
struct DeliveryBucket {
    began: Instant,
    deliveries: HashMap<ObjectDigest, (u64, Arc<str>)>,
}

impl OwnDeliveries {
    /// Remembers a delivery, unless a higher one is known. Returns how many were forgotten for it
    /// before their hour was over.
    pub(super) fn insert(&mut self, object: ObjectDigest, delivery: NewerDelivery) -> usize {
        let now = Instant::now();
        self.buckets.retain(|bucket| now.duration_since(bucket.began) < OWN_TTL + BUCKET_AGE);
        if self.get(object).is_some_and(|known| known.generation > delivery.generation) {
            return 0;
        }
        let full = |bucket: &DeliveryBucket| {
            bucket.deliveries.len() >= BUCKET_OBJECTS || now.duration_since(bucket.began) >= BUCKET_AGE
        };
        if self.buckets.back().is_none_or(full) {
            self.buckets.push_back(DeliveryBucket { began: now, deliveries: HashMap::new() });
        }
        if let Some(current) = self.buckets.back_mut() {
            current.deliveries.insert(object, (delivery.generation, delivery.job));
        }
        let oldest = if self.buckets.len() > MAX_BUCKETS { self.buckets.pop_front() } else { None };
        oldest.map_or(0, |bucket| bucket.deliveries.len())
    }

    /// Returns the highest delivery of an object.
    pub(super) fn get(&self, object: ObjectDigest) -> Option<NewerDelivery> {
        let now = Instant::now();
        let live = self.buckets.iter().filter(|bucket| now.duration_since(bucket.began) < OWN_TTL + BUCKET_AGE);
        let known = live.rev().find_map(|bucket| bucket.deliveries.get(&object));
        known.map(|(generation, job)| NewerDelivery { generation: *generation, job: job.clone() })
    }

    /// Returns the objects delivered within the last `age`, and some before, in a fixed order.
    pub(super) fn since(&self, age: Duration) -> Vec<ObjectDigest> {
        let now = Instant::now();
        let recent = self.buckets.iter().filter(|bucket| now.duration_since(bucket.began) <= age + BUCKET_AGE);
        let ordered = |bucket: &DeliveryBucket| {
            let mut objects: Vec<_> = bucket.deliveries.keys().copied().collect();
            objects.sort_unstable();
            objects
        };
        let mut seen = HashSet::new();
        recent.rev().flat_map(ordered).filter(|object| seen.insert(*object)).collect()
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn object(number: usize) -> ObjectDigest {
        ObjectDigest::parse(&Uuid::from_u128(number as u128).to_string()).unwrap()
    }

    fn delivery(generation: u64) -> NewerDelivery {
        NewerDelivery { generation, job: "acme/google_ads/2026-11-22".into() }
    }

    fn generation(own: &OwnDeliveries, number: usize) -> Option<u64> {
        own.get(object(number)).map(|delivery| delivery.generation)
    }

    #[tokio::test(start_paused = true)]
    async fn the_highest_delivery_is_remembered_for_an_hour() {
        let mut own = OwnDeliveries::default();
        own.insert(object(1), delivery(2));
        own.insert(object(1), delivery(1));
        assert_eq!(generation(&own, 1), Some(2));
        tokio::time::advance(OWN_TTL).await;
        assert_eq!(generation(&own, 1), Some(2));
        own.insert(object(1), delivery(3));
        assert_eq!((generation(&own, 1), own.since(Duration::ZERO)), (Some(3), vec![object(1)]));
        tokio::time::advance(BUCKET_AGE + Duration::from_secs(1)).await;
        own.insert(object(2), delivery(1));
        assert_eq!((own.buckets.len(), generation(&own, 1)), (2, Some(3)), "the first bucket is gone");
        own.insert(object(1), delivery(4));
        assert_eq!(own.since(BUCKET_AGE), [object(1), object(2)], "each object once");
        tokio::time::advance(OWN_TTL + BUCKET_AGE).await;
        assert_eq!([1, 2].map(|number| generation(&own, number)), [None; 2]);
    }

    #[tokio::test(start_paused = true)]
    async fn more_objects_than_fit_forget_the_oldest_and_are_counted() {
        let mut own = OwnDeliveries::default();
        let all = BUCKET_OBJECTS * MAX_BUCKETS;
        let lost: usize = (0..=all).map(|number| own.insert(object(number), delivery(1))).sum();
        assert_eq!(lost, BUCKET_OBJECTS);
        assert!(generation(&own, BUCKET_OBJECTS - 1).is_none() && generation(&own, BUCKET_OBJECTS).is_some());
        // An entry, its byte in the table, and the text of the id with its counters.
        let places: usize = own.buckets.iter().map(|bucket| bucket.deliveries.capacity() * 8 / 7).sum();
        let entry = size_of::<(ObjectDigest, (u64, Arc<str>))>() + 1;
        let text = delivery(1).job.len() + 2 * size_of::<usize>();
        assert!(places * entry + all * text < 20 << 20, "{} bytes", places * entry + all * text);
    }
}
