//! `consign dead`: the jobs that were given up. Looked at, requeued, discarded, exported, put back.
//!
//! A kill at any moment loses nothing, and doubles nothing that counts: see [`DeadLetters`].

mod discard;
mod export;
mod filter;
mod gate;
mod import;
mod line;
mod list;
mod report;
mod requeue;
mod show;
mod words;

use clap::Subcommand;

use super::{Exit, broker, complain};
use crate::config::Config;
use crate::queue::{DeadLetters, QueueError};

/// What to do with dead letters.
#[derive(Debug, Clone, Subcommand)]
pub enum DeadArgs {
    /// List them, and count them by reason
    List(list::ListArgs),
    /// Show one with its history and its job; queries of URLs and external ids as ***
    Show(show::ShowArgs),
    /// Put their jobs back into their lanes: the same ids, no attempt charged
    Requeue(requeue::RequeueArgs),
    /// Remove them for good
    Discard(discard::DiscardArgs),
    /// Write them to a file that `import` reads; nothing is removed. The file holds the jobs as they are, secrets included
    Export(export::ExportArgs),
    /// Put exported letters back among the dead letters; those that are there already are left out
    Import(import::ImportArgs),
}

/// Runs the command.
pub async fn execute(args: DeadArgs, config: Config, json: bool) -> Exit {
    if let Some(exit) = broker::missing(&config.broker) {
        return exit;
    }
    let ended = match args {
        DeadArgs::List(args) => list::execute(args, &config, json).await,
        DeadArgs::Show(args) => show::execute(args, &config, json).await,
        DeadArgs::Requeue(args) => requeue::execute(args, &config, json).await,
        DeadArgs::Discard(args) => discard::execute(args, &config, json).await,
        DeadArgs::Export(args) => export::execute(args, &config).await,
        DeadArgs::Import(args) => import::execute(args, &config, json).await,
    };
    ended.unwrap_or_else(|problem| match problem {
        Stop::Queue(problem) => broker::complain_of(&problem),
        Stop::Usage(what) => complain(&what, Exit::Usage),
        Stop::Failed(what) => complain(&what, Exit::Failed),
    })
}

/// Nothing was done.
enum Stop {
    Queue(QueueError),
    Usage(String),
    Failed(String),
}

impl From<QueueError> for Stop {
    fn from(problem: QueueError) -> Self {
        Self::Queue(problem)
    }
}

async fn open(config: &Config) -> Result<DeadLetters, QueueError> {
    DeadLetters::open(&config.broker, &broker::name(config, "dead")).await
}

/// Whoever acts on letters says on which, or that all are meant.
fn demand_a_choice(filter: &filter::Filter, all: bool) -> Result<(), Stop> {
    if all || !filter.is_empty() {
        return Ok(());
    }
    let what = "say which dead letters, by --reason, --class, --destination, --lane, --job, --older-than, --newer-than or --id; \
                --all takes them all";
    Err(Stop::Usage(what.to_owned()))
}
