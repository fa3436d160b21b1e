//! `consign backfill`: publishes one job for each step of a range, newest first; shows the status
//! of a backfill, or cancels it.

mod args;
mod preview;
mod show;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::output::ProgressReporter;
use super::wait::{OutcomeWaiter, ShownOutcomes, WaitOptions};
use super::workers::Workers;
use super::{CommandError, Exit, broker, fail, notice, print, print_json};
use crate::backfill::calendar::CalendarRange;
use crate::backfill::cancellation::{BackfillRun, CancellationWatcher, earlier_cancellations};
use crate::backfill::journal::{self, Journal, JournalHeader};
use crate::backfill::plan::BackfillPlan;
use crate::backfill::publish::{BackfillPublisher, BackfillResult, StopCause, retain_outcomes};
use crate::backfill::status::{BackfillRecords, StatusError};
use crate::backfill::template::Template;
use crate::config::{BrokerConfig, Config};
use crate::domain::control::{BackfillId, ControlCommand};
use crate::queue::retained_address;
use crate::runtime::output::Output as _;
pub use args::BackfillArgs;
use args::{BackfillAction, BackfillIdArgs, BackfillRunArgs, BackfillStatusArgs};

/// Name of the command in the names of its connections.
const COMMAND: &str = "backfill";
/// Time-out of the search for retained outcomes of a cancelled backfill.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);

impl From<StatusError> for CommandError {
    fn from(error: StatusError) -> Self {
        match error {
            StatusError::Journal(problem) => Self::Failed(problem),
            StatusError::Queue(problem) => Self::Queue(problem),
        }
    }
}

/// Runs the command.
pub async fn execute(args: BackfillArgs, config: Config, json: bool) -> Exit {
    let result = match (args.action, args.run) {
        (Some(BackfillAction::Status(args)), _) => status(args, &config, json).await,
        (Some(BackfillAction::Cancel(args)), _) => cancel(args, &config, json).await,
        (None, Some(run)) => publish(run, &config, json).await,
        (None, None) => {
            return fail("give --template, --from and --to, or `status ID`, or `cancel ID`", Exit::Usage);
        }
    };
    result.unwrap_or_else(|problem| problem.report())
}

fn plan(args: &BackfillRunArgs) -> Result<BackfillPlan, CommandError> {
    let range = CalendarRange { from: args.from, to: args.to, every: args.every, zone: args.time_zone.clone() };
    range.check_order().map_err(CommandError::Usage)?;
    let file = args.template.display();
    let text = std::fs::read_to_string(&args.template).map_err(|problem| {
        CommandError::Failed(format!("{file} can't be read: {problem}; give the path of a readable template"))
    })?;
    let mut variables = BTreeMap::new();
    for (name, value) in &args.var {
        if variables.insert(name.clone(), value.clone()).is_some() {
            return Err(CommandError::Usage(format!("--var {name}: is given twice; give it once")));
        }
    }
    let invalid = |problems: Vec<String>| {
        let problems = problems.join("\n  ");
        CommandError::Failed(format!("{file}: nothing was published; fix these first:\n  {problems}"))
    };
    let template = Template::parse(&text, &variables).map_err(invalid)?;
    // serde_json can't fail on a map of strings.
    let variables = serde_json::to_string(&variables).unwrap_or_default();
    BackfillPlan::new(template, &range, &variables, args.id.clone()).map_err(invalid)
}

async fn publish(args: BackfillRunArgs, config: &Config, json: bool) -> Result<Exit, CommandError> {
    let plan = plan(&args)?;
    if args.dry_run {
        return dry_run(&plan, json);
    }
    broker::require(&config.broker)?;
    let started_at = Timestamp::now();
    let path = journal_path(args.record, &config.broker, &plan.backfill).map_err(CommandError::Failed)?;
    let admin = broker::admin(config, COMMAND);
    let earlier = earlier_cancellations(&*admin, &plan.backfill).await;
    let header = JournalHeader {
        backfill: plan.backfill.to_string(),
        digest: plan.digest.clone(),
        jobs: plan.job_count(),
        destination: plan.destination(),
        started_at,
        again: args.again,
        cancellations: earlier.map(|earlier| earlier.to_string()),
    };
    let mut journal = Journal::open(&path, &header, args.again).map_err(CommandError::Failed)?;
    let queue = broker::connect(config, COMMAND).await?;
    let progress = ProgressReporter::publishing(u64::try_from(plan.job_count()).ok(), json);
    let address = retained_address(&config.broker, &plan.backfill);
    let retained = retain_outcomes(&*admin, &address, &*progress).await?;
    let waiter = if args.wait {
        let waiter = OutcomeWaiter::subscribe(&*admin, Arc::clone(&progress), ShownOutcomes::Failures).await?;
        expect_all(&waiter, &plan)?;
        // Those of jobs that ended before.
        let since = journal.header.since();
        admin.read_retained(&address, &mut |body| waiter.record_earlier(body, since)).await?;
        Some(waiter)
    } else {
        None
    };
    progress.notice(&format!("backfill {}: {}; record {}", plan.backfill, jobs(plan.job_count()), path.display()));
    // Those of the first command: one that continues was not repeated on purpose.
    let (earlier, run) = (journal.header.cancellations(), journal.header.run());
    let watched = BackfillRun { backfill: plan.backfill.clone(), started_at, earlier: earlier.clone() };
    let mut watcher = CancellationWatcher::start(admin, watched, progress.clone());
    let publisher = BackfillPublisher {
        plan: &plan,
        publish: &|publication| queue.publish(publication),
        started_at,
        earlier: earlier.as_ref(),
        generation_of: journal.header.started_at,
        run,
        reply_to: retained.then_some(&*address),
        rate: args.rate,
        output: &*progress,
    };
    let result = publisher.run(&mut journal, watcher.cancelled()).await;
    tokio::join!(watcher.close(), queue.close());
    Ok(match waiter {
        Some(waiter) if result.stopped.is_none() => {
            let workers = &Workers::new(config, args.admin);
            waiter.finish(WaitOptions { timeout: args.wait_timeout, unpublished: 0, workers }).await
        }
        _ => finish(&result, &plan, &progress),
    })
}

fn journal_path(given: Option<PathBuf>, broker: &BrokerConfig, backfill: &BackfillId) -> Result<PathBuf, String> {
    given.map_or_else(|| journal::default_path(broker, backfill), Ok)
}

fn dry_run(plan: &BackfillPlan, json: bool) -> Result<Exit, CommandError> {
    if !json {
        return Ok(print(&preview::table(plan).map_err(CommandError::Failed)?));
    }
    for job in plan.jobs() {
        let exit = print(&String::from_utf8_lossy(&job.map_err(CommandError::Failed)?.body));
        if exit != Exit::Done {
            return Ok(exit);
        }
    }
    Ok(Exit::Done)
}

/// Expects the outcomes of all jobs of the plan.
fn expect_all(waiter: &OutcomeWaiter, plan: &BackfillPlan) -> Result<(), CommandError> {
    for job in plan.jobs() {
        let job = job.map_err(CommandError::Failed)?.prepared;
        waiter.expect(&job.id, &job.destination);
    }
    Ok(())
}

fn finish(result: &BackfillResult, plan: &BackfillPlan, progress: &ProgressReporter) -> Exit {
    let BackfillResult { published, published_before, stopped } = result;
    let before = if *published_before > 0 { format!(", {published_before} by an earlier run") } else { String::new() };
    let backfill = &plan.backfill;
    let Some(cause) = stopped else {
        progress.finish(&format!("{published} published{before} (backfill {backfill})"));
        return Exit::Done;
    };
    let total = published + published_before;
    if let StopCause::Cancelled(_) = cause {
        let rest = u64::try_from(plan.job_count()).unwrap_or(u64::MAX).saturating_sub(total);
        let counts = format!("{published} published{before}, {rest} not");
        progress.notice(&format!(
            "backfill {backfill} {cause}, so publishing stopped: {counts}; jobs that have not started are skipped. \
             --again publishes all jobs again"
        ));
        progress.finish(&format!("{counts} (backfill {backfill}, cancelled)"));
    } else {
        progress.finish(&format!("{published} published{before}; the same command continues from here: {cause}"));
    }
    match cause {
        _ if total > 0 => Exit::Partly,
        StopCause::Queue(problem) => Exit::of(problem),
        StopCause::Journal(_) | StopCause::Cancelled(_) => Exit::Failed,
    }
}

async fn status(args: BackfillStatusArgs, config: &Config, json: bool) -> Result<Exit, CommandError> {
    broker::require(&config.broker)?;
    let BackfillStatusArgs { backfill: BackfillIdArgs { id, record }, admin } = args;
    let path = journal_path(record, &config.broker, &id).ok();
    let (queue, address) = (broker::admin(config, COMMAND), retained_address(&config.broker, &id));
    let Some(records) = BackfillRecords::read(&*queue, &address, &id, path.as_deref()).await? else {
        return Err(CommandError::Failed(format!(
            "there is no retained outcome and no local record of a backfill {id}; check the spelling, or give its \
             record with --record FILE"
        )));
    };
    let workers = Workers::new(config, admin).reports(&records.pending_destinations()).await;
    let status = records.status(&id, &workers);
    Ok(if json { print_json(&status) } else { print(&show::text(&status)) })
}

async fn cancel(args: BackfillIdArgs, config: &Config, json: bool) -> Result<Exit, CommandError> {
    broker::require(&config.broker)?;
    let (id, path) = (&args.id, journal_path(args.record, &config.broker, &args.id).ok());
    if let Some(path) = &path {
        journal::read(path, id).map_err(CommandError::Failed)?;
    }
    let control = broker::announce(config, COMMAND, ControlCommand::CancelBackfill(id.clone())).await?;
    let recorded = path.is_some_and(|path| record_cancellation(&path, id, control.at));
    if !recorded && !is_known(config, id).await {
        notice(&format!(
            "warning: there is no retained outcome and no local record of a backfill {id}; check the spelling. The \
             cancellation was sent anyway, as jobs of it may be queued"
        ));
    }
    Ok(if json {
        print(&String::from_utf8_lossy(&control.render()))
    } else {
        print(&format!("backfill {id} is cancelled: jobs that have not started are skipped, running jobs finish"))
    })
}

/// Formats a number of jobs.
fn jobs(count: usize) -> String {
    if count == 1 { "1 job".to_owned() } else { format!("{count} jobs") }
}

/// Records the cancellation. Returns true where there is a journal.
fn record_cancellation(path: &Path, id: &BackfillId, at: Timestamp) -> bool {
    journal::record_cancelled(path, id, at).unwrap_or_else(|problem| {
        fail(&format!("the cancellation could not be recorded: {problem}"), Exit::Done);
        true
    })
}

/// Returns true where outcomes of the backfill were ever retained, and also where that can't be
/// determined in time, as a warning would be wrong then.
async fn is_known(config: &Config, id: &BackfillId) -> bool {
    let (admin, address) = (broker::admin(config, COMMAND), retained_address(&config.broker, id));
    let found = tokio::time::timeout(LOOKUP_TIMEOUT, admin.read_retained(&address, &mut |_| ())).await;
    !matches!(found, Ok(Ok(false)))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;
    use crate::cli::{Cli, Command};

    #[test]
    fn one_job_is_singular() {
        assert_eq!([0, 1, 2].map(jobs), ["0 jobs", "1 job", "2 jobs"]);
    }

    #[test]
    fn contradicting_arguments_are_a_usage_error() {
        for wrong in ["--from 2026-01-02 --to 2026-01-01", "--from 2026-01-01 --to 2026-01-02 --var a=1 --var a=2"] {
            let line = format!("consign backfill --template Cargo.toml {wrong}");
            let cli = Cli::from_arguments(line.split(' ').map(OsString::from)).unwrap();
            let Command::Backfill(BackfillArgs { run: Some(run), .. }) = cli.command else { panic!("no run: {line}") };
            assert!(matches!(plan(&run), Err(CommandError::Usage(_))), "{line}");
        }
    }
}
