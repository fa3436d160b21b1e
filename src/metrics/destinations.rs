//! Metrics per destination. The number of labels is bounded: further destinations are counted as
//! `_other`.

use std::collections::HashSet;

use parking_lot::RwLock;
use prometheus::{IntCounterVec, IntGaugeVec};

use super::labels::OUTCOMES;
use super::registry::Builder;
use crate::domain::destination::DestinationId;
use crate::domain::outcome::{Class, OutcomeKind};

const OTHER: &str = "_other";

/// Counters and gauges by destination. Labels are added up to `max`, and never removed.
#[derive(Debug)]
pub struct DestinationMetrics {
    max: usize,
    known: RwLock<HashSet<DestinationId>>,
    bytes: IntCounterVec,
    transfers: IntCounterVec,
    consecutive_failures: IntGaugeVec,
    circuit_open: IntGaugeVec,
}

impl DestinationMetrics {
    pub(super) fn new(b: &Builder, max: usize) -> Self {
        let one = &["destination"];
        let metrics = Self {
            max,
            known: RwLock::default(),
            bytes: b.counters("consign_destination_delivered_bytes_total", "Bytes delivered to the destination.", one),
            transfers: b.counters(
                "consign_destination_transfers_total",
                "Transfers that ended, by destination and outcome.",
                &["destination", "outcome"],
            ),
            consecutive_failures: b.gauges(
                "consign_destination_consecutive_failures",
                "Failed attempts since the last delivery.",
                one,
            ),
            circuit_open: b.gauges("consign_destination_circuit_open", "1 while the circuit breaker is open.", one),
        };
        metrics.initialize(OTHER);
        metrics
    }

    /// Creates all series of a configured destination, so that they start at zero.
    pub fn register(&self, destination: &DestinationId) {
        self.label(destination);
    }

    pub(super) fn delivered(&self, destination: &DestinationId, bytes: u64) {
        self.bytes.with_label_values(&[self.label(destination)]).inc_by(bytes);
    }

    pub(super) fn transfer_ended(&self, destination: &DestinationId, outcome: OutcomeKind) {
        let label = self.label(destination);
        self.transfers.with_label_values(&[label, outcome.as_str()]).inc();
        if outcome == OutcomeKind::Delivered && label != OTHER {
            self.consecutive_failures.with_label_values(&[label]).set(0);
        }
    }

    pub(super) fn attempt_failed(&self, destination: &DestinationId, class: Class) {
        let label = self.label(destination);
        if matches!(class, Class::Destination | Class::Session | Class::Transient) && label != OTHER {
            self.consecutive_failures.with_label_values(&[label]).inc();
        }
    }

    /// Records the state of a destination's circuit breaker. `_other` has no state: its members
    /// would overwrite each other.
    pub fn set_circuit_open(&self, destination: &DestinationId, open: bool) {
        let label = self.label(destination);
        if label != OTHER {
            self.circuit_open.with_label_values(&[label]).set(i64::from(open));
        }
    }

    /// Returns true if the circuit breaker of a destination is open. Always false without a label
    /// of its own.
    pub fn circuit_open(&self, destination: &DestinationId) -> bool {
        let known = self.known.read().contains(destination);
        known && self.circuit_open.with_label_values(&[destination.as_str()]).get() == 1
    }

    fn label<'a>(&self, destination: &'a DestinationId) -> &'a str {
        if self.known.read().contains(destination) {
            return destination.as_str();
        }
        let mut known = self.known.write();
        if known.len() >= self.max && !known.contains(destination) {
            return OTHER;
        }
        if known.insert(destination.clone()) {
            self.initialize(destination.as_str());
        }
        destination.as_str()
    }

    fn initialize(&self, label: &str) {
        self.bytes.with_label_values(&[label]);
        self.consecutive_failures.with_label_values(&[label]);
        self.circuit_open.with_label_values(&[label]);
        for outcome in OUTCOMES {
            self.transfers.with_label_values(&[label, outcome.as_str()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_label_set_is_bounded() {
        let metrics = crate::metrics::Metrics::new(2);
        for name in ["a", "b", "c", "d", "a"] {
            let id = DestinationId::parse(name).unwrap();
            metrics.destinations().delivered(&id, 1);
        }
        let (_, text) = metrics.render();
        let lines: Vec<_> =
            text.lines().filter(|l| l.starts_with("consign_destination_delivered_bytes_total{")).collect();
        assert_eq!(lines.len(), 3, "{lines:?}");
        assert!(text.contains("consign_destination_delivered_bytes_total{destination=\"a\"} 2"));
        assert!(text.contains("consign_destination_delivered_bytes_total{destination=\"_other\"} 2"));
    }
}
