//! `consign dead export FILE`.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use clap::Args;

use super::filter::Filter;
use super::line::Line;
use super::{Stop, open};
use crate::cli::{Exit, note};
use crate::config::Config;
use crate::queue::DeadLetters;

/// Which letters, and where to.
#[derive(Debug, Clone, Args)]
pub struct ExportArgs {
    /// A file that is not there yet, made for its owner alone; `-` is standard output
    #[arg(value_name = "FILE|-")]
    file: PathBuf,
    #[command(flatten)]
    filter: Filter,
}

/// Exports. The file has its name when it is whole, so that nobody discards what is only half written.
pub(super) async fn execute(args: ExportArgs, config: &Config) -> Result<Exit, Stop> {
    let mut letters = open(config).await?;
    let written = if args.file.as_os_str() == "-" {
        write(&mut letters, args.filter, std::io::stdout()).await
    } else {
        to_file(&mut letters, args.filter, &args.file).await
    };
    letters.close().await;
    note(&format!("{} exported; nothing was removed", written?));
    Ok(Exit::Done)
}

async fn to_file(letters: &mut DeadLetters, filter: Filter, file: &Path) -> Result<u64, Stop> {
    let failed = |what: &str, problem: &std::io::Error| Stop::Failed(format!("{} {what}: {problem}", file.display()));
    if file.exists() {
        return Err(Stop::Failed(format!("{} is there already; name another file", file.display())));
    }
    let mut name = file.as_os_str().to_owned();
    name.push(".part");
    let part = PathBuf::from(name);
    // Of an export that was broken off. A new file has our own mode for certain.
    let _ = std::fs::remove_file(&part);
    let opened = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part);
    let opened = opened.map_err(|problem| failed("can't be written", &problem))?;
    let count = write(letters, filter, &opened).await?;
    opened.sync_all().map_err(|problem| failed("can't be written", &problem))?;
    std::fs::rename(&part, file).map_err(|problem| failed("can't be made", &problem))?;
    Ok(count)
}

async fn write(letters: &mut DeadLetters, filter: Filter, to: impl Write) -> Result<u64, Stop> {
    let failed = |problem: &dyn std::fmt::Display| Stop::Failed(format!("the letters can't be written: {problem}"));
    let (mut to, mut choice, mut count) = (std::io::BufWriter::new(to), filter.choice(), 0);
    while !choice.is_complete() {
        let Some(letter) = letters.next().await? else { break };
        if choice.takes(&letter) {
            let line = serde_json::to_string(&Line::of(&letter)).map_err(|problem| failed(&problem))?;
            writeln!(to, "{line}").map_err(|problem| failed(&problem))?;
            count += 1;
        }
    }
    to.flush().map_err(|problem| failed(&problem))?;
    Ok(count)
}
