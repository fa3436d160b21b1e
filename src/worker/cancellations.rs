//! Cancelled backfills.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::{SignedDuration, Timestamp};

use crate::domain::control::{BackfillId, KEPT_DAYS};
use crate::domain::headers::JobHeaders;

/// Most cancellations that are remembered; beyond, the oldest are dropped.
const MAX_CANCELLATIONS: usize = 10_000;
/// Cancelled backfills, each with its last cancellation.
#[derive(Debug, Default)]
pub(super) struct Cancellations {
    cancelled: Mutex<HashMap<BackfillId, Timestamp>>,
}

impl Cancellations {
    /// Returns the job's backfill if it was cancelled after the job was published.
    pub(super) fn covering(&self, headers: &JobHeaders) -> Option<BackfillId> {
        let backfill = headers.backfill.as_ref()?;
        let at = *self.lock().get(backfill)?;
        headers.backfill_started_at.is_none_or(|started| started <= at).then(|| backfill.clone())
    }

    /// Remembers a cancellation for as long as the stream keeps it. Returns true if it is new.
    pub(super) fn cancel(&self, backfill: BackfillId, at: Timestamp, now: Timestamp) -> bool {
        let mut cancelled = self.lock();
        let day = SignedDuration::from_hours(24);
        let oldest = now.checked_sub(day * i32::try_from(KEPT_DAYS).unwrap_or(i32::MAX)).unwrap_or(Timestamp::MIN);
        cancelled.retain(|_, at| *at >= oldest);
        if at < oldest || cancelled.get(&backfill).is_some_and(|known| *known >= at) {
            return false;
        }
        if cancelled.len() >= MAX_CANCELLATIONS
            && let Some(oldest) = cancelled.iter().min_by_key(|(_, at)| **at).map(|(id, _)| id.clone())
        {
            cancelled.remove(&oldest);
        }
        cancelled.insert(backfill, at);
        true
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<BackfillId, Timestamp>> {
        self.cancelled.lock().unwrap_or_else(PoisonError::into_inner)
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

    #[test]
    fn a_cancellation_covers_jobs_that_were_published_before_it() {
        let cancellations = Cancellations::default();
        assert!(cancellations.covering(&job("b", Some(at(0)))).is_none());
        assert!(cancellations.cancel(id("b"), at(10), at(11)));
        assert_eq!(cancellations.covering(&job("b", Some(at(10)))), Some(id("b")));
        assert_eq!(cancellations.covering(&job("b", None)), Some(id("b")), "without a time it is as old as can be");
        assert!(cancellations.covering(&job("b", Some(at(11)))).is_none(), "published again on purpose");
        assert!(cancellations.covering(&job("c", Some(at(0)))).is_none());
        assert!(cancellations.covering(&JobHeaders::default()).is_none());
        assert!(!cancellations.cancel(id("b"), at(5), at(12)), "an older one says nothing new");
        assert!(cancellations.cancel(id("b"), at(20), at(21)));
        assert_eq!(cancellations.covering(&job("b", Some(at(11)))), Some(id("b")));
    }

    #[test]
    fn cancellations_expire_with_the_stream_and_are_bounded() {
        let cancellations = Cancellations::default();
        let days = |days: i64| at(days * 24 * 3600);
        cancellations.cancel(id("old"), days(0), days(0));
        assert!(!cancellations.cancel(id("older"), days(0), days(8)), "the stream does not keep it");
        assert!(cancellations.covering(&job("old", None)).is_none());
        for n in 0..=MAX_CANCELLATIONS {
            cancellations.cancel(id(&n.to_string()), at(i64::try_from(n).unwrap()), at(20_000));
        }
        assert_eq!(cancellations.lock().len(), MAX_CANCELLATIONS);
        assert!(cancellations.covering(&job("0", None)).is_none());
        assert!(cancellations.covering(&job("1", None)).is_some());
    }
}
