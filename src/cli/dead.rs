//! `consign dead`: lists, shows, requeues, discards, exports and imports dead letters.

mod args;
mod discard;
mod export;
mod import;
mod list;
mod probe;
mod redact;
mod requeue;
mod show;

use clap::Subcommand;

use super::output::ProgressReporter;
use super::{CommandError, Exit, broker};
use crate::config::Config;
use crate::dead_letter::DeadLetterError;
use crate::dead_letter::filter::LetterFilter;
use crate::dead_letter::run::LetterCounts;
use crate::queue::{DeadLetters, QueueError};

/// Actions on dead letters.
#[derive(Debug, Clone, Subcommand)]
pub enum DeadArgs {
    /// List dead letters, and count them by reason
    List(list::ListArgs),
    /// Show a dead letter with its history and its job. Secrets, external ids and URL queries are
    /// masked as ***
    Show(show::ShowArgs),
    /// Requeue the jobs of dead letters under the same ids. Their attempts are counted from zero
    Requeue(requeue::RequeueArgs),
    /// Discard dead letters permanently
    Discard(discard::DiscardArgs),
    /// Export dead letters to a file for `import`, and keep them. The file contains the complete
    /// jobs, including secrets
    Export(export::ExportArgs),
    /// Import exported dead letters. Those that exist already are skipped
    Import(import::ImportArgs),
}

/// Runs the command.
pub async fn execute(args: DeadArgs, config: Config, json: bool) -> Exit {
    run(args, &config, json).await.unwrap_or_else(|problem| problem.report())
}

async fn run(args: DeadArgs, config: &Config, json: bool) -> Result<Exit, CommandError> {
    broker::require(&config.broker)?;
    match args {
        DeadArgs::List(args) => list::execute(args, config, json).await,
        DeadArgs::Show(args) => show::execute(args, config, json).await,
        DeadArgs::Requeue(args) => requeue::execute(args, config, json).await,
        DeadArgs::Discard(args) => discard::execute(args, config, json).await,
        DeadArgs::Export(args) => export::execute(args, config).await,
        DeadArgs::Import(args) => import::execute(args, config, json).await,
    }
}

impl From<DeadLetterError> for CommandError {
    fn from(error: DeadLetterError) -> Self {
        match error {
            DeadLetterError::Queue(problem) => Self::Queue(problem),
            DeadLetterError::File(problem) => Self::Failed(problem),
        }
    }
}

/// Begins a pass over the dead letters.
async fn open(config: &Config) -> Result<Box<dyn DeadLetters>, QueueError> {
    broker::admin(config, "dead").dead_letters().await
}

/// Requires a filter or `--all` of a command that changes letters.
fn require_filter(filter: &LetterFilter, all: bool) -> Result<(), CommandError> {
    if all || !filter.is_empty() {
        return Ok(());
    }
    let usage = "select dead letters with --reason, --class, --destination, --lane, --job, --older-than, --newer-than or \
                 --id; --all selects all of them";
    Err(CommandError::Usage(usage.to_owned()))
}

/// Ends an operation on selected letters. `verb` is its participle.
fn finish(progress: &ProgressReporter, counts: &LetterCounts, letters: u64, verb: &str) -> Exit {
    if counts.is_empty() {
        progress.finish(if letters == 0 { "there are no dead letters" } else { "no dead letter matches" });
        return exit(counts);
    }
    finish_with_counts(progress, counts, verb)
}

/// Ends an operation as [`finish`] does, with counts even where no letter was selected.
fn finish_with_counts(progress: &ProgressReporter, counts: &LetterCounts, verb: &str) -> Exit {
    let LetterCounts { done, superseded, refused, failed, stopped_by } = counts;
    let superseded = if *superseded > 0 { format!(" ({superseded} superseded)") } else { String::new() };
    let refused = if *refused > 0 { format!(", {refused} refused") } else { String::new() };
    let failed = if *failed > 0 { format!(", {failed} failed") } else { String::new() };
    let partial = if stopped_by.is_some() { "; not all were examined" } else { "" };
    progress.finish(&format!("{done} {verb}{superseded}{refused}{failed}{partial}"));
    exit(counts)
}

fn exit(counts: &LetterCounts) -> Exit {
    match (counts.done, counts.refused, counts.failed, &counts.stopped_by) {
        (_, 0, 0, None) => Exit::Done,
        (0, 0, _, Some(problem)) => Exit::of(problem),
        (0, 0, _, None) => Exit::Failed,
        (0, _, 0, None) => Exit::Problem,
        _ => Exit::Partly,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::dead_letter::run::LetterRun;
    use crate::queue::{DeadLetter, Properties, QueueError};
    use crate::runtime::output::NoOutput;

    #[test]
    fn the_exit_says_whether_all_some_or_no_letters_were_processed() {
        let letter = DeadLetter::new("job.scheduled.a".to_owned(), Bytes::new(), Properties::default(), None);
        let run = || LetterRun::new(&NoOutput, "requeued");
        let lost = || QueueError::Unavailable("away".to_owned());
        assert_eq!(exit(&run().counts), Exit::Done);
        let mut refused = run();
        refused.refused(&letter, "");
        assert_eq!(exit(&refused.counts), Exit::Problem);
        refused.done(&letter);
        assert_eq!(exit(&refused.counts), Exit::Partly);
        let mut full = run();
        assert!(full.failed(&letter, &QueueError::Refused("full".to_owned())), "another one may fit");
        assert_eq!(exit(&full.counts), Exit::Failed);
        let mut unavailable = run();
        assert!(!unavailable.failed(&letter, &lost()));
        assert_eq!(exit(&unavailable.counts), Exit::Unavailable);
        let mut half = run();
        half.done(&letter);
        half.stopped(lost());
        assert_eq!(exit(&half.counts), Exit::Partly);
    }
}
