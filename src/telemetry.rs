//! Log lines on stderr, spans for an OpenTelemetry collector, and the log line of a panic.
//!
//! Debug and trace lines of libraries that handle secrets (signed requests, tokens, the broker's
//! password) are always suppressed, because they print whole headers and frames.

mod export;
pub mod spans;

use tracing::level_filters::LevelFilter;
use tracing::{Level, Metadata};
use tracing_subscriber::filter::{FilterExt as _, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

use crate::config::{LogConfig, LogFormat};
use crate::runtime::output::colours;
use export::Export;

/// Crates whose debug and trace lines contain secrets.
const SECRET_CRATES: [&str; 11] = [
    "aws_config",
    "aws_runtime",
    "aws_sdk_",
    "aws_sigv4",
    "aws_smithy_",
    "h2",
    "hyper",
    "lapin",
    "reqwest",
    "rustls",
    "s3s",
];

/// A handle of the running log. Its filter can be changed while the program runs.
#[derive(Debug, Clone)]
pub struct LogHandle {
    filter: reload::Handle<EnvFilter, Registry>,
    export: Option<Export>,
}

/// A layer that receives log lines or spans.
type Sink = Box<dyn Layer<Registry> + Send + Sync>;

impl LogHandle {
    /// Replaces the filter.
    ///
    /// # Errors
    /// The filter is invalid. The previous one stays in effect.
    pub fn set_filter(&self, filter: &str) -> Result<(), String> {
        let filter = parse_filter(filter)?;
        self.filter.reload(filter).map_err(|problem| problem.to_string())
    }

    /// Sends the remaining spans within a second. Call it at the end of the program, outside of any
    /// runtime.
    pub fn close(&self) {
        if let Some(export) = &self.export {
            export.close();
        }
    }
}

/// Starts logging to stderr, exporting spans to `log.otlp_endpoint` if it is set, and logging
/// panics. Call it once.
///
/// # Errors
/// The filter is invalid, the endpoint can't be used, or a logger is already installed.
pub fn init(config: &LogConfig) -> Result<LogHandle, String> {
    let filter = parse_filter(&config.filter)?;
    let (lines, filter) = lines(config.format, filter, std::io::stderr);
    let export = config.otlp_endpoint.as_ref().map(Export::to).transpose()?;
    let sinks: Vec<Sink> = std::iter::once(lines).chain(export.as_ref().map(traces)).collect();
    tracing_subscriber::registry().with(sinks).try_init().map_err(|problem| problem.to_string())?;
    log_panics();
    Ok(LogHandle { filter, export })
}

/// Parses a filter. lapin logs every refusal of the broker as an error, which the worker logs as
/// well, so lapin is off unless the filter names it.
fn parse_filter(filter: &str) -> Result<EnvFilter, String> {
    let quiet = if filter.contains("lapin") { "" } else { ",lapin=off" };
    format!("{filter}{quiet}").parse().map_err(|problem: tracing_subscriber::filter::ParseError| problem.to_string())
}

/// Returns the layer of log lines and the handle of its filter. Exported spans have a filter of
/// their own.
fn lines<W>(format: LogFormat, filter: EnvFilter, writer: W) -> (Sink, reload::Handle<EnvFilter, Registry>)
where
    W: for<'writer> tracing_subscriber::fmt::MakeWriter<'writer> + Send + Sync + 'static,
{
    let (filter, handle) = reload::Layer::new(filter);
    // The hint leaves the decision about levels to the filter.
    let own = filter_fn(is_for_the_log).with_max_level_hint(LevelFilter::TRACE);
    let layer = tracing_subscriber::fmt::layer().with_writer(writer);
    let layer: Sink = match format {
        LogFormat::Json => layer.json().flatten_event(true).with_current_span(true).with_span_list(false).boxed(),
        LogFormat::Text => layer.with_ansi(colours(&std::io::stderr())).with_target(false).boxed(),
    };
    (layer.with_filter(filter.and(own)).boxed(), handle)
}

fn traces(export: &Export) -> Sink {
    let ours =
        filter_fn(|line| line.is_span() && line.target() == spans::TARGET).with_max_level_hint(LevelFilter::INFO);
    tracing_opentelemetry::layer()
        .with_tracer(export.tracer())
        .with_location(false)
        .with_threads(false)
        .with_target(false)
        .with_tracked_inactivity(false)
        .with_filter(ours)
        .boxed()
}

/// A target whose warnings repeat, unformatted, a failure that the worker logs itself.
const REPEATED_WARNINGS: &str = "aws_config::meta::credentials";

fn is_for_the_log(line: &Metadata<'_>) -> bool {
    line.target() != spans::TARGET && carries_no_secret(line) && !line.target().starts_with(REPEATED_WARNINGS)
}

fn carries_no_secret(line: &Metadata<'_>) -> bool {
    *line.level() <= Level::INFO || !SECRET_CRATES.iter().any(|name| line.target().starts_with(name))
}

/// Installs a hook that logs each panic with its message and location; before logging has started,
/// it prints a line.
pub fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let message = panic.payload_as_str().unwrap_or("no message");
        if LevelFilter::current() == LevelFilter::OFF {
            eprintln!("consign: panic at {place}: {message}");
        } else {
            tracing::error!(
                event = "panic",
                place,
                cause = message,
                next = "a transfer that panicked fails with the reason `panic`; other transfers continue",
                remedy = "report a defect with this line",
                "the program panicked"
            );
        }
    }));
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl Captured {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    fn logged(format: LogFormat, filter: &str, write_lines: impl FnOnce(&LogHandle)) -> String {
        let captured = Captured::default();
        let writer = captured.clone();
        let (lines, filter) = lines(format, parse_filter(filter).unwrap(), move || writer.clone());
        let subscriber = tracing_subscriber::registry().with(vec![lines]);
        tracing::subscriber::with_default(subscriber, || write_lines(&LogHandle { filter, export: None }));
        captured.text()
    }

    #[test]
    fn a_json_line_is_one_flat_object() {
        let text = logged(LogFormat::Json, "info", |_| tracing::info!(job = "a/1", "delivered"));
        let line: serde_json::Value = serde_json::from_str(text.trim()).unwrap();
        assert_eq!(
            (&line["message"], &line["job"], &line["level"]),
            (&"delivered".into(), &"a/1".into(), &"INFO".into())
        );
    }

    #[test]
    fn the_filter_can_be_changed_and_a_bad_one_changes_nothing() {
        let text = logged(LogFormat::Text, "warn", |log| {
            tracing::info!("one");
            log.set_filter("info").unwrap();
            tracing::info!("two");
            assert!(log.set_filter("consign=loud").is_err());
            tracing::info!("three");
        });
        assert!(!text.contains("one") && text.contains("two") && text.contains("three"), "{text}");
    }

    #[test]
    fn lapin_logs_only_if_the_filter_names_it() {
        let text = |filter| {
            logged(LogFormat::Text, filter, |log| {
                tracing::error!(target: "lapin::channel", "first");
                log.set_filter(filter).unwrap();
                tracing::error!(target: "lapin::channel", "second");
                tracing::warn!("own");
            })
        };
        for filter in ["warn", "info,consign=debug", ""] {
            assert!(!text(filter).contains("first") && !text(filter).contains("second"), "{filter}");
        }
        assert!(text("warn").contains("own"));
        let asked = text("warn,lapin=error");
        assert!(asked.contains("first") && asked.contains("second"), "{asked}");
    }

    #[test]
    fn libraries_that_print_secrets_are_suppressed_below_info() {
        let text = logged(LogFormat::Text, "trace,lapin=trace", |_| {
            tracing::trace!(target: "aws_smithy_runtime::client", "x-amz-security-token: hidden");
            tracing::debug!(target: "lapin::channel", "hidden");
            tracing::info!(target: "lapin::channel", "connected");
            tracing::trace!(target: "consign::worker", "own");
        });
        assert!(!text.contains("hidden") && text.contains("connected") && text.contains("own"), "{text}");
    }

    /// Runs a job with this traceparent without an exporter. Returns its log and true if it has
    /// spans.
    fn job(traceparent: Option<&str>) -> (String, bool) {
        let headers = traceparent.map(|value| ("traceparent".to_owned(), value.to_owned())).into_iter().collect();
        let message = spans::MessageAttributes {
            system: "rabbitmq",
            exchange: "consign",
            routing_key: "job.scheduled.acme",
            job_id: "a/1",
            destination: "acme",
            headers: &headers,
        };
        let mut spans = true;
        let text = logged(LogFormat::Json, "warn", |_| {
            let work = async {
                spans = !spans::session("acme").is_disabled();
                tracing::warn!("from the job");
            };
            futures_util::FutureExt::now_or_never(spans::Trace::of(&message).run(work)).unwrap();
        });
        (text, spans)
    }

    #[test]
    fn without_an_endpoint_no_span_is_made_and_lines_still_name_the_trace() {
        let (text, spans) = job(Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"));
        let line: serde_json::Value = serde_json::from_str(text.trim()).unwrap();
        assert_eq!((&line["span"]["trace_id"], spans), (&"0af7651916cd43dd8448eb211c80319c".into(), false), "{text}");
        for nothing in [None, Some("nonsense")] {
            let (text, spans) = job(nothing);
            let line: serde_json::Value = serde_json::from_str(text.trim()).unwrap();
            assert!(line["span"].is_null() && !spans, "{text}");
        }
    }
}
