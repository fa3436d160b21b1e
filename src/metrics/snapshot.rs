//! The current values of the counters and gauges, as numbers for `/status` and the status page.

use std::collections::BTreeMap;

use prometheus::{IntCounterVec, IntGauge};
use serde::Serialize;

use super::Metrics;
use super::families::TransferFamilies;
use super::labels::{DeferCause, LANES, OUTCOMES, SessionRequest};
use crate::domain::outcome::Reason;

/// The values at one moment. Counters start at zero with the worker.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Snapshot {
    /// The three lanes.
    pub lanes: Vec<LaneSnapshot>,
    /// Failed attempts by reason, the most frequent first; reasons that never occurred are left
    /// out.
    pub failures: Vec<FailureCount>,
    /// Failed attempts that were scheduled for a retry.
    pub retries: u64,
    /// Jobs deferred without charging an attempt.
    pub deferred: u64,
    /// Bytes in part buffers.
    pub buffer_bytes: u64,
    /// Bytes that part buffers can hold.
    pub buffer_limit_bytes: u64,
    /// True while the worker is connected to the broker.
    pub broker_connected: bool,
    /// Connections to the broker after the first one.
    pub broker_reconnects: u64,
    /// Published messages that are not confirmed yet.
    pub broker_unconfirmed: u64,
    /// True while the worker is draining.
    pub draining: bool,
    /// Requests for a session by result: `hit`, `miss`, `coalesced`, `denied`.
    pub session_requests: BTreeMap<&'static str, u64>,
}

/// The values of one lane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LaneSnapshot {
    /// Name of the lane.
    pub lane: &'static str,
    /// Transfers running now.
    pub running: u64,
    /// Transfers that can run at the same time.
    pub slots: u64,
    /// Bytes of delivered objects.
    pub delivered_bytes: u64,
    /// Ended transfers by outcome: `delivered`, `failed`, `skipped`, `expired`.
    pub ended: BTreeMap<&'static str, u64>,
}

/// The number of failed attempts for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FailureCount {
    /// The reason's class.
    pub class: &'static str,
    /// The reason.
    pub reason: &'static str,
    /// Failed attempts since the start.
    pub count: u64,
}

impl Snapshot {
    pub(super) fn of(metrics: &Metrics) -> Self {
        let Metrics { transfers, uploads, sessions, broker, process, .. } = metrics;
        let requests = SessionRequest::ALL.map(SessionRequest::as_str);
        Self {
            lanes: LANES.iter().map(|lane| LaneSnapshot::of(transfers, lane)).collect(),
            failures: failure_counts(transfers),
            retries: Reason::ALL.iter().map(|reason| count(&transfers.retries, &[reason.as_str()])).sum(),
            deferred: DeferCause::ALL.iter().map(|cause| count(&transfers.deferred, &[cause.as_str()])).sum(),
            buffer_bytes: level(&uploads.buffer_bytes),
            buffer_limit_bytes: level(&uploads.buffer_limit),
            broker_connected: broker.connected.get() == 1,
            broker_reconnects: broker.reconnects.get(),
            broker_unconfirmed: level(&broker.unconfirmed),
            draining: process.draining.get() == 1,
            session_requests: requests.map(|result| (result, count(&sessions.requests, &[result]))).into(),
        }
    }
}

impl LaneSnapshot {
    fn of(transfers: &TransferFamilies, lane: &'static str) -> Self {
        let ended = OUTCOMES.map(|outcome| {
            let outcome = outcome.as_str();
            (outcome, count(&transfers.ended, &[lane, outcome]))
        });
        Self {
            lane,
            running: level(&transfers.in_flight.with_label_values(&[lane])),
            slots: level(&transfers.slots.with_label_values(&[lane])),
            delivered_bytes: count(&transfers.delivered_bytes, &[lane]),
            ended: ended.into(),
        }
    }
}

fn failure_counts(transfers: &TransferFamilies) -> Vec<FailureCount> {
    let all = Reason::ALL.iter().map(|reason| {
        let (class, reason) = (reason.class().as_str(), reason.as_str());
        FailureCount { class, reason, count: count(&transfers.failures, &[class, reason]) }
    });
    let mut counts: Vec<_> = all.filter(|failure| failure.count > 0).collect();
    counts.sort_by_key(|failure| std::cmp::Reverse(failure.count));
    counts
}

fn count(counters: &IntCounterVec, labels: &[&str]) -> u64 {
    counters.with_label_values(labels).get()
}

fn level(gauge: &IntGauge) -> u64 {
    u64::try_from(gauge.get()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::domain::destination::DestinationId;
    use crate::domain::lane::Lane;
    use crate::domain::outcome::{Failure, OutcomeKind, Reason};
    use crate::metrics::Metrics;

    #[test]
    fn a_snapshot_has_the_counted_values() {
        let metrics = Metrics::new(5);
        let acme = DestinationId::parse("acme").unwrap();
        metrics.set_slots(Lane::Scheduled, 16);
        metrics.set_buffer_limit(1000);
        let _buffer = metrics.buffer(10);
        let _running = metrics.transfer_running(Lane::Scheduled);
        metrics.transfer_ended(Lane::Scheduled, OutcomeKind::Delivered, &acme, Duration::ZERO);
        metrics.object_delivered(Lane::Scheduled, &acme, 7);
        for reason in [Reason::Timeout, Reason::SlowDown, Reason::SlowDown] {
            metrics.attempt_failed(&acme, &Failure::new(reason, ""));
        }
        metrics.destinations().set_circuit_open(&acme, true);
        let shown = metrics.snapshot();
        let scheduled = shown.lanes.iter().find(|lane| lane.lane == "scheduled").unwrap();
        assert_eq!((scheduled.running, scheduled.slots, scheduled.delivered_bytes), (1, 16, 7));
        assert_eq!(scheduled.ended["delivered"], 1);
        assert_eq!((shown.buffer_bytes, shown.buffer_limit_bytes), (10, 1000));
        let failures: Vec<_> = shown.failures.iter().map(|f| (f.class, f.reason, f.count)).collect();
        assert_eq!(failures, [("transient", "slow_down", 2), ("transient", "timeout", 1)]);
        assert!(metrics.destinations().circuit_open(&acme));
        assert!(!metrics.destinations().circuit_open(&DestinationId::parse("other").unwrap()));
    }
}
