//! Duplicate deliveries of a job in flight. Each can replace the owner's own delivery, should that
//! one be lost with its channel: most likely it is the same message, redelivered.

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::queue::{Delivery, DeliveryTag};

/// Deliveries that wait for the end of a job in flight. Each is either taken by the owner or
/// reclaimed by its own task.
#[derive(Debug, Default)]
pub(in crate::worker) struct Duplicates {
    parked: Mutex<Vec<Duplicate>>,
    arrived: Notify,
}

#[derive(Debug)]
struct Duplicate {
    delivery: Delivery,
    /// Upload id of the checkpoint that it carries.
    upload_id: Option<String>,
}

impl Duplicates {
    /// Parks a delivery that carries a checkpoint with this upload id.
    pub(super) fn park(&self, delivery: Delivery, upload_id: Option<String>) {
        self.parked.lock().push(Duplicate { delivery, upload_id });
        self.arrived.notify_waiters();
    }

    /// Returns the parked delivery, unless the owner took it.
    pub(super) fn reclaim(&self, tag: DeliveryTag) -> Option<Delivery> {
        self.remove(|duplicate| duplicate.delivery.ticket == tag)
    }

    /// Takes a delivery that can replace the owner's, which came with the upload `upload_id`. The
    /// caller settles it.
    pub(in crate::worker) fn take(&self, upload_id: Option<&str>) -> Option<Delivery> {
        // A duplicate with another upload is no replacement: that upload would never be aborted.
        self.remove(|duplicate| duplicate.upload_id.is_none() || duplicate.upload_id.as_deref() == upload_id)
    }

    /// As [`Duplicates::take`], but waits for one. Cancel safe.
    pub(in crate::worker) async fn next(&self, upload_id: Option<&str>) -> Delivery {
        loop {
            let mut arrived = std::pin::pin!(self.arrived.notified());
            arrived.as_mut().enable();
            if let Some(delivery) = self.take(upload_id) {
                return delivery;
            }
            arrived.await;
        }
    }

    fn remove(&self, which: impl Fn(&Duplicate) -> bool) -> Option<Delivery> {
        let mut parked = self.parked.lock();
        let index = parked.iter().position(which)?;
        Some(parked.remove(index).delivery)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::domain::lane::Lane;
    use crate::worker::sample;

    pub(in crate::worker::in_flight) fn delivery(tag: u64) -> Delivery {
        let ticket = DeliveryTag { generation: 2, lane: Lane::Scheduled, tag };
        Delivery { redelivered: true, delivery_count: 1, ticket, ..sample::delivery(Bytes::new()) }
    }

    #[tokio::test]
    async fn a_duplicate_is_either_taken_or_reclaimed() {
        let duplicates = Duplicates::default();
        duplicates.park(delivery(1), None);
        duplicates.park(delivery(2), None);
        assert_eq!(duplicates.take(Some("mine")).unwrap().ticket.tag, 1);
        assert!(duplicates.reclaim(delivery(1).ticket).is_none());
        assert_eq!(duplicates.reclaim(delivery(2).ticket).unwrap().ticket.tag, 2);
        assert!(duplicates.take(None).is_none());
    }

    #[tokio::test]
    async fn a_duplicate_with_another_upload_is_no_replacement() {
        let duplicates = Duplicates::default();
        duplicates.park(delivery(1), Some("theirs".to_owned()));
        assert!(duplicates.take(None).is_none());
        assert!(duplicates.take(Some("ours")).is_none());
        duplicates.park(delivery(2), Some("ours".to_owned()));
        assert_eq!(duplicates.take(Some("ours")).unwrap().ticket.tag, 2);
    }

    #[tokio::test]
    async fn the_owner_waits_for_a_redelivery() {
        let duplicates = Duplicates::default();
        let (taken, ()) = tokio::join!(duplicates.next(None), async {
            tokio::task::yield_now().await;
            duplicates.park(delivery(1), None);
        });
        assert_eq!(taken.ticket.tag, 1);
    }
}
