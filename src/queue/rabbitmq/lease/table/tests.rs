use bytes::Bytes;
use lapin::BasicProperties;
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
    let (first, second) = (table.decide("us", "k", &mark(2, "them", 1)), table.decide("us", "k", &mark(2, "them", 2)));
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
    table.finish(ticket(1), LeaseState::Unconfirmed);
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
        let mut entries = table.0.lock();
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
