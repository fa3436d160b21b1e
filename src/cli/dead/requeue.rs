//! `consign dead requeue`.

use std::time::Duration;

use clap::Args;
use tokio::time::timeout;
use url::Url;

use super::args::FilterArgs;
use super::probe::CommandProbe;
use super::{finish, finish_with_counts, open, require_filter};
use crate::cli::check::ABORT_TIME;
use crate::cli::output::ProgressReporter;
use crate::cli::workers::{StatusClient, worker_url};
use crate::cli::{CommandError, Exit, broker};
use crate::config::Config;
use crate::dead_letter::filter::LetterFilter;
use crate::dead_letter::gate::RequeueGate;
use crate::dead_letter::newer::ReportedDeliveries;
use crate::dead_letter::requeue::{Requeue, RequeueOptions};
use crate::dead_letter::run::LetterRun;
use crate::runtime::output::Output as _;
use crate::runtime::rate::PublishRate;
use crate::runtime::shutdown::TerminationSignal;

/// Upper bound of the time between two jobs. A letter stays unacknowledged meanwhile, which the
/// broker allows for half an hour.
const MAX_INTERVAL: Duration = Duration::from_mins(15);

/// Time-out of reading which generations were delivered.
const REPORTS_TIMEOUT: Duration = Duration::from_secs(10);

/// Arguments of `consign dead requeue`.
#[derive(Debug, Clone, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub struct RequeueArgs {
    /// Select all dead letters
    #[arg(long)]
    all: bool,
    /// Print what would be requeued, without requeueing it and without testing connections
    #[arg(long)]
    dry_run: bool,
    /// Limit the rate of requeued jobs: 30/s, 30/min or 30/h
    #[arg(long, value_name = "N/UNIT", allow_hyphen_values = true, value_parser = PublishRate::parse)]
    rate: Option<PublishRate>,
    /// Admin endpoint of a worker, such as http://127.0.0.1:9464. Destinations whose circuit
    /// breaker is open there are refused. Repeatable
    #[arg(long, value_name = "URL", value_parser = worker_url)]
    admin: Vec<Url>,
    /// Requeue without testing connections or circuit breakers, and also jobs past their expires_at
    #[arg(long)]
    force: bool,
    /// Requeue the jobs as the newest refresh of their objects. Without it, a job keeps its
    /// generation and is skipped if a newer one was delivered. The summary counts these jobs as
    /// superseded, as far as workers have reported such deliveries in the last 7 days
    #[arg(long)]
    as_new: bool,
    #[command(flatten)]
    filter: FilterArgs,
}

/// Requeues letters. An interruption leaves every letter either where it was or requeued.
pub(super) async fn execute(args: RequeueArgs, config: &Config, json: bool) -> Result<Exit, CommandError> {
    let RequeueArgs { all, dry_run, rate, admin, force, as_new, filter } = args;
    let filter = LetterFilter::from(filter);
    require_filter(&filter, all)?;
    let interval = rate.map(PublishRate::interval);
    if interval.is_some_and(|interval| interval > MAX_INTERVAL) {
        let usage =
            "--rate: at least 4/h, as each letter stays unacknowledged until its job is due; use --limit for fewer";
        return Err(CommandError::Usage(usage.to_owned()));
    }
    let client = StatusClient::new(config.admin.token_file.as_deref()).map_err(CommandError::Failed)?;
    // Before the dead letters are locked: it can take a while.
    let delivered = delivered(config).await;
    let mut letters = open(config).await?;
    let count = letters.count();
    let verb = if dry_run { "would be requeued" } else { "requeued" };
    let progress = ProgressReporter::new(Some(count), json, format!("0 {verb}"));
    let delivered = delivered.unwrap_or_else(|problem| {
        progress.notice(&format!("newer deliveries are not known, because control messages can't be read: {problem}"));
        ReportedDeliveries::default()
    });
    let mut run = LetterRun::new(&progress, verb);
    let gate = (!force).then(|| RequeueGate::new(CommandProbe::new(config, &admin, client, dry_run)));
    let requeue = Requeue::new(RequeueOptions { dry_run, force, as_new, interval }, gate, delivered);
    let interrupted = tokio::select! {
        () = requeue.run(&mut *letters, filter.select(), &mut run) => None,
        Ok(()) = tokio::signal::ctrl_c() => Some(TerminationSignal::Interrupt),
    };
    if let Some(signal) = interrupted {
        finish_with_counts(&progress, &run.counts, "requeued before the interruption");
        letters.close().await;
        if !force && !dry_run {
            // A connection test in progress aborts its upload.
            tokio::time::sleep(ABORT_TIME).await;
        }
        return Ok(Exit::Signal(signal));
    }
    letters.close().await;
    Ok(finish(&progress, &run.counts, count, verb))
}

/// Reads which generations were delivered. Workers know them anyway, so a failure to read them is a
/// notice, and only jobs that must be given a number are refused.
async fn delivered(config: &Config) -> Result<ReportedDeliveries, String> {
    let admin = broker::admin(config, "dead");
    match timeout(REPORTS_TIMEOUT, admin.control_messages()).await {
        Ok(Ok(messages)) => Ok(ReportedDeliveries::of(messages.iter().map(AsRef::as_ref))),
        Ok(Err(problem)) => Err(problem.to_string()),
        Err(_) => Err(format!("no result within {} s", REPORTS_TIMEOUT.as_secs())),
    }
}
