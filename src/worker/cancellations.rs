//! Cancelled backfills.

use std::collections::HashMap;

use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use uuid::Uuid;

use crate::domain::control::{BackfillId, KEPT_DAYS};
use crate::domain::headers::JobHeaders;

/// Most cancellations that are remembered; beyond, the backfill with the oldest is dropped.
const MAX_CANCELLATIONS: usize = 10_000;

/// Cancelled backfills, each with its cancellations.
#[derive(Debug, Default)]
pub(super) struct Cancellations {
    cancelled: Mutex<HashMap<BackfillId, Vec<Cancellation>>>,
}

#[derive(Debug)]
struct Cancellation {
    id: Uuid,
    at: Timestamp,
}

impl Cancellations {
    /// Returns the job's backfill if it was cancelled after the command that published the job had
    /// started: by a cancellation that this command did not know. No clocks are compared, unless
    /// the command could not read the cancellations before it.
    pub(super) fn covering(&self, headers: &JobHeaders) -> Option<BackfillId> {
        let backfill = headers.backfill.as_ref()?;
        let covers = |cancellation: &Cancellation| match &headers.backfill_cancellations {
            Some(earlier) => !earlier.contains(cancellation.id),
            None => headers.backfill_started_at.is_none_or(|started| started <= cancellation.at),
        };
        self.cancelled.lock().get(backfill)?.iter().any(covers).then(|| backfill.clone())
    }

    /// Remembers a cancellation for as long as the stream keeps it. Returns true if it is new.
    pub(super) fn cancel(&self, backfill: BackfillId, id: Uuid, at: Timestamp, now: Timestamp) -> bool {
        let mut cancelled = self.cancelled.lock();
        let day = SignedDuration::from_hours(24);
        let oldest = now.checked_sub(day * i32::try_from(KEPT_DAYS).unwrap_or(i32::MAX)).unwrap_or(Timestamp::MIN);
        cancelled.retain(|_, all| {
            all.retain(|cancellation| cancellation.at >= oldest);
            !all.is_empty()
        });
        if at < oldest || cancelled.get(&backfill).is_some_and(|all| all.iter().any(|known| known.id == id)) {
            return false;
        }
        if cancelled.values().map(Vec::len).sum::<usize>() >= MAX_CANCELLATIONS
            && let Some((_, oldest)) = cancelled.iter().map(|(id, all)| (all.iter().map(|it| it.at).min(), id)).min()
        {
            let oldest = oldest.clone();
            cancelled.remove(&oldest);
        }
        cancelled.entry(backfill).or_default().push(Cancellation { id, at });
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn id(name: &str) -> BackfillId {
        BackfillId::parse(name).unwrap()
    }

    fn job(backfill: &str, started: Option<Timestamp>) -> JobHeaders {
        JobHeaders { backfill: Some(id(backfill)), backfill_started_at: started, ..JobHeaders::default() }
    }

    fn uuid(number: u128) -> Uuid {
        Uuid::from_u128(number)
    }

    /// A job of a command that knew these cancellations, and whose clock is far ahead.
    fn aware(backfill: &str, known: &[u128]) -> JobHeaders {
        let earlier = known.iter().map(|number| uuid(*number).to_string()).collect::<Vec<_>>().join(" ");
        JobHeaders { backfill_cancellations: earlier.parse().ok(), ..job(backfill, Some(at(999_999))) }
    }

    #[test]
    fn a_cancellation_covers_jobs_of_commands_that_did_not_know_it_whatever_the_clocks_say() {
        let cancellations = Cancellations::default();
        assert!(cancellations.covering(&aware("b", &[])).is_none());
        assert!(cancellations.cancel(id("b"), uuid(1), at(10), at(11)));
        assert_eq!(cancellations.covering(&aware("b", &[])), Some(id("b")), "its clock says that it started later");
        assert!(cancellations.covering(&aware("b", &[1])).is_none(), "published again on purpose");
        assert!(cancellations.covering(&aware("b", &[1, 2])).is_none(), "this worker has not read the second yet");
        assert!(cancellations.covering(&aware("c", &[])).is_none());
        assert!(!cancellations.cancel(id("b"), uuid(1), at(10), at(12)), "it is read again");
        assert!(cancellations.cancel(id("b"), uuid(2), at(5), at(12)), "the clock of the second is behind");
        assert_eq!(cancellations.covering(&aware("b", &[1])), Some(id("b")));
        assert!(cancellations.covering(&aware("b", &[1, 2])).is_none());
    }

    #[test]
    fn jobs_without_the_header_are_covered_by_time() {
        let cancellations = Cancellations::default();
        assert!(cancellations.covering(&job("b", Some(at(0)))).is_none());
        assert!(cancellations.cancel(id("b"), uuid(1), at(10), at(11)));
        assert_eq!(cancellations.covering(&job("b", Some(at(10)))), Some(id("b")));
        assert_eq!(cancellations.covering(&job("b", None)), Some(id("b")), "without a time it is as old as can be");
        assert!(cancellations.covering(&job("b", Some(at(11)))).is_none(), "published again on purpose");
        assert!(cancellations.covering(&JobHeaders::default()).is_none());
        assert!(cancellations.cancel(id("b"), uuid(2), at(20), at(21)));
        assert_eq!(cancellations.covering(&job("b", Some(at(11)))), Some(id("b")));
    }

    #[test]
    fn cancellations_expire_with_the_stream_and_are_bounded() {
        let cancellations = Cancellations::default();
        let days = |days: i64| at(days * 24 * 3600);
        cancellations.cancel(id("old"), uuid(1), days(0), days(0));
        assert!(!cancellations.cancel(id("older"), uuid(2), days(0), days(8)), "the stream does not keep it");
        assert!(cancellations.covering(&job("old", None)).is_none());
        for n in 0..=MAX_CANCELLATIONS {
            let second = i64::try_from(n).unwrap();
            cancellations.cancel(id(&n.to_string()), uuid(n as u128 + 10), at(second), at(20_000));
        }
        assert_eq!(cancellations.cancelled.lock().len(), MAX_CANCELLATIONS);
        assert!(cancellations.covering(&job("0", None)).is_none());
        assert!(cancellations.covering(&job("1", None)).is_some());
    }
}
