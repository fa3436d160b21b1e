//! `consign enqueue`: checks jobs here, publishes them, and waits for their outcomes if asked to.

pub(super) mod input;
pub(super) mod progress;
pub(super) mod seen;
pub(super) mod wait;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use futures_util::stream::{self, StreamExt as _};
use url::Url;

use super::left::Workers;
use super::status::worker_url;
use super::text::plain;
use super::{Exit, broker, complain, configured, note};
use crate::config::Config;
use crate::domain::destination::DestinationId;
use crate::domain::lane::Lane;
use crate::queue::{JobPublisher, QueueError};
use input::{Input, Prepared, Refusal};
use progress::{Report, Shown};
use wait::Waiter;

/// Publishes that await their confirm at once.
pub(super) const WINDOW: usize = 64;

/// Jobs from a file or standard input, or one job from flags.
#[derive(Debug, Clone, Args)]
pub struct EnqueueArgs {
    /// One job, or one job per line (NDJSON); `-` is standard input. A file is checked whole before anything is published
    #[arg(value_name = "FILE|-", conflicts_with_all = ["source", "to", "key", "id"])]
    pub(super) file: Option<PathBuf>,
    /// The source's URL: https://, file:/// or s3://
    #[arg(long, value_name = "URL", requires = "to", requires = "key")]
    source: Option<String>,
    /// A configured destination
    #[arg(long, value_name = "DEST", requires = "source")]
    to: Option<String>,
    /// The key below the destination's prefix
    #[arg(long, requires = "source")]
    key: Option<String>,
    /// The job's id; the same id is delivered once [default: cli/UUID]
    #[arg(long, requires = "source")]
    id: Option<String>,
    /// Which queue
    #[arg(long, value_enum, default_value_t = LaneArg::Scheduled)]
    lane: LaneArg,
    /// Publish in the compact binary form
    #[arg(long)]
    compact: bool,
    /// Wait for the outcome of every job; ends 0 when all are delivered or skipped, 1 when all failed, else 75
    #[arg(long)]
    wait: bool,
    /// Give up waiting after this time; ends 75 if a job has no outcome by then [default: no limit]
    #[arg(long, value_name = "DURATION", requires = "wait", value_parser = humantime::parse_duration)]
    wait_timeout: Option<Duration>,
    /// A worker's admin endpoint, to be asked why jobs are left; may be given again [default: admin.listen]
    #[arg(long, value_name = "URL", requires = "wait", value_parser = worker_url)]
    admin: Vec<Url>,
}

/// The queues that jobs are published to.
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
        return complain("give a file of jobs, `-` for standard input, or --source, --to and --key", Exit::Usage);
    }
    if let Some(exit) = broker::missing(&config.broker) {
        return exit;
    }
    match run(args, config, json).await {
        Ok(exit) => exit,
        Err(Stop::Input(refusal)) => complain(&refusal.to_string(), Exit::Failed),
        Err(Stop::Queue(problem)) => broker::complain_of(&problem),
    }
}

/// Nothing was published.
enum Stop {
    Input(Refusal),
    Queue(QueueError),
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Input(refusal)
    }
}

impl From<QueueError> for Stop {
    fn from(problem: QueueError) -> Self {
        Self::Queue(problem)
    }
}

async fn run(args: EnqueueArgs, config: Config, json: bool) -> Result<Exit, Stop> {
    let form = input::Form { lane: args.lane.into(), compact: args.compact };
    let unknown = args.to.as_deref().and_then(|to| unknown(&config, to));
    let input = match (args.file, args.source, args.to, args.key) {
        (None, Some(source), Some(to), Some(key)) => Input::one(form, args.id, &source, to, key)?,
        (Some(file), ..) if file.as_os_str() == "-" => Input::stdin(form).await?,
        (Some(file), ..) => Input::file(form, &file).await?,
        _ => return Err(Refusal::whole("give a file, `-`, or --source, --to and --key").into()),
    };
    unknown.iter().for_each(|warning| note(warning));
    let (queue, name) = (broker::connect(&config, "enqueue").await?, broker::name(&config, "enqueue"));
    let report = Arc::new(Report::new(input.known_length(), json, Shown::All));
    let waiter =
        if args.wait { Some(Waiter::subscribe(&config.broker, &name, Arc::clone(&report)).await?) } else { None };
    let sent = publish(&*queue, input, waiter.as_ref(), &report).await;
    queue.close().await;
    match waiter {
        Some(waiter) if sent.published > 0 => {
            sent.only().iter().for_each(|id| report.tell(&format!("published {id}")));
            Ok(waiter.finish(args.wait_timeout, sent.failed, &Workers::of(&config, args.admin)).await)
        }
        _ => Ok(sent.exit(&report)),
    }
}

/// What to say of a destination that is perhaps mistyped. Where none is configured, they are the workers' alone.
fn unknown(config: &Config, to: &str) -> Option<String> {
    let id = DestinationId::parse(to).ok()?;
    if config.destinations.is_empty() || config.destinations.contains_key(&id) {
        return None;
    }
    let known = configured(config);
    Some(format!("{id} is not in the configuration ({known}); published all the same, as the workers may have it"))
}

/// How publishing went.
#[derive(Debug, Default)]
struct Sent {
    published: u64,
    failed: u64,
    /// What the broker's last refusal ends with. A denied access stays: others may only have lost the connection by it.
    refused: Option<Exit>,
    /// The last one that was published.
    id: String,
}

impl Sent {
    /// The id of the job, where it is only one: it may have been made here, and nobody else says it.
    fn only(&self) -> Option<String> {
        (self.published == 1 && self.failed == 0).then(|| plain(&self.id))
    }

    fn exit(&self, report: &Report) -> Exit {
        let counts = || format!("{} published, {} not", self.published, self.failed);
        report.end(&self.only().map_or_else(counts, |id| format!("published {id}")));
        match (self.published, self.failed) {
            (_, 0) => Exit::Done,
            (0, _) => self.refused.unwrap_or(Exit::Failed),
            _ => Exit::Partly,
        }
    }
}

/// Publishes until the input ends, has a bad line, or the broker is gone; after that nothing more is published.
async fn publish(queue: &dyn JobPublisher, input: Input, waiter: Option<&Waiter>, report: &Report) -> Sent {
    let mut sent = Sent::default();
    let jobs = input.jobs().map(|job| async move {
        let job = job?;
        if let Some(waiter) = waiter {
            waiter.expect(&job.id, &job.destination);
        }
        Ok::<_, Refusal>(send(queue, job).await)
    });
    let mut results = std::pin::pin!(jobs.buffer_unordered(WINDOW));
    while let Some(result) = results.next().await {
        match result {
            Ok((job, Ok(()))) => {
                sent.published += 1;
                report.published(&job);
                sent.id = job.id;
            }
            Ok((job, Err(problem))) => {
                sent.failed += 1;
                if sent.refused != Some(Exit::Denied) {
                    sent.refused = Some(broker::exit(&problem));
                }
                report.not_published(&job, &problem.to_string());
                if let Some(waiter) = waiter {
                    waiter.forget(&job.id);
                }
            }
            Err(refusal) => {
                sent.failed += 1;
                report.refused(&refusal);
            }
        }
    }
    sent
}

async fn send(queue: &dyn JobPublisher, mut job: Prepared) -> (Prepared, Result<(), QueueError>) {
    let result = match job.publication.take() {
        Some(publication) => queue.publish(publication).await,
        None => Ok(()),
    };
    (job, result)
}

/// Ends a stream of results after its first error.
fn until_refused(
    jobs: impl stream::Stream<Item = Result<Prepared, Refusal>>,
) -> impl stream::Stream<Item = Result<Prepared, Refusal>> {
    jobs.scan(false, |over, job| {
        let next = (!*over).then_some(job);
        *over |= matches!(next, Some(Err(_)));
        std::future::ready(next)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_that_is_not_among_the_configured_ones_is_named_with_them() {
        let acme = "[destinations.acme]\nbucket = \"acme-bucket\"\nregion = \"eu-west-1\"\n\
                    auth = {method = \"access_key\", access_key_id = \"AKIAEXAMPLE\", secret_access_key = \"s\"}\n";
        let unknown = |toml: &str, to| unknown(&crate::config::load_str(toml).unwrap().config, to);
        assert_eq!((unknown(acme, "acme"), unknown("", "nosuch")), (None, None));
        let said = unknown(acme, "nosuch").unwrap();
        assert!(
            said.starts_with("nosuch is not in the configuration (there are: acme); published all the same"),
            "{said}"
        );
    }
}
