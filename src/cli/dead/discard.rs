//! `consign dead discard`.

use std::collections::HashSet;
use std::io::IsTerminal as _;

use clap::Args;

use super::filter::{Choice, Filter};
use super::report::Report;
use super::{Stop, demand_a_choice, open};
use crate::cli::{Exit, note};
use crate::config::Config;
use crate::queue::{LetterId, QueueError};

/// Which letters.
#[derive(Debug, Clone, Args)]
pub struct DiscardArgs {
    /// All letters there are
    #[arg(long)]
    all: bool,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Don't ask; needed where there is no terminal to ask at
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    filter: Filter,
}

/// Discards, after asking a person.
pub(super) async fn execute(args: DiscardArgs, config: &Config, json: bool) -> Result<Exit, Stop> {
    demand_a_choice(&args.filter, args.all)?;
    let mut choice = args.filter.clone().choice();
    if !args.yes && !args.dry_run {
        if !(std::io::stdin().is_terminal() && std::io::stderr().is_terminal()) {
            let what =
                "they would be gone for good: --yes says that this is meant (`consign dead export` keeps a copy)";
            return Err(Stop::Usage(what.to_owned()));
        }
        let meant = meant(config, args.filter.choice()).await?;
        if meant.is_empty() || !confirmed(meant.len()).await {
            note(if meant.is_empty() { "no dead letter matches" } else { "nothing was discarded" });
            return Ok(Exit::Done);
        }
        // What came meanwhile was not asked about.
        choice.only(meant);
    }
    discard(config, choice, args.dry_run, json).await
}

async fn meant(config: &Config, mut choice: Choice) -> Result<HashSet<LetterId>, QueueError> {
    let mut letters = open(config).await?;
    let mut meant = HashSet::new();
    while let Some(letter) = letters.next().await? {
        if choice.takes(&letter) {
            meant.insert(letter.id().clone());
        }
    }
    letters.close().await;
    Ok(meant)
}

async fn confirmed(count: usize) -> bool {
    note(&format!("{count} dead letters will be gone for good. Type yes to discard them:"));
    let answer = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).map(|_| line)
    });
    matches!(answer.await, Ok(Ok(line)) if line.trim() == "yes")
}

async fn discard(config: &Config, mut choice: Choice, dry_run: bool, json: bool) -> Result<Exit, Stop> {
    let word = if dry_run { "would be discarded" } else { "discarded" };
    let mut letters = open(config).await?;
    let mut report = Report::new(letters.count(), json, word);
    while !choice.is_complete() {
        let letter = match letters.next().await {
            Ok(Some(letter)) => letter,
            Ok(None) => break,
            Err(problem) => {
                report.stopped(problem);
                break;
            }
        };
        report.looked();
        if !choice.takes(&letter) {
            continue;
        }
        let discarded = if dry_run { Ok(()) } else { letters.discard().await };
        match discarded {
            Ok(()) => report.done(&letter, None),
            Err(problem) if report.failed(&letter, &problem) => {}
            Err(_) => break,
        }
    }
    letters.close().await;
    Ok(report.end(word))
}
