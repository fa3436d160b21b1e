//! Arguments that select letters.

use std::time::Duration;

use clap::Args;

use crate::cli::enqueue::LaneArg;
use crate::cli::{parse_duration, parse_number};
use crate::dead_letter::filter::{BROKER_CLASS, BROKER_REASONS, LetterFilter};
use crate::domain::outcome::{Class, Reason};

/// Criteria of letters. A letter must match all of them; of a repeated flag, one value.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Filters")]
pub(super) struct FilterArgs {
    /// Reason, such as source_not_found. Repeatable
    #[arg(long = "reason", value_name = "REASON", value_parser = reason)]
    reasons: Vec<String>,
    /// Class of the reason, such as destination. Repeatable
    #[arg(long = "class", value_name = "CLASS", value_parser = class)]
    classes: Vec<String>,
    /// Destination id. Repeatable
    #[arg(long = "destination", value_name = "DEST")]
    destinations: Vec<String>,
    /// Lane of the job
    #[arg(long, value_enum)]
    lane: Option<LaneArg>,
    /// Job id, or with `*` at the end the beginning of job ids. Repeatable
    #[arg(long = "job", value_name = "ID|PREFIX*", value_parser = job_pattern)]
    jobs: Vec<String>,
    /// Dead-lettered longer ago than this, such as 2h or 30d
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, allow_hyphen_values = true)]
    older_than: Option<Duration>,
    /// Dead-lettered within this time, such as 24h
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, allow_hyphen_values = true)]
    newer_than: Option<Duration>,
    /// Letter id (first column of `dead list`), or its beginning. Repeatable
    #[arg(long = "id", value_name = "LETTER")]
    ids: Vec<String>,
    /// Stop after this number of dead letters
    #[arg(long, value_name = "N", value_parser = parse_limit, allow_negative_numbers = true)]
    limit: Option<u64>,
}

fn reason(text: &str) -> Result<String, String> {
    let mut known = Reason::ALL.iter().map(|reason| reason.as_str()).chain(BROKER_REASONS);
    known
        .any(|known| known == text)
        .then(|| text.to_owned())
        .ok_or_else(|| "there is no such reason; `consign dead list` shows the reasons of all dead letters".to_owned())
}

fn class(text: &str) -> Result<String, String> {
    let mut known = Class::ALL.iter().map(|class| class.as_str()).chain([BROKER_CLASS]);
    let all = || format!("give one of {}, {BROKER_CLASS}", Class::ALL.map(Class::as_str).join(", "));
    known.any(|known| known == text).then(|| text.to_owned()).ok_or_else(all)
}

fn job_pattern(text: &str) -> Result<String, String> {
    if text.strip_suffix('*').unwrap_or(text).contains('*') {
        return Err("has a `*` before its end; write a job id, or the beginning of job ids and one `*`".to_owned());
    }
    Ok(text.to_owned())
}

fn parse_limit(text: &str) -> Result<u64, String> {
    match parse_number(text)? {
        0 => Err("selects nothing; write a whole number of at least 1".to_owned()),
        limit => Ok(limit),
    }
}

impl From<FilterArgs> for LetterFilter {
    fn from(args: FilterArgs) -> Self {
        let FilterArgs { reasons, classes, destinations, lane, jobs, older_than, newer_than, ids, limit } = args;
        let lane = lane.map(Into::into);
        Self { reasons, classes, destinations, lane, jobs, older_than, newer_than, ids, limit }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::domain::lane::Lane;

    #[derive(Parser)]
    struct FilterLine {
        #[command(flatten)]
        filter: FilterArgs,
    }

    fn parse(line: &str) -> Result<LetterFilter, clap::Error> {
        let words = std::iter::once("dead").chain(line.split_whitespace());
        FilterLine::try_parse_from(words).map(|line| line.filter.into())
    }

    #[test]
    fn every_flag_is_a_criterion() {
        let hours = |hours| Some(Duration::from_hours(hours));
        let filter = parse(
            "--reason kms_denied --reason timeout --class destination --destination acme --lane backfill --job a/* \
             --older-than 1h --newer-than 2h --id 0a --limit 3",
        )
        .unwrap();
        let first = [&filter.reasons, &filter.classes, &filter.destinations, &filter.jobs, &filter.ids]
            .map(|list| list.join(" "));
        assert_eq!(first, ["kms_denied timeout", "destination", "acme", "a/*", "0a"]);
        assert_eq!((filter.older_than, filter.newer_than), (hours(1), hours(2)));
        assert_eq!((filter.lane, filter.limit), (Some(Lane::Backfill), Some(3)));
        assert!(parse("").unwrap().is_empty());
    }

    #[test]
    fn values_that_no_letter_can_have_are_usage_errors() {
        for line in ["--reason typo", "--class typo", "--older-than soon", "--lane continued"] {
            assert!(parse(line).is_err(), "{line}");
        }
        assert!(!parse("--reason delivery_limit --class broker").unwrap().is_empty());
        for (line, reason) in [
            ("--limit 0", "write a whole number of at least 1"),
            ("--limit -1", "write a whole number"),
            ("--older-than -5h", "write a duration"),
            ("--newer-than -5h", "write a duration"),
            ("--job cli/*x", "has a `*` before its end"),
            ("--job **", "has a `*` before its end"),
        ] {
            let refused = parse(line).unwrap_err().to_string();
            assert!(refused.contains(reason), "{line}: {refused}");
        }
    }
}
