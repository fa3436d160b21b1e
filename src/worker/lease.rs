//! Guard that keeps the lease of an attempt while its transfer runs.

mod state;

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::generations::Generations;
use super::in_flight::{JobOwner, RunId};
use super::parts::WorkerParts;
use crate::domain::generation::ObjectGeneration;
use crate::domain::job::lease::Checkpoint;
use crate::domain::lane::Lane;
use crate::domain::outcome::{Failure, Reason, TransferResult};
use crate::queue::{Delivery, LeaseHolder, QueueError};
use crate::runtime::failpoints;
pub(crate) use state::MAX_CRASHES;
pub(super) use state::{AttemptState, CopyBody, LeaseSnapshot, LeaseStatus};

/// Redeliveries from which on a job is leased before anything else. Should the worker crash over it
/// once more, the lease shows that it was this job, and not one that merely waited beside it.
const LEASE_AT_ONCE_REDELIVERIES: u64 = 3;
/// Interval between tries to lease a job from a broker that does not answer.
const LEASE_RETRY_INTERVAL: Duration = Duration::from_secs(30);

/// Returns the key that names a run of a job to every worker.
pub(super) fn key(id: &RunId) -> String {
    id.digest().simple().to_string()
}

/// Keeps the lease of an attempt: from the start for a job that was taken over or redelivered
/// often, as soon as an upload is open that must be recorded, and after `broker.lease_after` for
/// everything.
#[derive(Debug)]
pub(super) struct LeaseGuard<'a> {
    pub(super) parts: &'a WorkerParts,
    pub(super) owner: &'a JobOwner,
    pub(super) state: &'a Arc<AttemptState>,
    /// Object that the job writes: a leased job may write it late.
    pub(super) written: Option<ObjectGeneration>,
    pub(super) generations: &'a Arc<Generations>,
}

impl LeaseGuard<'_> {
    /// Runs `transfer` under the guard. A delivery that turns out to be lost is replaced by a
    /// duplicate.
    pub(super) async fn run(
        &self,
        delivery: &mut Delivery,
        transfer: impl Future<Output = TransferResult>,
    ) -> TransferResult {
        let over = CancellationToken::new();
        let transfer = async {
            let result = transfer.await;
            over.cancel();
            result
        };
        // Leasing is never interrupted: the queue must know whether there is a lease.
        let (result, ()) = tokio::join!(transfer, self.keep(delivery, &over));
        match result {
            TransferResult::Failed(_) if self.state.is_lost() => {
                let message = "another worker has this job now and continues it";
                TransferResult::Failed(Failure::new(Reason::LeaseLost, message))
            }
            result => result,
        }
    }

    async fn keep(&self, delivery: &mut Delivery, over: &CancellationToken) {
        let key = key(self.owner.run());
        let due = async {
            if delivery.lane == Lane::Continued || delivery.delivery_count >= LEASE_AT_ONCE_REDELIVERIES {
                return;
            }
            tokio::select! {
                biased;
                () = tokio::time::sleep(self.parts.lease_after) => {}
                () = self.unrecorded_upload() => {}
            }
        };
        if over.run_until_cancelled(due).await.is_none() {
            return;
        }
        if let Some(written) = self.written {
            self.generations.announce(written).await;
        }
        loop {
            let holder: Arc<dyn LeaseHolder> = self.state.clone();
            match self.parts.queue.lease(delivery, &key, holder).await {
                Ok(()) => {
                    failpoints::hit("leased");
                    self.state.record_lease();
                    // A long upload that is opened only now must be recorded at once, too.
                    if over.run_until_cancelled(self.unrecorded_upload()).await.is_none() {
                        return;
                    }
                    continue;
                }
                Err(QueueError::Lost) if self.state.is_lost() => return,
                // The message is redelivered, joins this job, and replaces the lost delivery.
                Err(QueueError::Lost) => {
                    let duplicate = self.owner.duplicates().next(self.state.carried_upload());
                    let Some(duplicate) = over.run_until_cancelled(duplicate).await else { return };
                    *delivery = duplicate;
                    continue;
                }
                Err(error) => tracing::warn!(
                    event = "lease_failed",
                    %error,
                    next = "leasing is tried again",
                    remedy = "check the broker if this repeats",
                    "a job could not be leased"
                ),
            }
            if over.run_until_cancelled(tokio::time::sleep(LEASE_RETRY_INTERVAL)).await.is_none() {
                return;
            }
        }
    }

    /// Resolves when an upload is open that a lease must record, and that none does.
    async fn unrecorded_upload(&self) {
        let state = self.state;
        let unrecorded =
            |checkpoint: &Checkpoint| state.is_leased_at_once(checkpoint) && !state.is_recorded(checkpoint);
        self.state.open_upload.begun(unrecorded).await;
    }
}
