//! Import of exported letters.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::Path;

use super::DeadLetterError;
use super::discard::find;
use super::filter::LetterFilter;
use super::format::ExportLine;
use super::run::LetterRun;
use crate::queue::{DeadLetter, DeadLetters};

/// Parses every line. Returns the number of letters, and the problems of the other lines.
///
/// # Errors
/// The file can't be read.
pub fn check(path: &Path) -> Result<(u64, Vec<String>), DeadLetterError> {
    let (mut count, mut problems) = (0, Vec::new());
    for line in read(path)? {
        count += 1;
        problems.extend(line.err());
    }
    Ok((count, problems))
}

/// Returns the letters one by one, as the file may be larger than the memory. An error names
/// its line.
fn read(path: &Path) -> Result<impl Iterator<Item = Result<DeadLetter, String>>, DeadLetterError> {
    let unreadable = |problem: std::io::Error| {
        DeadLetterError::File(format!(
            "{} can't be read: {problem}; give a file of `consign dead export`",
            path.display()
        ))
    };
    let lines = BufReader::new(File::open(path).map_err(unreadable)?).lines().enumerate();
    let used = lines.filter(|(_, line)| line.as_ref().map_or(true, |line| !line.trim().is_empty()));
    Ok(used.map(|(index, line)| {
        let letter = line.map_err(|problem| problem.to_string()).and_then(|line| ExportLine::parse(&line));
        letter.map_err(|problem| format!("line {}: {problem}", index + 1))
    }))
}

/// Adds the letters of the file to the dead letters. Those that exist are skipped: a letter is
/// identified by its contents, so that an interrupted import can be repeated. Returns the
/// number of those.
///
/// # Errors
/// The file can't be read, or the existing letters can't.
pub async fn import(
    path: &Path,
    letters: &mut dyn DeadLetters,
    run: &mut LetterRun<'_>,
) -> Result<u64, DeadLetterError> {
    let mut ids = find(letters, LetterFilter::default().select()).await?;
    let mut skipped = 0;
    for letter in read(path)? {
        let letter = letter.map_err(DeadLetterError::File)?;
        run.output.advance(1);
        if !ids.insert(letter.id().clone()) {
            skipped += 1;
            continue;
        }
        match letters.put(&letter).await {
            Ok(()) => run.done(&letter),
            Err(problem) if run.failed(&letter, &problem) => {}
            Err(_) => break,
        }
    }
    Ok(skipped)
}
