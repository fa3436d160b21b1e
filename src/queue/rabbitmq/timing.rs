//! Times that tests shorten.

use std::time::Duration;

/// Times of the broker's side. Everything but tests uses the default.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// Time that an expired lease waits for its owner before it goes to other workers.
    pub owner_ttl: Duration,
    /// Maximum number of consumers, of some 250 messages each, that hold messages of other
    /// destinations while one wait queue is examined.
    pub max_release_consumers: u16,
}

impl Default for Timing {
    fn default() -> Self {
        Self { owner_ttl: Duration::from_mins(1), max_release_consumers: 120 }
    }
}
