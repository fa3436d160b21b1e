//! The reports of a run in which no job fails, and of one in which some do.

use std::path::Path;
use std::time::Duration;

use super::account::{Account, until};
use super::jobs::{self, Age, Source};
use super::reports::Reports;
use super::rounds::CONFIG;
use crate::Fallible;
use crate::broker::Broker;
use crate::children::NullServer;
use crate::manners::Manners;
use crate::worker::{LEASE_AFTER, Surroundings, Worker};

const WORKERS: usize = 2;
/// Percent of the jobs that fail once, in each run.
const FAILING: [u32; 2] = [0, 1];
/// Limit for the first failures.
const FAILED_WITHIN: Duration = Duration::from_mins(2);

/// Prints a line for each share of failing jobs.
pub async fn run(jobs: u32, amqp: &str, root: &Path) -> Fallible<()> {
    for percent in FAILING {
        count(jobs, percent, amqp, root).await?;
    }
    Ok(())
}

async fn count(jobs: u32, percent: u32, amqp: &str, root: &Path) -> Fallible<()> {
    let name = format!("announcements-{percent}");
    let root = root.join(&name);
    std::fs::create_dir(&root)?;
    let server = NullServer::start_with(None, &Manners { versions: true, ..Manners::default() }).await?;
    let prefix = format!("consign-stale-{}-{name}", std::process::id());
    let lease_after = LEASE_AFTER;
    let around = Surroundings { amqp, prefix: &prefix, server: &server, root: &root, lease_after, extra: CONFIG };
    around.consign(&["topology", "apply"]).await?;
    let broker = Broker::connect(amqp, &prefix).await?;
    let account = Account::of(broker.outcomes().await?);
    let mut workers = Vec::new();
    for _ in 0..WORKERS {
        workers.push(Worker::start(&around).await?);
    }
    // The sources of older refreshes are away at first.
    let age = |number: u32| if number % 100 < percent { Age::Older } else { Age::Newer };
    let failing = (0..jobs).filter(|number| age(*number) == Age::Older).count();
    broker.publish((0..jobs).map(|number| jobs::job(&around, age(number), number, Source::Http))).await?;
    until("the first failures", FAILED_WITHIN, async || Ok(account.retrying() >= failing)).await?;
    server.fix().await?;
    let ids: Vec<_> = (0..jobs).map(|number| age(number).id(number)).collect();
    let open = account.until_ended(&ids).await;
    let reports = Reports::read(&around).await?;
    #[expect(clippy::cast_precision_loss, reason = "a count of reports is far below 2^52")]
    let each = reports.len() as f64 / f64::from(jobs);
    println!(
        "announcements: {jobs} jobs, {WORKERS} workers, {failing} fail once, {} without an end: {} reports ({each:.4} per job) {:?}",
        open.len(),
        reports.len(),
        reports.kinds()
    );
    for worker in workers {
        worker.stop().await?;
    }
    broker.delete_topology().await
}
