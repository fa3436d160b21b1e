//! `consign man`: manual pages, generated from the help texts.

use std::io;
use std::path::{Path, PathBuf};

use clap::{Args, Command};
use clap_mangen::Man;

use super::{Cli, Exit};

/// Arguments of `consign man`.
#[derive(Debug, Clone, Args)]
pub struct ManArgs {
    /// Command whose page is printed, such as `dead requeue` [default: consign itself]
    #[arg(value_name = "COMMAND", conflicts_with = "out")]
    pub of: Vec<String>,
    /// Write all pages to this directory, such as /usr/local/share/man/man1
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

/// Prints one page, or writes all pages; needs no configuration.
pub fn execute(args: &ManArgs) -> Exit {
    match &args.out {
        Some(directory) => write(directory),
        None => show(&args.of),
    }
}

fn write(directory: &Path) -> Exit {
    let written = std::fs::create_dir_all(directory).and_then(|()| clap_mangen::generate_to(Cli::command(), directory));
    match written {
        Ok(()) => Exit::Done,
        Err(problem) => super::fail(&format!("--out {}: {problem}", directory.display()), Exit::Failed),
    }
}

fn show(of: &[String]) -> Exit {
    let Some(command) = find(of) else {
        let reason = format!("there is no command `{}`; `consign --help` lists them", of.join(" "));
        return super::fail(&reason, Exit::Usage);
    };
    match page(command) {
        Ok(text) => super::print(&text),
        Err(problem) => super::fail(&format!("the page can't be generated: {problem}"), Exit::Failed),
    }
}

/// Returns the subcommand with these words; `None` where there is none.
fn find(words: &[String]) -> Option<Command> {
    let mut all = Cli::command().disable_help_subcommand(true);
    all.build();
    words.iter().try_fold(all, |command, word| command.find_subcommand(word).cloned())
}

fn page(command: Command) -> io::Result<String> {
    let mut page = Vec::new();
    Man::new(command).render(&mut page)?;
    Ok(String::from_utf8_lossy(&page).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn a_page_names_its_command() {
        let requeue = page(find(&words("dead requeue")).unwrap()).unwrap();
        assert!(requeue.contains(r"consign\-dead\-requeue") && requeue.contains(r"\-\-dry\-run"), "{requeue}");
        assert!(page(find(&[]).unwrap()).unwrap().contains(r"consign\-backfill(1)"));
    }

    #[test]
    fn an_unknown_command_has_no_page() {
        assert!(find(&words("dead fly")).is_none() && find(&words("help")).is_none());
    }
}
