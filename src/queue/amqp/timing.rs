//! What tests may shorten.

use std::time::Duration;

/// Times that the broker keeps for this process. Everybody but tests has the default.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// How long a lease waits for its owner before it goes to others.
    pub owner_ttl: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self { owner_ttl: Duration::from_mins(1) }
    }
}
