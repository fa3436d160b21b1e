//! `consign dead export FILE`.

use std::path::PathBuf;

use clap::Args;

use super::args::FilterArgs;
use super::open;
use crate::cli::{CommandError, Exit, notice};
use crate::config::Config;
use crate::dead_letter::export;

/// Arguments of `consign dead export`.
#[derive(Debug, Clone, Args)]
pub struct ExportArgs {
    /// File to create, readable by its owner only; `-` is standard output
    #[arg(value_name = "FILE|-")]
    file: PathBuf,
    #[command(flatten)]
    filter: FilterArgs,
}

/// Exports letters.
pub(super) async fn execute(args: ExportArgs, config: &Config) -> Result<Exit, CommandError> {
    let mut letters = open(config).await?;
    let written = if args.file.as_os_str() == "-" {
        export::write(&mut *letters, args.filter.into(), std::io::stdout()).await
    } else {
        export::to_file(&mut *letters, args.filter.into(), &args.file).await
    };
    letters.close().await;
    let exported = written?;
    notice(&format!("{} exported; nothing was removed", exported.written));
    if exported.unread > 0 {
        notice(&format!("{} not exported: their bodies are too large to be read", exported.unread));
        return Ok(Exit::Partly);
    }
    Ok(Exit::Done)
}
