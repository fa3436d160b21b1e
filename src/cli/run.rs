//! `consign run`: the worker.

use clap::Args;

use super::Exit;
use crate::config::{Config, Reload};
use crate::telemetry::Log;

/// What `run` can be told beyond the configuration: nothing.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {}

/// Runs the worker until a signal. `reload` and `log` are for SIGHUP.
pub async fn execute(_args: RunArgs, config: Config, _reload: Reload, _log: Log) -> Exit {
    if let Err(problem) = config.broker.required_url() {
        return super::complain(&problem.to_string(), Exit::Config);
    }
    super::complain("run is not wired yet", Exit::Failed)
}
