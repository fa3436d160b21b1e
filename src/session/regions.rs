//! Actual regions of buckets, where they differ from the configuration.

use std::collections::HashMap;

use parking_lot::RwLock;

use crate::domain::destination::{BucketName, Destination, DestinationIdentity, Region};

/// Largest number of learnt regions.
const MAX_LEARNT_REGIONS: usize = 10_000;

/// Region of each bucket for which S3 named another region than the configured one.
#[derive(Debug, Default)]
pub(super) struct LearntRegions(RwLock<HashMap<(DestinationIdentity, BucketName), Region>>);

impl LearntRegions {
    pub(super) fn learn(&self, destination: &Destination, region: &Region) {
        let mut learnt = self.0.write();
        if learnt.len() >= MAX_LEARNT_REGIONS {
            // Inline destinations come without end. What is forgotten is learnt again by one request.
            learnt.clear();
        }
        learnt.insert(key(destination), region.clone());
    }

    /// Returns the learnt region, else the configured one.
    pub(super) fn of(&self, destination: &Destination) -> Region {
        let learnt = self.0.read();
        let known = if learnt.is_empty() { None } else { learnt.get(&key(destination)) };
        known.unwrap_or(&destination.region).clone()
    }

    pub(super) fn forget(&self, destination: &Destination) {
        self.0.write().remove(&key(destination));
    }
}

fn key(destination: &Destination) -> (DestinationIdentity, BucketName) {
    (destination.identity.clone(), destination.bucket.clone())
}
