//! Reasons why a job does not start now.

use std::time::Duration;

use super::limits::Deferred;
use crate::domain::control::BackfillId;
use crate::domain::generation::NewerDelivery;
use crate::domain::outcome::Failure;

/// Reason why a job does not start now. Nothing was attempted, and nothing is charged.
#[derive(Debug)]
pub(in crate::worker) enum Deferral {
    /// The circuit breaker is open, or there is an outage.
    Unhealthy {
        /// Failure that the job is deferred with.
        failure: Box<Failure>,
        /// Time until the next probe.
        next_probe: Duration,
    },
    /// The destination has no free permit.
    Limited(Deferred),
    /// Another job that may be crashing workers runs.
    Quarantined,
    /// The backfill of the job was cancelled.
    Cancelled(BackfillId),
    /// A newer generation of the object was delivered.
    Superseded(NewerDelivery),
    /// Another job of this worker writes the object.
    ObjectBusy,
    /// The worker drains, or has a fault of its own.
    Stopped,
}
