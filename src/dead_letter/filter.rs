//! Selection of letters.

use std::collections::HashSet;
use std::time::Duration;

use jiff::Timestamp;

use crate::domain::lane::Lane;
use crate::queue::{DeadLetter, DeadLetters, LetterId, QueueError};

/// Class of the letters that the broker dead-lettered itself.
pub const BROKER_CLASS: &str = "broker";
/// Reasons of the letters that the broker dead-lettered itself.
pub const BROKER_REASONS: [&str; 4] = ["delivery_limit", "expired", "maxlen", "rejected"];

/// Criteria of letters. A letter must match all of them; of a list, one value.
#[derive(Debug, Clone, Default)]
pub struct LetterFilter {
    /// Reasons.
    pub reasons: Vec<String>,
    /// Classes of reasons.
    pub classes: Vec<String>,
    /// Ids of destinations.
    pub destinations: Vec<String>,
    /// Lane.
    pub lane: Option<Lane>,
    /// Ids of jobs, or prefixes that end with `*`.
    pub jobs: Vec<String>,
    /// Lower bound of the age.
    pub older_than: Option<Duration>,
    /// Upper bound of the age.
    pub newer_than: Option<Duration>,
    /// Ids of letters, or their beginnings.
    pub ids: Vec<String>,
    /// Upper bound of the number of letters.
    pub limit: Option<u64>,
}

impl LetterFilter {
    /// Returns true where every letter matches. A limit is not a criterion.
    pub fn is_empty(&self) -> bool {
        let lists = [&self.reasons, &self.classes, &self.destinations, &self.jobs, &self.ids];
        let times = self.older_than.is_none() && self.newer_than.is_none();
        lists.iter().all(|list| list.is_empty()) && times && self.lane.is_none()
    }

    /// Returns the selection of the letters that match now.
    pub fn select(self) -> LetterSelection {
        let remaining = self.limit.unwrap_or(u64::MAX);
        LetterSelection { filter: self, now: Timestamp::now(), remaining, only: None }
    }

    fn matches(&self, letter: &DeadLetter, now: Timestamp) -> bool {
        let one_of = |wanted: &[String], is: &str| wanted.is_empty() || wanted.iter().any(|wanted| wanted == is);
        let starts = |wanted: &String| letter.id().as_str().starts_with(wanted.as_str());
        let job = letter.job_id().unwrap_or_default();
        one_of(&self.reasons, letter.reason())
            && one_of(&self.classes, letter.class())
            && one_of(&self.destinations, letter.destination().unwrap_or_default())
            && self.lane.is_none_or(|lane| lane == letter.lane())
            && (self.jobs.is_empty() || self.jobs.iter().any(|wanted| job_matches(job, wanted)))
            && (self.ids.is_empty() || self.ids.iter().any(starts))
            && self.age_matches(letter, now)
    }

    /// A letter of unknown age is neither old nor new.
    fn age_matches(&self, letter: &DeadLetter, now: Timestamp) -> bool {
        let age = age(letter, now);
        self.older_than.is_none_or(|least| age > Some(least))
            && self.newer_than.is_none_or(|most| age.is_some_and(|age| age < most))
    }
}

fn job_matches(job: &str, wanted: &str) -> bool {
    match wanted.strip_suffix('*') {
        Some(prefix) => job.starts_with(prefix),
        None => job == wanted,
    }
}

/// Returns the time since a letter was dead-lettered.
pub fn age(letter: &DeadLetter, now: Timestamp) -> Option<Duration> {
    Some(Duration::try_from(now.duration_since(letter.died_at()?)).unwrap_or_default())
}

/// Filter that counts the letters it has selected.
#[derive(Debug)]
pub struct LetterSelection {
    filter: LetterFilter,
    /// Time of the selection.
    pub now: Timestamp,
    remaining: u64,
    only: Option<HashSet<LetterId>>,
}

impl LetterSelection {
    /// Restricts the selection to these letters.
    pub fn restrict(&mut self, ids: HashSet<LetterId>) {
        self.only = Some(ids);
    }

    /// Returns true for a letter that is selected, and counts it.
    fn takes(&mut self, letter: &DeadLetter) -> bool {
        let allowed = self.only.as_ref().is_none_or(|ids| ids.contains(letter.id()));
        let taken = self.remaining > 0 && allowed && self.filter.matches(letter, self.now);
        self.remaining -= u64::from(taken);
        taken
    }

    /// Returns the next letter that is selected; `None` at the end, or when the limit is reached.
    /// `read` is called for each letter that is read.
    ///
    /// # Errors
    /// The errors of [`DeadLetters::next`].
    pub async fn next(
        &mut self,
        letters: &mut dyn DeadLetters,
        read: impl Fn(),
    ) -> Result<Option<DeadLetter>, QueueError> {
        while self.remaining > 0 {
            let Some(letter) = letters.next().await? else { break };
            read();
            if self.takes(&letter) {
                return Ok(Some(letter));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::queue::Properties;

    fn letter(job: &str, minutes: i64) -> DeadLetter {
        let died = Timestamp::now() - jiff::SignedDuration::from_mins(minutes);
        let headers = [("x-error-reason", "kms_denied"), ("x-error-class", "destination")];
        let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let properties = Properties { message_id: Some(job.to_owned()), headers, ..Properties::default() };
        DeadLetter::new("job.backfill.acme".to_owned(), Bytes::new(), properties, Some(died))
    }

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    fn hours(hours: u64) -> Duration {
        Duration::from_hours(hours)
    }

    /// Filter with one criterion.
    fn with(set: impl FnOnce(&mut LetterFilter)) -> LetterFilter {
        let mut filter = LetterFilter::default();
        set(&mut filter);
        filter
    }

    #[test]
    fn every_criterion_narrows_the_selection() {
        let letter = letter("acme/1", 90);
        let id = letter.id().as_str();
        for filter in [
            LetterFilter::default(),
            with(|filter| filter.reasons = texts(&["kms_denied", "timeout"])),
            with(|filter| filter.classes = texts(&["destination"])),
            with(|filter| filter.destinations = texts(&["acme"])),
            with(|filter| filter.lane = Some(Lane::Backfill)),
            with(|filter| filter.jobs = texts(&["acme/1"])),
            with(|filter| filter.jobs = texts(&["acme/*"])),
            with(|filter| filter.older_than = Some(hours(1))),
            with(|filter| filter.newer_than = Some(hours(2))),
            with(|filter| filter.ids = texts(&[id])),
            with(|filter| filter.ids = texts(&[&id[..4]])),
            LetterFilter {
                destinations: texts(&["acme"]),
                older_than: Some(hours(1)),
                newer_than: Some(hours(2)),
                ..LetterFilter::default()
            },
        ] {
            assert!(filter.clone().select().takes(&letter), "{filter:?}");
        }
        for filter in [
            with(|filter| filter.reasons = texts(&["timeout"])),
            with(|filter| filter.classes = texts(&["job"])),
            with(|filter| filter.destinations = texts(&["other"])),
            with(|filter| filter.lane = Some(Lane::Scheduled)),
            with(|filter| filter.jobs = texts(&["acme/"])),
            with(|filter| filter.jobs = texts(&["acme/2*"])),
            with(|filter| filter.older_than = Some(hours(2))),
            with(|filter| filter.newer_than = Some(hours(1))),
            with(|filter| filter.ids = texts(&["0000000000000000"])),
            with(|filter| filter.limit = Some(0)),
            LetterFilter {
                reasons: texts(&["kms_denied"]),
                destinations: texts(&["other"]),
                ..LetterFilter::default()
            },
        ] {
            assert!(!filter.clone().select().takes(&letter), "{filter:?}");
        }
    }

    #[test]
    fn a_limit_counts_selected_letters() {
        let filter = LetterFilter { jobs: texts(&["a*"]), limit: Some(2), ..LetterFilter::default() };
        let mut selection = filter.select();
        let taken: Vec<_> = ["a1", "b", "a2", "a3"].map(|job| selection.takes(&letter(job, 0))).into();
        assert_eq!(taken, [true, false, true, false]);
        assert_eq!(selection.remaining, 0);
    }

    #[test]
    fn a_limit_is_not_a_criterion() {
        assert!(with(|filter| filter.limit = Some(3)).is_empty());
        assert!(!with(|filter| filter.reasons = texts(&["delivery_limit"])).is_empty());
    }
}
