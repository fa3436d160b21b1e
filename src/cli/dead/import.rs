//! `consign dead import FILE`.

use std::path::PathBuf;

use clap::Args;

use super::{finish_with_counts, open};
use crate::cli::output::ProgressReporter;
use crate::cli::output::text::problem_lines;
use crate::cli::{CommandError, Exit};
use crate::config::Config;
use crate::dead_letter::import;
use crate::dead_letter::run::LetterRun;

/// Upper bound of the invalid lines of a file that are shown.
const MAX_SHOWN_PROBLEMS: usize = 20;

/// Arguments of `consign dead import`.
#[derive(Debug, Clone, Args)]
pub struct ImportArgs {
    /// File written by `dead export`. It is checked completely before anything is imported
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// Imports letters.
pub(super) async fn execute(args: ImportArgs, config: &Config, json: bool) -> Result<Exit, CommandError> {
    let (count, problems) = import::check(&args.file)?;
    if !problems.is_empty() {
        let lines = problem_lines(&problems, MAX_SHOWN_PROBLEMS);
        let file = args.file.display();
        return Err(CommandError::Failed(format!("{file}: nothing was imported; fix these first:{lines}")));
    }
    let mut letters = open(config).await?;
    let progress = ProgressReporter::new(Some(count), json, "0 imported");
    let mut run = LetterRun::new(&progress, "imported").with_key("put_back");
    let skipped = import::import(&args.file, &mut *letters, &mut run).await?;
    letters.close().await;
    Ok(finish_with_counts(&progress, &run.counts, &format!("imported, {skipped} exist already")))
}
