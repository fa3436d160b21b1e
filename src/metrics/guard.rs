//! Gauges that count work in progress.

use prometheus::IntGauge;

/// An increase of a gauge that lasts as long as this value: drop subtracts what was added.
#[derive(Debug)]
pub struct GaugeGuard {
    gauge: IntGauge,
    amount: i64,
}

impl GaugeGuard {
    /// Adds `amount` to the gauge.
    pub(super) fn add(gauge: &IntGauge, amount: i64) -> Self {
        gauge.add(amount);
        Self { gauge: gauge.clone(), amount }
    }
}

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.gauge.sub(self.amount);
    }
}
