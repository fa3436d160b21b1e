//! `consign dead import FILE`.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};

use clap::Args;

use super::line::Line;
use super::report::Report;
use super::{Stop, open};
use crate::cli::Exit;
use crate::config::Config;
use crate::queue::{DeadLetter, DeadLetters, LetterId, QueueError};

/// So many bad lines of a file are shown.
const SHOWN: usize = 20;

/// Where from.
#[derive(Debug, Clone, Args)]
pub struct ImportArgs {
    /// What `export` wrote; it is checked whole before anything is put back
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// Imports. A letter is known by its content, so what is there already (of an import that was broken off, say) is not doubled.
pub(super) async fn execute(args: ImportArgs, config: &Config, json: bool) -> Result<Exit, Stop> {
    let count = check(&args.file)?;
    let mut letters = open(config).await?;
    let mut there = names(&mut letters).await?;
    let mut report = Report::new(count, json, "put back");
    let mut known = 0_u64;
    for letter in lines(&args.file)? {
        let letter = letter.map_err(Stop::Failed)?;
        report.looked();
        if !there.insert(letter.id().clone()) {
            known += 1;
            continue;
        }
        match letters.put(&letter).await {
            Ok(()) => report.done(&letter, None),
            Err(problem) if report.failed(&letter, &problem) => {}
            Err(_) => break,
        }
    }
    letters.close().await;
    Ok(report.sum_up(&format!("put back, {known} there already")))
}

async fn names(letters: &mut DeadLetters) -> Result<HashSet<LetterId>, QueueError> {
    let mut names = HashSet::new();
    while let Some(letter) = letters.next().await? {
        names.insert(letter.id().clone());
    }
    Ok(names)
}

/// How many letters there are, where each of them can be read.
fn check(file: &Path) -> Result<u64, Stop> {
    let (mut count, mut bad) = (0, Vec::new());
    for line in lines(file)? {
        count += 1;
        bad.extend(line.err());
    }
    if bad.is_empty() {
        return Ok(count);
    }
    let more = bad.len().saturating_sub(SHOWN);
    let rest = if more > 0 { format!("\n  ... and {more} more") } else { String::new() };
    let shown: String = bad.iter().take(SHOWN).map(|line| format!("\n  {line}")).collect();
    Err(Stop::Failed(format!("{}: nothing was put back; mend these first:{shown}{rest}", file.display())))
}

/// The letters of a file one by one: it may be larger than the memory. The error names the line.
fn lines(file: &Path) -> Result<impl Iterator<Item = Result<DeadLetter, String>>, Stop> {
    let unreadable = |problem: std::io::Error| Stop::Failed(format!("{} can't be read: {problem}", file.display()));
    let lines = BufReader::new(File::open(file).map_err(unreadable)?).lines().enumerate();
    let used = lines.filter(|(_, line)| line.as_ref().map_or(true, |line| !line.trim().is_empty()));
    Ok(used.map(|(index, line)| {
        let read = line.map_err(|problem| problem.to_string()).and_then(|line| Line::read(&line));
        read.map_err(|problem| format!("line {}: {problem}", index + 1))
    }))
}
