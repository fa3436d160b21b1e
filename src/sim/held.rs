//! Leases as the broker keeps them: renewed while their owner is there, given to somebody else when it is not.

use std::sync::Arc;
use std::time::Duration;

use super::bucket::Upload;
use super::clock;
use super::message::{Message, index};
use super::world::{State, World, note};
use crate::domain::job::lease::Lease;
use crate::domain::lane::Lane;
use crate::queue::{DeliveryTag, LeaseHolder, LeaseMessage};

/// A lease that nobody renewed for so long goes to its owner, and from there, unread for another while, to whoever is free.
const FORSAKEN: Duration = Duration::from_secs(180);
/// A message of a lease that was left behind comes up after this.
const LEFT_BEHIND: Duration = Duration::from_secs(120);

/// A delivery under a lease.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) key: String,
    pub(super) member: usize,
    pub(super) ticket: DeliveryTag,
    pub(super) work: Arc<dyn LeaseHolder>,
    /// The delivery as it came.
    pub(super) base: Message,
    /// What was written last.
    pub(super) message: LeaseMessage,
    pub(super) written: Duration,
    /// Somebody else has the job, or may have it; the owner is told as soon as it can be reached.
    pub(super) passed_on: bool,
}

/// A message of a lease whose confirm or removal got lost.
#[derive(Debug)]
pub(super) struct Ghost {
    pub(super) key: String,
    /// Who wrote it. It comes back there, and ends.
    pub(super) member: usize,
    pub(super) message: Message,
}

impl Held {
    /// The message that another worker gets.
    pub(super) fn handed_on(&self) -> Message {
        let mut message = Message { redelivered: false, delivery_count: 0, ..self.base.clone() };
        message.body = self.message.body.clone();
        message.properties.content_type = Some(self.message.content_type.clone());
        message.properties.headers.extend(self.message.headers.clone());
        message
    }
}

impl State {
    /// The number of the lease that keeps this delivery.
    pub(super) fn lease_of(&self, member: usize, ticket: DeliveryTag) -> Option<u64> {
        let owned = |held: &&Held| held.member == member && held.ticket == ticket && !held.passed_on;
        self.leases.iter().find(|(_, held)| owned(held)).map(|(number, _)| *number)
    }

    /// While a worker takes a lease for a delivery, one of somebody who is gone has come to it by lane `continued`: of two that are
    /// equally old, one counts, and that may be the other.
    pub(super) fn is_outbid(&mut self, member: usize, ticket: DeliveryTag) -> bool {
        let worker = &self.members[member];
        let Some(job) = worker.loan(ticket).map(|message| message.job) else { return false };
        let fetched = worker.fetched[index(Lane::Continued)].iter().map(|(_, message)| message);
        let lent = worker.loans.values().filter(|(lane, _)| *lane == Lane::Continued).map(|(_, message)| message);
        let leased = |message: &Message| Lease::is_type(message.properties.content_type.as_deref());
        // Of two that came by that lane, one must not be outbid by the other in turn: it is all that is left of the job.
        let rival =
            ticket.lane != Lane::Continued && fetched.chain(lent).any(|other| other.job == job && leased(other));
        let outbid = rival && self.dice.percent(50);
        if outbid {
            note!(self, "worker {member} is outbid for {}", self.plan(job).id);
            self.happened("leases outbid");
            self.members[member].told.push(job);
        }
        outbid
    }

    /// Leases of a worker that somebody else has now: it is to be told, once.
    pub(super) fn out_of_date(&mut self, member: usize) -> Vec<Arc<dyn LeaseHolder>> {
        if !self.members[member].alive || !self.members[member].connected {
            return Vec::new();
        }
        let over = self.leases.iter().filter(|(_, held)| held.member == member && held.passed_on);
        let over: Vec<_> = over.map(|(number, _)| *number).collect();
        let ended: Vec<_> = over.iter().filter_map(|number| self.leases.remove(number)).collect();
        for held in &ended {
            note!(self, "worker {member} is told that {} is somebody else's", self.plan(held.base.job).id);
            self.happened("leases lost");
            self.members[member].told.push(held.base.job);
        }
        ended.into_iter().map(|held| held.work).collect()
    }

    /// Writes down of which upload the message of a lease tells.
    pub(super) fn tell(&mut self, lease: u64) {
        let Some(held) = self.leases.get(&lease) else { return };
        let upload = checkpoint(Some(&held.message.content_type), &held.message.body);
        self.members[held.member].written.extend(upload);
    }

    /// Of two workers on one job, each with an upload of its own, one ends with a lease that is lost, and leaves its upload alone:
    /// it can't know that nobody continues it.
    fn excuse_uploads(&mut self, lease: u64) {
        let Some((member, job)) = self.leases.get(&lease).map(|held| (held.member, held.base.job)) else { return };
        let carried = self.leases.get(&lease).and_then(|held| held.handed_on().upload());
        let theirs = |(id, upload): &(&String, &mut Upload)| {
            upload.open && upload.job == job && (upload.member == member || carried.as_ref() == Some(id))
        };
        for (_, upload) in self.buckets.uploads.iter_mut().filter(theirs) {
            upload.excused = Some("of two workers on one job, this one lost its lease");
        }
    }

    /// Whether some message has this upload on record.
    pub(super) fn on_record(&self, upload: &str) -> bool {
        let queued = self.ready.iter().flatten().chain(self.waiting.values());
        let lent = self.members.iter().flat_map(super::member::Member::messages);
        let ghosts = self.ghosts.values().map(|ghost| &ghost.message);
        let mut messages = queued.chain(lent).chain(ghosts);
        messages.any(|message| message.upload().as_deref() == Some(upload))
            || self.leases.values().any(|held| held.handed_on().upload().as_deref() == Some(upload))
    }
}

/// The upload that a message carries on.
pub(super) fn checkpoint(content_type: Option<&str>, body: &[u8]) -> Option<String> {
    let lease = Lease::is_type(content_type).then(|| Lease::decode(body).ok()).flatten();
    lease.and_then(|lease| lease.checkpoint).map(|checkpoint| checkpoint.upload_id)
}

impl World {
    /// A lease is in force from here on, and is kept up to date.
    pub(super) fn hold(self: &Arc<Self>, held: Held, came_as_lease: bool) {
        let (number, others) = {
            let mut state = self.lock();
            let number = state.number();
            note!(state, "worker {} has a lease for {}", held.member, state.plan(held.base.job).id);
            state.happened("leases");
            let others: Vec<_> =
                state.leases.iter().filter(|(_, other)| other.key == held.key).map(|(n, _)| *n).collect();
            state.leases.insert(number, held);
            state.tell(number);
            (number, others)
        };
        for other in others {
            if came_as_lease {
                self.lock().excuse_uploads(other);
                self.pass_on(other);
            } else {
                // Two copies of one job are under a lease. Their owners hear of each other when the first of them comes back.
                self.after(LEFT_BEHIND, move |world| world.settle_rivalry(number, other));
            }
        }
        tokio::spawn(Arc::clone(self).renew(number));
    }

    /// Only one of two leases of a run stays.
    fn settle_rivalry(self: &Arc<Self>, one: u64, other: u64) {
        let loser = {
            let mut state = self.lock();
            let owner = |number| state.leases.get(&number).filter(|held| !held.passed_on).map(|held| held.member);
            let (Some(first), Some(second)) = (owner(one), owner(other)) else { return };
            let loser = if first < second { one } else { other };
            state.excuse_uploads(loser);
            loser
        };
        self.pass_on(loser);
    }

    /// Somebody else has the job of this lease now. Its owner is told as soon as it can be reached.
    fn pass_on(self: &Arc<Self>, number: u64) {
        let told = {
            let mut state = self.lock();
            let Some(held) = state.leases.get_mut(&number) else { return };
            held.passed_on = true;
            let owner = held.member;
            if !state.members[owner].alive {
                state.leases.remove(&number);
            }
            state.out_of_date(owner)
        };
        told.iter().for_each(|work| work.lost());
        self.changed.notify_one();
    }

    async fn renew(self: Arc<Self>, number: u64) {
        loop {
            let wait = self.lock().dice.seconds(20, 60);
            tokio::time::sleep(wait).await;
            let work = {
                let state = self.lock();
                let Some(held) = state.leases.get(&number).filter(|held| !held.passed_on) else { return };
                let owner = &state.members[held.member];
                (owner.alive && owner.connected).then(|| Arc::clone(&held.work))
            };
            match work {
                Some(work) => self.written(number, work.message()),
                None if self.forsaken(number) => return,
                None => {}
            }
        }
    }

    fn written(&self, number: u64, message: LeaseMessage) {
        let mut state = self.lock();
        let now = clock::elapsed();
        if let Some(held) = state.leases.get_mut(&number) {
            held.message = message;
            held.written = now;
        }
        state.tell(number);
    }

    /// Nobody renews it: when its time is over, another worker gets the job, unless one has it.
    fn forsaken(self: &Arc<Self>, number: u64) -> bool {
        let mut state = self.lock();
        let Some(held) = state.leases.get(&number).filter(|held| !held.passed_on) else { return true };
        if clock::elapsed() < held.written + FORSAKEN {
            return false;
        }
        let (job, message, owner, key) = (held.base.job, held.handed_on(), held.member, held.key.clone());
        let taken = state.leases.values().any(|other| {
            other.key == key && other.member != owner && !other.passed_on && state.members[other.member].alive
        });
        note!(state, "the lease of {} is over; at work elsewhere: {taken}", state.plan(job).id);
        state.happened("leases over");
        // Its owner may be at work, or may have made a copy before it was gone.
        state.records[job].doubled = true;
        // Others can't tell a worker that is out of touch from one that died.
        state.records[job].crashes += u32::from(state.members[owner].alive);
        if taken {
            state.excuse_uploads(number);
        } else {
            state.enqueue(Lane::Continued, message, false);
        }
        drop(state);
        self.pass_on(number);
        true
    }

    /// A message of a lease stays behind in the broker: it finds whoever has the job, or becomes work again.
    pub(super) fn leave_behind(self: &Arc<Self>, held: &Held) {
        let (key, member, message) = (held.key.clone(), held.member, held.handed_on());
        let number = {
            let mut state = self.lock();
            note!(state, "a message of the lease of {} is left behind", state.plan(message.job).id);
            state.happened("leases left behind");
            state.records[message.job].doubled = true;
            let number = state.number();
            state.ghosts.insert(number, Ghost { key, member, message });
            number
        };
        self.after(LEFT_BEHIND, move |world| {
            let mut state = world.lock();
            let Some(ghost) = state.ghosts.remove(&number) else { return };
            let at_work = |held: &&Held| held.key == ghost.key && !held.passed_on && state.members[held.member].alive;
            let at_work = state.leases.values().find(at_work).map(|held| (held.member, Arc::clone(&held.work)));
            let known = state.members[ghost.member].alive;
            note!(
                state,
                "what was left behind of {} comes up: {}",
                state.plan(ghost.message.job).id,
                at_work.is_some()
            );
            match at_work {
                // Whoever wrote it knows that it is out of date.
                _ if known => {}
                None => state.enqueue(Lane::Continued, ghost.message, false),
                // Its worker is gone. Whoever has the job now hears of its upload.
                Some((member, work)) => {
                    let upload = ghost.message.upload().and_then(|id| state.buckets.uploads.get_mut(&id));
                    if let Some(upload) = upload.filter(|upload| upload.open) {
                        upload.member = member;
                    }
                    state.happened("leases outdated");
                    drop(state);
                    work.outdated(ghost.message.body);
                }
            }
        });
    }
}
