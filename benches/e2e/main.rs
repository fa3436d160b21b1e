//! The end-to-end table: jobs in the queue -> `consign run` -> objects in a null S3 -> outcomes
//! confirmed, beside a reference client ("raw") that sends the same bytes of the same files to the
//! same server.
//!
//! ```text
//! tests/run --servers cargo bench --bench e2e                        # the whole table, some minutes
//! tests/run --servers cargo bench --bench e2e -- --short             # under a minute, only shows that it runs
//! tests/run --servers cargo bench --bench e2e -- --only P1 --rounds 5 --scheme https
//! tests/run --servers cargo bench --bench e2e -- drain               # SIGTERM in the middle of 10 GiB
//! tests/run --servers cargo bench --bench e2e -- fair                # what a backfill, a slow and a dead customer cost the others
//! tests/run --servers cargo bench --bench e2e -- fleet               # throughput, requests and bytes against the number of workers
//! tests/run --servers cargo bench --bench e2e -- storm               # a million small jobs under constant faults, each accounted for
//! tests/run --servers cargo bench --bench e2e -- stale               # older refreshes that come late, beside newer ones
//! ```
//!
//! Null server, reference client and `consign` are processes of their own, so each one's CPU and
//! memory are its own; they and the broker share the machine. Rounds are interleaved: raw, consign,
//! raw, consign.

#![expect(unreachable_pub, reason = "nobody imports a benchmark; `pub` marks what a module offers to the others")]

mod arrivals;
mod broker;
mod celery;
mod children;
mod chunks;
mod counts;
mod drain;
mod fair;
mod fleet;
mod manners;
mod measure;
mod node;
mod ports;
mod process;
mod raw;
mod round;
mod scenario;
mod server;
mod signature;
mod stale;
mod storm;
mod table;
mod tls;
mod wire;
mod worker;
mod world;
mod xml;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

use crate::broker::Broker;
use crate::children::NullServer;
use crate::manners::Manners;
use crate::round::Bench;
use crate::scenario::Scenario;
use crate::table::Measured;
use crate::worker::Surroundings;

/// Errors end the bench with one line, so their type does not matter.
type Fallible<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

const HELP: &str = "e2e: no broker, so nothing is measured. Give one in CONSIGN_TEST_AMQP_URL, or run\n     \
                    tests/run --servers cargo bench --bench e2e [-- --short]";

/// Measures `consign run` end to end.
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    role: Option<Role>,
    /// Tiny files and one round: only shows that the bench runs.
    #[arg(long, env = "CONSIGN_BENCH_SHORT", value_parser = clap::builder::FalseyValueParser::new())]
    short: bool,
    /// Rounds of each scenario.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Only this scenario: P1, P2, P3, P3b or P7.
    #[arg(long)]
    only: Option<String>,
    /// Only this scheme.
    #[arg(long)]
    scheme: Option<Scheme>,
    /// Folder for the source files (default: the folder for temporary files).
    #[arg(long, env = "CONSIGN_BENCH_DIR")]
    folder: Option<PathBuf>,
    /// Another build of consign to compare with. It runs in each round, after the measured build.
    #[arg(long)]
    baseline: Option<PathBuf>,
    /// A file of TOML that is appended to the worker's config.
    #[arg(long)]
    extra_config: Option<PathBuf>,
    /// A broker's URL.
    #[arg(long, env = "CONSIGN_TEST_AMQP_URL", hide_env_values = true)]
    amqp: Option<String>,
    /// Given by `cargo bench`.
    #[arg(long, hide = true, global = true)]
    bench: bool,
}

/// Role of a child process.
#[derive(Debug, Subcommand)]
enum Role {
    /// The null S3 and STS server.
    Serve {
        /// https, with the authority's certificate written into this folder.
        #[arg(long)]
        tls: Option<PathBuf>,
        #[command(flatten)]
        manners: manners::Manners,
    },
    /// The reference client.
    Raw(raw::RawArgs),
    /// Drains workers in the middle of one large file.
    Drain(drain::DrainArgs),
    /// Scheduled jobs beside backfills, a slow destination and a dead one.
    Fair(fair::FairArgs),
    /// Several workers on one queue.
    Fleet(fleet::FleetArgs),
    /// Many small jobs under constant faults, each accounted for.
    Storm(storm::StormArgs),
    /// Older refreshes that come late, beside newer ones, and the cost of their reports.
    Stale(stale::StaleArgs),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Scheme {
    Http,
    Https,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Cli::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("e2e: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> Fallible<()> {
    match (&cli.role, &cli.amqp) {
        (Some(Role::Serve { tls, manners }), _) => server::serve(tls.as_deref(), manners.clone()).await,
        (Some(Role::Raw(args)), _) => {
            println!("{}", serde_json::to_string(&raw::run(args).await?)?);
            Ok(())
        }
        (Some(Role::Drain(args)), Some(amqp)) => drain::run(args, amqp).await,
        (Some(Role::Fair(args)), Some(amqp)) => fair::run(args, amqp).await,
        (Some(Role::Fleet(args)), Some(amqp)) => fleet::run(args, amqp).await,
        (Some(Role::Storm(args)), Some(_)) => storm::run(args).await,
        (Some(Role::Stale(args)), Some(amqp)) => stale::run(args, amqp).await,
        // `cargo test --benches` runs this binary too, without --bench: a test run must not measure for minutes.
        (None, Some(amqp)) if cli.bench || cli.short => bench(&cli, amqp).await,
        (_, _) => {
            eprintln!("{HELP}");
            Ok(())
        }
    }
}

async fn bench(cli: &Cli, amqp: &str) -> Fallible<()> {
    let root = tempfile::Builder::new().prefix("consign-bench-").tempdir_in(files_below(cli))?;
    let prefix = format!("consign-bench-{}", std::process::id());
    let broker = Broker::connect(amqp, &prefix).await?;
    let measured = measure_all(cli, amqp, &broker, root.path(), &prefix).await;
    broker.delete_topology().await?;
    let measured = measured?;
    let results = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("bench");
    let report = table::report(&measured, &about(cli, root.path()), celery::load(&results).as_ref());
    print!("{report}");
    std::fs::create_dir_all(&results)?;
    Ok(std::fs::write(results.join("e2e.md"), report)?)
}

async fn measure_all(cli: &Cli, amqp: &str, broker: &Broker, root: &Path, prefix: &str) -> Fallible<Vec<Measured>> {
    let extra = cli.extra_config.as_ref().map(std::fs::read_to_string).transpose()?.unwrap_or_default();
    let plain = NullServer::start(None).await?;
    let secure = NullServer::start(Some(root)).await?;
    let mut measured = Vec::new();
    for scenario in scenarios(cli) {
        let folder = scenario.write_files(root)?;
        let manners = Manners { latency: scenario.latency, rate: scenario.rate, ..Manners::default() };
        let distant = if scenario.latency > 0 { Some(NullServer::start_with(None, &manners).await?) } else { None };
        let servers = match &distant {
            Some(distant) => vec![(Scheme::Http, "http", distant)],
            None => vec![(Scheme::Http, "http", &plain), (Scheme::Https, "https", &secure)],
        };
        for (_, name, server) in servers.iter().filter(|(scheme, ..)| cli.scheme.is_none_or(|only| only == *scheme)) {
            let bench = Bench {
                server,
                broker,
                scheme: name,
                baseline: cli.baseline.as_deref(),
                around: Surroundings { amqp, prefix, server, root, lease_after: worker::LEASE_AFTER, extra: &extra },
            };
            let mut one = Measured { scenario, scheme: name, pairs: Vec::new() };
            for round in 0..if cli.short { 1 } else { cli.rounds } {
                one.pairs.push(bench.pair(&scenario, &folder, round).await?);
                eprintln!("e2e: {} over {name}, round {} done", scenario.title(), round + 1);
            }
            measured.push(one);
        }
        std::fs::remove_dir_all(&folder)?;
    }
    Ok(measured)
}

fn scenarios(cli: &Cli) -> Vec<Scenario> {
    let all = if cli.short { scenario::SHORT } else { scenario::FULL };
    let wanted = |scenario: &Scenario| cli.only.as_ref().is_none_or(|only| only.eq_ignore_ascii_case(scenario.target));
    all.into_iter().filter(wanted).collect()
}

/// On a disk, read from the page cache: tmpfs can't say whether a read would wait (`RWF_NOWAIT`),
/// so there every chunk would take the way through a blocking thread, which no production file
/// system takes.
fn files_below(cli: &Cli) -> PathBuf {
    cli.folder.clone().unwrap_or_else(std::env::temp_dir)
}

fn about(cli: &Cli, root: &Path) -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let rounds = if cli.short { 1 } else { cli.rounds };
    let files = root.parent().unwrap_or(root).display();
    let short = if cli.short { " SHORT: tiny files, the figures mean nothing." } else { "" };
    format!(
        "{cores} cores shared by broker, null server and client; medians of {rounds} interleaved rounds; files in {files}, in the page cache. \
         Every job: role session, KMS headers, outcome confirmed.{short}"
    )
}
