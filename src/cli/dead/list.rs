//! `consign dead list`.

use std::collections::BTreeMap;

use clap::Args;
use jiff::Timestamp;
use serde_json::Value;

use super::filter::{Filter, age};
use super::words::summary;
use super::{Stop, open};
use crate::cli::text::{columns, plain, span};
use crate::cli::{Exit, print};
use crate::config::Config;
use crate::queue::DeadLetter;

const HEADS: [&str; 8] = ["LETTER", "REASON", "CLASS", "DESTINATION", "LANE", "ATTEMPTS", "AGE", "JOB"];
/// What stands where nothing is known.
const NOTHING: &str = "-";

/// What to list.
#[derive(Debug, Clone, Args)]
pub struct ListArgs {
    #[command(flatten)]
    filter: Filter,
}

/// Lists. Only the lines are kept, not the letters.
pub(super) async fn execute(args: ListArgs, config: &Config, json: bool) -> Result<Exit, Stop> {
    let mut letters = open(config).await?;
    let mut choice = args.filter.choice();
    let (mut rows, mut reasons) = (Vec::new(), BTreeMap::<String, u64>::new());
    while let Some(letter) = letters.next().await? {
        if !choice.takes(&letter) {
            continue;
        }
        *reasons.entry(named(letter.reason())).or_default() += 1;
        if json {
            print(&Value::Object(summary(&letter, choice.now())).to_string());
        } else {
            rows.push(row(&letter, choice.now()));
        }
        if choice.is_complete() {
            break;
        }
    }
    let others = letters.count() > 0;
    letters.close().await;
    let counts = counted(reasons, others);
    if json {
        crate::cli::note(&counts);
        return Ok(Exit::Done);
    }
    let table = if rows.is_empty() { String::new() } else { format!("{}\n\n", columns(HEADS, &rows)) };
    Ok(print(&format!("{table}{counts}")))
}

fn named(text: &str) -> String {
    if text.is_empty() { NOTHING.to_owned() } else { plain(text) }
}

fn row(letter: &DeadLetter, now: Timestamp) -> [String; 8] {
    [
        letter.id().to_string(),
        named(letter.reason()),
        named(letter.class()),
        named(letter.destination().unwrap_or_default()),
        letter.lane().as_str().to_owned(),
        letter.attempts().to_string(),
        age(letter, now).map_or_else(|| NOTHING.to_owned(), span),
        named(letter.job_id().unwrap_or_default()),
    ]
}

/// The most frequent reason first.
fn counted(reasons: BTreeMap<String, u64>, others: bool) -> String {
    let mut reasons: Vec<_> = reasons.into_iter().collect();
    reasons.sort_by(|(_, a), (_, b)| b.cmp(a));
    let total: u64 = reasons.iter().map(|(_, count)| count).sum();
    let listed: Vec<_> = reasons.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
    match total {
        0 if others => "no dead letter matches".to_owned(),
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
        assert_eq!(counted(reasons, true), "3 dead letters: b 2, a 1");
        assert_eq!(counted(BTreeMap::new(), true), "no dead letter matches");
        assert_eq!(counted(BTreeMap::new(), false), "there are no dead letters");
    }
}
