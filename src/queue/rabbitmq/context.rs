//! Settings and state that outlive the sessions of one queue.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::connection::Endpoint;
use super::deliveries::Deliveries;
use super::lease::LeaseContext;
use super::names::Names;
use super::topology::Topology;
use crate::domain::lane::Lane;
use crate::metrics::Metrics;

/// Everything that a session is built from.
pub(super) struct QueueContext {
    pub(super) endpoint: Endpoint,
    pub(super) names: Names,
    pub(super) topology: Topology,
    /// True to declare the topology, false to check it.
    pub(super) declare: bool,
    pub(super) worker_id: String,
    /// Lanes to consume, with their prefetch. Without lanes the queue only publishes.
    pub(super) lanes: Vec<(Lane, u16)>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) deliveries: Arc<Deliveries>,
    pub(super) leases: Arc<LeaseContext>,
    /// Limit of [`Timing::max_release_consumers`](super::Timing::max_release_consumers).
    pub(super) max_release_consumers: u16,
    /// Cancelled when the queue closes.
    pub(super) stop: CancellationToken,
}

impl QueueContext {
    /// Runs a future until the queue closes; `None` then.
    pub(super) async fn unless_stopped<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => None,
            value = future => Some(value),
        }
    }
}
