//! Arguments of `consign backfill`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use jiff::tz::TimeZone;
use url::Url;

use crate::backfill::calendar::{self, Bound, Interval};
use crate::cli::parse_duration;
use crate::cli::workers::worker_url;
use crate::domain::control::BackfillId;
use crate::runtime::rate::PublishRate;

/// Arguments of `consign backfill`: a backfill to publish, or an action on a published one.
#[derive(Debug, Clone, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct BackfillArgs {
    #[command(subcommand)]
    pub(super) action: Option<BackfillAction>,
    #[command(flatten)]
    pub(super) run: Option<BackfillRunArgs>,
}

/// Action on a published backfill.
#[derive(Debug, Clone, Subcommand)]
pub(super) enum BackfillAction {
    /// Show the status of a backfill: its outcomes of the last 30 days
    Status(BackfillStatusArgs),
    /// Cancel a backfill. Jobs that have not started are skipped (outcome `skipped`); running jobs
    /// finish
    Cancel(BackfillIdArgs),
}

/// Backfill and its record.
#[derive(Debug, Clone, Args)]
pub(super) struct BackfillIdArgs {
    /// Backfill id
    #[arg(value_parser = backfill_id)]
    pub(super) id: BackfillId,
    /// Record that `consign backfill` wrote when it published the jobs [default: the same file]
    #[arg(long, value_name = "FILE")]
    pub(super) record: Option<PathBuf>,
}

/// Arguments of `consign backfill status`.
#[derive(Debug, Clone, Args)]
pub(super) struct BackfillStatusArgs {
    #[command(flatten)]
    pub(super) backfill: BackfillIdArgs,
    /// Admin endpoint of a worker that is asked why jobs are pending. Repeatable [default:
    /// admin.listen]
    #[arg(long, value_name = "URL", value_parser = worker_url)]
    pub(super) admin: Vec<Url>,
}

/// Arguments of a run.
#[derive(Debug, Clone, Args)]
pub(super) struct BackfillRunArgs {
    /// File with one job in JSON. Placeholders in its strings: {date} {year} {month} {day} {hour}
    /// {minute} {offset} {stamp} {backfill} and those of --var. Write {{ and }} for literal braces.
    /// A job without an id gets {backfill}/{stamp}
    #[arg(long, value_name = "FILE")]
    pub(super) template: PathBuf,
    /// First date of the range: 2026-01-31, or 2026-01-31T06:00
    #[arg(long, value_name = "DATE", value_parser = Bound::parse)]
    pub(super) from: Bound,
    /// Last date of the range, inclusive. A day includes all its hours
    #[arg(long, value_name = "DATE", value_parser = Bound::parse)]
    pub(super) to: Bound,
    /// Interval between two jobs, such as 1h, 6h, 1d, 1w or 1month
    #[arg(long, value_name = "STEP", default_value = "1d", value_parser = Interval::parse)]
    pub(super) every: Interval,
    /// Time zone of the dates: an IANA name, such as Europe/Berlin
    #[arg(long, value_name = "ZONE", default_value = "UTC", value_parser = calendar::zone)]
    pub(super) time_zone: TimeZone,
    /// Define a placeholder for the template. Repeatable
    #[arg(long, value_name = "NAME=VALUE", value_parser = variable)]
    pub(super) var: Vec<(String, String)>,
    /// Backfill id [default: derived from template, variables and range: the same command continues
    /// the same backfill]
    #[arg(long, value_parser = backfill_id)]
    pub(super) id: Option<BackfillId>,
    /// Limit the rate of publishing: 30/s, 30/min or 30/h
    #[arg(long, value_name = "N/UNIT", allow_hyphen_values = true, value_parser = PublishRate::parse)]
    pub(super) rate: Option<PublishRate>,
    /// Print the jobs without publishing them. With --json: all jobs, one per line
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Publish all jobs again as a new run. Jobs that were delivered before are delivered again
    #[arg(long, conflicts_with = "dry_run")]
    pub(super) again: bool,
    /// File that records the published jobs [default:
    /// $XDG_STATE_HOME/consign/backfills/QUEUE/ID.ndjson, or below ~/.local/state]
    #[arg(long, value_name = "FILE")]
    pub(super) record: Option<PathBuf>,
    /// Wait for the outcome of every job. Exit codes: 0 if all are delivered or skipped, 1 if all
    /// failed, otherwise 75
    #[arg(long, conflicts_with = "dry_run")]
    pub(super) wait: bool,
    /// Stop waiting after this time, such as 10m. Exit code: 75 if a job has no outcome by then
    /// [default: no limit]
    #[arg(long, value_name = "DURATION", requires = "wait", allow_hyphen_values = true, value_parser = parse_duration)]
    pub(super) wait_timeout: Option<Duration>,
    /// Admin endpoint of a worker that is asked why jobs are pending. Repeatable [default:
    /// admin.listen]
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
        return Err("a name consists of letters, digits and _".to_owned());
    }
    Ok((name.to_owned(), value.to_owned()))
}
