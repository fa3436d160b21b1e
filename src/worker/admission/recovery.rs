//! Recovery of destinations: resets, and the recall of the jobs that wait for one.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::circuit::CircuitBreakers;
use super::release::{DelayedJobs, DestinationReset};
use crate::domain::destination::DestinationIdentity;
use crate::domain::outcome::RetryDelay;
use crate::worker::parts::WorkerParts;

/// Jobs that this worker deferred until their destination recovers, and what ends their wait.
#[derive(Debug)]
pub(in crate::worker) struct Recovery {
    pub(super) circuits: Arc<CircuitBreakers>,
    pub(super) delayed: DelayedJobs,
    pub(super) parts: Arc<WorkerParts>,
}

impl Recovery {
    /// Records a job that was deferred until its destination recovers.
    pub(in crate::worker) fn record_delayed(&self, destination: &DestinationIdentity, delay: RetryDelay) {
        self.delayed.record(destination, delay.duration());
    }

    /// Resets a destination now: its configuration changed, a connection test passed, or an
    /// operator requests it. Its breaker closes, cached denials are dropped, and its deferred jobs
    /// are recalled.
    pub(in crate::worker) fn reset(&self, destination: &DestinationIdentity) {
        self.parts.transport.forget_denials();
        let now = self.parts.now();
        for destination in self.covered(destination) {
            let known = self.circuits.reset(&destination, now);
            self.delayed.request(&destination, DestinationReset { known, at: now, now });
        }
    }

    /// Performs a reset that was requested at `at` through the control stream. It may be read more
    /// than once, and long after `at`: it covers what was known of the destination then.
    pub(in crate::worker) fn reset_as_of(&self, destination: &DestinationIdentity, at: Timestamp) {
        let now = self.parts.now();
        for destination in self.covered(destination) {
            let known = self.circuits.reset_as_of(&destination, at, now);
            if known {
                self.parts.transport.forget_denials();
            }
            self.delayed.request(&destination, DestinationReset { known, at, now });
        }
    }

    /// Returns the destinations that a reset is meant for: the named one, and known ones of that id
    /// that came with jobs, where an operator named the id alone.
    fn covered(&self, named: &DestinationIdentity) -> BTreeSet<DestinationIdentity> {
        let known = self.circuits.covered(named).into_iter().chain(self.delayed.covered(named));
        known.chain([named.clone()]).collect()
    }

    /// Recalls deferred jobs of destinations that recovered, until `drain`.
    pub(in crate::worker) async fn release_until(&self, drain: &CancellationToken) {
        drain.run_until_cancelled(self.delayed.run(&self.parts.queue)).await;
    }

    /// Number of jobs that wait for each destination.
    pub(super) fn awaiting(&self) -> HashMap<DestinationIdentity, u32> {
        self.delayed.counts()
    }
}
