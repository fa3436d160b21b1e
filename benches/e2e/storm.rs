//! Many small jobs over several workers while one fault follows the other, and an account of every
//! job: none may be lost, stored incompletely, or end in two ways.
//!
//! ```text
//! tests/run --servers cargo bench --bench e2e -- storm                       # 1,000,000 jobs
//! tests/run --servers cargo bench --bench e2e -- storm --jobs 20000 --seed 7
//! ```
//!
//! The broker is a node of its own, because it is killed, too. S3 answers one of many requests with
//! 503, and closes the connection after one of many objects instead of answering. Faults are drawn
//! from the seed. The account does not depend on the speed of the machine; the rate does.

mod inbox;
pub mod ledger;
mod publisher;
mod strikes;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use clap::Args;
use tokio::time::sleep;

use crate::Fallible;
use crate::broker::Broker;
use crate::children::NullServer;
use crate::manners::Manners;
use crate::node::Node;
use crate::worker::{LEASE_AFTER, Surroundings};
use crate::world;
use inbox::{Account, Inbox};
use ledger::Stored;

/// One of so many requests for an object is answered with 503, and one of so many objects is stored
/// without an answer.
const REFUSED: u64 = 300;
const UNANSWERED: u64 = 1_000;
/// Longest time without an end of a job before the bench fails.
const SILENCE: Duration = Duration::from_mins(5);
const PROGRESS: Duration = Duration::from_secs(15);
/// Longest time until the queues are empty after the last end.
const DRAINED_WITHIN: Duration = Duration::from_mins(2);
const PREFIX: &str = "storm";
const QUEUES: [&str; 6] = ["jobs.scheduled", "jobs.backfill", "jobs.continued", "wait.5s", "wait.30s", "lease"];
/// A line of the log for each of a million attempts would be a gigabyte.
const QUIET_LOG: &str = "[log]\nfilter = \"warn\"\n";

/// Size of the run.
#[derive(Debug, Args)]
pub struct StormArgs {
    #[arg(long, default_value_t = 1_000_000)]
    jobs: u32,
    #[arg(long, default_value_t = 3)]
    workers: usize,
    /// Milliseconds from one fault to the next.
    #[arg(long, default_value_t = 2_000)]
    every: u64,
    /// What the faults are drawn from; a new one unless given.
    #[arg(long)]
    seed: Option<u64>,
}

/// Prints the account; an error if it does not balance.
pub async fn run(args: &StormArgs) -> Fallible<()> {
    let seed = args.seed.unwrap_or_else(fresh_seed);
    println!("storm: --jobs {} --workers {} --every {} --seed {seed}", args.jobs, args.workers, args.every);
    let root = tempfile::Builder::new().prefix("consign-storm-").tempdir()?;
    ledger::write_files(root.path())?;
    let manners = Manners { ledger: true, refused: REFUSED, unanswered: UNANSWERED, ..Manners::default() };
    let server = NullServer::start_with(None, &manners).await?;
    let node = Node::start(root.path()).await?;
    let extra = format!("{QUIET_LOG}{}", world::destinations());
    let (amqp, root) = (node.url.as_str(), root.path());
    let around = Surroundings { amqp, prefix: PREFIX, server: &server, root, lease_after: LEASE_AFTER, extra: &extra };
    around.consign(&["topology", "apply"]).await?;
    let inbox = Inbox::open(amqp, PREFIX, args.jobs).await?;
    let begun = Instant::now();
    let publishing = publisher::publish(args.jobs, &around, &inbox);
    let (faults, copies, ()) =
        tokio::try_join!(strikes::run(args, seed, &around, &node, &inbox), publishing, progress(args.jobs, &inbox),)?;
    let seconds = begun.elapsed().as_secs_f64();
    let left = until_empty(amqp).await?;
    let stored = server.ledger().await?;
    report(args.jobs, seconds, copies, &faults, &inbox.account(), &stored, &left)
}

/// Prints how far it is; an error if nothing ends for too long.
async fn progress(jobs: u32, inbox: &Inbox) -> Fallible<()> {
    let (begun, mut last) = (Instant::now(), (0, Instant::now()));
    while !inbox.is_complete() {
        sleep(PROGRESS).await;
        let ended = inbox.ended();
        println!("storm: {ended} of {jobs} jobs have ended after {} s", begun.elapsed().as_secs());
        if ended > last.0 {
            last = (ended, Instant::now());
        } else if last.1.elapsed() > SILENCE {
            return Err(format!("no job has ended for {SILENCE:?}; missing: {:?}", inbox.missing()).into());
        }
    }
    Ok(())
}

/// Queues that still hold messages some time after the last job has ended, with their depths.
async fn until_empty(amqp: &str) -> Fallible<Vec<(&'static str, u32)>> {
    let (broker, begun) = (Broker::connect(amqp, PREFIX).await?, Instant::now());
    loop {
        let mut left = Vec::new();
        for queue in QUEUES {
            let depth = broker.depth(queue).await?;
            if depth > 0 {
                left.push((queue, depth));
            }
        }
        if left.is_empty() || begun.elapsed() > DRAINED_WITHIN {
            return Ok(left);
        }
        sleep(Duration::from_secs(1)).await;
    }
}

fn report(
    jobs: u32,
    seconds: f64,
    copies: u32,
    faults: &BTreeMap<&str, u32>,
    account: &Account,
    stored: &Stored,
    left: &[(&str, u32)],
) -> Fallible<()> {
    let count: u32 = faults.values().sum();
    println!("storm: {count} faults {faults:?}; {copies} jobs were published again");
    println!("storm: {jobs} jobs in {seconds:.0} s, {:.0} jobs/s", f64::from(jobs) / seconds);
    println!("storm: outcomes: {account:?}");
    println!("storm: objects: {stored:?}");
    println!("storm: left in queues: {left:?}");
    let lost = jobs - account.delivered;
    println!("storm: {lost} lost, {} not whole, {} doubled", stored.wrong, account.contradictory);
    let sound = lost == 0
        && stored.objects == jobs
        && stored.wrong == 0
        && account.contradictory == 0
        && account.otherwise.is_empty()
        && left.is_empty();
    if sound { Ok(()) } else { Err("the account does not balance".into()) }
}

fn fresh_seed() -> u64 {
    fastrand::u64(..1_000_000_000)
}
