//! `consign backfill`: one job for each step of a range, newest first; how it goes, and its end before its time.

mod args;
mod heed;
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

use jiff::Timestamp;

use super::enqueue::progress::{Report, Shown};
use super::enqueue::wait::Waiter;
use super::left::Workers;
use super::{Exit, broker, complain, note};
use crate::config::{BrokerConfig, Config};
use crate::domain::control::{BackfillId, ControlCommand};
use crate::queue::{self, BackfillOutcomes, QueueError};
pub use args::BackfillArgs;
use args::{Action, OneArgs, RunArgs, StatusArgs};
use heed::Heed;
use plan::Plan;
use range::Range;
use record::{Head, Record};
use send::{Marks, Sent, Stopped};
use template::Template;

/// What the command calls itself at the broker.
const WORD: &str = "backfill";
/// How long it may take to find out whether anything is known of a backfill.
const LOOKING: Duration = Duration::from_secs(10);

/// Why a command ends before its time.
enum Stop {
    /// The arguments contradict each other.
    Usage(String),
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
        Err(Stop::Usage(problem)) => complain(&problem, Exit::Usage),
        Err(Stop::Input(problems)) => complain(&problems.join("\n  "), Exit::Failed),
        Err(Stop::Queue(problem)) => broker::complain_of(&problem),
    }
}

fn plan(args: &RunArgs) -> Result<Plan, Stop> {
    let range = Range { from: args.from, to: args.to, every: args.every, zone: args.time_zone.clone() };
    range.in_order().map_err(Stop::Usage)?;
    let file = args.template.display();
    let text = std::fs::read_to_string(&args.template).map_err(|problem| format!("{file} can't be read: {problem}"))?;
    let mut variables = BTreeMap::new();
    for (name, value) in &args.var {
        if variables.insert(name.clone(), value.clone()).is_some() {
            return Err(Stop::Usage(format!("--var {name}: is given twice")));
        }
    }
    let refused = |problems: Vec<String>| {
        let head = format!("{file}: nothing was published; mend these first:");
        Stop::Input(std::iter::once(head).chain(problems).collect())
    };
    let template = Template::parse(&text, &variables).map_err(refused)?;
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
        destination: plan.destination(),
        begun_at: begun,
        again: args.again,
    };
    let mut record = Record::open(&place, &head, args.again)?;
    let (queue, name) = (broker::connect(config, WORD).await?, broker::name(config, WORD));
    let report = Arc::new(Report::new(u64::try_from(plan.len()).ok(), json, Shown::Trouble));
    let kept = BackfillOutcomes::new(&config.broker, &name, &plan.backfill);
    let is_kept = prepare(&kept, &report).await?;
    let waiter =
        if args.wait { Some(listen((&plan, &record), &kept, (&config.broker, &name), &report).await?) } else { None };
    report.say(&format!("backfill {}: {} jobs; record {}", plan.backfill, plan.len(), place.display()));
    let marks = Marks { begun, reply_to: is_kept.then(|| kept.address()) };
    let about = (plan.backfill.clone(), begun);
    let mut heed = Heed::start(config.broker.clone(), name, about, Arc::clone(&report));
    let sent = send::publish(&*queue, (&plan, &mut record), &marks, (args.rate, heed.cancelled()), &report).await;
    tokio::join!(heed.close(), queue.close());
    Ok(match waiter {
        Some(waiter) if sent.stopped.is_none() => {
            waiter.finish(args.wait_timeout, 0, &Workers::of(config, args.admin)).await
        }
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
async fn prepare(kept: &BackfillOutcomes, report: &Report) -> Result<bool, QueueError> {
    match kept.prepare().await {
        Ok(()) => Ok(true),
        Err(QueueError::Topology(why) | QueueError::Refused(why) | QueueError::Denied(why)) => {
            report.say(&format!("`backfill status` will know nothing of this run: {why}"));
            Ok(false)
        }
        Err(problem) => Err(problem),
    }
}

/// Listens for all jobs of the plan, those of earlier runs included: what has ended before is read from what was kept.
async fn listen(
    (plan, record): (&Plan, &Record),
    kept: &BackfillOutcomes,
    (broker, name): (&BrokerConfig, &str),
    report: &Arc<Report>,
) -> Result<Waiter, Stop> {
    let waiter = Waiter::subscribe(broker, name, Arc::clone(report)).await?;
    for job in plan.jobs() {
        let job = job?.prepared;
        waiter.expect(&job.id, &job.destination);
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
    match stopped {
        Stopped::Cancelled(_) => {
            let left = u64::try_from(plan.len()).unwrap_or(u64::MAX).saturating_sub(sent.published + sent.before);
            let counts = format!("{} published{before}, {left} not", sent.published);
            report.say(&format!(
                "backfill {} {stopped}, so publishing stopped: {counts}; what has not begun is skipped. With --again all of it is \
                 published anew",
                plan.backfill
            ));
            report.end(&format!("{counts} (backfill {}, cancelled)", plan.backfill));
        }
        _ => report.end(&format!("{} published{before}; the same command goes on here: {stopped}", sent.published)),
    }
    match stopped {
        _ if sent.published + sent.before > 0 => Exit::Partly,
        Stopped::Queue(problem) => broker::exit(problem),
        Stopped::Record(_) | Stopped::Cancelled(_) => Exit::Failed,
    }
}

async fn status(args: StatusArgs, config: &Config, json: bool) -> Result<Exit, Stop> {
    if let Some(exit) = broker::missing(&config.broker) {
        return Ok(exit);
    }
    let (StatusArgs { one, admin }, to) = (args, &config.broker);
    let (name, id) = (broker::name(config, WORD), &one.id);
    let place = place(one.record, to, id).ok();
    let look = || place.as_ref().map_or(Ok(None), |place| record::look(place, id));
    let mut digest = status::Digest::since(look()?.and_then(|told| told.head?.since()));
    let found = BackfillOutcomes::new(to, &name, id).read(&mut |body| digest.note(body)).await?;
    // Once more: a run that goes on may have published more meanwhile, and there must be no outcome of what was not published.
    let told = look()?;
    if !found && told.is_none() {
        return Err(format!(
            "there is no outcome of a backfill {id}, and no record of its publishing here: check the spelling, or give the record with \
             --record FILE"
        )
        .into());
    }
    let control = queue::control_messages(to, &name).await?;
    let heard = Workers::of(config, admin).troubles(&digest.destinations(told.as_ref())).await;
    let status = digest.status(id, told.as_ref(), &control, &heard);
    Ok(if json { super::print_json(&status) } else { super::print(&status.to_string()) })
}

async fn cancel(args: OneArgs, config: &Config, json: bool) -> Result<Exit, Stop> {
    if let Some(exit) = broker::missing(&config.broker) {
        return Ok(exit);
    }
    let (id, place) = (&args.id, place(args.record, &config.broker, &args.id).ok());
    if let Some(place) = &place {
        record::look(place, id)?;
    }
    let control = broker::announce(config, WORD, ControlCommand::CancelBackfill(id.clone())).await?;
    let recorded = place.is_some_and(|place| note_cancelled(&place, id, control.at));
    if !recorded && !is_known(config, id).await {
        note(&format!(
            "nothing is known of a backfill {id}: no outcome is kept, and nothing was published from here. Check the spelling; the \
             cancellation was sent all the same, in case jobs of it are queued"
        ));
    }
    Ok(if json {
        super::print(&String::from_utf8_lossy(&control.render()))
    } else {
        super::print(&format!("backfill {id} is cancelled: what has not begun is skipped, what runs finishes"))
    })
}

/// Whether there is a record of it now.
fn note_cancelled(place: &Path, id: &BackfillId, at: Timestamp) -> bool {
    record::cancel(place, id, at).unwrap_or_else(|problem| {
        complain(&format!("the cancellation is not on record: {problem}"), Exit::Done);
        true
    })
}

/// Whether outcomes of it were ever kept; also where that can't be found out in time, as then there is nothing to warn of.
async fn is_known(config: &Config, id: &BackfillId) -> bool {
    let kept = BackfillOutcomes::new(&config.broker, &broker::name(config, WORD), id);
    let mut ignored = |_: &[u8]| {};
    let found = tokio::time::timeout(LOOKING, kept.read(&mut ignored)).await;
    !matches!(found, Ok(Ok(false)))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;
    use crate::cli::{Cli, Command};

    #[test]
    fn arguments_that_contradict_each_other_are_a_wrong_use() {
        for wrong in ["--from 2026-01-02 --to 2026-01-01", "--from 2026-01-01 --to 2026-01-02 --var a=1 --var a=2"] {
            let line = format!("consign backfill --template Cargo.toml {wrong}");
            let cli = Cli::from_arguments(line.split(' ').map(OsString::from)).unwrap();
            let Command::Backfill(BackfillArgs { run: Some(run), .. }) = cli.command else { panic!("no run: {line}") };
            assert!(matches!(plan(&run), Err(Stop::Usage(_))), "{line}");
        }
    }
}
