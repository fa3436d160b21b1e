//! Simulated broker: queues, dispatch to workers, and lost connections.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::message::{SimMessage, index};
use super::world::{SimState, SimWorld, note};
use crate::domain::lane::Lane;
use crate::domain::outcome::RetryDelay;
use crate::queue::DeliveryTag;

impl SimState {
    /// Puts a message into a queue and dispatches what is ready.
    pub(super) fn enqueue(&mut self, lane: Lane, message: SimMessage, front: bool) {
        let reordered = self.scenario.fault_rates.reordered && !self.faults_over;
        let queue = &mut self.ready[index(lane)];
        if reordered {
            let position = self.rng.index(queue.len() + 1);
            queue.insert(position, message);
        } else if front {
            queue.push_front(message);
        } else {
            queue.push_back(message);
        }
        self.dispatch();
    }

    /// Requeues a message that was not settled.
    pub(super) fn requeue(&mut self, lane: Lane, message: SimMessage) {
        let front = !self.scenario.fault_rates.requeue_to_back;
        if (400..500).contains(&message.delivery_count) {
            self.report_violation(format!(
                "{} was redelivered {} times",
                self.plan(message.job).id,
                message.delivery_count
            ));
        }
        self.enqueue(lane, message.into_redelivery(), front);
    }

    /// Dispatches ready messages to workers with free prefetch. The worker is chosen at random.
    pub(super) fn dispatch(&mut self) {
        for lane in Lane::ALL {
            while !self.broker_down && !self.ready[index(lane)].is_empty() {
                let has_room = |worker: &(usize, &super::worker::SimWorker)| worker.1.has_room(lane);
                let candidates: Vec<_> =
                    self.workers.iter().enumerate().filter(has_room).map(|(number, _)| number).collect();
                if candidates.is_empty() {
                    break;
                }
                let to = *self.rng.choose(&candidates);
                let tag = self.next_number();
                let Some(message) = self.ready[index(lane)].pop_front() else { break };
                let worker = &mut self.workers[to];
                worker.prefetched[index(lane)].push_back((tag, Instant::now(), message));
                worker.changed[index(lane)].notify_waiters();
            }
        }
    }

    /// Requeues what a worker has prefetched of a lane and not handed out.
    pub(super) fn requeue_lane(&mut self, worker: usize, lane: Lane) {
        for (lane, message) in self.workers[worker].take_lane(lane) {
            self.requeue(lane, message);
        }
    }

    /// Requeues what a worker has prefetched and not handed out.
    pub(super) fn requeue_prefetched(&mut self, worker: usize) {
        for (lane, message) in self.workers[worker].take_prefetched() {
            self.requeue(lane, message);
        }
    }

    /// Ends a worker's connection. Its unacked messages are requeued; messages under a lease are
    /// not.
    fn drop_connection(&mut self, worker: usize) {
        note!(self, "worker {worker} is disconnected");
        self.count_fault("connections lost");
        let process = &mut self.workers[worker];
        process.connected = false;
        process.generation += 1;
        let mut back = process.take_prefetched();
        back.extend(std::mem::take(&mut process.unacked).into_values());
        for (lane, message) in back {
            self.records[message.job].duplicated = true;
            self.requeue(lane, message);
        }
    }

    /// Ends a worker's process.
    pub(super) fn kill(&mut self, worker: usize) {
        note!(self, "worker {worker} has stopped");
        self.workers[worker].alive = false;
        for record in &mut self.records {
            record.crashes += u32::from(record.running.contains(&worker));
            record.running.retain(|other| *other != worker);
        }
        self.leases.retain(|_, lease| lease.worker != worker || !lease.superseded);
        self.drop_connection(worker);
        self.allow_unrecorded_uploads(worker);
        self.workers[worker].changed.iter().for_each(tokio::sync::Notify::notify_waiters);
    }

    /// Requeues an unacked message. Returns false if it is not unacked any more.
    pub(super) fn requeue_unacked(&mut self, worker: usize, ticket: DeliveryTag) -> bool {
        let Some(message) = self.workers[worker].take_unacked(ticket) else { return false };
        self.requeue(ticket.lane, message);
        true
    }
}

impl SimWorld {
    /// Drops a worker's connection. It reconnects soon after.
    pub(super) fn lose_connection(self: &Arc<Self>, worker: usize) {
        let wait = {
            let mut state = self.lock();
            if !state.workers[worker].alive || !state.workers[worker].connected {
                return;
            }
            state.drop_connection(worker);
            state.rng.millis(100, 20_000)
        };
        self.schedule(wait, move |world| world.reconnect(worker));
    }

    /// Reconnects a worker. During a broker outage this does nothing: the end of the outage
    /// reconnects it.
    pub(super) fn reconnect(self: &Arc<Self>, worker: usize) {
        let superseded = {
            let mut state = self.lock();
            if state.broker_down || !state.workers[worker].alive {
                return;
            }
            note!(state, "worker {worker} is connected");
            state.workers[worker].connected = true;
            state.dispatch();
            state.take_superseded(worker)
        };
        superseded.iter().for_each(|work| work.lost());
        self.changed.notify_one();
    }

    /// Makes the broker unreachable for a while.
    pub(super) fn start_broker_outage(self: &Arc<Self>, wait: Duration) {
        {
            let mut state = self.lock();
            if state.broker_down {
                return;
            }
            note!(state, "the broker is down for {wait:?}");
            state.count_fault("broker outages");
            state.broker_down = true;
            state.control.interrupt();
            for worker in 0..state.workers.len() {
                if state.workers[worker].alive && state.workers[worker].connected {
                    state.drop_connection(worker);
                }
            }
        }
        self.schedule(wait, Self::end_broker_outage);
    }

    /// Ends a broker outage.
    pub(super) fn end_broker_outage(self: &Arc<Self>) {
        let disconnected = {
            let mut state = self.lock();
            if !state.broker_down {
                return;
            }
            note!(state, "the broker is up");
            state.broker_down = false;
            state.control.resume();
            let workers = state.workers.iter().enumerate();
            workers.filter(|(_, worker)| worker.alive && !worker.connected).map(|(n, _)| n).collect::<Vec<_>>()
        };
        for worker in disconnected {
            let wait = self.lock().rng.millis(10, 5000);
            self.schedule(wait, move |world| world.reconnect(worker));
        }
    }

    /// Puts a copy into a wait queue. After `delay` it goes to its lane.
    pub(super) fn delay(self: &Arc<Self>, delay: RetryDelay, message: SimMessage) {
        let number = {
            let mut state = self.lock();
            note!(state, "{} waits {} ({:?})", state.plan(message.job).id, delay.as_str(), message.properties.headers);
            let number = state.next_number();
            state.waiting.insert(number, message);
            number
        };
        self.schedule(delay.duration(), move |world| {
            let mut state = world.lock();
            let Some(message) = state.waiting.remove(&number) else { return };
            let percent = state.scenario.fault_rates.duplicate_release;
            if state.fault_occurs("copies released twice", percent) {
                note!(state, "the copy of {} is released twice", state.plan(message.job).id);
                let record = &mut state.records[message.job];
                (record.duplicated, record.released_twice) = (true, true);
                state.enqueue(message.lane(), message.clone(), false);
            }
            state.enqueue(message.lane(), message, false);
        });
    }
}
