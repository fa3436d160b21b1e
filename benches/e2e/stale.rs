//! Older refreshes that come late, beside newer ones: the newer bytes must stay.
//!
//! ```text
//! tests/run --servers cargo bench --bench e2e -- stale                                  # 200 rounds of every kind, half an hour
//! tests/run --servers cargo bench --bench e2e -- stale --only away,killed --workers 3 --rounds 50 --seed 7
//! tests/run --servers cargo bench --bench e2e -- stale --only announcements             # reports per job, and their cost
//! tests/run --servers cargo bench --bench e2e -- stale --only memory                    # a million keys
//! ```
//!
//! The rounds of a kind run side by side. Each is an object of its own with an older and a newer
//! job, whose `created_at` differ by an hour. The older one comes late; the newer ones are published
//! at random times around the moment at which the older ones can be delivered. A build without
//! generations (`CONSIGN_BENCH_BIN`) runs the same, so that its stale objects can be counted.

mod account;
mod announcements;
mod cost;
mod jobs;
mod reports;
mod rounds;
pub mod versions;

use clap::{Args, ValueEnum};

use crate::Fallible;
use rounds::Round;

/// Size of the run.
#[derive(Debug, Args)]
pub struct StaleArgs {
    /// Objects of each kind, with an older and a newer job each.
    #[arg(long, default_value_t = 200)]
    rounds: u32,
    /// Numbers of workers.
    #[arg(long, value_delimiter = ',', default_values_t = [2, 3])]
    workers: Vec<u32>,
    /// Only these parts.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Part>,
    /// Seed for the times at which the newer jobs are published. Default: random.
    #[arg(long)]
    seed: Option<u64>,
    /// Jobs of a run that counts reports.
    #[arg(long, default_value_t = 5_000)]
    jobs: u32,
}

/// Reason for which the older jobs come late, or another measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// The source is away for a minute.
    Away,
    /// The bucket does not exist.
    Broken,
    /// The worker drains in the middle of a multipart upload.
    Drain,
    /// The worker is killed in the middle of a multipart upload.
    Killed,
    /// The worker is killed in the middle of `PutObject`.
    Put,
    /// The source is unavailable, and the worker of the newer job is killed once its object is stored.
    Newer,
    /// The job is requeued from the dead letters.
    Requeued,
    /// A worker starts and reads a long control stream, while the older jobs wait for a retry.
    Backlog,
    /// Reports per job, and the cost of 100,000 of them.
    Announcements,
    /// Memory with 1,000,000 keys.
    Memory,
}

impl Part {
    fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    fn is_measurement(self) -> bool {
        matches!(self, Self::Announcements | Self::Memory)
    }
}

/// Prints the account; an error if an object is stale, or a job lost.
pub async fn run(args: &StaleArgs, amqp: &str) -> Fallible<()> {
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..1_000_000_000));
    println!("stale: --rounds {} --seed {seed}", args.rounds);
    let root = tempfile::Builder::new().prefix("consign-stale-").tempdir()?;
    let mut rows = Vec::new();
    for part in args.parts().into_iter().filter(|part| !part.is_measurement()) {
        for &workers in &args.workers {
            let row = Round { part, workers, pairs: args.rounds, seed, amqp, root: root.path() }.run().await?;
            println!("stale: {}, {workers} workers: {} stale, {} lost", part.name(), row.stale, row.lost);
            rows.push(row);
        }
    }
    let sound = rows.iter().all(|row| row.stale == 0 && row.lost == 0);
    rounds::report(&rows);
    if args.parts().contains(&Part::Announcements) {
        announcements::run(args.jobs, amqp, root.path()).await?;
        cost::announcements(amqp, root.path()).await?;
    }
    if args.parts().contains(&Part::Memory) {
        cost::memory(amqp, root.path()).await?;
    }
    if sound {
        return Ok(());
    }
    Err(format!("objects are stale, or jobs are lost; the logs are in {}", root.keep().display()).into())
}

impl StaleArgs {
    /// What was asked for; a million keys only by name.
    fn parts(&self) -> Vec<Part> {
        let all = || Part::value_variants().iter().copied().filter(|part| *part != Part::Memory);
        if self.only.is_empty() { all().collect() } else { self.only.clone() }
    }
}
