//! Leases as a simulated worker takes and settles them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::{PublishResult, SimQueue};
use crate::domain::job::lease::Lease;
use crate::queue::{Delivery, DeliveryTag, LeaseHolder, LeaseMessage, OutcomeEvent, QueueError, Settlement};
use crate::sim::lease::SimLease;
use crate::sim::message::SimMessage;
use crate::sim::{clock, invariants};

impl SimQueue {
    /// Puts a delivery under a lease, or renews its lease.
    pub(super) async fn take_lease(
        &self,
        delivery: &Delivery,
        key: &str,
        work: Arc<dyn LeaseHolder>,
    ) -> Result<(), QueueError> {
        self.while_alive().await;
        self.count_call();
        let ticket = delivery.ticket;
        let message = work.message();
        let lease = self.world.lock().lease_of(self.worker, ticket);
        if lease.is_none() {
            self.message(ticket)?;
        }
        match self.send(|| ()).await {
            PublishResult::Confirmed => {}
            PublishResult::Refused => return Err(QueueError::Unavailable("the lease was refused".to_owned())),
            PublishResult::Unconfirmed => {
                let held = lease.and_then(|number| Some(self.world.lock().leases.get(&number)?.base.clone()));
                let base = held.map_or_else(|| self.message(ticket), Ok)?;
                self.world.leave_stale_message(&self.new_lease(base, ticket, key, work, message));
                return Err(QueueError::Unavailable("the lease was not confirmed".to_owned()));
            }
        }
        if let Some(number) = lease {
            let mut state = self.world.lock();
            let lease = state.leases.get_mut(&number).filter(|lease| !lease.superseded).ok_or(QueueError::Lost)?;
            lease.message = message;
            lease.renewed_at = clock::elapsed();
            state.record_lease_upload(number);
            return Ok(());
        }
        if self.world.lock().loses_to_rival(self.worker, ticket) {
            work.lost();
            return Err(QueueError::Lost);
        }
        let base = self.world.lock().workers[self.worker].take_unacked(ticket).ok_or(QueueError::Lost)?;
        invariants::check_lease(&mut self.world.lock(), &base, &message);
        let came_as_lease = Lease::is_type(base.properties.content_type.as_deref());
        let lease = self.new_lease(base, ticket, key, work, message);
        self.world.start_lease(lease, came_as_lease);
        self.world.lock().dispatch();
        Ok(())
    }

    fn new_lease(
        &self,
        base: SimMessage,
        ticket: DeliveryTag,
        key: &str,
        work: Arc<dyn LeaseHolder>,
        message: LeaseMessage,
    ) -> SimLease {
        let renewed_at = clock::elapsed();
        SimLease {
            key: key.to_owned(),
            worker: self.worker,
            ticket,
            work,
            base,
            message,
            renewed_at,
            superseded: false,
        }
    }

    /// Settles a delivery under a lease. Retries across reconnections while the lease is this
    /// worker's.
    pub(super) async fn perform_leased(
        &self,
        delivery: Delivery,
        settlement: Settlement,
        events: Vec<OutcomeEvent>,
    ) -> Result<(), QueueError> {
        let ticket = delivery.ticket;
        let settlement = match settlement {
            Settlement::Requeue => Settlement::HandOff { headers: BTreeMap::new() },
            other => other,
        };
        let job = invariants::job_of(delivery.properties.message_id.as_deref());
        for event in &events {
            // Also if the lease is lost meanwhile.
            while !matches!(
                self.send(|| invariants::check_outcome(&mut self.world.lock(), job, event)).await,
                PublishResult::Confirmed
            ) {}
        }
        if !matches!(settlement, Settlement::Ack) {
            let mut settlement = Some(settlement);
            self.send_until_confirmed(ticket, job, || {
                let base = self.world.lock().lease_of(self.worker, ticket);
                let base =
                    base.and_then(|number| self.world.lock().leases.get(&number).map(|lease| lease.base.clone()));
                if let (Some(base), Some(settlement)) = (base, settlement.take()) {
                    self.put_copy(&base, &delivery, settlement);
                }
            })
            .await?;
        }
        self.end_lease(ticket)
    }

    /// Publishes until confirmed. The real broker keeps each unconfirmed copy; one is enough here.
    async fn send_until_confirmed(
        &self,
        ticket: DeliveryTag,
        job: usize,
        mut on_accept: impl FnMut(),
    ) -> Result<(), QueueError> {
        loop {
            self.world.lock().lease_of(self.worker, ticket).ok_or(QueueError::Lost)?;
            if !self.world.lock().workers[self.worker].connected {
                tokio::time::sleep(Duration::from_secs(1)).await;
                self.while_alive().await;
                continue;
            }
            match self.send(&mut on_accept).await {
                PublishResult::Confirmed => return Ok(()),
                PublishResult::Unconfirmed => self.world.lock().records[job].duplicated = true,
                PublishResult::Refused => {}
            }
        }
    }

    fn end_lease(&self, ticket: DeliveryTag) -> Result<(), QueueError> {
        let (lease, left_behind) = {
            let mut state = self.world.lock();
            let number = state.lease_of(self.worker, ticket).ok_or(QueueError::Lost)?;
            let lease = state.leases.remove(&number).ok_or(QueueError::Lost)?;
            invariants::check_acknowledgement(&mut state, lease.base.job);
            let fault_rates = state.scenario.fault_rates.ack_lost;
            (lease, state.fault_occurs("acks lost", fault_rates))
        };
        if left_behind {
            self.world.leave_stale_message(&lease);
        }
        self.world.changed.notify_one();
        Ok(())
    }
}
