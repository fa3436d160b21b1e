//! Parts that a worker is built from.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;

use crate::config::WorkerConfig;
use crate::domain::destination::{Destinations, InlinePolicy};
use crate::metrics::Metrics;
use crate::queue::Queue;
use crate::transfer::Transport;

/// Source of the current time. It must advance with tokio's clock, which everything waits by:
/// `Timestamp::now` does.
pub type WorkerClock = fn() -> Timestamp;

/// Parts of a worker. Built once by the composition root.
#[derive(Debug)]
pub struct WorkerParts {
    /// `[worker]`.
    pub config: WorkerConfig,
    /// `broker.prefix`, the source of every outcome.
    pub prefix: String,
    /// `broker.lease_after`.
    pub lease_after: Duration,
    /// Lifetime of a cached denial of STS.
    pub denied_for: Duration,
    /// `check.egress_addresses`, for connection tests by message.
    pub egress_addresses: Vec<String>,
    /// Source of jobs.
    pub queue: Arc<dyn Queue>,
    /// Delivers them.
    pub transport: Arc<dyn Transport>,
    /// Current time.
    pub clock: WorkerClock,
    /// Configured destinations, replaced as a whole by a reload.
    pub destinations: watch::Receiver<Arc<Destinations>>,
    /// Rules for destinations that come in jobs.
    pub inline: InlinePolicy,
    /// Metrics.
    pub metrics: Arc<Metrics>,
}

impl WorkerParts {
    /// Returns the current time.
    pub(super) fn now(&self) -> Timestamp {
        (self.clock)()
    }
}
