//! Properties of stores that only their responses show. They are kept in memory, and learnt again
//! after a restart.

use std::sync::Arc;

use moka::sync::Cache;

use super::concurrency::{ConcurrencyLimits, PartConcurrency};
use crate::domain::destination::{BucketName, Destination, DestinationIdentity};

/// Most destinations of which one property is remembered.
const MAX_DESTINATIONS: u64 = 10_000;

type Key = (DestinationIdentity, BucketName);

/// Proof that the bytes of a part arrived intact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PartProof {
    /// The response to a part without a checksum header: it has the checksum of what arrived.
    Response,
    /// The checksum header of the part, which the store compares with what arrived.
    Header,
}

/// Learnt properties of the stores behind all destinations. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct LearntStores {
    equal_parts: Cache<Key, ()>,
    part_proofs: Cache<Key, PartProof>,
    concurrency: Cache<Key, Arc<PartConcurrency>>,
    pub(super) limits: ConcurrencyLimits,
}

impl LearntStores {
    pub(super) fn new(limits: ConcurrencyLimits) -> Self {
        let (equal_parts, part_proofs) = (Cache::new(MAX_DESTINATIONS), Cache::new(MAX_DESTINATIONS));
        Self { equal_parts, part_proofs, concurrency: Cache::new(MAX_DESTINATIONS), limits }
    }

    /// Returns the number of parts in flight of each upload into the destination.
    pub(super) fn concurrency(&self, destination: &Destination) -> Arc<PartConcurrency> {
        self.concurrency.get_with(key(destination), || Arc::new(PartConcurrency::new(self.limits.clone())))
    }

    /// Returns true if the store refused parts of different lengths.
    pub(super) fn wants_equal_parts(&self, destination: &Destination) -> bool {
        self.equal_parts.contains_key(&key(destination))
    }

    /// Remembers that the store refuses parts of different lengths.
    pub(super) fn learn_equal_parts(&self, destination: &Destination) {
        self.equal_parts.insert(key(destination), ());
    }

    /// Returns the proof to rely on; `None` if no part without a checksum header was sent yet.
    pub(super) fn part_proof(&self, destination: &Destination) -> Option<PartProof> {
        self.part_proofs.get(&key(destination))
    }

    /// Remembers that the store proves a part without a checksum header by its response.
    pub(super) fn learn_proof_by_response(&self, destination: &Destination) {
        if self.part_proof(destination).is_none() {
            self.part_proofs.insert(key(destination), PartProof::Response);
        }
    }

    /// Remembers that parts need the checksum header, and logs `cause` the first time.
    pub(super) fn learn_proof_by_header(&self, destination: &Destination, cause: &'static str) {
        if self.part_proof(destination) == Some(PartProof::Header) {
            return;
        }
        self.part_proofs.insert(key(destination), PartProof::Header);
        tracing::info!(
            event = "part_checksum_headers_learnt",
            destination = %destination.id,
            cause,
            "from now on each part of this destination is sent with a checksum header"
        );
    }
}

fn key(destination: &Destination) -> Key {
    (destination.identity.clone(), destination.bucket.clone())
}
