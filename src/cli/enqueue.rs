//! `consign enqueue`: validates jobs, publishes them, and waits for their outcomes on request.

mod input;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use futures_util::stream::StreamExt as _;
use jiff::Timestamp;
use serde_json::json;
use url::Url;

use super::output::ProgressReporter;
use super::wait::{OutcomeWaiter, ShownOutcomes, WaitOptions};
use super::workers::{Workers, worker_url};
use super::{CommandError, Exit, broker, configured_destinations, fail, parse_duration};
use crate::config::Config;
use crate::domain::destination::DestinationId;
use crate::domain::lane::Lane;
use crate::producer::CONFIRM_WINDOW;
use crate::producer::job::{PreparedJob, PublishFormat};
use crate::queue::{JobPublisher, QueueError};
use crate::runtime::output::{Output as _, printable};
use input::{InputError, JobInput};

/// Name of the command in the names of its connections.
const COMMAND: &str = "enqueue";
/// Upper bound of the unknown destinations that are named in warnings.
const MAX_WARNINGS: usize = 20;

/// Arguments of `consign enqueue`.
#[derive(Debug, Clone, Args)]
pub struct EnqueueArgs {
    /// File with one job, or one job per line (NDJSON); `-` is standard input. A file is checked
    /// completely before anything is published
    #[arg(value_name = "FILE|-", conflicts_with_all = ["source", "to", "key", "id"])]
    pub(super) file: Option<PathBuf>,
    /// URL of the file to deliver: https://, file:/// or s3://
    #[arg(long, value_name = "URL", requires = "to", requires = "key")]
    source: Option<String>,
    /// Destination id
    #[arg(long, value_name = "DEST", requires = "source")]
    to: Option<String>,
    /// Key of the object, below the destination's prefix
    #[arg(long, requires = "source")]
    key: Option<String>,
    /// Job id. Jobs with the same id are delivered once [default: cli/UUID]
    #[arg(long, requires = "source")]
    id: Option<String>,
    /// Lane to publish to
    #[arg(long, value_enum, default_value_t = LaneArg::Scheduled)]
    lane: LaneArg,
    /// Publish jobs in the compact binary form instead of JSON
    #[arg(long)]
    compact: bool,
    /// Wait for the outcome of every job. Exit codes: 0 if all are delivered or skipped, 1 if all
    /// failed, otherwise 75
    #[arg(long)]
    wait: bool,
    /// Stop waiting after this time, such as 10m. Exit code: 75 if a job has no outcome by then
    /// [default: no limit]
    #[arg(long, value_name = "DURATION", requires = "wait", allow_hyphen_values = true, value_parser = parse_duration)]
    wait_timeout: Option<Duration>,
    /// Admin endpoint of a worker that is asked why jobs are pending. Repeatable [default:
    /// admin.listen]
    #[arg(long, value_name = "URL", requires = "wait", value_parser = worker_url)]
    admin: Vec<Url>,
}

/// Lanes that jobs are published to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum LaneArg {
    Scheduled,
    Backfill,
}

impl From<LaneArg> for Lane {
    fn from(lane: LaneArg) -> Self {
        match lane {
            LaneArg::Scheduled => Self::Scheduled,
            LaneArg::Backfill => Self::Backfill,
        }
    }
}

/// Runs the command.
pub async fn execute(args: EnqueueArgs, config: Config, json: bool) -> Exit {
    if args.file.is_none() && args.source.is_none() {
        return fail("give a file of jobs, `-` for standard input, or --source, --to and --key", Exit::Usage);
    }
    run(args, config, json).await.unwrap_or_else(|problem| problem.report())
}

async fn run(args: EnqueueArgs, config: Config, json: bool) -> Result<Exit, CommandError> {
    broker::require(&config.broker)?;
    let format = PublishFormat { lane: args.lane.into(), compact: args.compact, created_at: Some(Timestamp::now()) };
    let input = match (args.file, args.source, args.to, args.key) {
        (None, Some(source), Some(to), Some(key)) => JobInput::one(format, args.id, &source, to, key)?,
        (Some(file), ..) if file.as_os_str() == "-" => JobInput::stdin(format).await?,
        (Some(file), ..) => JobInput::file(format, &file).await?,
        _ => return Err(CommandError::Failed("give a file, `-`, or --source, --to and --key".to_owned())),
    };
    let queue = broker::connect(&config, COMMAND).await?;
    let progress = ProgressReporter::publishing(input.length, json);
    let waiter = if args.wait {
        let admin = broker::admin(&config, COMMAND);
        Some(OutcomeWaiter::subscribe(&*admin, Arc::clone(&progress), ShownOutcomes::All).await?)
    } else {
        None
    };
    let unknown = UnknownDestinations { config: &config, warned: HashSet::new() };
    let result = publish(&*queue, input, waiter.as_ref(), unknown, &progress).await;
    queue.close().await;
    match waiter {
        Some(waiter) if result.published > 0 => {
            // With --json the event has the id already.
            if !json {
                result.only_id().iter().for_each(|id| progress.notice(&format!("published {id}")));
            }
            let workers = &Workers::new(&config, args.admin);
            Ok(waiter.finish(WaitOptions { timeout: args.wait_timeout, unpublished: result.failed, workers }).await)
        }
        _ => Ok(result.finish(&progress)),
    }
}

/// Warnings about destinations that may be mistyped. Where none is configured, only the workers
/// know theirs.
struct UnknownDestinations<'a> {
    config: &'a Config,
    /// Destinations that were warned about.
    warned: HashSet<DestinationId>,
}

impl UnknownDestinations<'_> {
    /// Returns the warning about the job's destination, once for each destination.
    fn warning(&mut self, job: &PreparedJob) -> Option<String> {
        let id = DestinationId::parse(&job.destination).ok().filter(|_| !job.is_inline)?;
        let destinations = &self.config.destinations;
        if destinations.is_empty() || destinations.contains_key(&id) || !self.warned.insert(id.clone()) {
            return None;
        }
        let known = match self.warned.len() {
            1 => format!(" ({})", configured_destinations(self.config)),
            2..=MAX_WARNINGS => String::new(),
            _ => {
                let first_more = self.warned.len() == MAX_WARNINGS + 1;
                return first_more.then(|| "warning: further destinations are not in the configuration".to_owned());
            }
        };
        Some(format!("warning: {id} is not in the configuration{known}; published anyway, as the workers may have it"))
    }
}

#[derive(Debug, Default)]
struct EnqueueResult {
    published: u64,
    failed: u64,
    /// Cause of the failures of the broker.
    refused: Option<QueueError>,
    /// Id of the last published job.
    last_id: String,
}

impl EnqueueResult {
    /// Id of the job, where it is the only one: it may have been generated here, and is shown
    /// nowhere else.
    fn only_id(&self) -> Option<String> {
        (self.published == 1 && self.failed == 0).then(|| printable(&self.last_id))
    }

    fn finish(&self, progress: &ProgressReporter) -> Exit {
        let counts = || format!("{} published, {} not", self.published, self.failed);
        progress.finish(&self.only_id().map_or_else(counts, |id| format!("published {id}")));
        match (self.published, self.failed) {
            (_, 0) => Exit::Done,
            (0, _) => self.refused.as_ref().map_or(Exit::Failed, Exit::of),
            _ => Exit::Partly,
        }
    }
}

/// Publishes until the input ends or has an invalid line, or the broker is lost. Nothing is
/// published after that.
async fn publish(
    queue: &dyn JobPublisher,
    input: JobInput,
    waiter: Option<&OutcomeWaiter>,
    mut unknown: UnknownDestinations<'_>,
    progress: &ProgressReporter,
) -> EnqueueResult {
    let mut result = EnqueueResult::default();
    let jobs = input.jobs.inspect(|job| {
        let warning = job.as_ref().ok().and_then(|job| unknown.warning(job));
        warning.iter().for_each(|warning| progress.notice(warning));
    });
    let jobs = jobs.map(|job| async move {
        let job = job?;
        if let Some(waiter) = waiter {
            waiter.expect(&job.id, &job.destination);
        }
        let PreparedJob { id, destination, publication, .. } = job;
        Ok::<_, InputError>((id, destination, queue.publish(publication).await))
    });
    let mut results = std::pin::pin!(jobs.buffer_unordered(CONFIRM_WINDOW));
    while let Some(published) = results.next().await {
        match published {
            Ok((id, destination, Ok(()))) => {
                result.published += 1;
                progress.advance(1);
                progress.event(&json!({ "id": id, "destination": destination, "published": true }));
                result.last_id = id;
            }
            Ok((id, destination, Err(problem))) => {
                result.failed += 1;
                let error = problem.to_string();
                if result.refused.as_ref().is_none_or(|known| problem.is_cause_of(known)) {
                    result.refused = Some(problem);
                }
                progress.notice(&format!("{id}: {error}"));
                progress.event(&json!({ "id": id, "destination": destination, "published": false, "error": error }));
                if let Some(waiter) = waiter {
                    waiter.forget(&id, &destination);
                }
            }
            Err(invalid) => {
                result.failed += 1;
                let later = invalid.line.map_or("", |_| " (no later line was published)");
                progress.notice(&format!("{invalid}{later}"));
            }
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_destination_is_reported_with_the_configured_ones() {
        let acme = "[destinations.acme]\nbucket = \"acme-bucket\"\nregion = \"eu-west-1\"\n\
                    auth = {method = \"access_key\", access_key_id = \"AKIAEXAMPLE\", secret_access_key = \"s\"}\n";
        let job = |to: &str| {
            let body =
                format!(r#"{{"version":1,"id":"a","source":{{"url":"file:///a"}},"destination":{to},"key":"k"}}"#);
            let format = PublishFormat { lane: Lane::Scheduled, compact: false, created_at: None };
            PreparedJob::new(format, body.as_bytes()).unwrap()
        };
        let warnings = |toml: &str, to: &[&str]| {
            let config = crate::config::load_str(toml).unwrap().config;
            let mut unknown = UnknownDestinations { config: &config, warned: HashSet::new() };
            to.iter().filter_map(|to| unknown.warning(&job(to))).collect::<Vec<_>>()
        };
        let inline = r#"{"id":"own","bucket":"own-bucket","region":"eu-west-1","auth":{"method":"iam_role","role_arn":"arn:aws:iam::123456789012:role/r"}}"#;
        assert_eq!(warnings(acme, &["\"acme\"", inline]), [""; 0]);
        assert_eq!(warnings("", &["\"nosuch\""]), [""; 0]);
        let all = warnings(acme, &["\"nosuch\"", "\"acme\"", "\"nosuch\"", "\"other\""]);
        let [warning, other] = all.as_slice() else { panic!("{all:?}") };
        let expected = "warning: other is not in the configuration; published anyway, as the workers may have it";
        assert_eq!(other, expected);
        let many: Vec<_> = (0..100).map(|n| format!("\"other-{n}\"")).collect();
        let many = warnings(acme, &many.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(many.len(), MAX_WARNINGS + 1, "{many:?}");
        assert_eq!(many[MAX_WARNINGS], "warning: further destinations are not in the configuration");
        assert!(
            warning.starts_with("warning: nosuch is not in the configuration (configured: acme); published anyway"),
            "{warning}"
        );
    }
}
