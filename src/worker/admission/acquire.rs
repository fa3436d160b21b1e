//! Whether a job may begin: what is known of its destination, and what that may have of this worker.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures_util::poll;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{sleep, timeout};

use super::circuit::Gate;
use super::limits::{AT_ONCE, Pass, Turn};
use crate::domain::destination::DestinationId;
use crate::domain::lane::Lane;
use crate::domain::outcome::{Failure, TransferResult};
use crate::metrics::DeferCause;
use crate::queue::Delivery;
use crate::worker::decode::Admitted;
use crate::worker::lease::published_to;
use crate::worker::{Permits, Worker};

/// How long a job may wait here for its turn and a slot. It holds no slot meanwhile, and its delivery is far from any time-out.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a job is told that wants to begin.
#[derive(Debug)]
pub(in crate::worker) enum Told {
    /// It may, with these.
    Begin(Permits),
    /// Not now.
    Away(Away),
}

/// Why a job does not begin now. Nothing was tried, and nothing is charged.
#[derive(Debug)]
pub(in crate::worker) enum Away {
    /// Its destination's circuit is open, or everything fails: what is wrong, and how long it is until somebody asks again.
    Broken(Box<Failure>, Duration),
    /// Its destination has all it may have: come again after about this time.
    Full(Duration, DeferCause),
    /// The worker drains.
    Draining,
    /// Its backfill was cancelled.
    Cancelled(Box<TransferResult>),
}

impl Worker {
    /// The turn of a job. `permits` are given up while it waits.
    pub(in crate::worker) async fn turn(&self, delivery: &Delivery, admitted: &Admitted, mut permits: Permits) -> Told {
        match self.wait_turn(delivery, admitted, &mut permits).await {
            Ok(()) => Told::Begin(permits),
            Err(away) => Told::Away(away),
        }
    }

    async fn wait_turn(&self, delivery: &Delivery, admitted: &Admitted, permits: &mut Permits) -> Result<(), Away> {
        let id = &admitted.destination.id;
        if let Some((failure, pause)) = self.outage.spares(id) {
            self.unless_draining(sleep(pause)).await?;
            return Err(Away::Broken(Box::new(failure), Duration::ZERO));
        }
        self.circuit(id, permits)?;
        if published_to(delivery) == Lane::Backfill && permits.backfill.is_none() {
            // The ceiling of the backfills holds for those, too, that somebody else began. First of all, as nobody waits for it.
            permits.give_up_slot();
            permits.backfill = self.in_time(id, self.claim(&self.backfill_slots)).await?;
        }
        let (pass, late) = match self.limits.ask(&admitted.destination, delivery.lane) {
            Turn::Now(pass) => (pass, false),
            Turn::AtOnce(called) => (self.called(id, AT_ONCE * 2, called).await?, true),
            Turn::Soon(called) => {
                permits.give_up_slot();
                (self.called(id, PATIENCE, called).await?, true)
            }
            Turn::Later(wait, cause) => return Err(Away::Full(wait, cause)),
        };
        let pass = permits.pass.insert(pass);
        if permits.slot.is_none() {
            permits.slot = self.in_time(id, self.claim(&self.slots)).await?;
            pass.begin();
        }
        // It may have opened meanwhile.
        if late && permits.probe.is_none() { self.circuit(id, permits) } else { Ok(()) }
    }

    fn circuit(&self, destination: &DestinationId, permits: &mut Permits) -> Result<(), Away> {
        match self.circuits.ask(destination) {
            Gate::Closed => Ok(()),
            Gate::Probe(probe) => {
                permits.probe = Some(probe);
                Ok(())
            }
            Gate::Open(failure, left) => Err(Away::Broken(failure, left)),
        }
    }

    async fn called(
        &self,
        destination: &DestinationId,
        patience: Duration,
        called: oneshot::Receiver<Pass>,
    ) -> Result<Pass, Away> {
        let called = self.unless_draining(timeout(patience, called)).await?;
        called.ok().and_then(Result::ok).ok_or_else(|| self.in_vain(destination))
    }

    /// What is waited for without a slot, for a while.
    async fn in_time<T>(&self, destination: &DestinationId, claim: impl Future<Output = T>) -> Result<T, Away> {
        let claimed = self.unless_draining(timeout(PATIENCE, claim)).await?;
        claimed.map_err(|_| self.in_vain(destination))
    }

    fn in_vain(&self, destination: &DestinationId) -> Away {
        let (wait, cause) = self.limits.later(destination);
        Away::Full(wait, cause)
    }

    /// A permit, even if the one who looks for the next delivery sits on the last one.
    async fn claim(&self, permits: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
        let mut claim = pin!(permits.clone().acquire_owned());
        // In the line first: what is given up now goes to whoever stands there.
        if let Poll::Ready(permit) = poll!(&mut claim) {
            return permit.ok();
        }
        self.wanted.notify_one();
        claim.await.ok()
    }

    async fn unless_draining<T>(&self, waiting: impl Future<Output = T>) -> Result<T, Away> {
        tokio::select! {
            biased;
            () = self.stop.hand_off.cancelled() => Err(Away::Draining),
            done = waiting => Ok(done),
        }
    }
}
