//! `consign enqueue`: publishes jobs.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::Exit;
use crate::config::Config;
use crate::lane::Lane;

/// What to publish: the jobs of a file, or one job from flags.
#[derive(Debug, Clone, Args)]
pub struct EnqueueArgs {
    /// One job as JSON, or one a line (NDJSON); "-" reads stdin
    #[arg(value_name = "FILE", conflicts_with_all = ["source", "to", "key", "id"], required_unless_present = "source")]
    pub file: Option<PathBuf>,
    /// The file to deliver: https://, s3:// or file://
    #[arg(long, value_name = "URL", requires_all = ["to", "key"])]
    pub source: Option<String>,
    /// The id of the destination
    #[arg(long, value_name = "DEST", requires = "source")]
    pub to: Option<String>,
    /// The key below the destination's prefix
    #[arg(long, requires = "source")]
    pub key: Option<String>,
    /// The job's id; made from destination and key unless given
    #[arg(long, requires = "source")]
    pub id: Option<String>,
    /// The queue to use
    #[arg(long, value_enum, default_value_t = EnqueueLane::Scheduled)]
    pub lane: EnqueueLane,
    /// Publish the compact (bincode) form
    #[arg(long)]
    pub compact: bool,
    /// Wait for the outcome of every job
    #[arg(long)]
    pub wait: bool,
    /// Give up waiting after this time
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, requires = "wait")]
    pub wait_timeout: Option<Duration>,
}

/// The lanes a producer may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum EnqueueLane {
    /// Regular jobs
    Scheduled,
    /// Batch backfills
    Backfill,
}

impl From<EnqueueLane> for Lane {
    fn from(lane: EnqueueLane) -> Self {
        match lane {
            EnqueueLane::Scheduled => Self::Scheduled,
            EnqueueLane::Backfill => Self::Backfill,
        }
    }
}

/// Publishes.
pub async fn execute(_args: EnqueueArgs, config: Config, _json: bool) -> Exit {
    if let Err(problem) = config.broker.required_url() {
        return super::complain(&problem.to_string(), Exit::Config);
    }
    super::complain("enqueue is not wired yet", Exit::Failed)
}
