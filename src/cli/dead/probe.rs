//! Probes of destinations before a requeue: the circuits of workers, and a connection test.

use std::sync::Arc;

use serde_json::Value;
use url::Url;

use crate::check::{CheckReport, CheckVerdict, StepResult};
use crate::cli::check::DestinationChecker;
use crate::cli::workers::StatusClient;
use crate::config::Config;
use crate::dead_letter::gate::DestinationProbe;
use crate::domain::destination::{Destination, DestinationId};

/// Probe of this configuration's destinations, with the circuits of the given workers.
pub(super) struct CommandProbe<'a> {
    config: &'a Config,
    workers: &'a [Url],
    client: StatusClient,
    dry_run: bool,
    checker: Option<DestinationChecker>,
}

impl<'a> CommandProbe<'a> {
    /// In a dry run, destinations are looked up in the configuration, but not tested.
    pub(super) fn new(config: &'a Config, workers: &'a [Url], client: StatusClient, dry_run: bool) -> Self {
        Self { config, workers, client, dry_run, checker: None }
    }

    fn find(&self, name: &str) -> Result<Arc<Destination>, String> {
        let known = DestinationId::parse(name).ok().and_then(|id| self.config.destinations.get(&id).cloned());
        known.ok_or_else(|| "it is not in this configuration, so its connection can't be tested".to_owned())
    }
}

impl DestinationProbe for CommandProbe<'_> {
    async fn find_open_circuit(&self, destination: &str) -> Option<String> {
        for worker in self.workers {
            match self.client.status(worker, destination).await {
                Ok(status) if is_open(&status, destination) => {
                    return Some(format!("its circuit breaker is open at the worker {worker}"));
                }
                Ok(_) => {}
                Err(cause) => return Some(format!("the worker {worker} can't be queried: {cause}")),
            }
        }
        None
    }

    async fn test(&mut self, destination: &str) -> Result<Option<String>, String> {
        let destination = self.find(destination)?;
        if self.dry_run {
            return Ok(Some("the connection was not tested (dry run)".to_owned()));
        }
        let checker = match self.checker.take() {
            Some(checker) => checker,
            None => DestinationChecker::load(self.config).await,
        };
        let report = self.checker.insert(checker).check(&destination, &|_| {}).await;
        if report.verdict == CheckVerdict::Ready { Ok(None) } else { Err(failure(&report)) }
    }
}

fn is_open(status: &Value, destination: &str) -> bool {
    let states = status["destination_states"]["shown"].as_array().into_iter().flatten();
    states.into_iter().any(|state| state["id"] == destination && state["circuit_open"] == true)
}

/// First failed step, which explains the later ones.
fn failure(report: &CheckReport) -> String {
    let failed = report.steps.iter().find(|step| step.result == StepResult::Failed);
    let cause = failed.map_or_else(String::new, |step| format!(" at `{}`: {}", step.step.as_str(), step.cause));
    format!("its connection test fails{cause}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_the_destinations_own_circuit_counts() {
        let shown = json!([{"id": "acme-2", "circuit_open": true}, {"id": "acme", "circuit_open": false}]);
        let status = json!({ "destination_states": { "shown": shown } });
        assert!(is_open(&status, "acme-2") && !is_open(&status, "acme") && !is_open(&json!({}), "acme"));
    }
}
