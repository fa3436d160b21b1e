//! Decision about a lease that has returned. Pure.

use std::cmp::Ordering;

use lapin::types::FieldTable;

use super::owner::owner_name;
use crate::domain::headers::{LEASE_EPOCH, LEASE_KEY, LEASE_NOTICE, LEASE_OWNER, LEASE_SEQ};
use crate::queue::rabbitmq::fields::text_of;

/// Lease headers of a lease, of a copy of a job that was leased, and of a notice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::queue::rabbitmq) struct LeaseMark {
    /// Number of take-overs of the job, this one included.
    pub(super) epoch: u32,
    /// Address of the owner.
    pub(super) owner: String,
    kind: MarkKind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum MarkKind {
    /// Message that keeps a job, with its sequence number.
    Lease(u64),
    /// Notice for the former owner of this key; not a job.
    Notice(String),
    /// Copy of a job that was leased before.
    Copy,
}

impl LeaseMark {
    /// Parses the lease headers; `None` without any.
    pub(in crate::queue::rabbitmq) fn read(headers: Option<&FieldTable>) -> Option<Self> {
        let text = |name: &str| text_of(headers, name);
        let (epoch, owner) = (text(LEASE_EPOCH)?.parse().ok()?, text(LEASE_OWNER)?);
        let kind = match (text(LEASE_SEQ).and_then(|seq| seq.parse().ok()), text(LEASE_NOTICE), text(LEASE_KEY)) {
            (Some(seq), _, _) => MarkKind::Lease(seq),
            (None, Some(_), Some(key)) => MarkKind::Notice(key),
            _ => MarkKind::Copy,
        };
        Some(Self { epoch, owner, kind })
    }

    /// Returns the key of the lease, or of the lease that a notice names. A copy has none: it is an
    /// ordinary job.
    pub(super) fn key<'a>(&'a self, routing_key: &'a str) -> Option<&'a str> {
        match &self.kind {
            MarkKind::Lease(_) => Some(routing_key),
            MarkKind::Notice(key) => Some(key),
            MarkKind::Copy => None,
        }
    }

    /// Returns the name of the owner.
    pub(super) fn name(&self) -> &str {
        owner_name(&self.owner)
    }

    /// Returns the sequence number of a lease.
    pub(super) fn seq(&self) -> Option<u64> {
        if let MarkKind::Lease(seq) = self.kind { Some(seq) } else { None }
    }

    /// Returns true for a notice.
    pub(super) fn is_notice(&self) -> bool {
        matches!(self.kind, MarkKind::Notice(_))
    }
}

/// State of a job that this process has leased.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::queue::rabbitmq) enum LeaseState {
    /// The transfer is running.
    Active,
    /// The broker has not confirmed the first lease: the delivery still keeps the job. The broker
    /// may have the lease all the same: it must return here, and not reach another worker.
    Unconfirmed,
    /// The job was settled here.
    Settled,
    /// The settlement failed, or this process is closing: the lease is for other workers.
    Released,
    /// Another worker owns the job.
    Lost,
}

/// Facts that this process knows about a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct KnownLease {
    pub(super) epoch: u32,
    /// Sequence number of the newest confirmed lease; 0 for none.
    pub(super) latest: u64,
    pub(super) state: LeaseState,
}

/// Classification of a message that has returned. The action depends on the queue: the owner's
/// queue receives leases and copies of them, while in lane `continued` the message may be the only
/// one that keeps the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LeaseDecision {
    /// Lease of a running transfer: renew it.
    Renew,
    /// Last lease of a job that was settled here: acknowledge it.
    Settled,
    /// Superseded by a newer lease of this process: acknowledge it.
    Outdated,
    /// Older than the known epoch, but this process does not own the job: acknowledge it in the
    /// owner's queue; a job in `continued`.
    Superseded,
    /// Another worker has taken the job over: acknowledge it in the owner's queue; a job in
    /// `continued`.
    TakenOver,
    /// The job is for other workers: forward it; a job in `continued`.
    HandOff,
    /// As `HandOff`: nothing is known about the key.
    Unknown,
}

/// Classifies a message that has returned to `us`. The highest epoch owns the job; of two equal
/// ones, the greater name: so all workers that see two leases agree on one. Only certain knowledge
/// leads to `Settled` or `Outdated`, because these acknowledge the message in every queue.
pub(super) fn decide(us: &str, known: Option<KnownLease>, mark: &LeaseMark) -> LeaseDecision {
    let Some(known) = known else { return LeaseDecision::Unknown };
    match (mark.epoch, mark.name()).cmp(&(known.epoch, us)) {
        Ordering::Greater => LeaseDecision::TakenOver,
        // It may be the very message that is about to be leased.
        Ordering::Less if known.latest == 0 => LeaseDecision::Unknown,
        Ordering::Less if mark.name() == us || known.state == LeaseState::Active => LeaseDecision::Outdated,
        // The same job may have been published again after it ended here.
        Ordering::Less => LeaseDecision::Superseded,
        Ordering::Equal => own_lease(known, mark),
    }
}

fn own_lease(known: KnownLease, mark: &LeaseMark) -> LeaseDecision {
    match (&mark.kind, known.state) {
        (MarkKind::Lease(seq), _) if *seq < known.latest => LeaseDecision::Outdated,
        (MarkKind::Lease(_), LeaseState::Active) => LeaseDecision::Renew,
        (MarkKind::Lease(_), LeaseState::Released) => LeaseDecision::HandOff,
        (MarkKind::Lease(_), LeaseState::Settled) => LeaseDecision::Settled,
        // This very message may be the one that keeps the job for its owner.
        (MarkKind::Lease(_), LeaseState::Lost) => LeaseDecision::Superseded,
        (MarkKind::Lease(_), LeaseState::Unconfirmed) | (MarkKind::Notice(_) | MarkKind::Copy, _) => {
            LeaseDecision::Outdated
        }
    }
}

#[cfg(test)]
mod tests {
    use lapin::types::AMQPValue;

    use super::*;

    fn lease(epoch: u32, owner: &str, seq: u64) -> LeaseMark {
        LeaseMark { epoch, owner: owner.to_owned(), kind: MarkKind::Lease(seq) }
    }

    fn known(state: LeaseState) -> KnownLease {
        KnownLease { epoch: 3, latest: 7, state }
    }

    fn decided(us: &str, known: KnownLease, mark: &LeaseMark) -> LeaseDecision {
        decide(us, Some(known), mark)
    }

    const ALL: [LeaseState; 5] =
        [LeaseState::Active, LeaseState::Unconfirmed, LeaseState::Settled, LeaseState::Released, LeaseState::Lost];

    #[test]
    fn our_newest_lease_is_renewed_while_the_transfer_runs() {
        for (state, decision) in [
            (LeaseState::Active, LeaseDecision::Renew),
            (LeaseState::Settled, LeaseDecision::Settled),
            (LeaseState::Lost, LeaseDecision::Superseded),
            (LeaseState::Released, LeaseDecision::HandOff),
            (LeaseState::Unconfirmed, LeaseDecision::Outdated),
        ] {
            assert_eq!(decided("m", known(state), &lease(3, "m", 7)), decision);
            assert_eq!(decided("m", known(state), &lease(3, "m~1", 7)), decision, "by another address");
            // Published, but the confirm was lost.
            assert_eq!(decided("m", known(state), &lease(3, "m", 8)), decision);
            assert_eq!(decided("m", known(state), &lease(3, "m", 6)), LeaseDecision::Outdated);
        }
    }

    #[test]
    fn the_higher_epoch_owns_the_job_whatever_the_sequence_numbers() {
        for state in ALL {
            assert_eq!(decided("m", known(state), &lease(4, "a", 1)), LeaseDecision::TakenOver);
            assert_eq!(decided("m", known(state), &lease(2, "m", 9)), LeaseDecision::Outdated);
            let theirs = if state == LeaseState::Active { LeaseDecision::Outdated } else { LeaseDecision::Superseded };
            assert_eq!(decided("m", known(state), &lease(2, "z", 9)), theirs);
            assert_eq!(decide("m", None, &lease(4, "m", 1)), LeaseDecision::Unknown);
        }
    }

    #[test]
    fn before_the_first_confirm_no_lease_of_others_is_outdated() {
        for state in ALL {
            let known = KnownLease { epoch: 3, latest: 0, state };
            assert_eq!(decided("m", known, &lease(2, "a", 9)), LeaseDecision::Unknown);
            assert_eq!(decided("m", known, &lease(2, "m", 9)), LeaseDecision::Unknown);
        }
        let known = KnownLease { epoch: 3, latest: 0, state: LeaseState::Active };
        assert_eq!(decided("m", known, &lease(3, "m", 1)), LeaseDecision::Renew);
    }

    #[test]
    fn two_workers_that_take_over_at_once_agree_on_one_owner() {
        let (left, right) = (lease(3, "a", 1), lease(3, "b", 1));
        assert_eq!(decided("a", known(LeaseState::Active), &right), LeaseDecision::TakenOver);
        assert_eq!(decided("b", known(LeaseState::Active), &left), LeaseDecision::Outdated);
    }

    #[test]
    fn a_notice_reports_a_take_over_and_nothing_else() {
        let notice =
            |epoch, owner: &str| LeaseMark { epoch, owner: owner.to_owned(), kind: MarkKind::Notice("k".to_owned()) };
        assert_eq!(decided("m", known(LeaseState::Active), &notice(4, "a")), LeaseDecision::TakenOver);
        assert_eq!(decided("m", known(LeaseState::Active), &notice(3, "m")), LeaseDecision::Outdated);
        assert_eq!(decided("m", known(LeaseState::Active), &notice(2, "z")), LeaseDecision::Outdated);
    }

    #[test]
    fn marks_are_read_from_headers_of_any_type() {
        let table = |pairs: &[(&str, AMQPValue)]| {
            let mut table = FieldTable::default();
            for (name, value) in pairs {
                table.insert((*name).into(), value.clone());
            }
            table
        };
        let text = |text: &str| AMQPValue::LongString(text.into());
        let both = [(LEASE_EPOCH, AMQPValue::LongLongInt(3)), (LEASE_OWNER, text("w"))];
        let copy = LeaseMark::read(Some(&table(&both))).unwrap();
        assert_eq!((copy.epoch, copy.owner.as_str(), copy.key("k")), (3, "w", None));
        let read = LeaseMark::read(Some(&table(&[both.to_vec(), vec![(LEASE_SEQ, text("12"))]].concat()))).unwrap();
        assert_eq!((&read, read.key("k")), (&lease(3, "w", 12), Some("k")));
        let notice = vec![(LEASE_NOTICE, AMQPValue::Boolean(true)), (LEASE_KEY, text("other"))];
        let notice = LeaseMark::read(Some(&table(&[both.to_vec(), notice].concat()))).unwrap();
        assert_eq!((notice.is_notice(), notice.key("k")), (true, Some("other")));
        for nothing in [table(&[]), table(&both[..1]), table(&[(LEASE_EPOCH, text("many")), (LEASE_OWNER, text("w"))])]
        {
            assert_eq!(LeaseMark::read(Some(&nothing)), None);
        }
        assert_eq!(LeaseMark::read(None), None);
    }
}
