//! Log lines on stderr, spans for a collector, and what is logged when the program breaks one of its own rules.
//!
//! Below `info`, the libraries that carry secrets (signed requests, tokens, the broker's password) are cut off whatever the
//! filter says: their debug lines print headers and frames whole.

mod export;
pub mod spans;

use std::io::IsTerminal;
use std::panic::PanicHookInfo;

use tracing::level_filters::LevelFilter;
use tracing::{Level, Metadata};
use tracing_subscriber::filter::{FilterExt as _, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

use crate::config::{LogConfig, LogFormat};
use export::Export;

/// Crates whose debug and trace lines hold secrets.
const LOUD: [&str; 11] = [
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

/// The running log. Its filter can be changed while the program runs.
#[derive(Debug, Clone)]
pub struct Log {
    filter: reload::Handle<EnvFilter, Registry>,
    export: Option<Export>,
}

/// Where lines and spans go.
type Sink = Box<dyn Layer<Registry> + Send + Sync>;

impl Log {
    /// Replaces the filter.
    ///
    /// # Errors
    /// The filter does not parse; the old one stays.
    pub fn set_filter(&self, filter: &str) -> Result<(), String> {
        let filter = parsed(filter)?;
        self.filter.reload(filter).map_err(|problem| problem.to_string())
    }

    /// Sends the spans that are left, within a second; for the end of the program, outside of any runtime.
    pub fn close(&self) {
        if let Some(export) = &self.export {
            export.close();
        }
    }
}

/// Starts logging to stderr, with `log.otlp_endpoint` also the sending of spans, and logs panics from now on. Once in a process.
///
/// # Errors
/// The filter does not parse, the endpoint can't be used, or somebody else logs already.
pub fn init(config: &LogConfig) -> Result<Log, String> {
    let filter = parsed(&config.filter)?;
    let (lines, filter) = lines(config.format, filter, std::io::stderr);
    let export = config.otlp_endpoint.as_ref().map(Export::to).transpose()?;
    let sinks: Vec<Sink> = std::iter::once(lines).chain(export.as_ref().map(traces)).collect();
    tracing_subscriber::registry().with(sinks).try_init().map_err(|problem| problem.to_string())?;
    log_panics();
    Ok(Log { filter, export })
}

/// lapin repeats as an error, in its own terms, whatever the broker refuses. Our own line says it, so lapin's show only where the
/// filter names it.
fn parsed(filter: &str) -> Result<EnvFilter, String> {
    let quiet = if filter.contains("lapin") { "" } else { ",lapin=off" };
    format!("{filter}{quiet}").parse().map_err(|problem: tracing_subscriber::filter::ParseError| problem.to_string())
}

/// The lines, and the handle by which their filter is changed. The spans of traces have a filter of their own.
fn lines<W>(format: LogFormat, filter: EnvFilter, writer: W) -> (Sink, reload::Handle<EnvFilter, Registry>)
where
    W: for<'writer> tracing_subscriber::fmt::MakeWriter<'writer> + Send + Sync + 'static,
{
    let (filter, handle) = reload::Layer::new(filter);
    // The hint leaves the last word on levels to the filter.
    let fit = filter_fn(is_for_the_log).with_max_level_hint(LevelFilter::TRACE);
    let layer = tracing_subscriber::fmt::layer().with_writer(writer);
    let layer: Sink = match format {
        LogFormat::Json => layer.json().flatten_event(true).with_current_span(true).with_span_list(false).boxed(),
        LogFormat::Text => layer.with_ansi(colours()).with_target(false).boxed(),
    };
    (layer.with_filter(filter.and(fit)).boxed(), handle)
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

/// Colours are for people: a terminal, and no wish to the contrary (<https://no-color.org>).
fn colours() -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    std::io::stderr().is_terminal() && !refused
}

/// Its warnings are raw prints of a failure that the worker's own line says in words, with the remedy.
const RAW: &str = "aws_config::meta::credentials";

fn is_for_the_log(line: &Metadata<'_>) -> bool {
    line.target() != spans::TARGET && carries_no_secret(line) && !line.target().starts_with(RAW)
}

fn carries_no_secret(line: &Metadata<'_>) -> bool {
    *line.level() <= Level::INFO || !LOUD.iter().any(|loud| line.target().starts_with(loud))
}

/// From now on a panic is one log line with its message and place; before logging has begun, one line of text.
pub fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let message = message(panic);
        if LevelFilter::current() == LevelFilter::OFF {
            eprintln!("consign: panic at {place}: {message}");
        } else {
            tracing::error!(place, message, "the program broke one of its own rules");
        }
    }));
}

fn message<'a>(panic: &'a PanicHookInfo<'_>) -> &'a str {
    panic.payload_as_str().unwrap_or("no message")
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

    fn logged(format: LogFormat, filter: &str, speak: impl FnOnce(&Log)) -> String {
        let captured = Captured::default();
        let writer = captured.clone();
        let (lines, filter) = lines(format, parsed(filter).unwrap(), move || writer.clone());
        let subscriber = tracing_subscriber::registry().with(vec![lines]);
        tracing::subscriber::with_default(subscriber, || speak(&Log { filter, export: None }));
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
    fn what_lapin_says_of_a_refusal_shows_only_where_it_is_asked_for() {
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
    fn libraries_that_print_secrets_are_cut_off_below_info() {
        let text = logged(LogFormat::Text, "trace,lapin=trace", |_| {
            tracing::trace!(target: "aws_smithy_runtime::client", "x-amz-security-token: hidden");
            tracing::debug!(target: "lapin::channel", "hidden");
            tracing::info!(target: "lapin::channel", "connected");
            tracing::trace!(target: "consign::worker", "own");
        });
        assert!(!text.contains("hidden") && text.contains("connected") && text.contains("own"), "{text}");
    }

    /// A job of this traceparent under the log alone: what it logs, and whether it has spans.
    fn job(traceparent: Option<&str>) -> (String, bool) {
        let headers = traceparent.map(|value| ("traceparent".to_owned(), value.to_owned())).into_iter().collect();
        let message = spans::Message {
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
