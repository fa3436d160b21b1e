//! `consign backfill`: one job for each step of a range, newest first; how it goes, and its end before its time.

mod args;
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

use jiff::Timestamp;

use super::enqueue::progress::{Report, Shown};
use super::enqueue::wait::Waiter;
use super::{Exit, broker, complain};
use crate::config::{BrokerConfig, Config};
use crate::control::{BackfillId, Wish};
use crate::queue::{self, Kept, QueueError};
pub use args::BackfillArgs;
use args::{Action, OneArgs, RunArgs};
use plan::Plan;
use range::Range;
use record::{Head, Record};
use send::{Marks, Sent, Stopped};
use template::Template;

/// What the command calls itself at the broker.
const WORD: &str = "backfill";

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
        Err(Stop::Queue(problem)) => broker::complain_of(&problem),
    }
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
    if let Some(exit) = broker::missing(&config.broker) {
        return Ok(exit);
    }
    let begun = Timestamp::now();
    let place = place(args.record, &config.broker, &plan.backfill)?;
    let head = Head {
        backfill: plan.backfill.to_string(),
        digest: plan.digest.clone(),
        jobs: plan.len(),
        begun_at: begun,
        again: args.again,
    };
    let mut record = Record::open(&place, &head, args.again)?;
    let (queue, name) = (broker::connect(config, WORD).await?, broker::name(config, WORD));
    let report = Arc::new(Report::new(u64::try_from(plan.len()).ok(), json, Shown::Trouble));
    let kept = Kept::new(&config.broker, &name, &plan.backfill);
    let is_kept = prepare(&kept, &report).await?;
    let waiter =
        if args.wait { Some(listen((&plan, &record), &kept, (&config.broker, &name), &report).await?) } else { None };
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
async fn listen(
    (plan, record): (&Plan, &Record),
    kept: &Kept,
    (broker, name): (&BrokerConfig, &str),
    report: &Arc<Report>,
) -> Result<Waiter, Stop> {
    let waiter = Waiter::subscribe(broker, name, Arc::clone(report)).await?;
    for job in plan.jobs() {
        waiter.expect(&job?.prepared.id);
    }
    let since = record.head().since();
    kept.read(&mut |body| waiter.earlier(body, since)).await?;
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
    if let Some(exit) = broker::missing(&config.broker) {
        return Ok(exit);
    }
    let (name, to) = (broker::name(config, WORD), &config.broker);
    let told = place(args.record, to, &args.id).ok().and_then(|place| record::look(&place));
    let head = told.as_ref().and_then(|told| told.head.as_ref());
    let mut digest = status::Digest::since(head.and_then(Head::since));
    let found = Kept::new(to, &name, &args.id).read(&mut |body| digest.note(body)).await?;
    if !found && told.is_none() {
        let id = &args.id;
        return Err(format!("there is no outcome of a backfill {id}, and no record of its publishing here").into());
    }
    let control = queue::announced(to, &name).await?;
    let status = digest.status(&args.id, told.as_ref(), &control);
    Ok(if json { super::print_json(&status) } else { super::print(&status.to_string()) })
}

async fn cancel(args: OneArgs, config: &Config, json: bool) -> Result<Exit, Stop> {
    if let Some(exit) = broker::missing(&config.broker) {
        return Ok(exit);
    }
    let control = broker::announce(config, WORD, Wish::CancelBackfill(args.id.clone())).await?;
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
