//! The states of destinations, in a bounded list with failing ones first.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use crate::domain::destination::{Auth, Destination, DestinationIdentity, Destinations};
use crate::session;
use crate::session::Sessions;
use crate::worker::{AdmissionView, CircuitView, DestinationRecord, FailureDetail, RunningTransfer, WaitingJobs};

const MAX_SHOWN: usize = 100;

/// The data that the states are computed from.
pub(super) struct DestinationInputs<'a> {
    pub(super) configured: &'a Destinations,
    /// Configured and inline destinations that had a job.
    pub(super) worked_for: BTreeMap<DestinationIdentity, DestinationRecord>,
    pub(super) running: &'a [RunningTransfer],
    pub(super) sessions: &'a Sessions,
    pub(super) admission: &'a AdmissionView,
    /// Substring that ids must contain.
    pub(super) filter: &'a str,
}

/// `destination_states` of `/status`.
#[derive(Debug, Serialize)]
pub(super) struct DestinationStates {
    /// Failing ones first, then the busiest, then the most recently active.
    shown: Vec<DestinationState>,
    /// Number of destinations that match the filter, including the shown ones.
    matching: usize,
    filter: String,
}

#[derive(Debug, Serialize)]
struct DestinationState {
    id: String,
    bucket: String,
    region: String,
    /// `iam_role` or `access_key`.
    auth: &'static str,
    /// False for one defined inline in a job.
    configured: bool,
    session: SessionState,
    circuit_open: bool,
    /// The circuit breaker, unless it is closed.
    circuit: Option<CircuitView>,
    in_flight: usize,
    /// Jobs that wait in the worker for a transfer to end.
    waiting: usize,
    /// Jobs that were deferred for that reason and have not been redelivered yet.
    deferred: u32,
    /// Jobs that this worker deferred until the destination recovers and that have not been
    /// redelivered yet. Those of other workers are not counted.
    awaiting_repair: u32,
    /// Maximum of concurrent transfers; `null` if only the worker's limit applies.
    max_concurrency: Option<u32>,
    /// Failed attempts since the last delivery.
    consecutive_failures: u32,
    last_failure: Option<FailureDetail>,
    /// Time of the last reset, passed connection test or accepted request, if it is later than the
    /// last failure and nothing was delivered since.
    #[serde(rename = "mended_at")]
    recovered_at: Option<Timestamp>,
    last_delivered_at: Option<Timestamp>,
    /// Deliveries since the start of the worker.
    delivered: u64,
    delivered_bytes: u64,
}

#[derive(Debug, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
enum SessionState {
    /// Not in the cache: no job needed one recently.
    None,
    /// In the cache. Without `seconds_left` it does not expire.
    Open { age_seconds: u64, seconds_left: Option<u64> },
    /// Refused. The next request is made after `seconds_left`.
    Refused { reason: &'static str, seconds_left: u64 },
}

struct Candidate<'a> {
    destination: &'a Destination,
    configured: bool,
    record: Option<&'a DestinationRecord>,
    circuit: Option<&'a CircuitView>,
    recovered: Option<Timestamp>,
    in_flight: usize,
    waiting: WaitingJobs,
    awaiting_repair: u32,
}

impl Candidate<'_> {
    fn failures(&self) -> u32 {
        self.record.map_or(0, |record| record.consecutive_failures)
    }

    fn recovered_at(&self) -> Option<Timestamp> {
        let trouble = self.record?.last_trouble.as_ref()?;
        self.recovered.filter(|at| self.failures() > 0 && self.circuit.is_none() && trouble.at <= *at)
    }

    fn is_failing(&self) -> bool {
        self.failures() > 0 && self.recovered_at().is_none()
    }

    fn rank(&self) -> impl Ord + use<'_> {
        let last = self.record.map_or(0, |record| record.last_active);
        (Reverse((self.circuit.is_some(), self.is_failing(), self.in_flight, last)), &self.destination.identity)
    }
}

/// Computes the states, at most [`MAX_SHOWN`].
pub(super) fn states(inputs: &DestinationInputs<'_>) -> DestinationStates {
    let mut candidates = candidates(inputs);
    candidates.sort_unstable_by(|a, b| a.rank().cmp(&b.rank()));
    let matching = candidates.len();
    candidates.truncate(MAX_SHOWN);
    let destinations: Vec<_> = candidates.iter().map(|candidate| candidate.destination).collect();
    let sessions = inputs.sessions.status(&destinations);
    let shown = candidates.into_iter().zip(sessions).map(|(candidate, session)| state(&candidate, session)).collect();
    DestinationStates { shown, matching, filter: inputs.filter.to_owned() }
}

fn candidates<'a>(inputs: &'a DestinationInputs<'_>) -> Vec<Candidate<'a>> {
    let mut in_flight: HashMap<&DestinationIdentity, usize> = HashMap::new();
    for transfer in inputs.running {
        *in_flight.entry(&transfer.identity).or_default() += 1;
    }
    let configured = inputs.configured.values().map(|destination| (&destination.identity, destination, true));
    let inline = inputs.worked_for.iter().filter(|(known, _)| !inputs.configured.contains_key(known.id()));
    let inline = inline.map(|(known, record)| (known, &record.destination, false));
    let matching = configured.chain(inline).filter(|(known, ..)| known.id().as_str().contains(inputs.filter));
    matching
        .map(|(id, destination, configured)| Candidate {
            destination,
            configured,
            record: inputs.worked_for.get(id),
            circuit: inputs.admission.circuits.get(id),
            recovered: inputs.admission.recovered_at.get(id).copied(),
            in_flight: in_flight.get(id).copied().unwrap_or(0),
            waiting: inputs.admission.waiting.get(id).copied().unwrap_or_default(),
            awaiting_repair: inputs.admission.awaiting_recovery.get(id).copied().unwrap_or_default(),
        })
        .collect()
}

fn state(candidate: &Candidate<'_>, session: session::SessionStatus) -> DestinationState {
    DestinationState {
        id: candidate.destination.id.to_string(),
        bucket: candidate.destination.bucket.to_string(),
        region: candidate.destination.region.to_string(),
        auth: match candidate.destination.auth {
            Auth::IamRole { .. } => "iam_role",
            Auth::AccessKey { .. } => "access_key",
        },
        configured: candidate.configured,
        session: session_state(session),
        circuit_open: candidate.circuit.is_some(),
        circuit: candidate.circuit.cloned(),
        in_flight: candidate.in_flight,
        waiting: candidate.waiting.queued,
        deferred: candidate.waiting.deferred,
        awaiting_repair: candidate.awaiting_repair,
        max_concurrency: candidate.destination.max_concurrency.map(std::num::NonZeroU32::get),
        consecutive_failures: candidate.failures(),
        last_failure: candidate.record.and_then(|record| record.last_trouble.as_deref().cloned()),
        recovered_at: candidate.recovered_at(),
        last_delivered_at: candidate.record.and_then(|record| record.last_delivered_at),
        delivered: candidate.record.map_or(0, |record| record.delivered),
        delivered_bytes: candidate.record.map_or(0, |record| record.delivered_bytes),
    }
}

fn session_state(session: session::SessionStatus) -> SessionState {
    let seconds = |duration: Duration| duration.as_secs();
    match session {
        session::SessionStatus::Absent => SessionState::None,
        session::SessionStatus::Cached { age, left } => {
            SessionState::Open { age_seconds: seconds(age), seconds_left: left.map(seconds) }
        }
        session::SessionStatus::Denied { reason, left } => {
            SessionState::Refused { reason: reason.as_str(), seconds_left: seconds(left) }
        }
    }
}

#[cfg(test)]
mod tests;
