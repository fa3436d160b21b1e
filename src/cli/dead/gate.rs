//! Whether a destination is fit for its jobs to come back: its circuit is closed and its connection test passes.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;
use url::Url;

use crate::check::{CheckReport, CheckVerdict, StepResult};
use crate::cli::check::Kit;
use crate::cli::status::Asker;
use crate::config::Config;
use crate::domain::destination::{Destination, DestinationId};
use crate::queue::DeadLetter;

/// Asks about each destination once.
pub(super) struct Gate<'a> {
    config: &'a Config,
    workers: &'a [Url],
    asker: Asker,
    tests: bool,
    kit: Option<Kit>,
    known: BTreeMap<String, Answer>,
}

/// What was found out about a destination.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    /// Why its letters stay, if they do.
    pub(super) refusal: Option<String>,
    /// What could not be found out.
    pub(super) remark: Option<String>,
    /// Whether this was found out just now, and is to be said.
    pub(super) is_news: bool,
}

impl<'a> Gate<'a> {
    /// `workers` are asked for open circuits, and the configuration has the destinations that can be tested. Without `tests` they are
    /// only looked for there.
    pub(super) fn new(config: &'a Config, workers: &'a [Url], asker: Asker, tests: bool) -> Self {
        Self { config, workers, asker, tests, kit: None, known: BTreeMap::new() }
    }

    /// Whether jobs of this letter's destination may go back.
    pub(super) async fn ask(&mut self, letter: &DeadLetter) -> Answer {
        let name = letter.destination().unwrap_or_default().to_owned();
        let id = if letter.is_inline() { format!("{name} (inline)") } else { name.clone() };
        if let Some(known) = self.known.get(&id) {
            return Answer { is_news: false, ..known.clone() };
        }
        let refused = |why: String| Answer { refusal: Some(why), remark: None, is_news: true };
        let answer = match self.open_circuit(&name).await {
            Some(why) => refused(why),
            None if letter.is_inline() => {
                let remark = "came with its job and is not configured here; its connection was not tested";
                Answer { refusal: None, remark: Some(remark.to_owned()), is_news: true }
            }
            None => match self.test(&name).await {
                Ok(remark) => Answer { refusal: None, is_news: remark.is_some(), remark },
                Err(why) => refused(why),
            },
        };
        self.known.insert(id, answer.clone());
        answer
    }

    /// Why the workers say that it must be left alone.
    async fn open_circuit(&self, destination: &str) -> Option<String> {
        for worker in self.workers {
            match self.asker.status(worker, destination).await {
                Ok(status) if is_open(&status, destination) => {
                    return Some(format!("its circuit is open at the worker {worker}"));
                }
                Ok(_) => {}
                Err(why) => return Some(format!("the worker {worker} can't be asked for its circuit: {why}")),
            }
        }
        None
    }

    /// What is to be said of a destination that is fit, or why it is not.
    async fn test(&mut self, name: &str) -> Result<Option<String>, String> {
        let destination = self.find(name)?;
        if !self.tests {
            return Ok(Some("the connection was not tested (dry run)".to_owned()));
        }
        let kit = match self.kit.take() {
            Some(kit) => kit,
            None => Kit::of(self.config).await,
        };
        let report = self.kit.insert(kit).test(&destination, &|_| {}).await;
        if report.verdict == CheckVerdict::Ready { Ok(None) } else { Err(why_not(&report)) }
    }

    fn find(&self, name: &str) -> Result<Arc<Destination>, String> {
        let known = DestinationId::parse(name).ok().and_then(|id| self.config.destinations.get(&id).cloned());
        known.ok_or_else(|| "it is not in this configuration, so its connection can't be tested".to_owned())
    }
}

fn is_open(status: &Value, destination: &str) -> bool {
    let states = status["destination_states"]["shown"].as_array().into_iter().flatten();
    states.into_iter().any(|state| state["id"] == destination && state["circuit_open"] == true)
}

/// The first step that failed, which explains those after it.
fn why_not(report: &CheckReport) -> String {
    let failed = report.steps.iter().find(|step| step.result == StepResult::Failed);
    let cause = failed.map_or_else(String::new, |step| format!(" at `{}`: {}", step.step.title(), step.cause));
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
