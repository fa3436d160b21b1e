//! `consign run`: the worker.

use super::Exit;
use crate::app::{self, StartError, WorkerExit};
use crate::config::{Config, Reload};
use crate::telemetry::LogHandle;

/// Runs the worker until a signal. `reload` and `log` serve SIGHUP.
pub async fn execute(config: Config, reload: Reload, log: LogHandle) -> Exit {
    if let Err(problem) = config.broker.required_url() {
        return super::fail(&problem.to_string(), Exit::Config);
    }
    match app::run(config, log, reload).await {
        Ok(WorkerExit::Drained) => Exit::Done,
        Ok(WorkerExit::TimedOut) => Exit::Failed,
        Ok(WorkerExit::Forced(signal)) => Exit::Signal(signal),
        Err(problem @ (StartError::Queue(_) | StartError::Sources(_))) => {
            super::fail(&problem.to_string(), Exit::Config)
        }
        Err(problem) => super::fail(&problem.to_string(), Exit::Failed),
    }
}
