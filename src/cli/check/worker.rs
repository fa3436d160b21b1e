//! The test of the worker itself: configuration, broker, topology, own identity.

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

/// The longest the broker is waited for.
const BROKER: Duration = Duration::from_secs(30);
/// The longest the embedded queue's file is waited for: another process may hold it for a moment.
const EMBEDDED: Duration = Duration::from_secs(10);

/// What a test of the worker finds.
pub(super) struct Found {
    /// As whom AWS sees it.
    pub(super) principal: Option<String>,
    pub(super) steps: Vec<CheckStep>,
    /// The broker is there, and refuses the login.
    pub(super) locked_out: bool,
}

/// Makes the steps.
pub(super) async fn steps(config: &Config, sessions: &Sessions, watch: &(dyn Fn(&CheckStep) + Send + Sync)) -> Found {
    let mut steps = Vec::new();
    let mut note = |step: CheckStep| {
        watch(&step);
        steps.push(step);
    };
    let count = config.destinations.len();
    note(CheckStep::passed(StepName::Configuration, format!("it is valid; destinations: {count}")));
    let (broker, locked_out) = broker(config).await;
    broker.into_iter().for_each(&mut note);
    let (principal, step) = identity(config, sessions).await;
    note(step);
    Found { principal, steps, locked_out }
}

/// And whether the login is refused.
async fn broker(config: &Config) -> ([CheckStep; 2], bool) {
    let Err(problem) = config.broker.required_url() else {
        return match config.broker.embedded_file() {
            Some(file) => ([embedded(config, &file).await, made_by_itself()], false),
            None => rabbitmq(config).await,
        };
    };
    let remedy = "set broker.url, or CONSIGN__BROKER__URL";
    let cause = format!("{} {}", problem.field, problem.problem);
    ([CheckStep::failed(StepName::Broker, Code::BrokerNotConfigured, cause, remedy), untried()], false)
}

fn untried() -> CheckStep {
    CheckStep::skipped(StepName::Topology, Code::NotTried, "an earlier step failed that this one needs")
}

fn made_by_itself() -> CheckStep {
    CheckStep::skipped(StepName::Topology, Code::NotNeeded, "the embedded queue makes its tables itself")
}

async fn rabbitmq(config: &Config) -> ([CheckStep; 2], bool) {
    let name = format!("{} check", config.worker.id);
    let looked = tokio::time::timeout(BROKER, rabbitmq::check_topology(&config.broker, &name)).await;
    let reached = || CheckStep::passed(StepName::Broker, "it can be reached, and takes the login");
    let locked_out = matches!(looked, Ok(Err(QueueError::Denied(_))));
    let steps = match looked {
        Ok(Ok(())) => {
            [reached(), CheckStep::passed(StepName::Topology, format!("that of `{}` is there", config.broker.prefix))]
        }
        Ok(Err(QueueError::Unavailable(why) | QueueError::Denied(why))) => [unreachable(&why), untried()],
        Ok(Err(problem)) => [reached(), topology(&problem, config.broker.declare)],
        Err(_) => [unreachable(&format!("no answer within {} s", BROKER.as_secs())), untried()],
    };
    (steps, locked_out)
}

fn may_be_made(file: &Path) -> bool {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    rustix::fs::access(folder, rustix::fs::Access::WRITE_OK).is_ok()
}

/// Opens the file of the embedded queue, if it is there; a test makes none.
async fn embedded(config: &Config, file: &Path) -> CheckStep {
    if !file.exists() {
        return match file.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.is_dir()) {
            Some(folder) => {
                let cause = format!("the folder {} of the embedded queue is not there", folder.display());
                CheckStep::failed(
                    StepName::Broker,
                    Code::BrokerUnavailable,
                    cause,
                    "make the folder, or correct broker.url",
                )
            }
            None if !may_be_made(file) => {
                let cause = format!("{} can't be made: its folder can't be written by this user", file.display());
                let remedy = "let this user write the folder, or correct broker.url";
                CheckStep::failed(StepName::Broker, Code::BrokerNotConfigured, cause, remedy)
            }
            None => {
                CheckStep::passed(StepName::Broker, "it is the embedded queue; its file is made at the first start")
            }
        };
    }
    let opened = async {
        let queue = queue::start(&config.broker, "check", Vec::new(), Arc::new(Metrics::new(1)))?;
        let opened = queue.wait_connected(EMBEDDED).await;
        queue.close().await;
        opened
    };
    match opened.await {
        Ok(()) => CheckStep::passed(StepName::Broker, "it is the embedded queue, and its file can be used"),
        Err(problem) => {
            let remedy = "mend what is said, or set broker.url to another file";
            let code = match problem {
                QueueError::Unusable(_) => Code::BrokerNotConfigured,
                _ => Code::BrokerUnavailable,
            };
            CheckStep::failed(StepName::Broker, code, problem.to_string(), remedy)
        }
    }
}

fn unreachable(why: &str) -> CheckStep {
    let remedy = "check that the broker runs, that broker.url names it with the right login and virtual host, and that the \
                  network lets this machine through";
    CheckStep::failed(StepName::Broker, Code::BrokerUnavailable, why, remedy)
}

fn topology(problem: &QueueError, declares: bool) -> CheckStep {
    let remedy = "run `consign topology apply`, or set broker.declare = true";
    let step = CheckStep::failed(StepName::Topology, Code::TopologyMissing, problem.to_string(), remedy);
    // `run` declares what is missing.
    if declares { CheckStep { result: StepResult::Warning, ..step } } else { step }
}

async fn identity(config: &Config, sessions: &Sessions) -> (Option<String>, CheckStep) {
    if !sessions.role_auth() {
        return (None, CheckStep::skipped(StepName::Identity, Code::NotNeeded, "session.role_auth is off"));
    }
    match sessions.own_arn(None).await {
        Ok(arn) => {
            let principal = Principal::parse(&arn).map_or(arn, |principal| principal.as_str().to_owned());
            let principal = sessions.identity_role().unwrap_or(principal);
            let what = format!("we come as {principal}");
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
