//! Table of the jobs that this process has leased, and of those that it had recently. Outlives the
//! sessions.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::decision::{LeaseDecision, LeaseMark, LeaseState, decide};
use super::entry::{LeaseEntry, LeaseRenewal, LeaseRequest, LeasedDelivery};
use crate::queue::{DeliveryTag, LeaseHolder, QueueError};

/// Time for which an ended job is remembered while the broker is connected: its last lease, and
/// leases of other workers that were under way, return within minutes.
const RETENTION: Duration = Duration::from_mins(10);

#[derive(Debug, Default)]
struct LeaseEntries {
    by_key: HashMap<String, LeaseEntry>,
    by_ticket: HashMap<DeliveryTag, String>,
    connected: Option<Instant>,
    closed: bool,
}

/// Leases by key. See the module.
#[derive(Debug, Default)]
pub(in crate::queue::rabbitmq) struct LeaseTable(Mutex<LeaseEntries>);

/// Leases at the time of closing.
#[derive(Debug, Default)]
pub(super) struct ClosedLeases {
    /// Keys whose last lease may still return.
    pub(super) ended: Vec<String>,
    /// True when leases remain that must reach other workers.
    pub(super) unfinished: bool,
    /// Holders whose leases are no longer renewed.
    pub(super) holders: Vec<Arc<dyn LeaseHolder>>,
}

impl LeaseTable {
    /// Records a delivery as leased by `us`, one epoch above all known ones of its key. Returns the
    /// previous holder of the key, which has lost the job.
    pub(super) fn insert(&self, us: &str, new: LeaseRequest<'_>) -> Result<Option<Arc<dyn LeaseHolder>>, QueueError> {
        let mut entries = self.0.lock();
        if entries.closed {
            return Err(QueueError::closed());
        }
        let before = entries.by_key.remove(new.key);
        let (key, ticket) = (new.key.to_owned(), new.ticket);
        let entry = LeaseEntry::new(us, before.as_ref().map_or(0, |entry| entry.epoch), new);
        entries.by_key.insert(key.clone(), entry);
        entries.by_ticket.insert(ticket, key);
        Ok(before.filter(|entry| entry.ticket != ticket).and_then(|mut entry| entry.holder.take()))
    }

    /// Returns the lease of a delivery; `None` without one that the broker has confirmed.
    pub(in crate::queue::rabbitmq) fn leased(&self, ticket: DeliveryTag) -> Option<LeasedDelivery> {
        let entries = self.0.lock();
        let key = entries.by_ticket.get(&ticket)?;
        let entry = entries.by_key.get(key).filter(|entry| entry.ticket == ticket);
        let Some(entry) = entry else {
            // Another delivery of the same run has replaced it.
            return Some(LeasedDelivery { key: key.clone(), epoch: 0, properties: Arc::default(), lost: true });
        };
        entry.leased(key)
    }

    /// Replaces the holder of a delivery.
    pub(in crate::queue::rabbitmq) fn replace_holder(&self, ticket: DeliveryTag, holder: Arc<dyn LeaseHolder>) {
        let mut entries = self.0.lock();
        let Some(key) = entries.by_ticket.get(&ticket).cloned() else { return };
        if let Some(entry) = entries.by_key.get_mut(&key).filter(|entry| entry.state == LeaseState::Active) {
            entry.holder = Some(holder);
        }
    }

    /// Returns the next lease of a key; `None` when no transfer is running.
    pub(super) fn next_renewal(&self, key: &str) -> Option<LeaseRenewal> {
        let mut entries = self.0.lock();
        entries.by_key.get_mut(key)?.next_renewal()
    }

    /// Returns the running transfer of a key.
    pub(super) fn holder(&self, key: &str) -> Option<Arc<dyn LeaseHolder>> {
        self.0.lock().by_key.get(key).and_then(|entry| entry.holder.clone())
    }

    /// Records the confirm of a lease.
    pub(super) fn confirmed(&self, key: &str, epoch: u32, seq: u64) {
        let mut entries = self.0.lock();
        if let Some(entry) = entries.by_key.get_mut(key).filter(|entry| entry.epoch == epoch) {
            entry.latest = entry.latest.max(seq);
        }
    }

    /// Records the state in which the transfer of a delivery ends.
    pub(in crate::queue::rabbitmq) fn finish(&self, ticket: DeliveryTag, state: LeaseState) {
        let mut entries = self.0.lock();
        let Some(key) = entries.by_ticket.remove(&ticket) else { return };
        let entry = entries.by_key.get_mut(&key);
        if let Some(entry) = entry.filter(|entry| entry.ticket == ticket && entry.state == LeaseState::Active) {
            entry.end(state);
        }
    }

    /// Records that a released job was forwarded to other workers.
    pub(super) fn forwarded(&self, key: &str, mark: &LeaseMark) {
        let mut entries = self.0.lock();
        let released = |entry: &&mut LeaseEntry| entry.state == LeaseState::Released && entry.epoch == mark.epoch;
        if let Some(entry) = entries.by_key.get_mut(key).filter(released) {
            entry.state = LeaseState::Settled;
            entry.wanted = false;
        }
    }

    /// Classifies a returned message and records the consequences. With `TakenOver`, returns the
    /// holder that has lost its job.
    pub(super) fn decide(
        &self,
        us: &str,
        key: &str,
        mark: &LeaseMark,
    ) -> (LeaseDecision, Option<Arc<dyn LeaseHolder>>) {
        let mut entries = self.0.lock();
        let entry = entries.by_key.get_mut(key);
        let decision = decide(us, entry.as_deref().map(LeaseEntry::known), mark);
        (decision, entry.and_then(|entry| entry.apply(decision, mark)))
    }

    /// Returns the epoch, and the former owner that is still to be notified of it.
    pub(super) fn former_owner(&self, key: &str) -> Option<(u32, String)> {
        let entries = self.0.lock();
        let entry = entries.by_key.get(key)?;
        entry.former_owner.clone().map(|owner| (entry.epoch, owner))
    }

    /// Records that the former owner was notified.
    pub(super) fn former_owner_notified(&self, key: &str, epoch: u32) {
        if let Some(entry) = self.0.lock().by_key.get_mut(key).filter(|entry| entry.epoch == epoch) {
            entry.former_owner = None;
        }
    }

    /// Returns true while leases of the key must be routed here.
    pub(super) fn is_wanted(&self, key: &str) -> bool {
        self.0.lock().by_key.get(key).is_some_and(|entry| entry.wanted)
    }

    /// Records that the key is not bound any more.
    pub(super) fn unbound(&self, key: &str) {
        if let Some(entry) = self.0.lock().by_key.get_mut(key).filter(|entry| !entry.wanted) {
            entry.bound = false;
        }
    }

    /// Records the start of a session. Returns the keys to bind, and the keys to unbind.
    pub(super) fn session_started(&self) -> (Vec<String>, Vec<String>) {
        let mut entries = self.0.lock();
        entries.connected = Some(Instant::now());
        let bound = entries.by_key.iter().filter(|(_, entry)| entry.bound);
        let (bind, unbind): (Vec<_>, Vec<_>) = bound.partition(|(_, entry)| entry.wanted);
        let keys = |from: Vec<(&String, &LeaseEntry)>| from.into_iter().map(|(key, _)| key.clone()).collect();
        (keys(bind), keys(unbind))
    }

    /// Returns the keys of running transfers.
    pub(super) fn active_keys(&self) -> Vec<String> {
        let entries = self.0.lock();
        let active = entries.by_key.iter().filter(|(_, entry)| entry.state == LeaseState::Active);
        active.map(|(key, _)| key.clone()).collect()
    }

    /// Removes jobs that ended long enough ago. Returns those of their keys that are still bound.
    /// Time without a broker does not count.
    pub(super) fn prune(&self) -> Vec<String> {
        let mut entries = self.0.lock();
        let Some(connected) = entries.connected else { return Vec::new() };
        let over = |ended: Instant| ended.max(connected).elapsed() >= RETENTION;
        let mut bound = Vec::new();
        entries.by_key.retain(|key, entry| {
            let expired = entry.ended.is_some_and(over);
            if expired && entry.bound {
                bound.push(key.clone());
            }
            !expired
        });
        let LeaseEntries { by_key, by_ticket, .. } = &mut *entries;
        by_ticket.retain(|ticket, key| by_key.get(key).is_some_and(|entry| entry.ticket == *ticket));
        bound
    }

    /// Stops all renewals for good.
    pub(super) fn close(&self) -> ClosedLeases {
        let mut entries = self.0.lock();
        entries.closed = true;
        let mut closing = ClosedLeases::default();
        for (key, entry) in &mut entries.by_key {
            match entry.state {
                LeaseState::Active => {
                    closing.unfinished = true;
                    closing.holders.extend(entry.end(LeaseState::Released));
                }
                LeaseState::Released => closing.unfinished = true,
                _ if entry.bound => closing.ended.push(key.clone()),
                _ => {}
            }
        }
        closing
    }
}

#[cfg(test)]
mod tests;
