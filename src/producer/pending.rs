//! Jobs that have not ended yet, grouped by cause: from their last outcomes, and from the status of
//! workers.
//!
//! A deferral has no outcome, as no attempt is charged. Only a worker knows its cause.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::Value;

use super::outcome::OutcomeDetails;

/// Jobs that have not ended, with the same destination and last outcome.
#[derive(Debug, Clone, Copy)]
pub struct PendingJobs<'a> {
    /// Number of jobs.
    pub jobs: usize,
    /// Id of their destination, where it is known.
    pub destination: Option<&'a str>,
    /// Details of the last `retrying`.
    pub last: Option<&'a OutcomeDetails>,
}

/// Jobs that wait for the same cause.
#[serde_with::skip_serializing_none]
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PendingGroup {
    /// Number of jobs.
    pub jobs: usize,
    /// Id of their destination, where it is known.
    pub destination: Option<String>,
    /// State of the jobs.
    pub state: PendingState,
    /// Cause. With `queued`, that of the destination's last failure.
    #[serde(flatten)]
    pub cause: PendingCause,
    /// Time of the earliest next attempt.
    pub next_try_at: Option<String>,
}

/// State of jobs that have not ended. The worst is the smallest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PendingState {
    /// The circuit of their destination is open.
    CircuitOpen,
    /// A worker has deferred jobs of this destination until it recovers: these, or others of it.
    #[serde(rename = "put_off")]
    Deferred,
    /// They wait for their next attempt.
    Retrying,
    /// They are queued or running.
    Queued,
}

/// Reason of a failure with its texts.
#[serde_with::skip_serializing_none]
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct PendingCause {
    /// Reason of the contract.
    pub reason: Option<String>,
    /// Message of the failure.
    pub message: Option<String>,
    /// Remedy.
    pub hint: Option<String>,
}

impl From<&OutcomeDetails> for PendingCause {
    fn from(details: &OutcomeDetails) -> Self {
        Self { reason: details.reason.clone(), message: details.message.clone(), hint: details.hint.clone() }
    }
}

impl PendingCause {
    /// Cause in an open circuit breaker or a last failure of `/status`.
    fn from_status(failure: &Value) -> Self {
        let text = |name: &str| failure[name].as_str().filter(|text| !text.is_empty()).map(str::to_owned);
        Self { reason: text("reason"), message: text("message"), hint: text("hint") }
    }
}

/// All jobs that have not ended, by cause; the largest group first.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct PendingReport {
    /// Groups of jobs.
    pub groups: Vec<PendingGroup>,
    /// Addresses at which no worker answered, where a worker might have explained a group.
    #[serde(skip)]
    pub unanswered: Option<String>,
}

impl PendingReport {
    /// Groups jobs by destination, state and reason.
    pub fn new<'a>(jobs: impl IntoIterator<Item = PendingJobs<'a>>, workers: &WorkerReports) -> Self {
        let jobs: Vec<_> = jobs.into_iter().filter(|pending| pending.jobs > 0).collect();
        let mut last: BTreeMap<&str, &OutcomeDetails> = BTreeMap::new();
        for (to, details) in jobs.iter().filter_map(|pending| Some((pending.destination?, pending.last?))) {
            let known = last.entry(to).or_insert(details);
            *known = if details.retry_at > known.retry_at { details } else { known };
        }
        let mut groups: BTreeMap<(Option<&str>, PendingState, Option<String>), PendingGroup> = BTreeMap::new();
        for pending in jobs {
            let PendingJobs { jobs, destination, last: details } = pending;
            let (state, cause) = explain(pending, workers, &last);
            let group = groups.entry((destination, state, cause.reason.clone())).or_insert_with(|| PendingGroup {
                jobs: 0,
                destination: destination.map(str::to_owned),
                state,
                cause,
                next_try_at: None,
            });
            group.jobs += jobs;
            let next = details.and_then(|details| details.retry_at.clone());
            group.next_try_at = [group.next_try_at.take(), next].into_iter().flatten().min();
        }
        let mut groups: Vec<_> = groups.into_values().collect();
        groups.sort_by_key(|group| std::cmp::Reverse(group.jobs));
        let unexplained = groups.iter().any(|group| group.state == PendingState::Queued);
        Self { groups, unanswered: workers.unanswered.clone().filter(|_| unexplained) }
    }

    /// Returns true when all jobs have ended.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }
}

/// State and cause of jobs. `last` has the latest `retrying` of each destination.
fn explain(
    pending: PendingJobs<'_>,
    workers: &WorkerReports,
    last: &BTreeMap<&str, &OutcomeDetails>,
) -> (PendingState, PendingCause) {
    let issue = pending.destination.and_then(|to| workers.issues.get(to));
    match (issue, pending.last) {
        (Some(issue), details) if details.is_none() || issue.state == PendingState::CircuitOpen => {
            (issue.state, issue.cause.clone())
        }
        (_, Some(details)) => (PendingState::Retrying, details.into()),
        (_, None) => {
            let others = pending.destination.and_then(|to| last.get(to));
            (PendingState::Queued, others.map(|details| PendingCause::from(*details)).unwrap_or_default())
        }
    }
}

/// Failing destinations, as workers report them.
#[derive(Debug, Default)]
pub struct WorkerReports {
    /// Issues by destination.
    pub issues: BTreeMap<String, DestinationIssue>,
    /// Addresses at which no worker answered.
    pub unanswered: Option<String>,
}

/// Issue of a destination; that of the worst worker.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct DestinationIssue {
    /// State of the jobs that have no outcome.
    pub state: PendingState,
    /// Cause.
    pub cause: PendingCause,
}

impl DestinationIssue {
    /// Returns `None` for a destination that has no failures, or has recovered since.
    fn from_status(destination: &Value) -> Option<Self> {
        let count = |name: &str| destination[name].as_u64().unwrap_or(0);
        let (state, failure) = if destination["circuit_open"] == true {
            (PendingState::CircuitOpen, &destination["circuit"])
        } else if !destination["mended_at"].is_null() || !destination["last_failure"].is_object() {
            return None;
        } else if count("awaiting_repair") > 0 {
            (PendingState::Deferred, &destination["last_failure"])
        } else if count("consecutive_failures") > 0 {
            (PendingState::Queued, &destination["last_failure"])
        } else {
            return None;
        };
        Some(Self { state, cause: PendingCause::from_status(failure) })
    }
}

/// Returns the issues of `destinations` in the `/status` documents of workers.
pub fn issues(statuses: &[Value], destinations: &BTreeSet<&str>) -> BTreeMap<String, DestinationIssue> {
    let mut worst: BTreeMap<String, DestinationIssue> = BTreeMap::new();
    let shown = statuses.iter().filter_map(|status| status["destination_states"]["shown"].as_array()).flatten();
    for state in shown {
        let id = state["id"].as_str().filter(|id| destinations.contains(id));
        let Some((id, issue)) = id.and_then(|id| Some((id, DestinationIssue::from_status(state)?))) else { continue };
        let known = worst.entry(id.to_owned()).or_insert_with(|| issue.clone());
        if issue < *known {
            *known = issue;
        }
    }
    worst
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_worst_issue_counts_and_none_after_a_recovery() {
        let failed = |reason: &str| json!({"reason": reason, "message": "no", "hint": ""});
        let of = |id: &str, awaiting: u32, failures: u32, recovered: Value| {
            json!({
                "id": id, "circuit_open": false, "awaiting_repair": awaiting, "consecutive_failures": failures,
                "mended_at": recovered, "last_failure": failed("access_denied")
            })
        };
        let open = json!({"id": "open", "circuit_open": true, "circuit": failed("bucket_not_found")});
        let one = json!({"destination_states": {"shown": [
            of("open", 3, 3, Value::Null), of("away", 0, 2, Value::Null), of("slow", 0, 2, Value::Null),
            of("well", 0, 0, Value::Null), of("fixed", 3, 3, json!("2026-01-01T00:00:00Z")), of("other", 1, 1, Value::Null)
        ]}});
        let other = json!({"destination_states": {"shown": [open, of("away", 1, 1, Value::Null)]}});
        let asked = BTreeSet::from(["away", "fixed", "open", "slow", "well"]);
        for statuses in [[one.clone(), other.clone()], [other, one]] {
            let issues = issues(&statuses, &asked);
            let found: Vec<_> =
                issues.iter().map(|(id, one)| (id.as_str(), one.state, one.cause.reason.as_deref())).collect();
            let expected = [
                ("away", PendingState::Deferred, Some("access_denied")),
                ("open", PendingState::CircuitOpen, Some("bucket_not_found")),
                ("slow", PendingState::Queued, Some("access_denied")),
            ];
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn the_json_names_count_destination_state_and_cause() {
        let details = OutcomeDetails { reason: Some("slow_down".to_owned()), ..OutcomeDetails::default() };
        let cause = PendingCause { hint: Some("allow it".to_owned()), ..PendingCause::from(&details) };
        let issues = [("acme".to_owned(), DestinationIssue { state: PendingState::Deferred, cause })];
        let workers = WorkerReports { issues: issues.into(), unanswered: None };
        let jobs = PendingJobs { jobs: 401, destination: Some("acme"), last: None };
        let report = PendingReport::new([jobs, PendingJobs { jobs: 0, ..jobs }], &workers);
        let expected = json!([
            {"jobs": 401, "destination": "acme", "state": "put_off", "reason": "slow_down", "hint": "allow it"}
        ]);
        assert_eq!(serde_json::to_value(&report).unwrap(), expected);
    }
}
