//! Output of all commands: data on stdout, everything else on stderr; progress, NDJSON lines,
//! summaries and tables.

pub(super) mod text;

use std::io::{IsTerminal as _, Write as _};
use std::sync::Arc;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;

use super::Exit;
use crate::config::ConfigProblems;
use crate::runtime::output::Output;

/// Writes data to stdout. A closed pipe (`| head`) is not an error.
pub fn print(text: &str) -> Exit {
    let mut stdout = std::io::stdout().lock();
    match writeln!(stdout, "{}", text.trim_end()).and_then(|()| stdout.flush()) {
        Err(problem) if problem.kind() != std::io::ErrorKind::BrokenPipe => {
            fail(&format!("stdout: {problem}"), Exit::Failed)
        }
        _ => Exit::Done,
    }
}

/// Writes indented JSON to stdout.
pub fn print_json(value: &impl serde::Serialize) -> Exit {
    match serde_json::to_string_pretty(value) {
        Ok(text) => print(&text),
        Err(problem) => fail(&format!("the answer can't be written as JSON: {problem}"), Exit::Failed),
    }
}

/// Writes a notice to stderr.
pub fn notice(text: &str) {
    // Standard error may be closed, which is not an error.
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Writes the reason of a failure to stderr and returns `exit`.
pub fn fail(reason: &str, exit: Exit) -> Exit {
    notice(&format!("consign: {reason}"));
    exit
}

/// Writes a text for people: to stdout, or to stderr if stdout is for `json`.
pub(super) fn summarize(text: &str, json: bool) {
    if json {
        notice(text);
    } else {
        print(text);
    }
}

/// Writes the problems of the configuration to stderr, one line each.
pub fn fail_config(problems: &ConfigProblems) -> Exit {
    notice(&problems.to_string());
    Exit::Config
}

/// Reporter of a long command: a bar on a terminal, one line of JSON per event with `--json`, and a
/// summary at the end.
pub(super) struct ProgressReporter {
    bar: ProgressBar,
    pub(super) json: bool,
}

impl ProgressReporter {
    /// `length` is the number of items, where it is known.
    pub(super) fn new(length: Option<u64>, json: bool, label: impl Into<String>) -> Self {
        let bar = length.map_or_else(ProgressBar::no_length, ProgressBar::new);
        if json || !std::io::stderr().is_terminal() {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {human_pos}/{human_len} {elapsed}") {
            bar.set_style(style);
        }
        bar.set_message(label.into());
        Self { bar, json }
    }

    /// Reporter of a command that publishes jobs. One job needs no bar.
    pub(super) fn publishing(jobs: Option<u64>, json: bool) -> Arc<Self> {
        let progress = Self::new(jobs, json, "publishing");
        if jobs == Some(1) {
            progress.bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        Arc::new(progress)
    }

    pub(super) fn has_bar(&self) -> bool {
        !self.bar.is_hidden()
    }

    /// Resets the bar to 0 of `length` items.
    pub(super) fn restart(&self, length: u64, label: &'static str) {
        self.bar.set_message(label);
        self.bar.set_length(length);
        self.bar.set_position(0);
    }

    /// Ends the bar and writes the summary: to stdout, or to stderr with `--json`.
    pub(super) fn finish(&self, summary: &str) {
        self.bar.finish_and_clear();
        summarize(summary, self.json);
    }
}

impl Output for ProgressReporter {
    fn advance(&self, count: u64) {
        self.bar.inc(count);
    }

    fn label(&self, text: String) {
        self.bar.set_message(text);
    }

    fn notice(&self, text: &str) {
        self.bar.suspend(|| notice(text));
    }

    fn event(&self, event: &Value) {
        if self.json {
            print(&event.to_string());
        }
    }
}
