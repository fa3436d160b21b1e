//! `consign completions`: shell completion scripts.

use clap::Args;
use clap_complete::Shell;

use super::{Cli, Exit};

/// Arguments of `consign completions`.
#[derive(Debug, Clone, Args)]
pub struct CompletionsArgs {
    /// Shell to generate completions for
    #[arg(value_enum)]
    pub shell: Shell,
}

/// Prints the script; needs no configuration.
pub fn execute(args: &CompletionsArgs) -> Exit {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "consign", &mut script);
    super::print(&String::from_utf8_lossy(&script))
}
