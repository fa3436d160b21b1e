//! Decides who is at fault when attempts fail: everybody (outage), this worker (health), or the
//! destination (circuit breaker).

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::circuit::{CircuitBreakers, ObservedAttempt};
use super::health::WorkerHealth;
use super::outage::{ObservedResult, OutageDetector};
use crate::domain::destination::Destination;
use crate::domain::outcome::{Symptom, TransferResult};
use crate::worker::decode::DecodedJob;
use crate::worker::parts::WorkerParts;

/// Result of an attempt after admission has observed it.
#[derive(Debug)]
pub(in crate::worker) struct ObservedEnd {
    /// The result; a failure that is part of an outage has become one.
    pub(in crate::worker) result: TransferResult,
    /// Time until the destination's next probe, when its circuit breaker is open.
    pub(in crate::worker) next_probe: Option<Duration>,
}

/// Observer of all results.
#[derive(Debug)]
pub(super) struct FaultObserver {
    pub(super) health: WorkerHealth,
    pub(super) outage: OutageDetector,
    /// Held while calls of our own confirm an outage: results that are suspicious meanwhile wait
    /// for the same verdict.
    pub(super) confirming: tokio::sync::Mutex<()>,
    pub(super) circuits: Arc<CircuitBreakers>,
    pub(super) parts: Arc<WorkerParts>,
}

impl FaultObserver {
    /// Observes that S3 accepted data of an attempt. Returns false in an outage, where that proves
    /// nothing about the worker.
    pub(super) fn accepted(&self, destination: &Arc<Destination>) -> bool {
        self.circuits.succeeded(&destination.identity, Instant::now(), self.parts.now());
        self.outage.succeeded(destination, self.parts.metrics.roles_assumed());
        let fit = !self.outage.is_outage();
        if fit {
            self.health.recover();
        }
        fit
    }

    /// Observes the result of an attempt whose transfer ended at `ended_at`, and decides who is at
    /// fault: everybody, this worker, or the destination.
    pub(super) async fn observe(
        &self,
        job: &DecodedJob,
        ended_at: Instant,
        probe: Option<u64>,
        result: TransferResult,
    ) -> ObservedEnd {
        let destination = &job.destination.identity;
        let result = match self.outage.observe(&job.destination, result, self.parts.metrics.roles_assumed()) {
            ObservedResult::Known(result) => result,
            ObservedResult::Suspicious(result, symptom) => {
                self.confirm_outage(symptom).await;
                self.outage.covered(&job.destination, result)
            }
        };
        // Where STS denies every role, a delivery with a session from before proves nothing.
        let delivered = matches!(result, TransferResult::Delivered(_) | TransferResult::Skipped);
        if (!delivered || !self.outage.is_outage()) && !self.is_about_one_trust_policy(&result) {
            self.health.observe(&result);
        }
        let attempt = ObservedAttempt { destination, key: job.job.key.as_str(), ended_at, probe };
        let next_probe = self.circuits.observe(attempt, &result, self.parts.now());
        if self.outage.covers(&result) {
            // Another attempt started the outage meanwhile; the breaker must not open because of it.
            self.circuits.clear(destination);
            return ObservedEnd { result, next_probe: None };
        }
        ObservedEnd { result, next_probe }
    }

    /// Confirms by calls of our own that a failure which many destinations share is not theirs,
    /// once for all results that are suspicious at the same time.
    async fn confirm_outage(&self, symptom: Symptom) {
        let _confirming = self.confirming.lock().await;
        let Some(controls) = self.outage.controls(symptom) else { return };
        let confirmed = self.parts.transport.confirm_outage(symptom, &controls).await;
        tracing::info!(event = "outage_examined", ?symptom, confirmed, "several destinations fail in the same way");
        if let Some(evidence) = self.outage.conclude(symptom, confirmed) {
            self.circuits.close_recent(evidence);
        }
    }

    /// Returns true for a denial of session tags while STS grants other roles: it is for the
    /// platform to fix, but the worker is not sick.
    fn is_about_one_trust_policy(&self, result: &TransferResult) -> bool {
        let denied = matches!(result, TransferResult::Failed(failure) if failure.is_about_session_tags());
        denied && self.parts.metrics.roles_assumed() > 0
    }
}
