//! [`Queue`] of one simulated worker, with all faults of the broker.

mod leased;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::message::{SimMessage, index};
use super::world::{SimWorld, note};
use super::{invariants, lease};
use crate::domain::lane::Lane;
use crate::queue::{ControlEvent, Delivery, DeliveryTag, LeaseHolder, OutcomeEvent, Queue, QueueError, Settlement};

/// Queue of one worker.
#[derive(Debug)]
pub(super) struct SimQueue {
    pub(super) world: Arc<SimWorld>,
    pub(super) worker: usize,
}

/// Result of publishing a message.
enum PublishResult {
    Confirmed,
    /// The broker did not accept it.
    Refused,
    /// The broker accepted it, but the confirm was lost.
    Unconfirmed,
}

impl SimQueue {
    /// Returns while the process is alive; a stopped process waits for ever and has no further
    /// effect.
    pub(super) async fn while_alive(&self) {
        if !self.world.lock().workers[self.worker].alive {
            std::future::pending::<()>().await;
        }
    }

    /// Waits for the network.
    async fn network_delay(&self) {
        let wait = self.world.lock().latency();
        tokio::time::sleep(wait).await;
        self.while_alive().await;
    }

    fn count_call(&self) {
        self.world.lock().operations += 1;
    }

    async fn take(&self, lane: Lane) -> Option<Delivery> {
        let changed = Arc::clone(&self.world.lock().workers[self.worker].changed);
        loop {
            let notified = changed[index(lane)].notified();
            let mut notified = std::pin::pin!(notified);
            notified.as_mut().enable();
            self.while_alive().await;
            {
                let mut state = self.world.lock();
                let worker = &mut state.workers[self.worker];
                if worker.stopped {
                    return None;
                }
                if let Some(delivery) = worker.deliver_next(lane) {
                    state.operations += 1;
                    note!(state, "worker {} receives {:?} by {lane:?}", self.worker, delivery.properties.message_id);
                    return Some(delivery);
                }
            }
            notified.await;
        }
    }

    /// Publishes a message. `on_accept` runs if the broker accepts it.
    async fn send(&self, on_accept: impl FnOnce()) -> PublishResult {
        self.network_delay().await;
        let sent = {
            let mut state = self.world.lock();
            let fault_rates = state.scenario.fault_rates.clone();
            let away = state.broker_down;
            match () {
                () if away => None,
                () if state.fault_occurs("publishes refused", fault_rates.publish_refused) => {
                    Some(PublishResult::Refused)
                }
                () if state.fault_occurs("confirms lost", fault_rates.unconfirmed) => Some(PublishResult::Unconfirmed),
                () => Some(PublishResult::Confirmed),
            }
        };
        let Some(sent) = sent else {
            // The publisher waits for the broker, but not for ever.
            let timeout = self.world.lock().rng.seconds(1, 30);
            tokio::time::sleep(timeout).await;
            self.while_alive().await;
            return PublishResult::Refused;
        };
        if !matches!(sent, PublishResult::Refused) {
            on_accept();
        }
        // The confirm is on its way, and can be lost until the faults end.
        if !self.world.lock().faults_over {
            self.network_delay().await;
        }
        sent
    }

    /// Publishes a message that belongs to no delivery.
    pub(super) async fn published(&self, on_accept: impl FnOnce()) -> Result<(), QueueError> {
        confirmed(self.send(on_accept).await)
    }

    fn message(&self, ticket: DeliveryTag) -> Result<SimMessage, QueueError> {
        self.world.lock().workers[self.worker].unacked_message(ticket).cloned().ok_or(QueueError::Lost)
    }

    async fn perform(
        &self,
        delivery: Delivery,
        settlement: Settlement,
        events: Vec<OutcomeEvent>,
    ) -> Result<(), QueueError> {
        self.while_alive().await;
        self.count_call();
        let ticket = delivery.ticket;
        let leased = {
            let mut state = self.world.lock();
            invariants::check_settlement(&mut state, self.worker, &delivery, &settlement, &events);
            state.lease_of(self.worker, ticket).is_some()
        };
        if leased {
            return self.perform_leased(delivery, settlement, events).await;
        }
        if matches!(settlement, Settlement::Requeue) {
            self.network_delay().await;
            let returned = self.world.lock().requeue_unacked(self.worker, ticket);
            return if returned { Ok(()) } else { Err(QueueError::Lost) };
        }
        let copied = !matches!(settlement, Settlement::Ack);
        match self.publish_all(&delivery, settlement, events).await {
            Ok(()) => {
                self.network_delay().await;
                self.acknowledge(ticket, copied)
            }
            Err(error) => {
                // Its events may have been published, and the job will end a second time.
                let job = invariants::job_of(delivery.properties.message_id.as_deref());
                self.world.lock().records[job].duplicated = true;
                self.redeliver_later(ticket);
                Err(error)
            }
        }
    }

    /// Publishes the events, then the copy.
    async fn publish_all(
        &self,
        delivery: &Delivery,
        settlement: Settlement,
        events: Vec<OutcomeEvent>,
    ) -> Result<(), QueueError> {
        let job = invariants::job_of(delivery.properties.message_id.as_deref());
        for event in events {
            confirmed(self.send(|| invariants::check_outcome(&mut self.world.lock(), job, &event)).await)?;
        }
        if matches!(settlement, Settlement::Ack) {
            return Ok(());
        }
        let message = self.message(delivery.ticket)?;
        let sent = self.send(|| self.put_copy(&message, delivery, settlement)).await;
        if matches!(sent, PublishResult::Unconfirmed) {
            self.world.lock().records[job].duplicated = true;
        }
        confirmed(sent)
    }

    fn put_copy(&self, message: &SimMessage, delivery: &Delivery, settlement: Settlement) {
        match settlement {
            Settlement::Retry { delay, headers } | Settlement::Defer { delay, headers } => {
                self.world.delay(delay, message.copy(delivery, headers));
            }
            Settlement::DeadLetter { headers } => {
                let mut state = self.world.lock();
                let letter = message.copy(delivery, headers);
                note!(state, "{} is dead-lettered: {:?}", state.plan(letter.job).id, letter.properties.headers);
                invariants::check_dead_letter(&mut state, &letter);
                state.dead.push(letter);
            }
            Settlement::HandOff { headers } => {
                self.world.lock().enqueue(Lane::Continued, message.copy(delivery, headers), false);
            }
            Settlement::Ack | Settlement::Requeue => {}
        }
    }

    /// Acknowledges a delivery. `copied` if a copy replaces it.
    fn acknowledge(&self, ticket: DeliveryTag, copied: bool) -> Result<(), QueueError> {
        let (lost, taken) = {
            let mut state = self.world.lock();
            let fault_rates = state.scenario.fault_rates.clone();
            (
                state.fault_occurs("acks lost", fault_rates.ack_lost),
                state.fault_occurs("acks unreported", fault_rates.ack_unknown),
            )
        };
        if copied && (lost || self.world.lock().workers[self.worker].unacked_message(ticket).is_none()) {
            self.world.lock().count_fault("copies beside their originals");
        }
        if lost {
            // It was written to a connection that broke before the broker read it.
            self.world.lose_connection(self.worker);
            return Ok(());
        }
        let mut state = self.world.lock();
        let Some(message) = state.workers[self.worker].take_unacked(ticket) else { return Err(QueueError::Lost) };
        invariants::check_acknowledgement(&mut state, message.job);
        state.dispatch();
        drop(state);
        self.world.changed.notify_one();
        if taken {
            self.world.lose_connection(self.worker);
            return Err(QueueError::Lost);
        }
        Ok(())
    }

    /// Redelivers a delivery that could not be settled, at once or later.
    fn redeliver_later(&self, ticket: DeliveryTag) {
        let wait = self.world.lock().rng.millis(0, 20_000);
        let worker = self.worker;
        self.world.schedule(wait, move |world| {
            world.lock().requeue_unacked(worker, ticket);
        });
    }
}

fn confirmed(sent: PublishResult) -> Result<(), QueueError> {
    match sent {
        PublishResult::Confirmed => Ok(()),
        PublishResult::Refused => Err(QueueError::Unavailable("the message was refused".to_owned())),
        PublishResult::Unconfirmed => Err(QueueError::Unavailable("the message was not confirmed".to_owned())),
    }
}

#[async_trait]
impl Queue for SimQueue {
    async fn wait_connected(&self, _limit: Duration) -> Result<(), QueueError> {
        Ok(())
    }

    async fn next(&self, lane: Lane) -> Option<Delivery> {
        self.take(lane).await
    }

    async fn settle(
        &self,
        delivery: Delivery,
        settlement: Settlement,
        events: Vec<OutcomeEvent>,
    ) -> Result<(), QueueError> {
        let upload = lease::checkpoint(delivery.properties.content_type.as_deref(), &delivery.body);
        let job = invariants::job_of(delivery.properties.message_id.as_deref());
        let settled = self.perform(delivery, settlement, events).await;
        let mut state = self.world.lock();
        // A duplicate's settlement leaves the upload to the attempt that runs here.
        if settled.is_err() && !state.records[job].running.contains(&self.worker) {
            state.workers[self.worker].unsettled_uploads.extend(upload);
        }
        settled
    }

    async fn publish_control(&self, control: Bytes) -> Result<(), QueueError> {
        self.publish_report(control).await
    }

    async fn next_control(&self) -> Option<ControlEvent> {
        self.next_report().await
    }

    async fn lease(&self, delivery: &Delivery, key: &str, work: Arc<dyn LeaseHolder>) -> Result<(), QueueError> {
        self.world.lock().workers[self.worker].leasing += 1;
        let taken = self.take_lease(delivery, key, work).await;
        self.world.lock().workers[self.worker].leasing -= 1;
        taken
    }

    fn can_settle(&self, ticket: DeliveryTag) -> bool {
        let state = self.world.lock();
        let unacked = state.workers[self.worker].unacked_message(ticket).is_some();
        unacked || state.leases.values().any(|lease| (lease.worker, lease.ticket) == (self.worker, ticket))
    }

    async fn stop_consuming(&self) {
        self.count_call();
        let changed = {
            let mut state = self.world.lock();
            state.workers[self.worker].stopped = true;
            Arc::clone(&state.workers[self.worker].changed)
        };
        changed.iter().for_each(tokio::sync::Notify::notify_waiters);
        self.network_delay().await;
        self.world.lock().requeue_prefetched(self.worker);
    }

    async fn pause(&self, lane: Lane) {
        self.count_call();
        self.world.lock().workers[self.worker].paused[index(lane)] = true;
        self.network_delay().await;
        self.world.lock().requeue_lane(self.worker, lane);
    }

    async fn resume(&self, lane: Lane, room: u16) {
        self.count_call();
        self.while_alive().await;
        let mut state = self.world.lock();
        state.workers[self.worker].resume(lane, room);
        state.dispatch();
    }

    fn oldest_prefetched(&self) -> Option<(Lane, tokio::time::Instant)> {
        self.world.lock().workers[self.worker].oldest_prefetched()
    }

    async fn close(&self) {
        self.count_call();
        self.network_delay().await;
    }

    fn ready(&self) -> Result<(), String> {
        Ok(())
    }
}
