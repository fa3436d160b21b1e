//! Permit of the job by which a half-open circuit breaker decides.

use std::sync::Arc;

use tokio::time::Instant;

use super::{CircuitBreakers, INCONCLUSIVE_PROBE_INTERVAL};
use crate::domain::destination::DestinationIdentity;

/// Permit of the job that probes. Dropped without an answer, it makes the next probe soon.
#[derive(Debug)]
pub(in crate::worker::admission) struct CircuitProbe {
    pub(super) breakers: Arc<CircuitBreakers>,
    pub(super) destination: DestinationIdentity,
    /// Number of the probe, unique in this worker.
    pub(in crate::worker::admission) number: u64,
}

impl Drop for CircuitProbe {
    fn drop(&mut self) {
        let mut breakers = self.breakers.breakers.lock();
        let open = breakers.get_mut(&self.destination).and_then(|breaker| breaker.open.as_mut());
        if let Some(open) = open.filter(|open| open.is_probed_by(Some(self.number))) {
            open.probe = None;
            open.next_probe = Instant::now() + INCONCLUSIVE_PROBE_INTERVAL;
            if !open.suspected {
                self.breakers.report(&self.destination, open.change());
            }
        }
    }
}
