//! Whether a job may begin: what is known of its destination, and what that may have of this worker.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures_util::poll;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::timeout;

use super::admit::Admitted;
use super::circuit::Gate;
use super::lease::published_to;
use super::limits::{AT_ONCE, Pass, Turn};
use super::{Permits, Worker};
use crate::destination::DestinationId;
use crate::lane::Lane;
use crate::metrics::DeferCause;
use crate::outcome::{Ended, Failure};
use crate::queue::Delivery;

/// How long a job may wait here for its turn and a slot. It holds no slot meanwhile, and its delivery is far from any time-out.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a job is told that wants to begin.
#[derive(Debug)]
pub(super) enum Told {
    /// It may, with these.
    Begin(Permits),
    /// Not now.
    Away(Away),
}

/// Why a job does not begin now. Nothing was tried, and nothing is charged.
#[derive(Debug)]
pub(super) enum Away {
    /// Its destination's circuit is open, or everything fails: what is wrong, and how long it is until somebody asks again.
    Broken(Box<Failure>, Duration),
    /// Its destination has all it may have: come again after about this time.
    Full(Duration, DeferCause),
    /// The worker drains.
    Draining,
    /// Its backfill was cancelled.
    Cancelled(Ended),
}

impl Worker {
    /// The turn of a job. `permits` are given up while it waits.
    pub(super) async fn turn(&self, delivery: &Delivery, admitted: &Admitted, mut permits: Permits) -> Told {
        let id = &admitted.destination.id;
        if let Some(failure) = self.outage.spares(id) {
            return Told::Away(Away::Broken(Box::new(failure), Duration::ZERO));
        }
        if let Some(away) = self.circuit(id, &mut permits) {
            return Told::Away(away);
        }
        let lane = published_to(delivery);
        let (pass, late) = match self.limits.ask(&admitted.destination, delivery.lane) {
            Turn::Now(pass) => (pass, false),
            Turn::Crowded(wait) => return Told::Away(Away::Full(wait, DeferCause::Concurrency)),
            Turn::Throttled(debt) => return Told::Away(Away::Full(debt, DeferCause::Rate)),
            Turn::AtOnce(called) => match self.called(id, AT_ONCE * 2, called).await {
                Ok(pass) => (pass, false),
                Err(away) => return Told::Away(away),
            },
            Turn::Soon(called) => {
                permits.give_up_slot();
                match self.called(id, PATIENCE, called).await {
                    Ok(pass) => (pass, true),
                    Err(away) => return Told::Away(away),
                }
            }
        };
        permits.pass = Some(pass);
        // The ceiling of the backfills holds for those, too, that somebody else began.
        let backfill = lane == Lane::Backfill && permits.backfill.is_none();
        if (late || backfill)
            && let Err(away) = self.slots_again(id, lane, &mut permits).await
        {
            return Told::Away(away);
        }
        // It may have opened meanwhile.
        let opened = if late && permits.probe.is_none() { self.circuit(id, &mut permits) } else { None };
        opened.map_or(Told::Begin(permits), Told::Away)
    }

    fn circuit(&self, destination: &DestinationId, permits: &mut Permits) -> Option<Away> {
        match self.circuits.ask(destination) {
            Gate::Closed => None,
            Gate::Probe(probe) => {
                permits.probe = Some(probe);
                None
            }
            Gate::Open(failure, left) => Some(Away::Broken(failure, left)),
        }
    }

    async fn called(
        &self,
        destination: &DestinationId,
        patience: Duration,
        called: oneshot::Receiver<Pass>,
    ) -> Result<Pass, Away> {
        let called = self.unless_draining(timeout(patience, called)).await?;
        let full = || Away::Full(self.limits.estimate(destination), DeferCause::Concurrency);
        called.ok().and_then(Result::ok).ok_or_else(full)
    }

    /// A slot for a job that has waited without one.
    async fn slots_again(&self, destination: &DestinationId, lane: Lane, permits: &mut Permits) -> Result<(), Away> {
        permits.give_up_slot();
        let claimed = async {
            let backfill = if lane == Lane::Backfill { self.claim(&self.backfill_slots).await } else { None };
            (self.claim(&self.slots).await, backfill)
        };
        match self.unless_draining(timeout(PATIENCE, claimed)).await? {
            Ok((slot, backfill)) => {
                (permits.slot, permits.backfill) = (slot, backfill);
                Ok(())
            }
            Err(_) => Err(Away::Full(self.limits.estimate(destination), DeferCause::Concurrency)),
        }
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
            () = self.stop.hand_over.cancelled() => Err(Away::Draining),
            done = waiting => Ok(done),
        }
    }
}
