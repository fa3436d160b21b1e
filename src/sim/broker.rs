//! The broker: queues, who gets what, sessions that are lost.

use std::sync::Arc;
use std::time::Duration;

use super::message::{Message, index};
use super::world::{State, World, note};
use crate::domain::lane::Lane;
use crate::domain::outcome::RetryDelay;
use crate::queue::DeliveryTag;

impl State {
    /// Puts a message into a queue and hands on what can be handed on.
    pub(super) fn enqueue(&mut self, lane: Lane, message: Message, front: bool) {
        let shuffled = self.story.weather.shuffled && !self.calm;
        let queue = &mut self.ready[index(lane)];
        if shuffled {
            let place = self.dice.index(queue.len() + 1);
            queue.insert(place, message);
        } else if front {
            queue.push_front(message);
        } else {
            queue.push_back(message);
        }
        self.dispatch();
    }

    /// A message comes back without a settlement.
    pub(super) fn requeue(&mut self, lane: Lane, message: Message) {
        let front = !self.story.weather.to_the_back;
        if (400..500).contains(&message.delivery_count) {
            self.wrong(format!("{} came back {} times", self.plan(message.job).id, message.delivery_count));
        }
        self.enqueue(lane, message.returned(), front);
    }

    /// Sends what is ready to whoever has room.
    pub(super) fn dispatch(&mut self) {
        for lane in Lane::ALL {
            while !self.away && !self.ready[index(lane)].is_empty() {
                let able = |member: &(usize, &super::member::Member)| member.1.has_room(lane);
                let able: Vec<_> = self.members.iter().enumerate().filter(able).map(|(number, _)| number).collect();
                if able.is_empty() {
                    break;
                }
                let to = *self.dice.pick(&able);
                let tag = self.number();
                let Some(message) = self.ready[index(lane)].pop_front() else { break };
                let member = &mut self.members[to];
                member.fetched[index(lane)].push_back((tag, message));
                member.changed[index(lane)].notify_waiters();
            }
        }
    }

    /// What a worker fetched and has not handed out goes back.
    pub(super) fn give_back(&mut self, member: usize) {
        for (lane, message) in self.members[member].take_fetched() {
            self.requeue(lane, message);
        }
    }

    /// Everything that a worker holds without a lease comes again; its session is over.
    fn end_session(&mut self, member: usize) {
        note!(self, "worker {member} has no session any more");
        self.happened("sessions lost");
        let gone = &mut self.members[member];
        gone.connected = false;
        gone.generation += 1;
        let mut back = gone.take_fetched();
        back.extend(std::mem::take(&mut gone.loans).into_values());
        for (lane, message) in back {
            self.records[message.job].doubled = true;
            self.requeue(lane, message);
        }
    }

    /// A worker's process is gone.
    pub(super) fn kill(&mut self, member: usize) {
        note!(self, "worker {member} is gone");
        self.members[member].alive = false;
        for record in &mut self.records {
            record.crashes += u32::from(record.running.contains(&member));
            record.running.retain(|other| *other != member);
        }
        self.leases.retain(|_, held| held.member != member || !held.passed_on);
        self.end_session(member);
        self.forgive_uploads(member);
        self.members[member].changed.iter().for_each(tokio::sync::Notify::notify_waiters);
    }

    /// Takes a loan back into its queue, if it is still one.
    pub(super) fn return_loan(&mut self, member: usize, ticket: DeliveryTag) -> bool {
        let Some(message) = self.members[member].take_loan(ticket) else { return false };
        self.requeue(ticket.lane, message);
        true
    }
}

impl World {
    /// A worker loses its session, and gets another soon.
    pub(super) fn lose(self: &Arc<Self>, member: usize) {
        let wait = {
            let mut state = self.lock();
            if !state.members[member].alive || !state.members[member].connected {
                return;
            }
            state.end_session(member);
            state.dice.millis(100, 20_000)
        };
        self.after(wait, move |world| world.reconnect(member));
    }

    /// A worker has a session again, unless the broker is away: then it gets one when the broker is back.
    pub(super) fn reconnect(self: &Arc<Self>, member: usize) {
        let told = {
            let mut state = self.lock();
            if state.away || !state.members[member].alive {
                return;
            }
            note!(state, "worker {member} has a session");
            state.members[member].connected = true;
            state.dispatch();
            state.out_of_date(member)
        };
        told.iter().for_each(|work| work.lost());
        self.changed.notify_one();
    }

    /// The broker is gone for a while.
    pub(super) fn go_away(self: &Arc<Self>, wait: Duration) {
        {
            let mut state = self.lock();
            if state.away {
                return;
            }
            note!(state, "the broker is away for {wait:?}");
            state.happened("broker away");
            state.away = true;
            for member in 0..state.members.len() {
                if state.members[member].alive && state.members[member].connected {
                    state.end_session(member);
                }
            }
        }
        self.after(wait, Self::come_back);
    }

    /// The broker is there again.
    pub(super) fn come_back(self: &Arc<Self>) {
        let without = {
            let mut state = self.lock();
            if !state.away {
                return;
            }
            note!(state, "the broker is back");
            state.away = false;
            let members = state.members.iter().enumerate();
            members.filter(|(_, member)| member.alive && !member.connected).map(|(n, _)| n).collect::<Vec<_>>()
        };
        for member in without {
            let wait = self.lock().dice.millis(10, 5000);
            self.after(wait, move |world| world.reconnect(member));
        }
    }

    /// A copy enters the wait ladder.
    pub(super) fn wait(self: &Arc<Self>, delay: RetryDelay, message: Message) {
        let number = {
            let mut state = self.lock();
            note!(state, "{} waits {} ({:?})", state.plan(message.job).id, delay.as_str(), message.properties.headers);
            let number = state.number();
            state.waiting.insert(number, message);
            number
        };
        self.after(delay.duration(), move |world| {
            let mut state = world.lock();
            let Some(message) = state.waiting.remove(&number) else { return };
            let twice = state.story.weather.doubled;
            if state.strikes("doubled", twice) {
                note!(state, "{} comes out of its wait twice", state.plan(message.job).id);
                state.records[message.job].doubled = true;
                state.enqueue(message.home(), message.clone(), false);
            }
            state.enqueue(message.home(), message, false);
        });
    }
}
