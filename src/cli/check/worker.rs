//! The test of the worker itself: configuration, broker, topology, own identity.

use std::time::Duration;

use secrecy::ExposeSecret as _;

use crate::check::{Mark, Step, StepName};
use crate::config::Config;
use crate::destination::Auth;
use crate::diagnosis::{Code, diagnose_ours};
use crate::outcome::Failure;
use crate::policy::Principal;
use crate::queue::{QueueError, amqp};
use crate::session::Sessions;

/// The longest the broker is waited for.
const BROKER: Duration = Duration::from_secs(30);

/// The principal, and the steps.
pub(super) async fn steps(
    config: &Config,
    sessions: &Sessions,
    watch: &(dyn Fn(&Step) + Send + Sync),
) -> (Option<String>, Vec<Step>) {
    let mut steps = Vec::new();
    let mut note = |step: Step| {
        watch(&step);
        steps.push(step);
    };
    let count = config.destinations.len();
    note(Step::passed(StepName::Configuration, format!("it is valid; destinations: {count}")));
    for step in broker(config).await {
        note(step);
    }
    let (principal, step) = identity(config, sessions).await;
    note(step);
    (principal, steps)
}

async fn broker(config: &Config) -> [Step; 2] {
    let untried = || Step::skipped(StepName::Topology, Code::NotTried, "an earlier step failed that this one needs");
    let url = match config.broker.required_url() {
        Ok(url) => url.expose_secret(),
        Err(problem) => {
            let remedy = "set broker.url, or CONSIGN__BROKER__URL";
            let cause = format!("{} {}", problem.field, problem.problem);
            return [Step::broken(StepName::Broker, Code::BrokerNotConfigured, cause, remedy), untried()];
        }
    };
    let embedded = url.starts_with("sqlite:");
    let name = format!("{} check", config.worker.id);
    let looked = tokio::time::timeout(BROKER, amqp::look(&config.broker, &name)).await;
    let reached = || Step::passed(StepName::Broker, "it can be reached, and takes the login");
    match looked {
        _ if embedded => [
            Step::passed(StepName::Broker, "it is the embedded queue"),
            Step::skipped(StepName::Topology, Code::NotNeeded, "the embedded queue makes its tables itself"),
        ],
        Ok(Ok(())) => {
            [reached(), Step::passed(StepName::Topology, format!("that of `{}` is there", config.broker.prefix))]
        }
        Ok(Err(QueueError::Unavailable(why))) => [unreachable(&why), untried()],
        Ok(Err(problem)) => [reached(), topology(&problem, config.broker.declare)],
        Err(_) => [unreachable(&format!("no answer within {} s", BROKER.as_secs())), untried()],
    }
}

fn unreachable(why: &str) -> Step {
    let remedy = "check that the broker runs, that broker.url names it with the right login and virtual host, and that the \
                  network lets this machine through";
    Step::broken(StepName::Broker, Code::BrokerUnavailable, why, remedy)
}

fn topology(problem: &QueueError, declares: bool) -> Step {
    let remedy = "run `consign topology apply`, or set broker.declare = true";
    let step = Step::broken(StepName::Topology, Code::TopologyMissing, problem.to_string(), remedy);
    // `run` declares what is missing.
    if declares { Step { result: Mark::Warning, ..step } } else { step }
}

async fn identity(config: &Config, sessions: &Sessions) -> (Option<String>, Step) {
    if !sessions.role_auth() {
        return (None, Step::skipped(StepName::Identity, Code::NotNeeded, "session.role_auth is off"));
    }
    match sessions.own_arn(None).await {
        Ok(arn) => {
            let principal = Principal::parse(&arn).map_or(arn, |principal| principal.as_str().to_owned());
            let principal = sessions.identity_role().unwrap_or(principal);
            let what = format!("we come as {principal}");
            (Some(principal), Step::passed(StepName::Identity, what))
        }
        Err(failure) => (None, refused(config, &failure)),
    }
}

fn refused(config: &Config, failure: &Failure) -> Step {
    let needed = config.destinations.values().any(|to| matches!(to.auth, Auth::IamRole { .. }));
    let mark = if needed || config.destinations.is_empty() { Mark::Failed } else { Mark::Warning };
    Step::found(StepName::Identity, mark, diagnose_ours(failure), failure.aws_request_id.clone())
}
