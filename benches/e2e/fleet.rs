//! What one more worker brings, and what the workers of a fleet cost a customer together.
//!
//! ```text
//! tests/run --servers cargo bench --bench e2e -- fleet                       # all of it, half an hour
//! tests/run --servers cargo bench --bench e2e -- fleet --only scaling --workers 1,2,4,8
//! ```
//!
//! `scaling` publishes jobs in proportion to the workers, and compares throughput with that of the
//! first number of workers. `broken` counts the requests to a bucket that does not exist. `limited`
//! measures the bytes a second to a customer with a limit. `mixed` (only by name) counts the
//! reconnects that an acknowledgement timeout of a minute causes among all kinds of customers. `start` times the first delivery of a
//! new process. Every number of workers has queues and a null server of its own.

mod broken;
mod limited;
mod mixed;
mod scaling;
mod start;

use std::path::Path;

use clap::{Args, ValueEnum};

use crate::Fallible;
use crate::children::NullServer;
use crate::manners::Manners;
use crate::worker::Worker;
use crate::world::{self, World};

/// Measurements to take, and their size.
#[derive(Debug, Args)]
pub struct FleetArgs {
    /// Only this part.
    #[arg(long)]
    only: Option<Part>,
    /// Numbers of workers.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 4, 8])]
    workers: Vec<u32>,
    /// Milliseconds until S3 answers.
    #[arg(long, default_value_t = 30)]
    latency: u64,
    /// Rounds of the throughput; the median counts.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Jobs a worker in a round of the throughput.
    #[arg(long, default_value_t = 4_000)]
    jobs: u32,
    /// Minutes during which requests and bytes are counted.
    #[arg(long, default_value_t = 10)]
    minutes: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Scaling,
    Broken,
    Limited,
    Mixed,
    Start,
}

/// Prints a line for each number of workers.
pub async fn run(args: &FleetArgs, amqp: &str) -> Fallible<()> {
    let root = tempfile::Builder::new().prefix("consign-fleet-").tempdir()?;
    let (mut throughput, mut refused, mut rates) = (Vec::new(), Vec::new(), Vec::new());
    if args.wants(Part::Start) {
        Fleet { args, amqp, root: root.path(), count: 1 }.start().await?;
    }
    for &count in &args.workers {
        let fleet = Fleet { args, amqp, root: root.path(), count };
        if args.wants(Part::Scaling) {
            throughput.push((f64::from(count), fleet.scaling().await?));
        }
        if args.wants(Part::Broken) {
            refused.push(fleet.broken().await?);
        }
        if args.wants(Part::Limited) {
            rates.push(fleet.limited().await?);
        }
        if args.only == Some(Part::Mixed) {
            fleet.mixed().await?;
        }
    }
    report(&throughput, &refused, &rates);
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "a count of requests is far below 2^52")]
fn report(throughput: &[(f64, f64)], refused: &[u64], rates: &[f64]) {
    if let Some((workers, first)) = throughput.first() {
        let share = |(count, rate): &(f64, f64)| format!("{count}: {:.2}", rate / first * workers / count);
        let shares: Vec<_> = throughput.iter().map(share).collect();
        println!("scaling: share of linear throughput by workers (goal 0.95): {}", shares.join(", "));
    }
    if let (Some(first), Some(last)) = (refused.first(), refused.last()) {
        println!("broken: most workers against fewest, requests x{:.2} (goal 1)", *last as f64 / *first as f64);
    }
    if let (Some(first), Some(last)) = (rates.first(), rates.last()) {
        println!("limited: most workers against fewest, bytes/s x{:.3} (goal 0.95 to 1.05)", last / first);
    }
}

impl FleetArgs {
    fn wants(&self, part: Part) -> bool {
        self.only.is_none_or(|only| only == part)
    }
}

/// A number of workers to measure.
struct Fleet<'a> {
    args: &'a FleetArgs,
    amqp: &'a str,
    root: &'a Path,
    count: u32,
}

impl Fleet<'_> {
    async fn server(&self) -> Fallible<NullServer> {
        let (slow, missing) = (Some(world::SLOW.to_owned()), Some(world::DEAD.to_owned()));
        NullServer::start_with(None, &Manners { latency: self.args.latency, slow, missing, ..Manners::default() }).await
    }

    async fn world<'a>(&'a self, part: &str, server: &'a NullServer) -> Fallible<World<'a>> {
        World::new(&format!("{part}-{}", self.count), self.amqp, server, self.root, "").await
    }

    /// Starts the workers one after the other; each has sessions with the healthy customers.
    async fn workers(&self, world: &World<'_>) -> Fallible<Vec<Worker>> {
        let mut workers = Vec::new();
        for n in 0..self.count {
            workers.push(world.worker(&format!("worker{n}")).await?);
        }
        Ok(workers)
    }
}

async fn stop(world: &World<'_>, workers: Vec<Worker>) -> Fallible<()> {
    for worker in workers {
        worker.stop().await?;
    }
    world.broker.delete_topology().await
}
