//! Test of the worker itself: configuration, broker, topology, AWS identity.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::check::{CheckStep, StepName, StepResult};
use crate::config::Config;
use crate::domain::destination::Auth;
use crate::domain::diagnosis::{Code, diagnose_ours};
use crate::domain::outcome::Failure;
use crate::domain::policy::Principal;
use crate::metrics::Metrics;
use crate::queue::{self, QueueError, rabbitmq};
use crate::session::Sessions;

const BROKER_TIMEOUT: Duration = Duration::from_secs(30);
/// Time-out of the embedded queue's file, which another process may lock for a moment.
const FILE_TIMEOUT: Duration = Duration::from_secs(10);

/// Result of a test of the worker.
pub(super) struct WorkerTest {
    /// AWS principal of the worker.
    pub(super) principal: Option<String>,
    pub(super) steps: Vec<CheckStep>,
    /// True where the broker denies the login.
    pub(super) login_denied: bool,
}

/// Runs the test. `watch` receives each step as it ends.
pub(super) async fn run(
    config: &Config,
    sessions: &Sessions,
    watch: &(dyn Fn(&CheckStep) + Send + Sync),
) -> WorkerTest {
    let mut steps = Vec::new();
    let mut add = |step: CheckStep| {
        watch(&step);
        steps.push(step);
    };
    let count = config.destinations.len();
    add(CheckStep::passed(StepName::Configuration, format!("it is valid; destinations: {count}")));
    let (broker, login_denied) = broker(config).await;
    broker.into_iter().for_each(&mut add);
    let (principal, step) = identity(config, sessions).await;
    add(step);
    WorkerTest { principal, steps, login_denied }
}

/// Tests broker and topology. Returns also true where the login is denied.
async fn broker(config: &Config) -> ([CheckStep; 2], bool) {
    if config.broker.required_url().is_ok() {
        return match config.broker.embedded_file() {
            Some(file) => ([embedded(config, &file).await, not_needed()], false),
            None => rabbitmq(config).await,
        };
    }
    let remedy = "name a configuration file with -c, or set broker.url, broker.url_file or CONSIGN__BROKER__URL";
    let cause = "broker.url is not set".to_owned();
    ([CheckStep::failed(StepName::Broker, Code::BrokerNotConfigured, cause, remedy), not_tried()], false)
}

fn not_tried() -> CheckStep {
    CheckStep::skipped(StepName::Topology, Code::NotTried, "a previous step failed, and this one depends on it")
}

fn not_needed() -> CheckStep {
    CheckStep::skipped(StepName::Topology, Code::NotNeeded, "the embedded queue creates its tables itself")
}

async fn rabbitmq(config: &Config) -> ([CheckStep; 2], bool) {
    let name = format!("{} check", config.worker.id);
    let checked = tokio::time::timeout(BROKER_TIMEOUT, rabbitmq::check_topology(&config.broker, &name)).await;
    let reached = || CheckStep::passed(StepName::Broker, "it is reachable, and accepts the login");
    let login_denied = matches!(checked, Ok(Err(QueueError::Denied(_))));
    let steps = match checked {
        Ok(Ok(())) => [
            reached(),
            CheckStep::passed(StepName::Topology, format!("the topology of `{}` exists", config.broker.prefix)),
        ],
        Ok(Err(QueueError::Unavailable(cause) | QueueError::Denied(cause))) => [unreachable(&cause), not_tried()],
        Ok(Err(problem)) => [reached(), topology(&problem, config.broker.declare)],
        Err(_) => [unreachable(&format!("no answer within {} s", BROKER_TIMEOUT.as_secs())), not_tried()],
    };
    (steps, login_denied)
}

fn can_be_created(file: &Path) -> bool {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    rustix::fs::access(folder, rustix::fs::Access::WRITE_OK).is_ok()
}

/// Opens the file of the embedded queue, if it exists; a test does not create it.
async fn embedded(config: &Config, file: &Path) -> CheckStep {
    if !file.exists() {
        return match file.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.is_dir()) {
            Some(folder) => {
                let cause = format!("the directory {} of the embedded queue does not exist", folder.display());
                let remedy = "create the directory, or correct broker.url";
                CheckStep::failed(StepName::Broker, Code::BrokerUnavailable, cause, remedy)
            }
            None if !can_be_created(file) => {
                let cause = format!("{} can't be created: this user can't write to its directory", file.display());
                let remedy = "allow this user to write to the directory, or correct broker.url";
                CheckStep::failed(StepName::Broker, Code::BrokerNotConfigured, cause, remedy)
            }
            None => {
                CheckStep::passed(StepName::Broker, "it is the embedded queue; its file is created at the first start")
            }
        };
    }
    let opened = async {
        let queue = queue::start(&config.broker, "check", Vec::new(), Arc::new(Metrics::new(1)))?;
        let opened = queue.wait_connected(FILE_TIMEOUT).await;
        queue.close().await;
        opened
    };
    match opened.await {
        Ok(()) => CheckStep::passed(StepName::Broker, "it is the embedded queue, and its file is usable"),
        Err(problem) => {
            let remedy = "fix the cause, or set broker.url to another file";
            let code = match problem {
                QueueError::Unusable(_) => Code::BrokerNotConfigured,
                _ => Code::BrokerUnavailable,
            };
            CheckStep::failed(StepName::Broker, code, problem.to_string(), remedy)
        }
    }
}

fn unreachable(cause: &str) -> CheckStep {
    let remedy = "check that the broker runs, that broker.url has the right address, login and virtual host, and that the \
                  network allows the connection";
    CheckStep::failed(StepName::Broker, Code::BrokerUnavailable, cause, remedy)
}

fn topology(problem: &QueueError, declares: bool) -> CheckStep {
    let remedy = "run `consign topology apply`, or set broker.declare = true";
    let step = CheckStep::failed(StepName::Topology, Code::TopologyMissing, problem.to_string(), remedy);
    // `run` declares missing queues.
    if declares { CheckStep { result: StepResult::Warning, ..step } } else { step }
}

async fn identity(config: &Config, sessions: &Sessions) -> (Option<String>, CheckStep) {
    if !sessions.role_auth() {
        return (None, CheckStep::skipped(StepName::Identity, Code::NotNeeded, "session.role_auth is off"));
    }
    match sessions.own_arn(None).await {
        Ok(None) => {
            let cause =
                "this STS does not know GetCallerIdentity; the test of a destination shows if it accepts the worker";
            (sessions.identity_role(), CheckStep::skipped(StepName::Identity, Code::NotTried, cause))
        }
        Ok(Some(arn)) => {
            let principal = Principal::parse(&arn).map_or(arn, |principal| principal.as_str().to_owned());
            let principal = sessions.identity_role().unwrap_or(principal);
            let what = format!("this worker is {principal}");
            (Some(principal), CheckStep::passed(StepName::Identity, what))
        }
        Err(failure) => (None, refused(config, &failure)),
    }
}

fn refused(config: &Config, failure: &Failure) -> CheckStep {
    let needed = config.destinations.values().any(|to| matches!(to.auth, Auth::IamRole { .. }));
    let mark = if needed || config.destinations.is_empty() { StepResult::Failed } else { StepResult::Warning };
    CheckStep::diagnosed(StepName::Identity, mark, diagnose_ours(failure), failure.aws_request_id.clone())
}
