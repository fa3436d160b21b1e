//! The counters and gauges of one moment, as numbers: what the status page shows of them.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{LANES, Metrics, OUTCOMES};
use crate::domain::outcome::Reason;

/// Since the start of the worker, unless said otherwise.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Snapshot {
    /// The three lanes.
    pub lanes: Vec<LaneSnapshot>,
    /// Failed attempts by reason, the most frequent first; reasons that never occurred are left out.
    pub failures: Vec<FailureCount>,
    /// Attempts that will be or were repeated.
    pub retries: u64,
    /// Jobs put off without being charged.
    pub deferred: u64,
    /// Bytes in part buffers now.
    pub buffer_bytes: u64,
    /// Bytes that part buffers may hold.
    pub buffer_limit_bytes: u64,
    /// Whether the broker is connected now.
    pub broker_connected: bool,
    /// Connections made after the first.
    pub broker_reconnects: u64,
    /// Messages published and not yet confirmed.
    pub broker_unconfirmed: u64,
    /// Whether the worker drains.
    pub draining: bool,
    /// Requests for a session by how they were answered: `hit`, `miss`, `coalesced`, `denied`.
    pub session_requests: BTreeMap<&'static str, u64>,
}

/// One lane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LaneSnapshot {
    /// Its name.
    pub lane: &'static str,
    /// Transfers that run now.
    pub running: u64,
    /// Transfers that may run at once.
    pub slots: u64,
    /// Bytes of delivered objects.
    pub delivered_bytes: u64,
    /// Ended transfers by outcome: `delivered`, `failed`, `skipped`, `expired`.
    pub ended: BTreeMap<&'static str, u64>,
}

/// How often a reason was the end of an attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FailureCount {
    /// The reason's class.
    pub class: &'static str,
    /// The reason.
    pub reason: &'static str,
    /// How often.
    pub count: u64,
}

impl Metrics {
    /// The numbers of this moment. They are read one after the other: a transfer that ends meanwhile may be in some and not in
    /// others.
    pub fn snapshot(&self) -> Snapshot {
        let requests = ["hit", "miss", "coalesced", "denied"];
        Snapshot {
            lanes: LANES.iter().map(|lane| self.lane(lane)).collect(),
            failures: self.failure_counts(),
            retries: Reason::ALL.iter().map(|r| self.retries.with_label_values(&[r.as_str()]).get()).sum(),
            deferred: ["circuit", "concurrency", "rate"]
                .iter()
                .map(|c| self.deferred.with_label_values(&[c]).get())
                .sum(),
            buffer_bytes: level(&self.buffer_bytes),
            buffer_limit_bytes: level(&self.buffer_limit),
            broker_connected: self.broker_connected.get() == 1,
            broker_reconnects: self.broker_reconnects.get(),
            broker_unconfirmed: level(&self.unconfirmed),
            draining: self.draining.get() == 1,
            session_requests: requests.map(|r| (r, self.session_requests.with_label_values(&[r]).get())).into(),
        }
    }

    fn lane(&self, lane: &'static str) -> LaneSnapshot {
        let ended = OUTCOMES.map(|outcome| {
            let outcome = outcome.as_str();
            (outcome, self.transfers.with_label_values(&[lane, outcome]).get())
        });
        LaneSnapshot {
            lane,
            running: level(&self.in_flight.with_label_values(&[lane])),
            slots: level(&self.slots.with_label_values(&[lane])),
            delivered_bytes: self.delivered_bytes.with_label_values(&[lane]).get(),
            ended: ended.into(),
        }
    }

    fn failure_counts(&self) -> Vec<FailureCount> {
        let counted = Reason::ALL.iter().map(|reason| {
            let (class, reason) = (reason.class().as_str(), reason.as_str());
            FailureCount { class, reason, count: self.failures.with_label_values(&[class, reason]).get() }
        });
        let mut counts: Vec<_> = counted.filter(|failure| failure.count > 0).collect();
        counts.sort_by_key(|failure| std::cmp::Reverse(failure.count));
        counts
    }
}

fn level(gauge: &prometheus::IntGauge) -> u64 {
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
    fn it_shows_what_was_counted() {
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
