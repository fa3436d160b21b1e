//! Deliveries of a job that is at work here already: they wait for its end. Meanwhile each can take the place of the work's own
//! delivery, should that be lost with its channel: most likely it is that very message, come again.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::timeout;

use super::Worker;
use super::decode::Admitted;
use super::history;
use super::in_flight::{Seat, Standing};
use super::lease::Held;
use crate::domain::outcome::RetryDelay;
use crate::queue::{Delivery, DeliveryTag, Settlement};
use crate::telemetry::spans;

/// A redelivery waits this long for the work on its job; then it waits in the queue.
const JOINED: Duration = Duration::from_secs(30);
/// What traces call the end of a delivery that other work has answered.
const JOINED_OUTCOME: &str = "joined";

/// Deliveries that wait for the end of the work on their job, where that can take them. Each is either taken or reclaimed.
#[derive(Debug, Default)]
pub(super) struct Spares {
    parked: Mutex<Vec<Spare>>,
    came: Notify,
}

#[derive(Debug)]
struct Spare {
    delivery: Delivery,
    /// The unfinished upload that it came with.
    carried: Option<String>,
}

impl Spare {
    /// One with another upload than the work's is no replacement: that upload would be forgotten with it.
    fn fits(&self, ours: Option<&str>) -> bool {
        self.carried.is_none() || self.carried.as_deref() == ours
    }
}

impl Spares {
    fn lock(&self) -> MutexGuard<'_, Vec<Spare>> {
        self.parked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn park(&self, delivery: Delivery, carried: Option<String>) {
        self.lock().push(Spare { delivery, carried });
        self.came.notify_waiters();
    }

    fn remove(&self, which: impl Fn(&Spare) -> bool) -> Option<Delivery> {
        let mut parked = self.lock();
        let place = parked.iter().position(which)?;
        Some(parked.remove(place).delivery)
    }

    /// The delivery that was parked, unless it was taken.
    fn reclaim(&self, ticket: DeliveryTag) -> Option<Delivery> {
        self.remove(|spare| spare.delivery.ticket == ticket)
    }

    /// One that can stand in for the delivery of work that came with the upload `ours`. Whoever takes it settles it.
    pub(super) fn take(&self, ours: Option<&str>) -> Option<Delivery> {
        self.remove(|spare| spare.fits(ours))
    }

    /// As [`Spares::take`]; waits for one. Cancel safe.
    pub(super) async fn next(&self, ours: Option<&str>) -> Delivery {
        loop {
            let mut came = std::pin::pin!(self.came.notified());
            came.as_mut().enable();
            if let Some(delivery) = self.take(ours) {
                return delivery;
            }
            came.await;
        }
    }
}

impl Worker {
    /// Waits for the work that goes on, though not for ever: whoever waits takes a place of what may be fetched. Only the `same`
    /// message can take the other one's place: a copy that was made of it elsewhere has other counters.
    pub(super) async fn join(&self, seat: (&Seat, bool), delivery: Delivery, admitted: &Admitted) {
        self.trace(&delivery, admitted).run(self.joined(seat, delivery, admitted)).await;
    }

    async fn joined(&self, (seat, same): (&Seat, bool), delivery: Delivery, admitted: &Admitted) {
        let carried = admitted.lease.as_ref().and_then(|lease| lease.checkpoint.as_ref());
        let ticket = delivery.ticket;
        tracing::debug!(job_id = %admitted.job.id, "a job came again while it is at work here");
        let apart = if same {
            seat.spares.park(delivery, carried.map(|checkpoint| checkpoint.upload_id.clone()));
            None
        } else {
            Some(delivery)
        };
        let ended = timeout(JOINED, seat.end()).await;
        let Some(delivery) = apart.or_else(|| seat.spares.reclaim(ticket)) else {
            // The work it joined settles it.
            return spans::ended(JOINED_OUTCOME, None);
        };
        let settlement = match ended {
            Ok(Standing::Settled(kept)) => {
                self.left_over(admitted, kept.as_deref()).await;
                Settlement::Ack
            }
            Ok(Standing::Open) => Settlement::Requeue,
            Err(_) => Settlement::Defer { delay: RetryDelay::S30, headers: history::begun_at(seat.begun) },
        };
        let outcome = if matches!(settlement, Settlement::Ack) { JOINED_OUTCOME } else { settlement.action() };
        spans::ended(outcome, None);
        self.settle(delivery, settlement, Vec::new()).await;
    }

    /// Before work is settled: a delivery that was lost is replaced by one that has joined, if there is one. Not where another worker
    /// has the job: then what joins is its to settle, and this work's end is no end of the job.
    pub(super) fn replace_lost(&self, delivery: &mut Delivery, seat: &Seat, held: &Held) {
        while !held.is_lost() && !self.parts.queue.can_settle(delivery) {
            let Some(spare) = seat.spares.take(held.carried()) else { return };
            tracing::debug!("the delivery was lost; the one that came again is settled");
            *delivery = spare;
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::domain::lane::Lane;
    use crate::queue::Properties;

    fn delivery(tag: u64) -> Delivery {
        Delivery {
            lane: Lane::Scheduled,
            body: Bytes::new(),
            properties: Properties::default(),
            routing_key: "job.scheduled.acme".to_owned(),
            redelivered: true,
            delivery_count: 1,
            ticket: DeliveryTag { generation: 2, lane: Lane::Scheduled, tag },
        }
    }

    #[tokio::test]
    async fn a_delivery_is_either_taken_or_reclaimed() {
        let spares = Spares::default();
        spares.park(delivery(1), None);
        spares.park(delivery(2), None);
        assert_eq!(spares.take(Some("mine")).unwrap().ticket.tag, 1);
        assert!(spares.reclaim(delivery(1).ticket).is_none());
        assert_eq!(spares.reclaim(delivery(2).ticket).unwrap().ticket.tag, 2);
        assert!(spares.take(None).is_none());
    }

    #[tokio::test]
    async fn a_delivery_with_the_upload_of_other_work_is_no_replacement() {
        let spares = Spares::default();
        spares.park(delivery(1), Some("theirs".to_owned()));
        assert!(spares.take(None).is_none());
        assert!(spares.take(Some("ours")).is_none());
        spares.park(delivery(2), Some("ours".to_owned()));
        assert_eq!(spares.take(Some("ours")).unwrap().ticket.tag, 2);
    }

    #[tokio::test]
    async fn work_waits_for_a_delivery_that_comes_again() {
        let spares = Spares::default();
        let (taken, ()) = tokio::join!(spares.next(None), async {
            tokio::task::yield_now().await;
            spares.park(delivery(1), None);
        });
        assert_eq!(taken.ticket.tag, 1);
    }
}
