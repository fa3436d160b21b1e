//! Creation and registration of collectors in one step, and the metrics of the process.

use prometheus::core::Collector;
use prometheus::{
    Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

/// The registry of one worker while it is built. Names and labels are constants of this program,
/// and the test `all_series_are_present` finds an invalid or duplicate one.
pub(super) struct Builder {
    pub(super) registry: Registry,
}

impl Builder {
    pub(super) fn new() -> Self {
        let builder = Self { registry: Registry::new() };
        #[cfg(target_os = "linux")]
        builder.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()));
        let version = Opts::new("consign_build_info", "Version of the running worker.")
            .const_label("version", env!("CARGO_PKG_VERSION"));
        let info = builder.registered(IntGauge::with_opts(version));
        info.set(1);
        builder
    }

    pub(super) fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.registered(IntCounter::new(name, help))
    }

    pub(super) fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.registered(IntCounterVec::new(Opts::new(name, help), labels))
    }

    pub(super) fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.registered(IntGauge::new(name, help))
    }

    pub(super) fn float_gauge(&self, name: &str, help: &str) -> Gauge {
        self.registered(Gauge::new(name, help))
    }

    pub(super) fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.registered(IntGaugeVec::new(Opts::new(name, help), labels))
    }

    pub(super) fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        self.registered(Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec())))
    }

    pub(super) fn histograms(&self, name: &str, help: &str, labels: &[&str], buckets: &[f64]) -> HistogramVec {
        self.registered(HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), labels))
    }

    #[expect(
        clippy::panic,
        reason = "names and labels are literals of this module; `all_series_are_present` builds them all"
    )]
    fn registered<C: Collector + Clone + 'static>(&self, collector: prometheus::Result<C>) -> C {
        match collector {
            Ok(collector) => {
                self.register(Box::new(collector.clone()));
                collector
            }
            Err(problem) => panic!("invalid definition of a metric: {problem}"),
        }
    }

    fn register(&self, collector: Box<dyn Collector>) {
        if let Err(problem) = self.registry.register(collector) {
            tracing::error!(
                event = "metric_not_registered",
                %problem,
                next = "the worker runs without this metric",
                remedy = "report a defect",
                "failed to register a metric"
            );
        }
    }
}

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
