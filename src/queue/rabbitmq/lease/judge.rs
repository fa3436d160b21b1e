//! What a lease that came back means. Pure.

use std::cmp::Ordering;

use lapin::types::FieldTable;

use super::process::name_of;
use super::{EPOCH, KEY, NOTICE, OWNER, SEQ};
use crate::queue::rabbitmq::consumer::as_text;

/// What is written on a lease, on a copy of a job that was leased, and on a notice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::queue::rabbitmq) struct Mark {
    /// How often the job has changed hands.
    pub(super) epoch: u32,
    /// The address of whoever leased it.
    pub(super) owner: String,
    kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    /// A message that keeps a job, and its number.
    Lease(u64),
    /// No work: tells the former owner of this key.
    Notice(String),
    /// A job that was leased once.
    Copy,
}

impl Mark {
    /// `None` where nothing is written of a lease.
    pub(in crate::queue::rabbitmq) fn read(headers: Option<&FieldTable>) -> Option<Self> {
        let text = |name: &str| headers?.inner().get(name).and_then(as_text);
        let (epoch, owner) = (text(EPOCH)?.parse().ok()?, text(OWNER)?);
        let kind = match (text(SEQ).and_then(|seq| seq.parse().ok()), text(NOTICE), text(KEY)) {
            (Some(seq), _, _) => Kind::Lease(seq),
            (None, Some(_), Some(key)) => Kind::Notice(key),
            _ => Kind::Copy,
        };
        Some(Self { epoch, owner, kind })
    }

    /// The key of the lease that this is, or tells of. A copy has none: it is a job like any other.
    pub(super) fn key<'a>(&'a self, routing_key: &'a str) -> Option<&'a str> {
        match &self.kind {
            Kind::Lease(_) => Some(routing_key),
            Kind::Notice(key) => Some(key),
            Kind::Copy => None,
        }
    }

    /// The name of whoever leased it.
    pub(super) fn name(&self) -> &str {
        name_of(&self.owner)
    }

    /// The number of a lease.
    pub(super) fn seq(&self) -> Option<u64> {
        if let Kind::Lease(seq) = self.kind { Some(seq) } else { None }
    }

    /// Whether it is no work.
    pub(super) fn is_notice(&self) -> bool {
        matches!(self.kind, Kind::Notice(_))
    }
}

/// How this process stands to a job that it leased.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// It works on it.
    Working,
    /// The lease was not taken, as far as is known. The delivery is what keeps the job.
    Unbegun,
    /// It has settled it.
    TransferResult,
    /// It could not settle it, or is about to end: the lease is for others.
    Released,
    /// Another has it.
    Lost,
}

/// What this process knows of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) epoch: u32,
    /// The number of the newest lease that the broker has confirmed; 0 for none.
    pub(super) latest: u64,
    pub(super) standing: Standing,
}

/// What came back. What is done with it depends on where: in the owner's queue it is a lease or the copy of one, in lane
/// `continued` it may be all there is of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The lease of work that goes on: to be renewed.
    Renew,
    /// The last one of a job that was settled here: nothing is to be done.
    Last,
    /// A newer one of this process has the job: nothing is to be done.
    Stale,
    /// Older than what this process knows, though not its own affair: nothing is to be done in the owner's queue; work in `continued`.
    Past,
    /// The job has changed hands, away from here. Nothing more is to be done in the owner's queue; work in `continued`.
    Newer,
    /// The job is for others: to be passed on; work in `continued`.
    Pass,
    /// As `Pass`: nothing is known of it.
    Unknown,
}

/// Judges what came back to `us`. The highest epoch has the job; of two equal ones, the greater name: so all who see two leases
/// agree on one. Only what this process is sure of is `Last` or `Stale`, because that ends the message wherever it is.
pub(super) fn judge(us: &str, known: Option<Known>, mark: &Mark) -> Verdict {
    let Some(known) = known else { return Verdict::Unknown };
    match (mark.epoch, mark.name()).cmp(&(known.epoch, us)) {
        Ordering::Greater => Verdict::Newer,
        // It may be the very message that is to be leased.
        Ordering::Less if known.latest == 0 => Verdict::Unknown,
        Ordering::Less if mark.name() == us || known.standing == Standing::Working => Verdict::Stale,
        // The same job may have been published again after it ended here.
        Ordering::Less => Verdict::Past,
        Ordering::Equal => ours(known, mark),
    }
}

fn ours(known: Known, mark: &Mark) -> Verdict {
    match (&mark.kind, known.standing) {
        (Kind::Lease(seq), _) if *seq < known.latest => Verdict::Stale,
        (Kind::Lease(_), Standing::Working) => Verdict::Renew,
        (Kind::Lease(_), Standing::Released) => Verdict::Pass,
        (Kind::Lease(_), Standing::TransferResult) => Verdict::Last,
        // Whoever has the job may have it by this very message.
        (Kind::Lease(_), Standing::Lost) => Verdict::Past,
        (Kind::Lease(_), Standing::Unbegun) | (Kind::Notice(_) | Kind::Copy, _) => Verdict::Stale,
    }
}

#[cfg(test)]
mod tests {
    use lapin::types::AMQPValue;

    use super::*;

    fn lease(epoch: u32, owner: &str, seq: u64) -> Mark {
        Mark { epoch, owner: owner.to_owned(), kind: Kind::Lease(seq) }
    }

    fn known(standing: Standing) -> Known {
        Known { epoch: 3, latest: 7, standing }
    }

    fn judged(us: &str, known: Known, mark: &Mark) -> Verdict {
        judge(us, Some(known), mark)
    }

    const ALL: [Standing; 5] =
        [Standing::Working, Standing::Unbegun, Standing::TransferResult, Standing::Released, Standing::Lost];

    #[test]
    fn our_newest_lease_is_renewed_while_the_work_goes_on() {
        for (standing, verdict) in [
            (Standing::Working, Verdict::Renew),
            (Standing::TransferResult, Verdict::Last),
            (Standing::Lost, Verdict::Past),
            (Standing::Released, Verdict::Pass),
            (Standing::Unbegun, Verdict::Stale),
        ] {
            assert_eq!(judged("m", known(standing), &lease(3, "m", 7)), verdict);
            assert_eq!(judged("m", known(standing), &lease(3, "m~1", 7)), verdict, "by another address");
            // Published, though nobody saw the confirm.
            assert_eq!(judged("m", known(standing), &lease(3, "m", 8)), verdict);
            assert_eq!(judged("m", known(standing), &lease(3, "m", 6)), Verdict::Stale);
        }
    }

    #[test]
    fn the_higher_epoch_has_the_job_whatever_the_numbers_say() {
        for standing in ALL {
            assert_eq!(judged("m", known(standing), &lease(4, "a", 1)), Verdict::Newer);
            assert_eq!(judged("m", known(standing), &lease(2, "m", 9)), Verdict::Stale);
            let theirs = if standing == Standing::Working { Verdict::Stale } else { Verdict::Past };
            assert_eq!(judged("m", known(standing), &lease(2, "z", 9)), theirs);
            assert_eq!(judge("m", None, &lease(4, "m", 1)), Verdict::Unknown);
        }
    }

    #[test]
    fn before_the_first_confirm_nothing_of_others_is_out_of_date() {
        for standing in ALL {
            let known = Known { epoch: 3, latest: 0, standing };
            assert_eq!(judged("m", known, &lease(2, "a", 9)), Verdict::Unknown);
            assert_eq!(judged("m", known, &lease(2, "m", 9)), Verdict::Unknown);
        }
        let known = Known { epoch: 3, latest: 0, standing: Standing::Working };
        assert_eq!(judged("m", known, &lease(3, "m", 1)), Verdict::Renew);
    }

    #[test]
    fn of_two_who_took_over_at_once_both_give_it_to_the_same() {
        let (left, right) = (lease(3, "a", 1), lease(3, "b", 1));
        assert_eq!(judged("a", known(Standing::Working), &right), Verdict::Newer);
        assert_eq!(judged("b", known(Standing::Working), &left), Verdict::Stale);
    }

    #[test]
    fn a_notice_tells_and_does_nothing_else() {
        let notice = |epoch, owner: &str| Mark { epoch, owner: owner.to_owned(), kind: Kind::Notice("k".to_owned()) };
        assert_eq!(judged("m", known(Standing::Working), &notice(4, "a")), Verdict::Newer);
        assert_eq!(judged("m", known(Standing::Working), &notice(3, "m")), Verdict::Stale);
        assert_eq!(judged("m", known(Standing::Working), &notice(2, "z")), Verdict::Stale);
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
        let both = [(EPOCH, AMQPValue::LongLongInt(3)), (OWNER, text("w"))];
        let copy = Mark::read(Some(&table(&both))).unwrap();
        assert_eq!((copy.epoch, copy.owner.as_str(), copy.key("k")), (3, "w", None));
        let read = Mark::read(Some(&table(&[both.to_vec(), vec![(SEQ, text("12"))]].concat()))).unwrap();
        assert_eq!((&read, read.key("k")), (&lease(3, "w", 12), Some("k")));
        let notice = vec![(NOTICE, AMQPValue::Boolean(true)), (KEY, text("other"))];
        let notice = Mark::read(Some(&table(&[both.to_vec(), notice].concat()))).unwrap();
        assert_eq!((notice.is_notice(), notice.key("k")), (true, Some("other")));
        for nothing in [table(&[]), table(&both[..1]), table(&[(EPOCH, text("many")), (OWNER, text("w"))])] {
            assert_eq!(Mark::read(Some(&nothing)), None);
        }
        assert_eq!(Mark::read(None), None);
    }
}
