//! Table of the jobs that this process has leased, and of those that it had recently. Outlives the
//! sessions.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lapin::BasicProperties;

use super::decision::{KnownLease, LeaseDecision, LeaseMark, LeaseState, decide};
use crate::queue::rabbitmq::fields::delivery_count;
use crate::queue::{DeliveryTag, LeaseHolder, QueueError};

/// Time for which an ended job is remembered while the broker is connected: its last lease, and
/// leases of other workers that were under way, return within minutes.
const RETENTION: Duration = Duration::from_mins(10);

/// Leased job.
#[derive(Debug)]
struct LeaseEntry {
    ticket: DeliveryTag,
    epoch: u32,
    /// Properties of the delivery, for copies.
    properties: Arc<BasicProperties>,
    /// Routing key of the job itself.
    job_key: Arc<str>,
    state: LeaseState,
    /// Highest sequence number that was used.
    tried: u64,
    /// Highest sequence number that was confirmed.
    latest: u64,
    holder: Option<Arc<dyn LeaseHolder>>,
    /// Former owner that is still to be notified.
    former_owner: Option<String>,
    /// True while its leases must be routed here.
    wanted: bool,
    /// True while the key may be bound to this queue.
    bound: bool,
    ended: Option<Instant>,
}

impl LeaseEntry {
    fn end(&mut self, state: LeaseState) -> Option<Arc<dyn LeaseHolder>> {
        self.state = state;
        self.ended = Some(Instant::now());
        self.former_owner = None;
        self.holder.take()
    }
}

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

/// Request for a lease.
pub(super) struct LeaseRequest<'a> {
    pub(super) ticket: DeliveryTag,
    pub(super) key: &'a str,
    pub(super) properties: BasicProperties,
    pub(super) job_key: &'a str,
    pub(super) holder: Arc<dyn LeaseHolder>,
}

/// Next lease to publish.
pub(super) struct LeaseRenewal {
    pub(super) epoch: u32,
    pub(super) seq: u64,
    pub(super) properties: Arc<BasicProperties>,
    pub(super) job_key: Arc<str>,
    pub(super) holder: Arc<dyn LeaseHolder>,
}

/// Lease of a delivery.
#[derive(Debug, Clone)]
pub(in crate::queue::rabbitmq) struct LeasedDelivery {
    pub(super) key: String,
    pub(in crate::queue::rabbitmq) epoch: u32,
    pub(in crate::queue::rabbitmq) properties: Arc<BasicProperties>,
    /// True when another worker owns the job, or another delivery replaced this one.
    pub(in crate::queue::rabbitmq) lost: bool,
}

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
    fn lock(&self) -> MutexGuard<'_, LeaseEntries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records a delivery as leased by `us`, one epoch above all known ones of its key. Returns the
    /// previous holder of the key, which has lost the job.
    pub(super) fn insert(&self, us: &str, new: LeaseRequest<'_>) -> Result<Option<Arc<dyn LeaseHolder>>, QueueError> {
        let mark = LeaseMark::read(new.properties.headers().as_ref());
        let mut entries = self.lock();
        if entries.closed {
            return Err(QueueError::closed());
        }
        let before = entries.by_key.remove(new.key);
        let known = before.as_ref().map_or(0, |entry| entry.epoch);
        let epoch = mark.as_ref().map_or(0, |mark| mark.epoch).max(known).saturating_add(1);
        // The worker that had the message before may have published a lease that was never confirmed.
        let redeliveries = delivery_count(new.properties.headers().as_ref());
        let epoch = epoch.saturating_add(u32::try_from(redeliveries).unwrap_or(u32::MAX));
        let entry = LeaseEntry {
            ticket: new.ticket,
            epoch,
            properties: Arc::new(new.properties),
            job_key: new.job_key.into(),
            state: LeaseState::Active,
            tried: 0,
            latest: 0,
            holder: Some(new.holder),
            former_owner: mark.filter(|mark| mark.name() != us).map(|mark| mark.owner),
            wanted: true,
            bound: true,
            ended: None,
        };
        entries.by_key.insert(new.key.to_owned(), entry);
        entries.by_ticket.insert(new.ticket, new.key.to_owned());
        Ok(before.filter(|entry| entry.ticket != new.ticket).and_then(|mut entry| entry.holder.take()))
    }

    /// Returns the lease of a delivery; `None` without one that the broker has confirmed.
    pub(in crate::queue::rabbitmq) fn leased(&self, ticket: DeliveryTag) -> Option<LeasedDelivery> {
        let entries = self.lock();
        let key = entries.by_ticket.get(&ticket)?;
        let entry = entries.by_key.get(key).filter(|entry| entry.ticket == ticket);
        let Some(entry) = entry else {
            // Another delivery of the same run has replaced it.
            return Some(LeasedDelivery { key: key.clone(), epoch: 0, properties: Arc::default(), lost: true });
        };
        let lost = entry.state == LeaseState::Lost;
        (entry.latest > 0 || lost).then(|| LeasedDelivery {
            key: key.clone(),
            epoch: entry.epoch,
            properties: Arc::clone(&entry.properties),
            lost,
        })
    }

    /// Replaces the holder of a delivery.
    pub(in crate::queue::rabbitmq) fn replace_holder(&self, ticket: DeliveryTag, holder: Arc<dyn LeaseHolder>) {
        let mut entries = self.lock();
        let Some(key) = entries.by_ticket.get(&ticket).cloned() else { return };
        if let Some(entry) = entries.by_key.get_mut(&key).filter(|entry| entry.state == LeaseState::Active) {
            entry.holder = Some(holder);
        }
    }

    /// Returns the next lease of a key; `None` when no transfer is running.
    pub(super) fn next_renewal(&self, key: &str) -> Option<LeaseRenewal> {
        let mut entries = self.lock();
        let entry = entries.by_key.get_mut(key).filter(|entry| entry.state == LeaseState::Active)?;
        let holder = Arc::clone(entry.holder.as_ref()?);
        entry.tried += 1;
        let (properties, job_key) = (Arc::clone(&entry.properties), Arc::clone(&entry.job_key));
        Some(LeaseRenewal { epoch: entry.epoch, seq: entry.tried, properties, job_key, holder })
    }

    /// Returns the running transfer of a key.
    pub(super) fn holder(&self, key: &str) -> Option<Arc<dyn LeaseHolder>> {
        self.lock().by_key.get(key).and_then(|entry| entry.holder.clone())
    }

    /// Records the confirm of a lease.
    pub(super) fn confirmed(&self, key: &str, epoch: u32, seq: u64) {
        let mut entries = self.lock();
        if let Some(entry) = entries.by_key.get_mut(key).filter(|entry| entry.epoch == epoch) {
            entry.latest = entry.latest.max(seq);
        }
    }

    /// Records that the first lease is not confirmed: the delivery still keeps the job. The broker
    /// may have the lease all the same: it must return here, and not reach another worker.
    pub(in crate::queue::rabbitmq) fn cancel(&self, ticket: DeliveryTag) {
        self.finish(ticket, LeaseState::Unconfirmed);
    }

    /// Records that the delivery is settled.
    pub(in crate::queue::rabbitmq) fn settled(&self, ticket: DeliveryTag) {
        self.finish(ticket, LeaseState::Settled);
    }

    /// Records that the delivery could not be settled: its lease is for other workers.
    pub(in crate::queue::rabbitmq) fn released(&self, ticket: DeliveryTag) {
        self.finish(ticket, LeaseState::Released);
    }

    fn finish(&self, ticket: DeliveryTag, state: LeaseState) {
        let mut entries = self.lock();
        let Some(key) = entries.by_ticket.remove(&ticket) else { return };
        let entry = entries.by_key.get_mut(&key);
        if let Some(entry) = entry.filter(|entry| entry.ticket == ticket && entry.state == LeaseState::Active) {
            entry.end(state);
        }
    }

    /// Records that a released job was forwarded to other workers.
    pub(super) fn forwarded(&self, key: &str, mark: &LeaseMark) {
        let mut entries = self.lock();
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
        let mut entries = self.lock();
        let entry = entries.by_key.get_mut(key);
        let known = entry.as_deref().map(|e| KnownLease { epoch: e.epoch, latest: e.latest, state: e.state });
        let decision = decide(us, known, mark);
        let Some(entry) = entry else { return (decision, None) };
        match decision {
            LeaseDecision::TakenOver => {
                entry.wanted = false;
                let loses = matches!(entry.state, LeaseState::Active | LeaseState::Released);
                return (decision, if loses { entry.end(LeaseState::Lost) } else { None });
            }
            // A lease whose confirm was lost may still return.
            LeaseDecision::Settled => entry.wanted &= mark.seq() < Some(entry.tried),
            LeaseDecision::Outdated if entry.state == LeaseState::Unconfirmed => {
                entry.wanted &= (mark.epoch, mark.seq()) < (entry.epoch, Some(entry.tried));
            }
            _ => {}
        }
        (decision, None)
    }

    /// Returns the epoch, and the former owner that is still to be notified of it.
    pub(super) fn former_owner(&self, key: &str) -> Option<(u32, String)> {
        let entries = self.lock();
        let entry = entries.by_key.get(key)?;
        entry.former_owner.clone().map(|owner| (entry.epoch, owner))
    }

    /// Records that the former owner was notified.
    pub(super) fn former_owner_notified(&self, key: &str, epoch: u32) {
        if let Some(entry) = self.lock().by_key.get_mut(key).filter(|entry| entry.epoch == epoch) {
            entry.former_owner = None;
        }
    }

    /// Returns true while leases of the key must be routed here.
    pub(super) fn is_wanted(&self, key: &str) -> bool {
        self.lock().by_key.get(key).is_some_and(|entry| entry.wanted)
    }

    /// Records that the key is not bound any more.
    pub(super) fn unbound(&self, key: &str) {
        if let Some(entry) = self.lock().by_key.get_mut(key).filter(|entry| !entry.wanted) {
            entry.bound = false;
        }
    }

    /// Records the start of a session. Returns the keys to bind, and the keys to unbind.
    pub(super) fn session_started(&self) -> (Vec<String>, Vec<String>) {
        let mut entries = self.lock();
        entries.connected = Some(Instant::now());
        let bound = entries.by_key.iter().filter(|(_, entry)| entry.bound);
        let (bind, unbind): (Vec<_>, Vec<_>) = bound.partition(|(_, entry)| entry.wanted);
        let keys = |from: Vec<(&String, &LeaseEntry)>| from.into_iter().map(|(key, _)| key.clone()).collect();
        (keys(bind), keys(unbind))
    }

    /// Returns the keys of running transfers.
    pub(super) fn active_keys(&self) -> Vec<String> {
        let entries = self.lock();
        let active = entries.by_key.iter().filter(|(_, entry)| entry.state == LeaseState::Active);
        active.map(|(key, _)| key.clone()).collect()
    }

    /// Removes jobs that ended long enough ago. Returns those of their keys that are still bound.
    /// Time without a broker does not count.
    pub(super) fn prune(&self) -> Vec<String> {
        let mut entries = self.lock();
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
        let mut entries = self.lock();
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
mod tests {
    use bytes::Bytes;
    use lapin::types::{AMQPValue, FieldTable};

    use super::*;
    use crate::domain::headers::{LEASE_EPOCH, LEASE_OWNER, LEASE_SEQ};
    use crate::domain::lane::Lane;
    use crate::queue::LeaseMessage;

    #[derive(Debug)]
    struct IdleHolder;

    impl LeaseHolder for IdleHolder {
        fn message(&self) -> LeaseMessage {
            LeaseMessage { body: Bytes::new(), content_type: String::new(), headers: [].into() }
        }

        fn lost(&self) {}

        fn outdated(&self, _lease: Bytes) {}
    }

    fn ticket(tag: u64) -> DeliveryTag {
        DeliveryTag { generation: 1, lane: Lane::Scheduled, tag }
    }

    fn lease_headers(epoch: u32, owner: &str, seq: Option<u64>) -> FieldTable {
        let mut table = FieldTable::default();
        table.insert(LEASE_EPOCH.into(), AMQPValue::LongUInt(epoch));
        table.insert(LEASE_OWNER.into(), AMQPValue::LongString(owner.into()));
        if let Some(seq) = seq {
            table.insert(LEASE_SEQ.into(), AMQPValue::LongString(seq.to_string().into()));
        }
        table
    }

    fn mark(epoch: u32, owner: &str, seq: u64) -> LeaseMark {
        LeaseMark::read(Some(&lease_headers(epoch, owner, Some(seq)))).unwrap()
    }

    fn insert(table: &LeaseTable, tag: u64, headers: Option<FieldTable>) -> Option<Arc<dyn LeaseHolder>> {
        let properties = BasicProperties::default().with_headers(headers.unwrap_or_default());
        let new = LeaseRequest {
            ticket: ticket(tag),
            key: "k",
            properties,
            job_key: "job.scheduled.a",
            holder: Arc::new(IdleHolder),
        };
        table.insert("us", new).unwrap()
    }

    /// Renews and confirms; returns the epoch and the sequence number.
    fn renew(table: &LeaseTable) -> Option<(u32, u64)> {
        let renewal = table.next_renewal("k")?;
        table.confirmed("k", renewal.epoch, renewal.seq);
        Some((renewal.epoch, renewal.seq))
    }

    fn decision(table: &LeaseTable, mark: &LeaseMark) -> LeaseDecision {
        table.decide("us", "k", mark).0
    }

    #[test]
    fn a_lease_lives_from_its_first_confirm_to_its_last_return() {
        let table = LeaseTable::default();
        assert!(insert(&table, 1, None).is_none());
        assert!(table.leased(ticket(1)).is_none(), "nothing is confirmed yet");
        assert_eq!(renew(&table), Some((1, 1)));
        assert!(!table.leased(ticket(1)).unwrap().lost);
        assert_eq!(decision(&table, &mark(1, "us", 1)), LeaseDecision::Renew);
        assert_eq!(renew(&table), Some((1, 2)));
        assert_eq!(decision(&table, &mark(1, "us", 1)), LeaseDecision::Outdated);
        table.finish(ticket(1), LeaseState::Settled);
        assert!(table.leased(ticket(1)).is_none() && renew(&table).is_none() && table.is_wanted("k"));
        assert_eq!(decision(&table, &mark(1, "us", 2)), LeaseDecision::Settled);
        assert!(!table.is_wanted("k"));
        assert_eq!(table.session_started(), (vec![], vec!["k".to_owned()]));
        table.unbound("k");
        assert_eq!(table.session_started(), (vec![], vec![]));
    }

    #[test]
    fn a_take_over_raises_the_epoch_above_all_known_ones() {
        let table = LeaseTable::default();
        insert(&table, 1, Some(lease_headers(4, "them", None)));
        assert_eq!(table.former_owner("k"), Some((5, "them".to_owned())));
        assert_eq!(renew(&table), Some((5, 1)));
        table.former_owner_notified("k", 5);
        assert_eq!(table.former_owner("k"), None);
        table.finish(ticket(1), LeaseState::Settled);
        // The same job again, from an old copy: a remaining lease of the last run must not look newer.
        insert(&table, 2, Some(lease_headers(1, "us", None)));
        assert_eq!(renew(&table), Some((6, 1)));
        assert_eq!(table.former_owner("k"), None, "no worker notifies itself");
        assert_eq!(decision(&table, &mark(5, "us", 1)), LeaseDecision::Outdated);
    }

    #[test]
    fn a_holder_that_lost_its_job_is_notified_once() {
        let table = LeaseTable::default();
        insert(&table, 1, None);
        renew(&table);
        let (first, second) =
            (table.decide("us", "k", &mark(2, "them", 1)), table.decide("us", "k", &mark(2, "them", 2)));
        assert_eq!((first.0, first.1.is_some()), (LeaseDecision::TakenOver, true));
        assert_eq!((second.0, second.1.is_some()), (LeaseDecision::TakenOver, false));
        assert!(table.leased(ticket(1)).unwrap().lost && renew(&table).is_none() && !table.is_wanted("k"));
        table.finish(ticket(1), LeaseState::Released);
        assert_eq!(decision(&table, &mark(1, "us", 1)), LeaseDecision::Superseded, "a lost job is not handed off");
    }

    #[test]
    fn a_failed_settlement_hands_the_job_off_once() {
        let table = LeaseTable::default();
        insert(&table, 1, None);
        renew(&table);
        table.finish(ticket(1), LeaseState::Released);
        for _ in 0..2 {
            assert_eq!(decision(&table, &mark(1, "us", 1)), LeaseDecision::HandOff, "until it is forwarded");
        }
        table.forwarded("k", &mark(1, "us", 1));
        assert_eq!(decision(&table, &mark(1, "us", 1)), LeaseDecision::Settled);
    }

    #[test]
    fn an_unconfirmed_lease_leaves_its_delivery_unchanged() {
        let table = LeaseTable::default();
        insert(&table, 1, Some(lease_headers(1, "them", Some(4))));
        table.next_renewal("k").unwrap();
        table.cancel(ticket(1));
        assert!(table.leased(ticket(1)).is_none() && table.is_wanted("k"), "it may have been accepted");
        assert_eq!(
            decision(&table, &mark(1, "them", 4)),
            LeaseDecision::Unknown,
            "the delivery itself, when it is redelivered"
        );
        assert_eq!(decision(&table, &mark(2, "us", 1)), LeaseDecision::Outdated, "confirmed after all");
        assert!(!table.is_wanted("k"), "no other can come");
        insert(&table, 1, Some(lease_headers(1, "them", Some(4))));
        assert_eq!(renew(&table), Some((3, 1)), "a second request is a lease of its own");
        assert_eq!(decision(&table, &mark(1, "them", 4)), LeaseDecision::Outdated);
    }

    #[test]
    fn a_redelivery_is_leased_above_the_unconfirmed_lease_of_the_worker_before() {
        let redelivered = |count: i64| {
            let mut headers = FieldTable::default();
            headers.insert("x-delivery-count".into(), AMQPValue::LongLongInt(count));
            headers
        };
        let table = LeaseTable::default();
        insert(&table, 1, Some(redelivered(1)));
        assert_eq!(renew(&table), Some((2, 1)));
        assert_eq!(decision(&table, &mark(1, "zoe", 1)), LeaseDecision::Outdated, "it does not own the job");
    }

    #[test]
    fn the_last_lease_is_awaited_even_if_its_confirm_was_lost() {
        let table = LeaseTable::default();
        insert(&table, 1, None);
        renew(&table);
        table.next_renewal("k").unwrap();
        table.finish(ticket(1), LeaseState::Settled);
        assert_eq!((decision(&table, &mark(1, "us", 1)), table.is_wanted("k")), (LeaseDecision::Settled, true));
        assert_eq!((decision(&table, &mark(1, "us", 2)), table.is_wanted("k")), (LeaseDecision::Settled, false));
    }

    #[test]
    fn another_delivery_of_the_same_run_replaces_the_first() {
        let table = LeaseTable::default();
        insert(&table, 1, None);
        renew(&table);
        assert!(insert(&table, 2, None).is_some(), "the holder of the first one is notified");
        renew(&table);
        assert!(table.leased(ticket(1)).unwrap().lost);
        table.finish(ticket(1), LeaseState::Settled);
        assert!(!table.leased(ticket(2)).unwrap().lost);
        assert_eq!(renew(&table), Some((2, 2)));
    }

    #[test]
    fn closing_returns_the_holders_and_the_remaining_leases() {
        let table = LeaseTable::default();
        insert(&table, 1, None);
        renew(&table);
        table.finish(ticket(1), LeaseState::Settled);
        let closing = table.close();
        assert_eq!((closing.ended, closing.unfinished, closing.holders.len()), (vec!["k".to_owned()], false, 0));
        let table = LeaseTable::default();
        insert(&table, 1, None);
        renew(&table);
        let closing = table.close();
        assert_eq!((closing.ended, closing.unfinished, closing.holders.len()), (vec![], true, 1));
        let new = LeaseRequest {
            ticket: ticket(2),
            key: "l",
            properties: BasicProperties::default(),
            job_key: "j",
            holder: Arc::new(IdleHolder),
        };
        assert!(table.insert("us", new).is_err());
    }

    #[test]
    fn ended_jobs_are_pruned_only_after_a_while_with_a_broker() {
        let table = LeaseTable::default();
        insert(&table, 1, None);
        renew(&table);
        table.finish(ticket(1), LeaseState::Settled);
        let age = |table: &LeaseTable, connected: bool| {
            let mut entries = table.lock();
            let long_ago = Instant::now().checked_sub(RETENTION);
            entries.by_key.get_mut("k").unwrap().ended = long_ago;
            entries.connected = if connected { long_ago } else { Some(Instant::now()) };
        };
        age(&table, false);
        assert_eq!(table.prune(), Vec::<String>::new());
        assert_eq!(decision(&table, &mark(1, "us", 1)), LeaseDecision::Settled);
        insert(&table, 2, None);
        table.finish(ticket(2), LeaseState::Settled);
        age(&table, true);
        assert_eq!(table.prune(), ["k"]);
        assert_eq!(decision(&table, &mark(2, "us", 1)), LeaseDecision::Unknown);
    }
}
