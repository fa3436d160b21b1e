//! `consign check [DEST]`: the connection test; without a destination, the test of this worker.

mod show;
mod worker;

use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use jiff::Timestamp;
use tokio::time::Instant;

use super::{Exit, fail};
use crate::check::{CheckReport, CheckStep, CheckVerdict, Checker, LIMIT, StepObserver};
use crate::config::Config;
use crate::domain::destination::{Destination, DestinationId};
use crate::domain::diagnosis::{Side, Who};
use crate::metrics::Metrics;
use crate::runtime::shutdown::TerminationSignal;
use crate::session::{Sessions, WorkerIdentity};
use crate::upload::Uploader;
use show::TestPrinter;

/// Time for an interrupted test to abort its upload.
pub(super) const ABORT_TIME: Duration = Duration::from_secs(2);
const NOTIFY_TIMEOUT: Duration = Duration::from_secs(10);
const INTERRUPTED: &str = "interrupted; an open upload was aborted, where that is allowed";

/// Arguments of `consign check`.
#[derive(Debug, Clone, Args)]
pub struct CheckArgs {
    /// Id of a configured destination. Without it, the broker, the topology and the AWS identity
    /// are tested. The AWS identity is that of this shell
    #[arg(value_name = "DEST")]
    destination: Option<String>,
}

/// Runs the test. Exits with 0 when everything is ready, 3 for a problem to fix, 77 when AWS denies
/// this command's own identity or the broker its login, and 69 when a service does not answer.
pub async fn execute(args: CheckArgs, config: Config, json: bool) -> Exit {
    let show = TestPrinter::new(json);
    let checker = DestinationChecker::load(&config).await;
    let (report, notified, login_denied) = match args.destination.map(|name| find(&config, &name)) {
        None => {
            let (report, denied) = test_worker(&config, &checker.sessions, &show).await;
            (report, None, denied)
        }
        Some(Ok(destination)) => {
            let Some(report) = test_destination(&checker, &destination, &show).await else {
                return fail(INTERRUPTED, Exit::Signal(TerminationSignal::Interrupt));
            };
            let notified = notify_workers(&config, &destination, &report).await;
            (report, notified, false)
        }
        Some(Err(problem)) => return fail(&problem, Exit::Usage),
    };
    match show.report(&report) {
        Exit::Done => {
            notified.iter().for_each(|text| show.print(text));
            if login_denied { Exit::Denied } else { exit(&report) }
        }
        unwritable => unwritable,
    }
}

fn find(config: &Config, name: &str) -> Result<Arc<Destination>, String> {
    let id = DestinationId::parse(name).map_err(|problem| format!("{name} {}", problem.problem))?;
    config.destinations.get(&id).cloned().ok_or_else(|| {
        format!(
            "there is no destination {id} in the configuration ({}); correct the id, or give its configuration \
            with -c",
            super::configured_destinations(config)
        )
    })
}

/// Connection test of destinations.
pub(super) struct DestinationChecker {
    sessions: Arc<Sessions>,
    uploader: Uploader,
    egress: Vec<String>,
}

impl DestinationChecker {
    /// Loads this process's own identity; makes no calls yet.
    pub(super) async fn load(config: &Config) -> Self {
        let metrics = Arc::new(Metrics::new(1));
        let identity = WorkerIdentity::load(&config.aws).await;
        let sessions = Arc::new(Sessions::new(config.session.clone(), config.aws.clone(), identity, metrics.clone()));
        let budget = config.worker.memory_budget;
        let uploader = Uploader::new(config.upload.clone(), budget, sessions.clone(), metrics);
        Self { sessions, uploader, egress: config.check.egress_addresses.clone() }
    }

    /// Runs the test. `watch` receives each step as it ends.
    pub(super) async fn check(&self, destination: &Arc<Destination>, watch: StepObserver<'_>) -> CheckReport {
        let (sessions, uploader) = (&self.sessions, &self.uploader);
        let checker = Checker { sessions, uploader, egress: &self.egress, who: Who::Command, limit: LIMIT };
        Box::pin(checker.run(destination, watch)).await
    }
}

async fn test_destination(
    checker: &DestinationChecker,
    destination: &Arc<Destination>,
    show: &TestPrinter,
) -> Option<CheckReport> {
    show.print(&format!(
        "connection test of {}: s3://{}/{} in {}\n",
        destination.id, destination.bucket, destination.prefix, destination.region
    ));
    let watch = |step: &CheckStep| show.step(step);
    tokio::select! {
        report = checker.check(destination, &watch) => return Some(report),
        Ok(()) = tokio::signal::ctrl_c() => {}
    }
    // The test was dropped, and its open upload is aborted in the background.
    tokio::time::sleep(ABORT_TIME).await;
    None
}

/// Tests this worker. Returns also true where the broker denies the login: the code of the step is
/// the same for an unreachable broker.
async fn test_worker(config: &Config, sessions: &Sessions, show: &TestPrinter) -> (CheckReport, bool) {
    let started = (Timestamp::now(), Instant::now());
    show.print("test of this worker\n");
    let found = worker::run(config, sessions, &|step: &CheckStep| show.step(step)).await;
    let report = CheckReport::of_worker(found.principal, started.0, started.1.elapsed().as_secs_f64(), found.steps);
    (report, found.login_denied)
}

/// Resets the circuit breaker of a destination that is ready, in all workers. Returns the text for
/// the user; the test also runs on machines without a broker.
async fn notify_workers(config: &Config, destination: &Destination, report: &CheckReport) -> Option<String> {
    if report.verdict != CheckVerdict::Ready {
        return None;
    }
    let id = &destination.id;
    if config.broker.url.is_none() {
        return Some("no worker was notified: broker.url is not set".to_owned());
    }
    let cause = match tokio::time::timeout(NOTIFY_TIMEOUT, super::status::reset_circuit(config, id)).await {
        Ok(Ok(_)) => return Some(format!("all workers are notified and retry the jobs that wait for {id}")),
        Ok(Err(problem)) => problem.to_string(),
        Err(_) => format!("the broker does not answer within {} s", NOTIFY_TIMEOUT.as_secs()),
    };
    Some(format!(
        "the workers could not be notified ({cause}); they detect the recovery within 10 minutes, or at once with \
         `consign status reset {id}`"
    ))
}

fn exit(report: &CheckReport) -> Exit {
    match report.side() {
        Side::Nobody => Exit::Done,
        Side::Customer | Side::Operator => Exit::Problem,
        Side::Identity => Exit::Denied,
        Side::Service => Exit::Unavailable,
    }
}
