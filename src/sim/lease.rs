//! Simulated leases: renewed while the owner is connected, given to another worker otherwise.

use std::sync::Arc;
use std::time::Duration;

use super::clock;
use super::fake_s3::SimUpload;
use super::message::{SimMessage, index};
use super::world::{SimState, SimWorld, note};
use crate::domain::job::lease::Lease;
use crate::domain::lane::Lane;
use crate::queue::{DeliveryTag, LeaseHolder, LeaseMessage};

/// Age at which a lease that is not renewed expires and goes to another worker.
const LEASE_EXPIRY: Duration = Duration::from_secs(180);
/// Delay after which a stale lease message comes up.
const STALE_MESSAGE_DELAY: Duration = Duration::from_secs(120);

/// A delivery under a lease.
#[derive(Debug)]
pub(super) struct SimLease {
    pub(super) key: String,
    pub(super) worker: usize,
    pub(super) ticket: DeliveryTag,
    pub(super) work: Arc<dyn LeaseHolder>,
    /// The delivery as it was received.
    pub(super) base: SimMessage,
    /// The lease message as last renewed.
    pub(super) message: LeaseMessage,
    pub(super) renewed_at: Duration,
    /// True once another worker has the job, or may have it. The owner is notified as soon as it is
    /// reachable.
    pub(super) superseded: bool,
}

/// A lease message whose confirm or removal was lost.
#[derive(Debug)]
pub(super) struct StaleMessage {
    pub(super) key: String,
    /// Worker that wrote it. It ends there if that worker still runs.
    pub(super) worker: usize,
    pub(super) message: SimMessage,
}

impl SimLease {
    /// Returns the message that another worker receives.
    pub(super) fn takeover_message(&self) -> SimMessage {
        let mut message = SimMessage { redelivered: false, delivery_count: 0, ..self.base.clone() };
        message.body = self.message.body.clone();
        message.properties.content_type = Some(self.message.content_type.clone());
        message.properties.headers.extend(self.message.headers.clone());
        message
    }
}

impl SimState {
    /// Returns the number of the lease that holds this delivery.
    pub(super) fn lease_of(&self, worker: usize, ticket: DeliveryTag) -> Option<u64> {
        let owned = |lease: &&SimLease| lease.worker == worker && lease.ticket == ticket && !lease.superseded;
        self.leases.iter().find(|(_, lease)| owned(lease)).map(|(number, _)| *number)
    }

    /// Returns true if a worker that takes a lease loses it to a lease of the same job that came by
    /// lane `continued` meanwhile: of two leases of the same age, either one may win.
    pub(super) fn loses_to_rival(&mut self, worker: usize, ticket: DeliveryTag) -> bool {
        let receiver = &self.workers[worker];
        let Some(job) = receiver.unacked_message(ticket).map(|message| message.job) else { return false };
        let prefetched = receiver.prefetched[index(Lane::Continued)].iter().map(|(_, _, message)| message);
        let unacked =
            receiver.unacked.values().filter(|(lane, _)| *lane == Lane::Continued).map(|(_, message)| message);
        let leased = |message: &SimMessage| Lease::is_type(message.properties.content_type.as_deref());
        // Of two that came by that lane, one must not lose to the other: it is all that is left of
        // the job.
        let rival =
            ticket.lane != Lane::Continued && prefetched.chain(unacked).any(|other| other.job == job && leased(other));
        let loses = rival && self.rng.percent(50);
        if loses {
            note!(self, "worker {worker} loses the lease of {} to a rival", self.plan(job).id);
            self.count_fault("leases lost to a rival");
            self.workers[worker].lost_leases.push(job);
        }
        loses
    }

    /// Removes a worker's superseded leases and returns their holders, to be notified once. Returns
    /// none while the worker is unreachable.
    pub(super) fn take_superseded(&mut self, worker: usize) -> Vec<Arc<dyn LeaseHolder>> {
        if !self.workers[worker].alive || !self.workers[worker].connected {
            return Vec::new();
        }
        let over = self.leases.iter().filter(|(_, lease)| lease.worker == worker && lease.superseded);
        let over: Vec<_> = over.map(|(number, _)| *number).collect();
        let ended: Vec<_> = over.iter().filter_map(|number| self.leases.remove(number)).collect();
        for lease in &ended {
            note!(self, "worker {worker} is notified that it lost {}", self.plan(lease.base.job).id);
            self.count_fault("leases lost");
            self.workers[worker].lost_leases.push(lease.base.job);
        }
        ended.into_iter().map(|lease| lease.work).collect()
    }

    /// Records which upload the message of a lease names.
    pub(super) fn record_lease_upload(&mut self, lease: u64) {
        let Some(lease) = self.leases.get(&lease) else { return };
        let upload = checkpoint(Some(&lease.message.content_type), &lease.message.body);
        self.workers[lease.worker].lease_uploads.extend(upload);
    }

    /// Allows the open uploads of a worker whose lease is lost while another runs the same job. It
    /// leaves its upload alone, since it can't know that no other worker continues it.
    fn allow_open_uploads(&mut self, lease: u64) {
        let Some((worker, job)) = self.leases.get(&lease).map(|lease| (lease.worker, lease.base.job)) else { return };
        let carried = self.leases.get(&lease).and_then(|lease| lease.takeover_message().upload());
        let theirs = |(id, upload): &(&String, &mut SimUpload)| {
            upload.open && upload.job == job && (upload.worker == worker || carried.as_ref() == Some(id))
        };
        for (_, upload) in self.s3.uploads.iter_mut().filter(theirs) {
            upload.allowed_open = Some("its worker lost the lease to another one");
        }
    }

    /// Returns true if a message or lease names this upload.
    pub(super) fn is_on_record(&self, upload: &str) -> bool {
        let queued = self.ready.iter().flatten().chain(self.waiting.values());
        let unacked = self.workers.iter().flat_map(super::worker::SimWorker::messages);
        let stale_messages = self.stale_messages.values().map(|stale| &stale.message);
        let mut messages = queued.chain(unacked).chain(stale_messages);
        messages.any(|message| message.upload().as_deref() == Some(upload))
            || self.leases.values().any(|lease| lease.takeover_message().upload().as_deref() == Some(upload))
    }
}

/// Returns the upload that a message resumes.
pub(super) fn checkpoint(content_type: Option<&str>, body: &[u8]) -> Option<String> {
    let lease = Lease::is_type(content_type).then(|| Lease::decode(body).ok()).flatten();
    lease.and_then(|lease| lease.checkpoint).map(|checkpoint| checkpoint.upload_id)
}

impl SimWorld {
    /// Starts a lease and its renewal.
    pub(super) fn start_lease(self: &Arc<Self>, lease: SimLease, came_as_lease: bool) {
        let (number, others) = {
            let mut state = self.lock();
            let number = state.next_number();
            note!(state, "worker {} has a lease for {}", lease.worker, state.plan(lease.base.job).id);
            state.count_fault("leases");
            let others: Vec<_> =
                state.leases.iter().filter(|(_, other)| other.key == lease.key).map(|(n, _)| *n).collect();
            state.leases.insert(number, lease);
            state.record_lease_upload(number);
            (number, others)
        };
        for other in others {
            if came_as_lease {
                self.lock().allow_open_uploads(other);
                self.supersede(other);
            } else {
                // Two copies of one job are under a lease. The owners learn of each other when the
                // first stale message arrives.
                self.schedule(STALE_MESSAGE_DELAY, move |world| world.resolve_rivals(number, other));
            }
        }
        tokio::spawn(Arc::clone(self).renew(number));
    }

    /// Ends one of two leases of the same run.
    fn resolve_rivals(self: &Arc<Self>, one: u64, other: u64) {
        let loser = {
            let mut state = self.lock();
            let owner = |number| state.leases.get(&number).filter(|lease| !lease.superseded).map(|lease| lease.worker);
            let (Some(first), Some(second)) = (owner(one), owner(other)) else { return };
            let loser = if first < second { one } else { other };
            state.allow_open_uploads(loser);
            loser
        };
        self.supersede(loser);
    }

    /// Marks a lease as lost to another worker. Its owner is notified as soon as it is reachable.
    fn supersede(self: &Arc<Self>, number: u64) {
        let superseded = {
            let mut state = self.lock();
            let Some(lease) = state.leases.get_mut(&number) else { return };
            lease.superseded = true;
            let owner = lease.worker;
            if !state.workers[owner].alive {
                state.leases.remove(&number);
            }
            state.take_superseded(owner)
        };
        superseded.iter().for_each(|work| work.lost());
        self.changed.notify_one();
    }

    async fn renew(self: Arc<Self>, number: u64) {
        loop {
            let wait = self.lock().rng.seconds(20, 60);
            tokio::time::sleep(wait).await;
            let work = {
                let state = self.lock();
                let Some(lease) = state.leases.get(&number).filter(|lease| !lease.superseded) else { return };
                let owner = &state.workers[lease.worker];
                (owner.alive && owner.connected).then(|| Arc::clone(&lease.work))
            };
            match work {
                Some(work) => self.record_renewal(number, work.message()),
                None if self.expire(number) => return,
                None => {}
            }
        }
    }

    fn record_renewal(&self, number: u64, message: LeaseMessage) {
        let mut state = self.lock();
        let now = clock::elapsed();
        if let Some(lease) = state.leases.get_mut(&number) {
            lease.message = message;
            lease.renewed_at = now;
        }
        state.record_lease_upload(number);
    }

    /// Expires a lease that is not renewed: another worker gets the job, unless one has it already.
    fn expire(self: &Arc<Self>, number: u64) -> bool {
        let mut state = self.lock();
        let Some(lease) = state.leases.get(&number).filter(|lease| !lease.superseded) else { return true };
        if clock::elapsed() < lease.renewed_at + LEASE_EXPIRY {
            return false;
        }
        let (job, message, owner, key) = (lease.base.job, lease.takeover_message(), lease.worker, lease.key.clone());
        let taken = state.leases.values().any(|other| {
            other.key == key && other.worker != owner && !other.superseded && state.workers[other.worker].alive
        });
        note!(state, "the lease of {} expires; runs elsewhere: {taken}", state.plan(job).id);
        state.count_fault("leases expired");
        // Its owner may still run, or may have made a copy before it stopped.
        state.records[job].duplicated = true;
        // Other workers can't tell a disconnected worker from a crashed one.
        state.records[job].crashes += u32::from(state.workers[owner].alive);
        if taken {
            state.allow_open_uploads(number);
        } else {
            state.enqueue(Lane::Continued, message, false);
        }
        drop(state);
        self.supersede(number);
        true
    }

    /// Leaves a lease message behind in the broker. It ends at the job's owner, or becomes work
    /// again.
    pub(super) fn leave_stale_message(self: &Arc<Self>, lease: &SimLease) {
        let (key, worker, message) = (lease.key.clone(), lease.worker, lease.takeover_message());
        let number = {
            let mut state = self.lock();
            note!(state, "a stale lease message of {} remains", state.plan(message.job).id);
            state.count_fault("stale lease messages");
            state.records[message.job].duplicated = true;
            let number = state.next_number();
            state.stale_messages.insert(number, StaleMessage { key, worker, message });
            number
        };
        self.schedule(STALE_MESSAGE_DELAY, move |world| {
            let mut state = world.lock();
            let Some(stale) = state.stale_messages.remove(&number) else { return };
            let runs =
                |lease: &&SimLease| lease.key == stale.key && !lease.superseded && state.workers[lease.worker].alive;
            let owner = state.leases.values().find(runs).map(|lease| (lease.worker, Arc::clone(&lease.work)));
            let writer_alive = state.workers[stale.worker].alive;
            note!(
                state,
                "the stale lease message of {} comes up; runs: {}",
                state.plan(stale.message.job).id,
                owner.is_some()
            );
            match owner {
                // Its writer knows that it is out of date.
                _ if writer_alive => {}
                None => state.enqueue(Lane::Continued, stale.message, false),
                // Its writer has stopped. The job's owner is notified of the upload.
                Some((worker, work)) => {
                    let upload = stale.message.upload().and_then(|id| state.s3.uploads.get_mut(&id));
                    if let Some(upload) = upload.filter(|upload| upload.open) {
                        upload.worker = worker;
                    }
                    state.count_fault("leases outdated");
                    drop(state);
                    work.outdated(stale.message.body);
                }
            }
        });
    }
}
