//! `consign dead list`.

use std::collections::BTreeMap;

use clap::Args;
use jiff::Timestamp;
use serde_json::Value;

use super::args::FilterArgs;
use super::open;
use super::redact::summary;
use crate::cli::output::text::{UNKNOWN, duration, known, table};
use crate::cli::{CommandError, Exit, notice, print};
use crate::config::Config;
use crate::dead_letter::filter::{LetterFilter, age};
use crate::queue::DeadLetter;

const HEADS: [&str; 8] = ["LETTER", "REASON", "CLASS", "DESTINATION", "LANE", "ATTEMPTS", "AGE", "JOB"];

/// Arguments of `consign dead list`.
#[derive(Debug, Clone, Args)]
pub struct ListArgs {
    #[command(flatten)]
    filter: FilterArgs,
}

/// Lists letters. Only their lines are kept in memory.
pub(super) async fn execute(args: ListArgs, config: &Config, json: bool) -> Result<Exit, CommandError> {
    let mut letters = open(config).await?;
    let mut selection = LetterFilter::from(args.filter).select();
    let (mut rows, mut reasons) = (Vec::new(), BTreeMap::<String, u64>::new());
    while let Some(letter) = selection.next(&mut *letters, || ()).await? {
        *reasons.entry(known(Some(letter.reason()))).or_default() += 1;
        if json {
            print(&Value::Object(summary(&letter, selection.now)).to_string());
        } else {
            rows.push(row(&letter, selection.now));
        }
    }
    let any = letters.count() > 0;
    letters.close().await;
    let counts = summarize(reasons, any);
    if json {
        notice(&counts);
        return Ok(Exit::Done);
    }
    let rows = if rows.is_empty() { String::new() } else { format!("{}\n\n", table(HEADS, &rows)) };
    Ok(print(&format!("{rows}{counts}")))
}

fn row(letter: &DeadLetter, now: Timestamp) -> [String; 8] {
    [
        letter.id().to_string(),
        known(Some(letter.reason())),
        known(Some(letter.class())),
        known(letter.destination()),
        letter.lane().as_str().to_owned(),
        letter.attempts().to_string(),
        age(letter, now).map_or_else(|| UNKNOWN.to_owned(), duration),
        known(letter.job_id()),
    ]
}

/// Counts by reason, the most frequent first. `any` is true where there are letters.
fn summarize(reasons: BTreeMap<String, u64>, any: bool) -> String {
    let mut reasons: Vec<_> = reasons.into_iter().collect();
    reasons.sort_by(|(_, a), (_, b)| b.cmp(a));
    let total: u64 = reasons.iter().map(|(_, count)| count).sum();
    let listed: Vec<_> = reasons.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
    match total {
        0 if any => "no dead letter matches".to_owned(),
        0 => "there are no dead letters".to_owned(),
        1 => format!("1 dead letter: {}", listed.join(", ")),
        _ => format!("{total} dead letters: {}", listed.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_frequent_reason_is_first() {
        let reasons = BTreeMap::from([("a".to_owned(), 1), ("b".to_owned(), 2)]);
        assert_eq!(summarize(reasons, true), "3 dead letters: b 2, a 1");
        assert_eq!(summarize(BTreeMap::new(), true), "no dead letter matches");
        assert_eq!(summarize(BTreeMap::new(), false), "there are no dead letters");
    }
}
