//! Makes and registers collectors in one step.

use prometheus::core::Collector;
use prometheus::{
    Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

/// Collects the metrics of one worker. Names and labels are constants of this program: a bad or doubled one is logged and
/// found by the test that every series is there.
pub(super) struct Builder {
    registry: Registry,
}

impl Builder {
    pub(super) fn new() -> Self {
        let builder = Self { registry: Registry::new() };
        #[cfg(target_os = "linux")]
        builder.register(&ProcessCollector::new());
        let version =
            Opts::new("consign_build_info", "What is running.").const_label("version", env!("CARGO_PKG_VERSION"));
        let info = builder.made(IntGauge::with_opts(version));
        info.set(1);
        builder
    }

    pub(super) fn into_registry(self) -> Registry {
        self.registry
    }

    pub(super) fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.made(IntCounter::new(name, help))
    }

    pub(super) fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.made(IntCounterVec::new(Opts::new(name, help), labels))
    }

    pub(super) fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.made(IntGauge::new(name, help))
    }

    pub(super) fn float_gauge(&self, name: &str, help: &str) -> Gauge {
        self.made(Gauge::new(name, help))
    }

    pub(super) fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.made(IntGaugeVec::new(Opts::new(name, help), labels))
    }

    pub(super) fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        self.made(Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec())))
    }

    pub(super) fn histograms(&self, name: &str, help: &str, labels: &[&str], buckets: &[f64]) -> HistogramVec {
        self.made(HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), labels))
    }

    #[expect(
        clippy::panic,
        reason = "names and labels are literals of this module; `all_series_are_present` builds them all"
    )]
    fn made<C: Collector + Clone + 'static>(&self, collector: prometheus::Result<C>) -> C {
        match collector {
            Ok(collector) => {
                self.register(&collector);
                collector
            }
            Err(problem) => panic!("a metric is defined wrongly: {problem}"),
        }
    }

    fn register<C: Collector + Clone + 'static>(&self, collector: &C) {
        if let Err(problem) = self.registry.register(Box::new(collector.clone())) {
            tracing::error!(%problem, "a metric could not be registered");
        }
    }
}

/// The process collector, which its crate makes without `Clone`.
#[cfg(target_os = "linux")]
#[derive(Clone)]
struct ProcessCollector(std::sync::Arc<prometheus::process_collector::ProcessCollector>);

#[cfg(target_os = "linux")]
impl ProcessCollector {
    fn new() -> Self {
        Self(std::sync::Arc::new(prometheus::process_collector::ProcessCollector::for_self()))
    }
}

#[cfg(target_os = "linux")]
impl Collector for ProcessCollector {
    fn desc(&self) -> Vec<&prometheus::core::Desc> {
        self.0.desc()
    }

    fn collect(&self) -> Vec<prometheus::proto::MetricFamily> {
        self.0.collect()
    }
}
