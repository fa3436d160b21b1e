//! Permit to run one transfer.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit};

use super::circuit::CircuitProbe;
use super::limits::DestinationPermit;
#[cfg(test)]
use super::limits::{DestinationLimits, LimitDecision};
#[cfg(test)]
use crate::domain::lane::Lane;
use crate::domain::outcome::{Class, TransferResult};
use crate::upload::RateLimiter;
use crate::worker::generations::ObjectGuard;

/// Everything that a job holds while it runs. Released on drop.
#[derive(Debug)]
pub(in crate::worker) struct Permit {
    pub(super) slot: Option<OwnedSemaphorePermit>,
    pub(super) backfill: Option<OwnedSemaphorePermit>,
    /// After a fault of the worker: the permit to be the only job, which probes whether the fault
    /// is over.
    pub(super) sole: Option<OwnedMutexGuard<()>>,
    pub(super) destination: Option<DestinationPermit>,
    pub(super) probe: Option<CircuitProbe>,
    pub(super) quarantine: Option<OwnedMutexGuard<()>>,
    /// Right to be the only job of its object.
    pub(super) object: Option<ObjectGuard>,
}

impl Permit {
    /// Permit of a delivery that was just consumed.
    pub(in crate::worker) fn new(
        slot: OwnedSemaphorePermit,
        backfill: Option<OwnedSemaphorePermit>,
        sole: Option<OwnedMutexGuard<()>>,
    ) -> Self {
        Self { slot: Some(slot), backfill, sole, destination: None, probe: None, quarantine: None, object: None }
    }

    /// Releases the slot for another job. The backfill permit is kept: only backfills wait for it.
    pub(super) fn release_slot(&mut self) {
        self.slot = None;
    }

    /// Rate limiter of the destination, where it has a rate.
    pub(in crate::worker) fn rate_limiter(&self) -> Option<Arc<RateLimiter>> {
        self.destination.as_ref()?.rate_limiter.clone()
    }

    /// Number of the circuit breaker's probe, if the job is one.
    pub(in crate::worker) fn probe_number(&self) -> Option<u64> {
        self.probe.as_ref().map(|probe| probe.number)
    }

    /// Returns true if other jobs wait for this one's first success.
    pub(in crate::worker) fn is_probe(&self) -> bool {
        self.sole.is_some() || self.probe.is_some()
    }

    /// Returns true if other jobs wait until this one shows that the destination works.
    pub(in crate::worker) fn is_slow_start(&self) -> bool {
        self.destination.as_ref().is_some_and(|permit| permit.slow_start)
    }

    /// Ends the slow start of the destination, if this job is its first one.
    pub(in crate::worker) fn end_slow_start(&mut self) {
        if let Some(permit) = &mut self.destination {
            permit.end_slow_start();
        }
    }

    /// Records the result of the attempt, which took this long.
    pub(in crate::worker) fn ended(&mut self, result: &TransferResult, took: Duration) {
        let Some(permit) = &mut self.destination else { return };
        match result {
            TransferResult::Delivered(_) => permit.delivered(took),
            TransferResult::Skipped => permit.end_slow_start(),
            // An answer about the job shows that the destination works. A source that failed shows nothing.
            TransferResult::Failed(failure) if failure.answer.is_some() && failure.class() != Class::Destination => {
                permit.end_slow_start();
            }
            _ => {}
        }
    }

    /// Releases everything but the quarantine, which lasts until the delivery is settled.
    pub(in crate::worker) fn into_quarantine(self) -> Option<OwnedMutexGuard<()>> {
        self.quarantine
    }
}

#[cfg(test)]
impl Permit {
    /// Permit of the first job of a destination.
    pub(in crate::worker) fn of_first_job() -> Self {
        let few = std::num::NonZeroU32::MIN;
        let destination = crate::worker::sample::destination("acme", "123456789012");
        let acquired = DestinationLimits::new(few, few).acquire(&destination, Lane::Scheduled);
        let LimitDecision::Granted(first) = acquired else { panic!("it starts: {acquired:?}") };
        Self {
            slot: None,
            backfill: None,
            sole: None,
            destination: Some(first),
            probe: None,
            quarantine: None,
            object: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::outcome::{AwsError, Failure, Reason};

    #[tokio::test]
    async fn only_a_result_that_shows_that_the_destination_works_ends_its_slow_start() {
        let failed = |reason| TransferResult::Failed(Failure::new(reason, "some"));
        let answered = |reason| {
            let answer = Some(Box::new(AwsError::new("PutObject", 400, Some("Some"), None)));
            TransferResult::Failed(Failure { answer, ..Failure::new(reason, "some") })
        };
        for (result, ends) in [
            (TransferResult::Skipped, true),
            (answered(Reason::S3Unavailable), true),
            (answered(Reason::BucketNotFound), false),
            (failed(Reason::BucketNotFound), false),
            (failed(Reason::SourceNotFound), false),
            (TransferResult::Expired, false),
            (TransferResult::ObjectBusy, false),
        ] {
            let mut permit = Permit::of_first_job();
            permit.ended(&result, Duration::ZERO);
            assert_eq!(!permit.is_slow_start(), ends, "{result:?}");
        }
    }
}
