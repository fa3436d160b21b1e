//! Which letters are meant.

use std::collections::HashSet;
use std::time::Duration;

use clap::Args;
use jiff::Timestamp;

use crate::cli::enqueue::LaneArg;
use crate::domain::lane::Lane;
use crate::domain::outcome::{Class, Reason};
use crate::queue::{DeadLetter, LetterId};

/// The class of what the broker gave up itself, and its reasons.
const BROKER: &str = "broker";
const BROKER_REASONS: [&str; 4] = ["delivery_limit", "expired", "maxlen", "rejected"];

/// All that is given must be true of a letter; of a flag that is given again, one value.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Which letters")]
pub(super) struct Filter {
    /// Given up for this reason, such as source_not_found; may be given again
    #[arg(long, value_name = "REASON", value_parser = reason)]
    reason: Vec<String>,
    /// Reasons of this class, such as destination; may be given again
    #[arg(long, value_name = "CLASS", value_parser = class)]
    class: Vec<String>,
    /// Jobs for this destination; may be given again
    #[arg(long, value_name = "DEST")]
    destination: Vec<String>,
    /// Jobs of this lane
    #[arg(long, value_enum)]
    lane: Option<LaneArg>,
    /// The job with this id; with a `*` at the end, all whose ids begin so; may be given again
    #[arg(long, value_name = "ID|PREFIX*")]
    job: Vec<String>,
    /// Given up longer ago than this, such as 2h
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    older_than: Option<Duration>,
    /// Given up within this time
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    newer_than: Option<Duration>,
    /// The letter of this name (first column of `list`), or its beginning; may be given again
    #[arg(long, value_name = "LETTER")]
    id: Vec<String>,
    /// At most so many of them
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
}

fn reason(text: &str) -> Result<String, String> {
    let mut known = Reason::ALL.iter().map(|reason| reason.as_str()).chain(BROKER_REASONS);
    known
        .any(|known| known == text)
        .then(|| text.to_owned())
        .ok_or_else(|| "there is no such reason; `consign dead list` counts those there are".to_owned())
}

fn class(text: &str) -> Result<String, String> {
    let mut known = Class::ALL.iter().map(|class| class.as_str()).chain([BROKER]);
    let all = || format!("it is one of {}, {BROKER}", Class::ALL.map(Class::as_str).join(", "));
    known.any(|known| known == text).then(|| text.to_owned()).ok_or_else(all)
}

impl Filter {
    /// Whether every letter is meant. A limit chooses nothing.
    pub(super) fn is_empty(&self) -> bool {
        let lists = [&self.reason, &self.class, &self.destination, &self.job, &self.id];
        let times = self.older_than.is_none() && self.newer_than.is_none();
        lists.iter().all(|list| list.is_empty()) && times && self.lane.is_none()
    }

    /// The choice, as of now.
    pub(super) fn choice(self) -> Choice {
        let left = self.limit.unwrap_or(u64::MAX);
        Choice { filter: self, now: Timestamp::now(), left, only: None }
    }

    fn means(&self, letter: &DeadLetter, now: Timestamp) -> bool {
        let one_of = |wanted: &[String], is: &str| wanted.is_empty() || wanted.iter().any(|wanted| wanted == is);
        let named = |wanted: &String| letter.id().as_str().starts_with(wanted.as_str());
        let job = letter.job_id().unwrap_or_default();
        one_of(&self.reason, letter.reason())
            && one_of(&self.class, letter.class())
            && one_of(&self.destination, letter.destination().unwrap_or_default())
            && self.lane.is_none_or(|lane| Lane::from(lane) == letter.lane())
            && (self.job.is_empty() || self.job.iter().any(|wanted| is_called(job, wanted)))
            && (self.id.is_empty() || self.id.iter().any(named))
            && self.is_of_the_time(letter, now)
    }

    /// A letter of no known age is neither old nor new.
    fn is_of_the_time(&self, letter: &DeadLetter, now: Timestamp) -> bool {
        if self.older_than.is_none() && self.newer_than.is_none() {
            return true;
        }
        let Some(age) = age(letter, now) else { return false };
        self.older_than.is_none_or(|least| age > least) && self.newer_than.is_none_or(|most| age < most)
    }
}

fn is_called(job: &str, wanted: &str) -> bool {
    match wanted.strip_suffix('*') {
        Some(beginning) => job.starts_with(beginning),
        None => job == wanted,
    }
}

/// How long ago a letter was given up.
pub(super) fn age(letter: &DeadLetter, now: Timestamp) -> Option<Duration> {
    Some(Duration::try_from(now.duration_since(letter.died_at()?)).unwrap_or_default())
}

/// A filter that counts what it has taken.
#[derive(Debug)]
pub(super) struct Choice {
    filter: Filter,
    now: Timestamp,
    left: u64,
    only: Option<HashSet<LetterId>>,
}

impl Choice {
    /// Only letters of these names, whatever else is true.
    pub(super) fn only(&mut self, ids: HashSet<LetterId>) {
        self.only = Some(ids);
    }

    /// Whether this letter is meant; then it counts.
    pub(super) fn takes(&mut self, letter: &DeadLetter) -> bool {
        let listed = self.only.as_ref().is_none_or(|ids| ids.contains(letter.id()));
        let taken = self.left > 0 && listed && self.filter.means(letter, self.now);
        self.left -= u64::from(taken);
        taken
    }

    /// Whether no more are meant.
    pub(super) fn is_complete(&self) -> bool {
        self.left == 0
    }

    /// When the choice was made.
    pub(super) fn now(&self) -> Timestamp {
        self.now
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use clap::Parser;

    use super::*;
    use crate::queue::Properties;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        filter: Filter,
    }

    fn choice(line: &str) -> Choice {
        let words = std::iter::once("dead").chain(line.split_whitespace());
        Line::try_parse_from(words).unwrap().filter.choice()
    }

    fn letter(job: &str, minutes: i64) -> DeadLetter {
        let died = Timestamp::now() - jiff::SignedDuration::from_mins(minutes);
        let headers = [("x-error-reason", "kms_denied"), ("x-error-class", "destination")];
        let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let properties = Properties { message_id: Some(job.to_owned()), headers, ..Properties::default() };
        DeadLetter::new("job.backfill.acme".to_owned(), Bytes::new(), properties, Some(died))
    }

    #[test]
    fn every_flag_narrows() {
        let letter = letter("acme/1", 90);
        for line in [
            "",
            "--reason kms_denied --reason timeout",
            "--class destination",
            "--destination acme",
            "--lane backfill",
            "--job acme/1",
            "--job acme/*",
            "--older-than 1h",
            "--newer-than 2h",
            "--older-than 1h --newer-than 2h --destination acme",
        ] {
            assert!(choice(line).takes(&letter), "{line}");
        }
        for line in [
            "--reason timeout",
            "--class job",
            "--destination other",
            "--lane scheduled",
            "--job acme/",
            "--job acme/2*",
            "--older-than 2h",
            "--newer-than 1h",
            "--id 0000000000000000",
            "--limit 0",
            "--reason kms_denied --destination other",
        ] {
            assert!(!choice(line).takes(&letter), "{line}");
        }
        let id = letter.id().as_str();
        assert!(choice(&format!("--id {id}")).takes(&letter) && choice(&format!("--id {}", &id[..4])).takes(&letter));
    }

    #[test]
    fn a_limit_counts_what_is_meant() {
        let mut choice = choice("--limit 2 --job a*");
        let taken: Vec<_> = ["a1", "b", "a2", "a3"].map(|job| choice.takes(&letter(job, 0))).into();
        assert_eq!(taken, [true, false, true, false]);
        assert!(choice.is_complete());
    }

    #[test]
    fn words_that_no_letter_can_have_are_usage_errors() {
        for line in ["--reason typo", "--class typo", "--older-than soon", "--lane continued"] {
            let words = std::iter::once("dead").chain(line.split_whitespace());
            assert!(Line::try_parse_from(words).is_err(), "{line}");
        }
        assert!(!choice("--reason delivery_limit --class broker").filter.is_empty());
        assert!(choice("--limit 3").filter.is_empty());
    }
}
