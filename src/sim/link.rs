//! The queue as one worker has it: an implementation of [`Queue`] over the story's broker, with all its faults.

use std::sync::Arc;
use std::time::Duration;

use super::held::Held;
use super::message::{Message, index};
use super::world::{World, note};
use super::{clock, held, rules};
use crate::domain::job::lease::Lease;
use crate::domain::lane::Lane;
use crate::queue::{BoxFuture, Delivery, DeliveryTag, LeaseHolder, OutcomeEvent, Queue, QueueError, Settlement};

/// A worker's end of the line.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) world: Arc<World>,
    pub(super) member: usize,
}

/// What came of a message that was sent to the broker.
enum Sent {
    Confirmed,
    /// It was not taken.
    Refused,
    /// It was taken, and the worker is not told.
    Unconfirmed,
}

impl Link {
    /// Waits until the process is gone, where it is gone: nothing it does has an effect.
    async fn while_alive(&self) {
        if !self.world.lock().members[self.member].alive {
            std::future::pending::<()>().await;
        }
    }

    /// Something that takes its time on the network.
    async fn hop(&self) {
        let wait = self.world.lock().latency();
        tokio::time::sleep(wait).await;
        self.while_alive().await;
    }

    fn called(&self) {
        self.world.lock().operations += 1;
    }

    async fn take(&self, lane: Lane) -> Option<Delivery> {
        let changed = Arc::clone(&self.world.lock().members[self.member].changed);
        loop {
            let notified = changed[index(lane)].notified();
            let mut notified = std::pin::pin!(notified);
            notified.as_mut().enable();
            self.while_alive().await;
            {
                let mut state = self.world.lock();
                let member = &mut state.members[self.member];
                if member.stopped {
                    return None;
                }
                if let Some(delivery) = member.hand_out(lane) {
                    state.operations += 1;
                    note!(state, "worker {} takes {:?} by {lane:?}", self.member, delivery.properties.message_id);
                    return Some(delivery);
                }
            }
            notified.await;
        }
    }

    /// Sends a message to the broker, as far as it can be reached.
    async fn send(&self, taken: impl FnOnce()) -> Sent {
        self.hop().await;
        let sent = {
            let mut state = self.world.lock();
            let weather = state.story.weather.clone();
            let away = state.away;
            match () {
                () if away => None,
                () if state.strikes("refused", weather.refused) => Some(Sent::Refused),
                () if state.strikes("unconfirmed", weather.unconfirmed) => Some(Sent::Unconfirmed),
                () => Some(Sent::Confirmed),
            }
        };
        let Some(sent) = sent else {
            // The broker is waited for, though not for ever.
            let patience = self.world.lock().dice.seconds(1, 30);
            tokio::time::sleep(patience).await;
            self.while_alive().await;
            return Sent::Refused;
        };
        if !matches!(sent, Sent::Refused) {
            taken();
        }
        // The confirm is under way, and may meet anything but a calm.
        if !self.world.lock().calm {
            self.hop().await;
        }
        sent
    }

    fn message(&self, ticket: DeliveryTag) -> Result<Message, QueueError> {
        self.world.lock().members[self.member].loan(ticket).cloned().ok_or(QueueError::Lost)
    }

    async fn perform(
        &self,
        delivery: Delivery,
        settlement: Settlement,
        events: Vec<OutcomeEvent>,
    ) -> Result<(), QueueError> {
        self.while_alive().await;
        self.called();
        let ticket = delivery.ticket;
        let leased = {
            let mut state = self.world.lock();
            rules::settling(&mut state, self.member, &delivery, &settlement, &events);
            state.lease_of(self.member, ticket).is_some()
        };
        if leased {
            return self.perform_leased(delivery, settlement, events).await;
        }
        if matches!(settlement, Settlement::Requeue) {
            self.hop().await;
            let returned = self.world.lock().return_loan(self.member, ticket);
            return if returned { Ok(()) } else { Err(QueueError::Lost) };
        }
        match self.publish_all(&delivery, settlement, events).await {
            Ok(()) => {
                self.hop().await;
                self.acknowledge(ticket)
            }
            Err(error) => {
                // Its events may be out, and the job ends once more.
                let job = rules::job_of(delivery.properties.message_id.as_deref());
                self.world.lock().records[job].doubled = true;
                self.comes_again(ticket);
                Err(error)
            }
        }
    }

    /// The events, whatever has become of the delivery; then the copy.
    async fn publish_all(
        &self,
        delivery: &Delivery,
        settlement: Settlement,
        events: Vec<OutcomeEvent>,
    ) -> Result<(), QueueError> {
        let job = rules::job_of(delivery.properties.message_id.as_deref());
        for event in events {
            confirmed(self.send(|| rules::recorded(&mut self.world.lock(), job, &event)).await)?;
        }
        if matches!(settlement, Settlement::Ack) {
            return Ok(());
        }
        let message = self.message(delivery.ticket)?;
        let sent = self.send(|| self.put_copy(&message, delivery, settlement)).await;
        if matches!(sent, Sent::Unconfirmed) {
            self.world.lock().records[job].doubled = true;
        }
        confirmed(sent)
    }

    fn put_copy(&self, message: &Message, delivery: &Delivery, settlement: Settlement) {
        match settlement {
            Settlement::Retry { delay, headers } | Settlement::Defer { delay, headers } => {
                self.world.wait(delay, message.copy(delivery, headers));
            }
            Settlement::DeadLetter { headers } => {
                let mut state = self.world.lock();
                let letter = message.copy(delivery, headers);
                note!(state, "{} is dead: {:?}", state.plan(letter.job).id, letter.properties.headers);
                rules::buried(&mut state, &letter);
                state.dead.push(letter);
            }
            Settlement::HandOff { headers } => {
                self.world.lock().enqueue(Lane::Continued, message.copy(delivery, headers), false);
            }
            Settlement::Ack | Settlement::Requeue => {}
        }
    }

    fn acknowledge(&self, ticket: DeliveryTag) -> Result<(), QueueError> {
        let (lost, taken) = {
            let mut state = self.world.lock();
            let weather = state.story.weather.clone();
            (state.strikes("ack lost", weather.ack_lost), state.strikes("ack unknown", weather.ack_unknown))
        };
        if lost {
            // It was written to a connection that broke before the broker read it.
            self.world.lose(self.member);
            return Ok(());
        }
        let mut state = self.world.lock();
        let Some(message) = state.members[self.member].take_loan(ticket) else { return Err(QueueError::Lost) };
        rules::acknowledged(&mut state, message.job);
        state.dispatch();
        drop(state);
        self.world.changed.notify_one();
        if taken {
            self.world.lose(self.member);
            return Err(QueueError::Lost);
        }
        Ok(())
    }

    /// A delivery that could not be settled is delivered again, at once or later.
    fn comes_again(&self, ticket: DeliveryTag) {
        let wait = self.world.lock().dice.millis(0, 20_000);
        let member = self.member;
        self.world.after(wait, move |world| {
            world.lock().return_loan(member, ticket);
        });
    }

    async fn lease(&self, delivery: &Delivery, key: &str, work: Arc<dyn LeaseHolder>) -> Result<(), QueueError> {
        self.while_alive().await;
        self.called();
        let ticket = delivery.ticket;
        let message = work.message();
        let held = self.world.lock().lease_of(self.member, ticket);
        if held.is_none() {
            self.message(ticket)?;
        }
        match self.send(|| ()).await {
            Sent::Confirmed => {}
            Sent::Refused => return Err(QueueError::Unavailable("the lease is not taken".to_owned())),
            Sent::Unconfirmed => {
                let base = self.message(ticket)?;
                self.world.leave_behind(&self.held(base, ticket, key, work, message));
                return Err(QueueError::Unavailable("the lease is not confirmed".to_owned()));
            }
        }
        if let Some(number) = held {
            let mut state = self.world.lock();
            let held = state.leases.get_mut(&number).filter(|held| !held.passed_on).ok_or(QueueError::Lost)?;
            held.message = message;
            held.written = clock::elapsed();
            state.tell(number);
            return Ok(());
        }
        if self.world.lock().is_outbid(self.member, ticket) {
            work.lost();
            return Err(QueueError::Lost);
        }
        let base = self.world.lock().members[self.member].take_loan(ticket).ok_or(QueueError::Lost)?;
        rules::leased(&mut self.world.lock(), &base, &message);
        let came_as_lease = Lease::is_type(base.properties.content_type.as_deref());
        let held = self.held(base, ticket, key, work, message);
        self.world.hold(held, came_as_lease);
        self.world.lock().dispatch();
        Ok(())
    }

    fn held(
        &self,
        base: Message,
        ticket: DeliveryTag,
        key: &str,
        work: Arc<dyn LeaseHolder>,
        message: crate::queue::LeaseMessage,
    ) -> Held {
        let written = clock::elapsed();
        Held { key: key.to_owned(), member: self.member, ticket, work, base, message, written, passed_on: false }
    }

    /// Under a lease a settlement is tried over reconnections, for as long as the lease is this worker's.
    async fn perform_leased(
        &self,
        delivery: Delivery,
        settlement: Settlement,
        events: Vec<OutcomeEvent>,
    ) -> Result<(), QueueError> {
        let ticket = delivery.ticket;
        let settlement = match settlement {
            Settlement::Requeue => Settlement::HandOff { headers: std::collections::BTreeMap::new() },
            other => other,
        };
        let job = rules::job_of(delivery.properties.message_id.as_deref());
        for event in &events {
            // Even if the lease is lost meanwhile.
            while !matches!(self.send(|| rules::recorded(&mut self.world.lock(), job, event)).await, Sent::Confirmed) {}
        }
        if !matches!(settlement, Settlement::Ack) {
            let mut settlement = Some(settlement);
            self.insist(ticket, job, || {
                let base = self.world.lock().lease_of(self.member, ticket);
                let base = base.and_then(|number| self.world.lock().leases.get(&number).map(|held| held.base.clone()));
                if let (Some(base), Some(settlement)) = (base, settlement.take()) {
                    self.put_copy(&base, &delivery, settlement);
                }
            })
            .await?;
        }
        self.end_lease(ticket)
    }

    /// Sends until it is confirmed. What was taken without a confirm is taken again by the real broker; one copy of it does here.
    async fn insist(&self, ticket: DeliveryTag, job: usize, mut taken: impl FnMut()) -> Result<(), QueueError> {
        loop {
            self.world.lock().lease_of(self.member, ticket).ok_or(QueueError::Lost)?;
            if !self.world.lock().members[self.member].connected {
                tokio::time::sleep(Duration::from_secs(1)).await;
                self.while_alive().await;
                continue;
            }
            match self.send(&mut taken).await {
                Sent::Confirmed => return Ok(()),
                Sent::Unconfirmed => self.world.lock().records[job].doubled = true,
                Sent::Refused => {}
            }
        }
    }

    fn end_lease(&self, ticket: DeliveryTag) -> Result<(), QueueError> {
        let (held, left_behind) = {
            let mut state = self.world.lock();
            let number = state.lease_of(self.member, ticket).ok_or(QueueError::Lost)?;
            let held = state.leases.remove(&number).ok_or(QueueError::Lost)?;
            rules::acknowledged(&mut state, held.base.job);
            let weather = state.story.weather.ack_lost;
            (held, state.strikes("ack lost", weather))
        };
        if left_behind {
            self.world.leave_behind(&held);
        }
        self.world.changed.notify_one();
        Ok(())
    }
}

fn confirmed(sent: Sent) -> Result<(), QueueError> {
    match sent {
        Sent::Confirmed => Ok(()),
        Sent::Refused => Err(QueueError::Unavailable("not taken".to_owned())),
        Sent::Unconfirmed => Err(QueueError::Unavailable("not confirmed".to_owned())),
    }
}

impl Queue for Link {
    fn wait_connected(&self, _limit: Duration) -> BoxFuture<'_, Result<(), QueueError>> {
        Box::pin(async { Ok(()) })
    }

    fn next(&self, lane: Lane) -> BoxFuture<'_, Option<Delivery>> {
        Box::pin(self.take(lane))
    }

    fn settle(
        &self,
        delivery: Delivery,
        settlement: Settlement,
        events: Vec<OutcomeEvent>,
    ) -> BoxFuture<'_, Result<(), QueueError>> {
        Box::pin(async move {
            let upload = held::checkpoint(delivery.properties.content_type.as_deref(), &delivery.body);
            let settled = self.perform(delivery, settlement, events).await;
            if settled.is_err() {
                self.world.lock().members[self.member].unsettled.extend(upload);
            }
            settled
        })
    }

    fn lease<'a>(
        &'a self,
        delivery: &'a Delivery,
        key: &'a str,
        work: Arc<dyn LeaseHolder>,
    ) -> BoxFuture<'a, Result<(), QueueError>> {
        Box::pin(async move {
            self.world.lock().members[self.member].leasing += 1;
            let taken = self.lease(delivery, key, work).await;
            self.world.lock().members[self.member].leasing -= 1;
            taken
        })
    }

    fn can_settle(&self, delivery: &Delivery) -> bool {
        let state = self.world.lock();
        let lent = state.members[self.member].loan(delivery.ticket).is_some();
        lent || state.leases.values().any(|held| (held.member, held.ticket) == (self.member, delivery.ticket))
    }

    fn stop_consuming(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.called();
            let changed = {
                let mut state = self.world.lock();
                state.members[self.member].stopped = true;
                Arc::clone(&state.members[self.member].changed)
            };
            changed.iter().for_each(tokio::sync::Notify::notify_waiters);
            self.hop().await;
            self.world.lock().give_back(self.member);
        })
    }

    fn pause(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.called();
            self.world.lock().members[self.member].paused = true;
            self.hop().await;
            self.world.lock().give_back(self.member);
        })
    }

    fn resume(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.called();
            self.while_alive().await;
            let mut state = self.world.lock();
            state.members[self.member].paused = false;
            state.dispatch();
        })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.called();
            self.hop().await;
        })
    }

    fn ready(&self) -> Result<(), String> {
        Ok(())
    }
}
