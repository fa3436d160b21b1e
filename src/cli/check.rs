//! `consign check [DEST]`: the connection test, and without a destination the test of this worker itself.

mod show;
mod worker;

use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use jiff::Timestamp;
use tokio::time::Instant;

use super::{Exit, complain};
use crate::check::{Checker, LIMIT, Report, Step, Verdict, Watch};
use crate::config::Config;
use crate::domain::destination::{Destination, DestinationId};
use crate::domain::diagnosis::{Side, Who};
use crate::metrics::Metrics;
use crate::runtime::shutdown::TerminationSignal;
use crate::session::{Sessions, WorkerIdentity};
use crate::upload::Uploader;
use show::Show;

/// How long an interrupted test may give up what it had begun.
pub(super) const GIVING_UP: Duration = Duration::from_secs(2);
/// How long a broker may take to hear of a success.
const TELLING: Duration = Duration::from_secs(10);
const INTERRUPTED: &str = "interrupted; an upload that was open has been given up, where that is allowed";

/// What to test.
#[derive(Debug, Clone, Args)]
pub struct CheckArgs {
    /// A configured destination; without one, the broker and the own identity are tested. The AWS identity is that of this shell
    #[arg(value_name = "DEST")]
    destination: Option<String>,
}

/// Runs the test. It ends 0 when all is ready, 3 when something has to be mended, 77 when AWS refuses this command's own
/// identity or the broker its login, and 69 when a service does not answer.
pub async fn execute(args: CheckArgs, config: Config, json: bool) -> Exit {
    let show = Show::new(json);
    let metrics = Arc::new(Metrics::new(1));
    let identity = WorkerIdentity::load(&config.aws).await;
    let sessions = Arc::new(Sessions::new(config.session.clone(), config.aws.clone(), identity, metrics.clone()));
    let (mut told, mut locked_out) = (None, false);
    let report = match args.destination {
        None => {
            let (report, refused) = of_the_worker(&config, &sessions, &show).await;
            locked_out = refused;
            report
        }
        Some(name) => match find(&config, &name) {
            Ok(destination) => match of_a_destination(Kit::with(&config, sessions, metrics), &destination, &show).await
            {
                Some(report) => {
                    told = tell(&config, &destination, &report).await;
                    report
                }
                None => return complain(INTERRUPTED, Exit::Signal(TerminationSignal::Interrupt)),
            },
            Err(problem) => return complain(&problem, Exit::Usage),
        },
    };
    match show.report(&report) {
        Exit::Done => {
            told.iter().for_each(|told| show.after(told));
            if locked_out { Exit::Denied } else { exit(&report) }
        }
        unwritable => unwritable,
    }
}

fn find(config: &Config, name: &str) -> Result<Arc<Destination>, String> {
    let id = DestinationId::parse(name).map_err(|problem| format!("{name}: {}", problem.problem))?;
    config
        .destinations
        .get(&id)
        .cloned()
        .ok_or_else(|| format!("there is no destination {id} in the configuration; {}", super::configured(config)))
}

/// What connection tests are made with.
pub(super) struct Kit {
    sessions: Arc<Sessions>,
    uploader: Uploader,
    egress: Vec<String>,
}

impl Kit {
    /// Loads this process's own identity; asks nobody yet.
    pub(super) async fn of(config: &Config) -> Self {
        let metrics = Arc::new(Metrics::new(1));
        let identity = WorkerIdentity::load(&config.aws).await;
        let sessions = Sessions::new(config.session.clone(), config.aws.clone(), identity, metrics.clone());
        Self::with(config, Arc::new(sessions), metrics)
    }

    fn with(config: &Config, sessions: Arc<Sessions>, metrics: Arc<Metrics>) -> Self {
        let budget = config.worker.memory_budget;
        let uploader = Uploader::new(config.upload.clone(), budget, sessions.clone(), metrics);
        Self { sessions, uploader, egress: config.check.egress_addresses.clone() }
    }

    /// The whole test.
    pub(super) async fn test(&self, destination: &Arc<Destination>, watch: Watch<'_>) -> Report {
        let (sessions, uploader) = (&self.sessions, &self.uploader);
        let checker = Checker { sessions, uploader, egress: &self.egress, who: Who::Command, limit: LIMIT };
        Box::pin(checker.run(destination, watch)).await
    }
}

async fn of_a_destination(kit: Kit, destination: &Arc<Destination>, show: &Show) -> Option<Report> {
    show.begin(&format!(
        "connection test of {}: s3://{}/{} in {}",
        destination.id, destination.bucket, destination.prefix, destination.region
    ));
    let watch = |step: &Step| show.step(step);
    tokio::select! {
        report = kit.test(destination, &watch) => return Some(report),
        Ok(()) = tokio::signal::ctrl_c() => {}
    }
    // The test is dropped by now, and an upload it had open is given up in the background.
    tokio::time::sleep(GIVING_UP).await;
    None
}

/// And whether the broker refuses the login: no code of a step tells that from an absent broker.
async fn of_the_worker(config: &Config, sessions: &Sessions, show: &Show) -> (Report, bool) {
    let started = (Timestamp::now(), Instant::now());
    show.begin("test of this worker");
    let found = worker::steps(config, sessions, &|step: &Step| show.step(step)).await;
    let report = Report::of_the_worker(found.principal, started.0, started.1.elapsed().as_secs_f64(), found.steps);
    (report, found.locked_out)
}

/// A destination that is ready has no open circuit, wherever it was open. Whoever tests on a machine without a broker tests all the
/// same, and is told what the workers know.
async fn tell(config: &Config, destination: &Destination, report: &Report) -> Option<String> {
    if report.verdict != Verdict::Ready {
        return None;
    }
    let id = &destination.id;
    if config.broker.url.is_none() {
        return Some("no worker was told, as no broker.url is configured here".to_owned());
    }
    let why = match tokio::time::timeout(TELLING, super::status::mended(config, id)).await {
        Ok(Ok(_)) => return Some(format!("every worker is told: what waits for {id} is tried again")),
        Ok(Err(problem)) => problem.to_string(),
        Err(_) => format!("the broker does not answer within {} s", TELLING.as_secs()),
    };
    Some(format!(
        "the workers could not be told ({why}); `consign status reset {id}` tells them, or they find out within 10 minutes"
    ))
}

fn exit(report: &Report) -> Exit {
    match report.side() {
        Side::Nobody => Exit::Done,
        Side::Customer | Side::Operator => Exit::Problem,
        Side::Identity => Exit::Denied,
        Side::Service => Exit::Unavailable,
    }
}
