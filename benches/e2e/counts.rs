//! Counts of the null server, and differences between two readings.

use serde::{Deserialize, Serialize};

/// Path of the server's counts. No key can begin like this: a bucket's name has no underscore.
pub const COUNTS_PATH: &str = "/__counts";

/// Calls by operation, and the bytes of bodies of objects and parts.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Counts {
    pub puts: u64,
    pub parts: u64,
    pub creates: u64,
    pub completes: u64,
    pub aborts: u64,
    pub lists: u64,
    pub assume_roles: u64,
    pub others: u64,
    pub broken: u64,
    pub bytes: u64,
    /// Calls for the missing bucket.
    pub refused: u64,
    /// Requests that were held.
    pub held: u64,
}

impl Counts {
    /// For the wire between server and bench.
    pub fn to_json(self) -> String {
        serde_json::to_string(&self).unwrap_or_default()
    }

    /// Difference to `earlier`.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            puts: self.puts - earlier.puts,
            parts: self.parts - earlier.parts,
            creates: self.creates - earlier.creates,
            completes: self.completes - earlier.completes,
            aborts: self.aborts - earlier.aborts,
            lists: self.lists - earlier.lists,
            assume_roles: self.assume_roles - earlier.assume_roles,
            others: self.others - earlier.others,
            broken: self.broken - earlier.broken,
            bytes: self.bytes - earlier.bytes,
            refused: self.refused - earlier.refused,
            held: self.held - earlier.held,
        }
    }

    /// Objects that became visible.
    pub fn objects(self) -> u64 {
        self.puts + self.completes
    }
}
