//! The arguments of `consign backfill`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use jiff::tz::TimeZone;
use url::Url;

use super::range::{self, Border, Every};
use crate::cli::rate::Rate;
use crate::cli::status::worker_url;
use crate::domain::control::BackfillId;

/// A backfill to publish, or something to be done with one.
#[derive(Debug, Clone, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct BackfillArgs {
    #[command(subcommand)]
    pub(super) action: Option<Action>,
    #[command(flatten)]
    pub(super) run: Option<RunArgs>,
}

/// What can be done with a backfill that was published.
#[derive(Debug, Clone, Subcommand)]
pub(super) enum Action {
    /// Show what became of its jobs, from the outcomes that were kept (30 days)
    Status(StatusArgs),
    /// Have every worker drop its jobs that have not begun, with the outcome `skipped`; running ones finish
    Cancel(OneArgs),
}

#[derive(Debug, Clone, Args)]
pub(super) struct OneArgs {
    /// The backfill's id
    #[arg(value_parser = backfill_id)]
    pub(super) id: BackfillId,
    /// The record of the run that published it [default: as for the run]
    #[arg(long, value_name = "FILE")]
    pub(super) record: Option<PathBuf>,
}

#[derive(Debug, Clone, Args)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    pub(super) one: OneArgs,
    /// A worker's admin endpoint, to be asked why jobs are left; may be given again [default: admin.listen]
    #[arg(long, value_name = "URL", value_parser = worker_url)]
    pub(super) admin: Vec<Url>,
}

/// A range of jobs.
#[derive(Debug, Clone, Args)]
pub(super) struct RunArgs {
    /// One job in JSON; every text in it may have {date} {year} {month} {day} {hour} {minute} {offset} {stamp} {backfill} and
    /// those of --var; {{ and }} are the signs themselves. Without an id each job gets {backfill}/{stamp}
    #[arg(long, value_name = "FILE")]
    pub(super) template: PathBuf,
    /// The first step: 2026-01-31, or 2026-01-31T06:00
    #[arg(long, value_name = "DATE", value_parser = Border::parse)]
    pub(super) from: Border,
    /// The last step, inclusive; a day is the whole day
    #[arg(long, value_name = "DATE", value_parser = Border::parse)]
    pub(super) to: Border,
    /// 1h, 6h, 1d, 1w or 1month
    #[arg(long, value_name = "STEP", default_value = "1d", value_parser = Every::parse)]
    pub(super) every: Every,
    /// The time zone of the range, an IANA name
    #[arg(long, value_name = "ZONE", default_value = "UTC", value_parser = range::zone)]
    pub(super) time_zone: TimeZone,
    /// A placeholder of your own; may be given again
    #[arg(long, value_name = "NAME=VALUE", value_parser = variable)]
    pub(super) var: Vec<(String, String)>,
    /// The backfill's id [default: made of template, variables and range, so that the same command is the same backfill]
    #[arg(long, value_parser = backfill_id)]
    pub(super) id: Option<BackfillId>,
    /// Publish no faster than this, such as 30/s, 30/min or 30/h
    #[arg(long, value_name = "N/UNIT", value_parser = Rate::parse)]
    pub(super) rate: Option<Rate>,
    /// Show the jobs and publish nothing; with --json all of them, one per line
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Publish all of it anew, also what an earlier run has published
    #[arg(long, conflicts_with = "dry_run")]
    pub(super) again: bool,
    /// Where it is written down what was published [default: $XDG_STATE_HOME/consign/backfills/QUEUE/ID.ndjson, and without that
    /// variable below ~/.local/state]
    #[arg(long, value_name = "FILE")]
    pub(super) record: Option<PathBuf>,
    /// Wait for the outcome of every job; ends 0 when all are delivered or skipped, 1 when all failed, else 75
    #[arg(long, conflicts_with = "dry_run")]
    pub(super) wait: bool,
    /// Give up waiting after this time; ends 75 if a job has no outcome by then [default: no limit]
    #[arg(long, value_name = "DURATION", requires = "wait", value_parser = humantime::parse_duration)]
    pub(super) wait_timeout: Option<Duration>,
    /// A worker's admin endpoint, to be asked why jobs are left; may be given again [default: admin.listen]
    #[arg(long, value_name = "URL", requires = "wait", value_parser = worker_url)]
    pub(super) admin: Vec<Url>,
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
