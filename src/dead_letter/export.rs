//! Export of letters to a file. Nothing is removed.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::DeadLetterError;
use super::filter::LetterFilter;
use super::format::ExportLine;
use crate::queue::DeadLetters;

/// Number of letters of an export.
#[derive(Debug, Clone, Copy, Default)]
pub struct Exported {
    /// Letters that were written.
    pub written: u64,
    /// Letters that were left out, because their bodies are too large to be read.
    pub unread: u64,
}

/// Writes the selected letters to a new file that only its owner can read. Returns their number.
/// The file gets its name when it is complete, so that nobody relies on a partial export.
///
/// # Errors
/// The file exists or can't be written; the broker is lost.
pub async fn to_file(
    letters: &mut dyn DeadLetters,
    filter: LetterFilter,
    file: &Path,
) -> Result<Exported, DeadLetterError> {
    let failed = |what: &str, problem: &std::io::Error| {
        DeadLetterError::File(format!(
            "{} {what}: {problem}; name a file in a directory that you may write to",
            file.display()
        ))
    };
    if file.exists() {
        return Err(DeadLetterError::File(format!("{} exists already; name another file", file.display())));
    }
    let mut name = file.as_os_str().to_owned();
    name.push(".part");
    let part = PathBuf::from(name);
    let opened = create(&part).map_err(|problem| failed("can't be written", &problem))?;
    let count = write(letters, filter, &opened).await?;
    opened.sync_all().map_err(|problem| failed("can't be written", &problem))?;
    std::fs::rename(&part, file).map_err(|problem| failed("can't be created", &problem))?;
    Ok(count)
}

/// Creates the file of an export in progress.
fn create(part: &Path) -> std::io::Result<File> {
    // It may be left from an interrupted export. Only a new file is sure to have our mode.
    let _ = std::fs::remove_file(part);
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(part)
}

/// Writes the selected letters, one line each. Returns their number.
///
/// # Errors
/// `to` can't be written; the broker is lost.
pub async fn write(
    letters: &mut dyn DeadLetters,
    filter: LetterFilter,
    to: impl Write,
) -> Result<Exported, DeadLetterError> {
    let failed =
        |problem: &dyn std::fmt::Display| DeadLetterError::File(format!("the letters can't be written: {problem}"));
    let (mut to, mut selection, mut count) = (BufWriter::new(to), filter.select(), Exported::default());
    while let Some(letter) = selection.next(letters, || ()).await? {
        if letter.properties().unread.is_some() {
            count.unread += 1;
            continue;
        }
        let line = serde_json::to_string(&ExportLine::new(&letter)).map_err(|problem| failed(&problem))?;
        writeln!(to, "{line}").map_err(|problem| failed(&problem))?;
        count.written += 1;
    }
    to.flush().map_err(|problem| failed(&problem))?;
    Ok(count)
}
