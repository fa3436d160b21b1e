//! Cost of a backfill, a slow customer and a dead one for the others.
//!
//! ```text
//! tests/run --servers cargo bench --bench e2e -- fair                        # all of it, a quarter of an hour
//! tests/run --servers cargo bench --bench e2e -- fair --only open --backfill 5000 --rounds 1 --seconds 5
//! ```
//!
//! `open` publishes scheduled jobs at a fixed rate, a share of what the worker can do, and takes
//! the time from when a job was due to when its outcome came: nobody waits for a late one. `closed`
//! publishes all at once and takes the time until the last has ended. Both do so alone (A) and
//! beside backfills in the queue and a customer at 1 % speed (B), in turn, each with a worker and
//! queues of its own, one worker at a time. `dead` counts what a bucket that does not exist is
//! asked.

mod closed;
mod dead;
mod open;

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::Fallible;
use crate::children::NullServer;
use crate::manners::Manners;
use crate::world::{self, World};

/// Measurements to take, and their size.
#[derive(Debug, Args)]
pub struct FairArgs {
    /// Only this part.
    #[arg(long)]
    only: Option<Part>,
    /// Jobs of backfills in the queue.
    #[arg(long, default_value_t = 100_000)]
    backfill: u32,
    /// Milliseconds until S3 answers; the slow customer's takes a hundred times as long.
    #[arg(long, default_value_t = 20)]
    latency: u64,
    /// No slow customer, to see what the backfills cost alone.
    #[arg(long)]
    no_slow: bool,
    /// Pairs of rounds.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Seconds of an open round.
    #[arg(long, default_value_t = 30)]
    seconds: u32,
    /// The share of what the worker can do that an open round asks of it.
    #[arg(long, default_value_t = 0.4)]
    share: f64,
    /// Scheduled jobs of a closed round.
    #[arg(long, default_value_t = 4_000)]
    jobs: u32,
    /// Jobs for the dead customer.
    #[arg(long, default_value_t = 10_000)]
    dead: u32,
    /// Minutes until the dead customer's bucket is there.
    #[arg(long, default_value_t = 3)]
    minutes: u32,
    /// Nobody resets the circuit: the next probe finds out.
    #[arg(long)]
    no_reset: bool,
    /// A file of TOML that is appended to the worker's config.
    #[arg(long)]
    extra_config: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Open,
    Closed,
    Dead,
}

impl FairArgs {
    fn wants(&self, part: Part) -> bool {
        self.only.is_none_or(|only| only == part)
    }
}

/// Prints a line for each round, and the ratios.
pub async fn run(args: &FairArgs, amqp: &str) -> Fallible<()> {
    let root = tempfile::Builder::new().prefix("consign-fair-").tempdir()?;
    let extra = args.extra_config.as_ref().map(std::fs::read_to_string).transpose()?.unwrap_or_default();
    let manners = Manners {
        latency: args.latency,
        slow: Some(world::SLOW.to_owned()),
        missing: Some(world::DEAD.to_owned()),
        ..Manners::default()
    };
    let server = NullServer::start_with(None, &manners).await?;
    let new = async |name| World::new(name, amqp, &server, root.path(), &extra).await;
    let (alone, beside) = (new("alone").await?, new("beside").await?);
    let measured = measure(args, &alone, &beside).await;
    for world in [alone, beside] {
        world.broker.delete_topology().await?;
    }
    measured
}

async fn measure(args: &FairArgs, alone: &World<'_>, beside: &World<'_>) -> Fallible<()> {
    if args.wants(Part::Open) || args.wants(Part::Closed) {
        beside.publish_backfill(args.backfill).await?;
        let most = closed::calibrate(args, alone).await?;
        println!("alone, the worker does {most:.0} jobs/s");
        if args.wants(Part::Open) {
            open::run(args, alone, beside, most * args.share).await?;
        }
        if args.wants(Part::Closed) {
            closed::run(args, alone, beside).await?;
        }
    }
    if args.wants(Part::Dead) {
        dead::run(args, alone).await?;
    }
    Ok(())
}
