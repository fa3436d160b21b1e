//! Log lines on stderr, and what is logged when the program breaks one of its own rules.
//!
//! Below `info`, the libraries that carry secrets (signed requests, tokens, the broker's password) are cut off whatever the
//! filter says: their debug lines print headers and frames whole.

use std::io::IsTerminal;
use std::panic::PanicHookInfo;

use tracing::level_filters::LevelFilter;
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

use crate::config::{LogConfig, LogFormat};

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
}

impl Log {
    /// Replaces the filter.
    ///
    /// # Errors
    /// The filter does not parse; the old one stays.
    pub fn set_filter(&self, filter: &str) -> Result<(), String> {
        let filter = filter.parse::<EnvFilter>().map_err(|problem| problem.to_string())?;
        self.filter.reload(filter).map_err(|problem| problem.to_string())
    }
}

/// Starts logging to stderr and logs panics from now on. Once in a process.
///
/// # Errors
/// The filter does not parse, or somebody else logs already.
pub fn init(config: &LogConfig) -> Result<Log, String> {
    let filter = config.filter.parse::<EnvFilter>().map_err(|problem| problem.to_string())?;
    let (filter, handle) = reload::Layer::new(filter);
    let lines = lines(config.format, std::io::stderr).with_filter(filter_fn(carries_no_secret));
    tracing_subscriber::registry().with(filter).with(lines).try_init().map_err(|problem| problem.to_string())?;
    log_panics();
    Ok(Log { filter: handle })
}

fn lines<S, W>(format: LogFormat, writer: W) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    W: for<'writer> tracing_subscriber::fmt::MakeWriter<'writer> + Send + Sync + 'static,
{
    let layer = tracing_subscriber::fmt::layer().with_writer(writer);
    match format {
        LogFormat::Json => layer.json().flatten_event(true).with_current_span(true).with_span_list(false).boxed(),
        LogFormat::Text => layer.with_ansi(colours()).with_target(false).boxed(),
    }
}

/// Colours are for people: a terminal, and no wish to the contrary (<https://no-color.org>).
fn colours() -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    std::io::stderr().is_terminal() && !refused
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
        let (filter, handle) = reload::Layer::new(filter.parse::<EnvFilter>().unwrap());
        let lines = lines(format, move || writer.clone()).with_filter(filter_fn(carries_no_secret));
        let subscriber = tracing_subscriber::registry().with(filter).with(lines);
        tracing::subscriber::with_default(subscriber, || speak(&Log { filter: handle }));
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
    fn libraries_that_print_secrets_are_cut_off_below_info() {
        let text = logged(LogFormat::Text, "trace", |_| {
            tracing::trace!(target: "aws_smithy_runtime::client", "x-amz-security-token: hidden");
            tracing::debug!(target: "lapin::channel", "hidden");
            tracing::info!(target: "lapin::channel", "connected");
            tracing::trace!(target: "consign::worker", "own");
        });
        assert!(!text.contains("hidden") && text.contains("connected") && text.contains("own"), "{text}");
    }
}
