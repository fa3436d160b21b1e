//! `consign backfill`: one job for each step of a range, newest first; how it goes, and its end before its time.

mod plan;
mod range;
mod record;
mod send;
mod status;
mod table;
mod template;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand};
use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::enqueue::CONNECT_LIMIT;
use super::enqueue::progress::{Report, Shown};
use super::enqueue::wait::Waiter;
use super::{Exit, complain};
use crate::config::{BrokerConfig, Config};
use crate::control::{BackfillId, Control, Wish};
use crate::metrics::Metrics;
use crate::queue::{self, Kept, Queue, QueueError};
use plan::Plan;
use range::{Border, Every, Range};
use record::{Head, Record};
use send::{Marks, Rate, Sent, Stopped};
use template::Template;

/// A backfill to publish, or something to be done with one.
#[derive(Debug, Clone, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct BackfillArgs {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    run: Option<RunArgs>,
}

/// What can be done with a backfill that was published.
#[derive(Debug, Clone, Subcommand)]
enum Action {
    /// Show what became of its jobs, from the outcomes that were kept (30 days)
    Status(OneArgs),
    /// Have every worker drop its jobs that have not begun, with the outcome `skipped`; running ones finish
    Cancel(OneArgs),
}

#[derive(Debug, Clone, Args)]
struct OneArgs {
    /// The backfill's id
    #[arg(value_parser = backfill_id)]
    id: BackfillId,
    /// The record of the run that published it [default: as for the run]
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
}

/// A range of jobs.
#[derive(Debug, Clone, Args)]
struct RunArgs {
    /// One job in JSON; every text in it may have {date} {year} {month} {day} {hour} {minute} {offset} {stamp} {backfill} and
    /// those of --var; {{ and }} are the signs themselves. Without an id each job gets {backfill}/{stamp}
    #[arg(long, value_name = "FILE")]
    template: PathBuf,
    /// The first step: 2026-01-31, or 2026-01-31T06:00
    #[arg(long, value_name = "DATE", value_parser = Border::parse)]
    from: Border,
    /// The last step, inclusive; a day is the whole day
    #[arg(long, value_name = "DATE", value_parser = Border::parse)]
    to: Border,
    /// 1h, 6h, 1d, 1w or 1month
    #[arg(long, value_name = "STEP", default_value = "1d", value_parser = Every::parse)]
    every: Every,
    /// The time zone of the range, an IANA name
    #[arg(long, value_name = "ZONE", default_value = "UTC", value_parser = range::zone)]
    time_zone: TimeZone,
    /// A placeholder of your own; may be given again
    #[arg(long, value_name = "NAME=VALUE", value_parser = variable)]
    var: Vec<(String, String)>,
    /// The backfill's id [default: made of template, variables and range, so that the same command is the same backfill]
    #[arg(long, value_parser = backfill_id)]
    id: Option<BackfillId>,
    /// Publish no faster than this, such as 10/s or 600/min
    #[arg(long, value_parser = Rate::parse)]
    rate: Option<Rate>,
    /// Show the jobs and publish nothing; with --json all of them, one per line
    #[arg(long)]
    dry_run: bool,
    /// Publish all of it anew, also what an earlier run has published
    #[arg(long, conflicts_with = "dry_run")]
    again: bool,
    /// Where it is written down what was published [default: $XDG_STATE_HOME/consign/backfills/QUEUE/ID.ndjson, and without that
    /// variable below ~/.local/state]
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Wait for the outcome of every job; ends 0 when all are delivered or skipped, 1 when all failed, else 75
    #[arg(long, conflicts_with = "dry_run")]
    wait: bool,
    /// Give up waiting after this time; ends 75 if a job has no outcome by then [default: no limit]
    #[arg(long, value_name = "DURATION", requires = "wait", value_parser = humantime::parse_duration)]
    wait_timeout: Option<Duration>,
}

fn backfill_id(text: &str) -> Result<BackfillId, String> {
    BackfillId::parse(text).map_err(|invalid| invalid.problem)
}

fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE")?;
    let fits = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    if name.is_empty() || !name.bytes().all(fits) {
        return Err("a name is made of letters, digits and _".to_owned());
    }
    Ok((name.to_owned(), value.to_owned()))
}

/// Why a command ends before its time.
enum Stop {
    /// Nothing was published; each line is a problem.
    Input(Vec<String>),
    Queue(QueueError),
}

impl From<QueueError> for Stop {
    fn from(problem: QueueError) -> Self {
        Self::Queue(problem)
    }
}

impl From<String> for Stop {
    fn from(problem: String) -> Self {
        Self::Input(vec![problem])
    }
}

/// Runs the command.
pub async fn execute(args: BackfillArgs, config: Config, json: bool) -> Exit {
    let result = match (args.action, args.run) {
        (Some(Action::Status(one)), _) => status(one, &config, json).await,
        (Some(Action::Cancel(one)), _) => cancel(one, &config, json).await,
        (None, Some(run)) => publish(run, &config, json).await,
        (None, None) => {
            return complain("give --template, --from and --to, or `status ID`, or `cancel ID`", Exit::Usage);
        }
    };
    match result {
        Ok(exit) => exit,
        Err(Stop::Input(problems)) => complain(&problems.join("\n  "), Exit::Failed),
        Err(Stop::Queue(problem)) => stopped_by(&problem),
    }
}

fn stopped_by(problem: &QueueError) -> Exit {
    match problem {
        QueueError::Unavailable(_) => complain(&problem.to_string(), Exit::Unavailable),
        QueueError::Unusable(_) => complain(&format!("broker.url: {problem}"), Exit::Config),
        QueueError::Lost | QueueError::Refused(_) | QueueError::Topology(_) | QueueError::Busy(_) => {
            complain(&problem.to_string(), Exit::Failed)
        }
    }
}

fn no_broker() -> Exit {
    complain("broker.url is missing; set it to the broker that the jobs go to", Exit::Config)
}

fn plan(args: &RunArgs) -> Result<Plan, Stop> {
    let file = args.template.display();
    let text = std::fs::read_to_string(&args.template).map_err(|problem| format!("{file} can't be read: {problem}"))?;
    let mut variables = BTreeMap::new();
    for (name, value) in &args.var {
        if variables.insert(name.clone(), value.clone()).is_some() {
            return Err(format!("--var {name}: is given twice").into());
        }
    }
    let refused = |problems: Vec<String>| {
        let head = format!("{file}: nothing was published; mend these first:");
        Stop::Input(std::iter::once(head).chain(problems).collect())
    };
    let template = Template::parse(&text, &variables).map_err(refused)?;
    let range = Range { from: args.from, to: args.to, every: args.every, zone: args.time_zone.clone() };
    // Texts in a map: serde_json has nothing to refuse here.
    let variables = serde_json::to_string(&variables).unwrap_or_default();
    Plan::make(template, &range, &variables, args.id.clone()).map_err(refused)
}

async fn publish(args: RunArgs, config: &Config, json: bool) -> Result<Exit, Stop> {
    let plan = plan(&args)?;
    if args.dry_run {
        return dry_run(&plan, json);
    }
    if config.broker.url.is_none() {
        return Ok(no_broker());
    }
    let begun = Timestamp::now();
    let place = place(args.record, &config.broker, &plan.backfill)?;
    let head =
        Head { backfill: plan.backfill.to_string(), digest: plan.digest.clone(), jobs: plan.len(), begun_at: begun };
    let mut record = Record::open(&place, &head, args.again)?;
    let (queue, name) = connect(config).await?;
    let report = Arc::new(Report::new(u64::try_from(plan.len()).ok(), json, Shown::Trouble));
    let kept = Kept::new(&config.broker, &name, &plan.backfill);
    let is_kept = prepare(&kept, &report).await?;
    let waiter = if args.wait { Some(listen(&plan, &kept, config, &name, &report).await?) } else { None };
    report.say(&format!("backfill {}: {} jobs; record {}", plan.backfill, plan.len(), place.display()));
    let marks = Marks { begun, reply_to: is_kept.then(|| kept.address()) };
    let sent = send::publish(&*queue, (&plan, &mut record), &marks, args.rate, &report).await;
    queue.close().await;
    Ok(match waiter {
        Some(waiter) if sent.stopped.is_none() => waiter.finish(args.wait_timeout, 0).await,
        _ => end(&sent, &plan, &report),
    })
}

fn place(record: Option<PathBuf>, broker: &BrokerConfig, backfill: &BackfillId) -> Result<PathBuf, String> {
    record.map_or_else(|| record::usual_place(broker, backfill), Ok)
}

fn dry_run(plan: &Plan, json: bool) -> Result<Exit, Stop> {
    if !json {
        return Ok(super::print(&table::table(plan)?));
    }
    for job in plan.jobs() {
        let exit = super::print(&String::from_utf8_lossy(&job?.body));
        if exit != Exit::Done {
            return Ok(exit);
        }
    }
    Ok(Exit::Done)
}

async fn connect(config: &Config) -> Result<(Arc<dyn Queue>, String), QueueError> {
    let name = format!("{} backfill", config.worker.id);
    let queue = queue::start(&config.broker, &name, Vec::new(), Arc::new(Metrics::new(1)))?;
    tracing::info!(seconds = CONNECT_LIMIT.as_secs(), "connecting; without a broker this gives up");
    queue.connected(CONNECT_LIMIT).await?;
    Ok((queue, name))
}

/// Whether outcomes will be kept. A broker that refuses that delivers all the same.
async fn prepare(kept: &Kept, report: &Report) -> Result<bool, QueueError> {
    match kept.prepare().await {
        Ok(()) => Ok(true),
        Err(QueueError::Topology(why) | QueueError::Refused(why)) => {
            report.say(&format!("`backfill status` will know nothing of this run: {why}"));
            Ok(false)
        }
        Err(problem) => Err(problem),
    }
}

/// Listens for all jobs of the plan, those of earlier runs included: what has ended before is read from what was kept.
async fn listen(plan: &Plan, kept: &Kept, config: &Config, name: &str, report: &Arc<Report>) -> Result<Waiter, Stop> {
    let waiter = Waiter::subscribe(&config.broker, name, Arc::clone(report)).await?;
    for job in plan.jobs() {
        waiter.expect(&job?.prepared.id);
    }
    kept.read(&mut |body| waiter.earlier(body)).await?;
    Ok(waiter)
}

fn end(sent: &Sent, plan: &Plan, report: &Report) -> Exit {
    let before = if sent.before > 0 { format!(", {} by an earlier run", sent.before) } else { String::new() };
    let Some(stopped) = &sent.stopped else {
        report.end(&format!("{} published{before} (backfill {})", sent.published, plan.backfill));
        return Exit::Done;
    };
    report.end(&format!("{} published{before}; the same command goes on here: {stopped}", sent.published));
    match stopped {
        _ if sent.published + sent.before > 0 => Exit::Partly,
        Stopped::Queue(QueueError::Unavailable(_)) => Exit::Unavailable,
        Stopped::Queue(_) | Stopped::Record(_) => Exit::Failed,
    }
}

async fn status(args: OneArgs, config: &Config, json: bool) -> Result<Exit, Stop> {
    if config.broker.url.is_none() {
        return Ok(no_broker());
    }
    let (name, broker) = (format!("{} backfill", config.worker.id), &config.broker);
    let told = place(args.record, broker, &args.id).ok().and_then(|place| record::look(&place));
    let mut digest = status::Digest::default();
    let found = Kept::new(broker, &name, &args.id).read(&mut |body| digest.note(body)).await?;
    if !found && told.is_none() {
        let id = &args.id;
        return Err(format!("there is no outcome of a backfill {id}, and no record of its publishing here").into());
    }
    let control = queue::announced(broker, &name).await?;
    let status = digest.status(&args.id, told.as_ref(), &control);
    Ok(if json { super::print_json(&status) } else { super::print(&status.to_string()) })
}

async fn cancel(args: OneArgs, config: &Config, json: bool) -> Result<Exit, Stop> {
    if config.broker.url.is_none() {
        return Ok(no_broker());
    }
    let (queue, _) = connect(config).await?;
    let control = Control::new(Wish::CancelBackfill(args.id.clone()), Timestamp::now());
    let announced = queue.announce(control.render().into()).await;
    queue.close().await;
    announced?;
    if let Ok(place) = place(args.record, &config.broker, &args.id) {
        note_cancelled(&place, control.at);
    }
    Ok(if json {
        super::print(&String::from_utf8_lossy(&control.render()))
    } else {
        super::print(&format!("backfill {} is cancelled: what has not begun is skipped, what runs finishes", args.id))
    })
}

fn note_cancelled(place: &Path, at: Timestamp) {
    if let Err(problem) = record::cancel(place, at) {
        complain(&format!("the record {} does not say so: {problem}", place.display()), Exit::Done);
    }
}
