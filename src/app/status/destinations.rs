//! The state of destinations, worst first, in a bounded list.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use crate::domain::destination::{Auth, Destination, DestinationId, Destinations};
use crate::session;
use crate::session::Sessions;
use crate::worker::{CircuitView, DestinationRecord, FailureDetail, RunningTransfer, WaitingJobs};

/// Destinations in the list.
const SHOWN: usize = 100;

/// What the states are made from.
pub(super) struct Known<'a> {
    pub(super) configured: &'a Destinations,
    /// Configured and inline ones.
    pub(super) worked_for: BTreeMap<DestinationId, DestinationRecord>,
    pub(super) running: &'a [RunningTransfer],
    pub(super) sessions: &'a Sessions,
    pub(super) circuits: &'a HashMap<DestinationId, CircuitView>,
    /// When each was called mended last.
    pub(super) mended: &'a HashMap<DestinationId, Timestamp>,
    /// Jobs that wait in the worker, and that were sent away, as their destination has all it may have.
    pub(super) waiting: &'a HashMap<DestinationId, WaitingJobs>,
    /// Jobs that were sent away until it is mended.
    pub(super) awaiting_repair: &'a HashMap<DestinationId, u32>,
    /// Only ids that contain this.
    pub(super) filter: &'a str,
}

/// `destination_states` of `/status`.
#[derive(Debug, Serialize)]
pub(super) struct States {
    /// Those in trouble first, then the busiest, then those active last.
    shown: Vec<State>,
    /// How many there are that match, the shown ones included.
    matching: usize,
    filter: String,
}

/// One destination.
#[derive(Debug, Serialize)]
struct State {
    id: String,
    bucket: String,
    region: String,
    /// `iam_role` or `access_key`.
    auth: &'static str,
    /// False for one that came with a job.
    configured: bool,
    session: SessionState,
    circuit_open: bool,
    /// The circuit, while it is not closed.
    circuit: Option<CircuitView>,
    in_flight: usize,
    /// Jobs that wait in the worker for one of those in flight to end.
    waiting: usize,
    /// Jobs that were sent away for that reason, and are still to come back.
    deferred: u32,
    /// Jobs that this worker sent away until the destination is mended, and that are still to come back. Those of other workers are
    /// not known here.
    awaiting_repair: u32,
    /// The most transfers at once; `null` where only the worker's own limit holds.
    max_concurrency: Option<u32>,
    /// Failed attempts since the last delivery.
    consecutive_failures: u32,
    last_failure: Option<FailureDetail>,
    /// When it was reset, passed its connection test or took something, while nothing failed after that and nothing was delivered.
    mended_at: Option<Timestamp>,
    last_delivered_at: Option<Timestamp>,
    /// Since the worker's start.
    delivered: u64,
    delivered_bytes: u64,
}

/// The session of a destination.
#[derive(Debug, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
enum SessionState {
    /// Nobody needed one lately.
    None,
    /// It is kept; without `seconds_left` it does not end.
    Open { age_seconds: u64, seconds_left: Option<u64> },
    /// It was refused, and is not asked for again before `seconds_left` are over.
    Refused { reason: &'static str, seconds_left: u64 },
}

struct Candidate<'a> {
    destination: &'a Destination,
    configured: bool,
    record: Option<&'a DestinationRecord>,
    circuit: Option<&'a CircuitView>,
    mended: Option<Timestamp>,
    in_flight: usize,
    waiting: WaitingJobs,
    awaiting_repair: u32,
}

impl Candidate<'_> {
    fn failures(&self) -> u32 {
        self.record.map_or(0, |record| record.consecutive_failures)
    }

    fn mended_at(&self) -> Option<Timestamp> {
        let trouble = self.record?.last_trouble.as_ref()?;
        self.mended.filter(|at| self.failures() > 0 && self.circuit.is_none() && trouble.at <= *at)
    }

    fn is_failing(&self) -> bool {
        self.failures() > 0 && self.mended_at().is_none()
    }

    fn rank(&self) -> impl Ord + use<'_> {
        let last = self.record.map_or(0, |record| record.last_active);
        (Reverse((self.circuit.is_some(), self.is_failing(), self.in_flight, last)), &self.destination.id)
    }
}

pub(super) fn states(known: &Known<'_>) -> States {
    let mut candidates = candidates(known);
    candidates.sort_unstable_by(|a, b| a.rank().cmp(&b.rank()));
    let matching = candidates.len();
    candidates.truncate(SHOWN);
    let looked_at: Vec<_> = candidates.iter().map(|candidate| candidate.destination).collect();
    let sessions = known.sessions.look(&looked_at);
    let shown = candidates.into_iter().zip(sessions).map(|(candidate, session)| state(&candidate, session)).collect();
    States { shown, matching, filter: known.filter.to_owned() }
}

fn candidates<'a>(known: &'a Known<'_>) -> Vec<Candidate<'a>> {
    let mut in_flight: HashMap<&str, usize> = HashMap::new();
    for transfer in known.running {
        *in_flight.entry(&transfer.destination).or_default() += 1;
    }
    let configured = known.configured.iter().map(|(id, destination)| (id, destination, true));
    let inline = known.worked_for.iter().filter(|(id, _)| !known.configured.contains_key(*id));
    let inline = inline.map(|(id, record)| (id, &record.destination, false));
    let matching = configured.chain(inline).filter(|(id, ..)| id.as_str().contains(known.filter));
    matching
        .map(|(id, destination, configured)| Candidate {
            destination,
            configured,
            record: known.worked_for.get(id),
            circuit: known.circuits.get(id),
            mended: known.mended.get(id).copied(),
            in_flight: in_flight.get(id.as_str()).copied().unwrap_or(0),
            waiting: known.waiting.get(id).copied().unwrap_or_default(),
            awaiting_repair: known.awaiting_repair.get(id).copied().unwrap_or_default(),
        })
        .collect()
}

fn state(candidate: &Candidate<'_>, session: session::Known) -> State {
    let Candidate {
        destination,
        configured,
        record,
        circuit,
        in_flight,
        waiting: WaitingJobs { queued: waiting, deferred },
        awaiting_repair,
        ..
    } = *candidate;
    State {
        id: destination.id.to_string(),
        bucket: destination.bucket.to_string(),
        region: destination.region.to_string(),
        auth: match destination.auth {
            Auth::IamRole { .. } => "iam_role",
            Auth::AccessKey { .. } => "access_key",
        },
        configured,
        session: session_state(session),
        circuit_open: circuit.is_some(),
        circuit: circuit.cloned(),
        in_flight,
        waiting,
        deferred,
        awaiting_repair,
        max_concurrency: destination.max_concurrency.map(std::num::NonZeroU32::get),
        consecutive_failures: candidate.failures(),
        last_failure: record.and_then(|record| record.last_trouble.as_deref().cloned()),
        mended_at: candidate.mended_at(),
        last_delivered_at: record.and_then(|record| record.last_delivered_at),
        delivered: record.map_or(0, |record| record.delivered),
        delivered_bytes: record.map_or(0, |record| record.delivered_bytes),
    }
}

fn session_state(session: session::Known) -> SessionState {
    let seconds = |duration: Duration| duration.as_secs();
    match session {
        session::Known::Nothing => SessionState::None,
        session::Known::BackfillOutcomes { age, left } => {
            SessionState::Open { age_seconds: seconds(age), seconds_left: left.map(seconds) }
        }
        session::Known::Refused { reason, left } => {
            SessionState::Refused { reason: reason.as_str(), seconds_left: seconds(left) }
        }
    }
}

#[cfg(test)]
mod tests;
