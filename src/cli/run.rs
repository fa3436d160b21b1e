//! `consign run`: the worker.

use clap::Args;

use super::Exit;
use crate::app::{self, StartError, WorkerExit};
use crate::config::{Config, Reload};
use crate::telemetry::LogHandle;

/// What `run` can be told beyond the configuration: nothing.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {}

/// Runs the worker until a signal. `reload` and `log` are for SIGHUP.
pub async fn execute(_args: RunArgs, config: Config, reload: Reload, log: LogHandle) -> Exit {
    if let Err(problem) = config.broker.required_url() {
        return super::complain(&problem.to_string(), Exit::Config);
    }
    match app::run(config, log, reload).await {
        Ok(WorkerExit::Drained) => Exit::Done,
        Ok(WorkerExit::TimedOut) => Exit::Failed,
        Ok(WorkerExit::Forced(signal)) => Exit::Signal(signal),
        Err(problem @ (StartError::Queue(_) | StartError::Sources(_))) => {
            super::complain(&problem.to_string(), Exit::Config)
        }
        Err(problem) => super::complain(&problem.to_string(), Exit::Failed),
    }
}
