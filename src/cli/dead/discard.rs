//! `consign dead discard`.

use std::io::IsTerminal as _;

use clap::Args;

use super::args::FilterArgs;
use super::{finish, open, require_filter};
use crate::cli::output::ProgressReporter;
use crate::cli::{CommandError, Exit, notice};
use crate::config::Config;
use crate::dead_letter::discard;
use crate::dead_letter::filter::{LetterFilter, LetterSelection};
use crate::dead_letter::run::LetterRun;

/// Arguments of `consign dead discard`.
#[derive(Debug, Clone, Args)]
pub struct DiscardArgs {
    /// Select all dead letters
    #[arg(long)]
    all: bool,
    /// Print what would be discarded, without discarding it
    #[arg(long)]
    dry_run: bool,
    /// Discard without asking. Required where there is no terminal
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    filter: FilterArgs,
}

/// Discards after a confirmation.
pub(super) async fn execute(args: DiscardArgs, config: &Config, json: bool) -> Result<Exit, CommandError> {
    let filter = LetterFilter::from(args.filter);
    require_filter(&filter, args.all)?;
    let mut selection = filter.clone().select();
    if !args.yes && !args.dry_run {
        if !(std::io::stdin().is_terminal() && std::io::stderr().is_terminal()) {
            let usage =
                "this removes dead letters permanently; confirm with --yes (`consign dead export` keeps a copy)";
            return Err(CommandError::Usage(usage.to_owned()));
        }
        let mut letters = open(config).await?;
        let ids = discard::find(&mut *letters, filter.select()).await?;
        letters.close().await;
        if ids.is_empty() || !confirmed(ids.len()).await {
            notice(if ids.is_empty() { "no dead letter matches" } else { "nothing was discarded" });
            return Ok(Exit::Done);
        }
        // The user has not confirmed letters that arrived since.
        selection.restrict(ids);
    }
    discard(config, selection, args.dry_run, json).await
}

async fn confirmed(count: usize) -> bool {
    notice(&format!("{count} dead letters will be removed permanently. Type yes to discard them:"));
    let answer = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).map(|_| line)
    });
    matches!(answer.await, Ok(Ok(line)) if line.trim() == "yes")
}

async fn discard(config: &Config, selection: LetterSelection, dry_run: bool, json: bool) -> Result<Exit, CommandError> {
    let verb = if dry_run { "would be discarded" } else { "discarded" };
    let mut letters = open(config).await?;
    let count = letters.count();
    let progress = ProgressReporter::new(Some(count), json, format!("0 {verb}"));
    let mut run = LetterRun::new(&progress, verb);
    discard::discard(&mut *letters, selection, dry_run, &mut run).await;
    letters.close().await;
    Ok(finish(&progress, &run.counts, count, verb))
}
