//! What tests may shorten.

use std::time::Duration;

/// Times that the broker keeps for this process. Everybody but tests has the default.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// How long a lease waits for its owner before it goes to others.
    pub owner_ttl: Duration,
    /// Thousands of messages of others that a recall holds in each rung; 32 at most, as the broker gives back in order only up to there.
    pub recall_holds: u16,
}

impl Default for Timing {
    fn default() -> Self {
        Self { owner_ttl: Duration::from_mins(1), recall_holds: 120 }
    }
}
