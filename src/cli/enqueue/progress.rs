//! What the user sees: a bar on a terminal, a line per job with `--json`, and a summary.

use std::io::{IsTerminal as _, Write as _};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};

use super::input::{Prepared, Refusal};
use crate::domain::outcome::OutcomeKind;

/// Standard output carries data, standard error carries everything else.
pub(in crate::cli) struct Report {
    bar: ProgressBar,
    json: bool,
    shown: Shown,
    /// When the last line of numbers was written, where there is no bar.
    counted: Mutex<Instant>,
}

/// Which outcomes are told to people, one line each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cli) enum Shown {
    All,
    /// Of many, those that went well are only counted.
    Trouble,
}

/// How often the numbers are written where there is no bar.
const COUNTED: Duration = Duration::from_secs(10);

impl Report {
    pub(in crate::cli) fn new(length: Option<u64>, json: bool, shown: Shown) -> Self {
        let bar = length.map_or_else(ProgressBar::no_length, ProgressBar::new);
        if json || length == Some(1) || !std::io::stderr().is_terminal() {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {human_pos}/{human_len} {elapsed}") {
            bar.set_style(style);
        }
        bar.set_message("publishing");
        Self { bar, json, shown, counted: Mutex::new(Instant::now()) }
    }

    pub(in crate::cli) fn published(&self, job: &Prepared) {
        self.bar.inc(1);
        self.line(&json!({ "id": job.id, "destination": job.destination, "published": true }));
    }

    pub(in crate::cli) fn not_published(&self, job: &Prepared, why: &str) {
        self.say(&format!("{}: {why}", job.id));
        self.line(&json!({ "id": job.id, "destination": job.destination, "published": false, "error": why }));
    }

    pub(in crate::cli) fn refused(&self, refusal: &Refusal) {
        self.say(&format!("{refusal}; nothing after it was published"));
    }

    /// From publishing to waiting for `count` outcomes.
    pub(in crate::cli) fn waiting(&self, count: u64) {
        self.bar.set_message("waiting");
        self.bar.set_length(count);
        self.bar.set_position(0);
    }

    /// An outcome came in.
    pub(in crate::cli) fn outcome(&self, event: &Value, text: &str, (kind, terminal): (OutcomeKind, bool)) {
        if terminal {
            self.bar.inc(1);
        }
        self.line(event);
        let well = matches!(kind, OutcomeKind::Delivered | OutcomeKind::Skipped);
        if !self.json && (self.shown == Shown::All || !well) {
            self.say(text);
        }
    }

    /// The numbers so far: on the bar, or a line now and then.
    pub(in crate::cli) fn numbers(&self, text: &str) {
        if !self.bar.is_hidden() {
            self.bar.set_message(text.to_owned());
        } else if self.shown == Shown::Trouble {
            let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
            if counted.elapsed() >= COUNTED {
                *counted = Instant::now();
                self.say(text);
            }
        }
    }

    /// What is done already counts.
    pub(in crate::cli) fn already(&self, count: u64) {
        self.bar.inc(count);
    }

    /// A note for people.
    pub(in crate::cli) fn say(&self, text: &str) {
        // Standard error may be closed; that ends nothing.
        self.bar.suspend(|| drop(writeln!(std::io::stderr(), "{text}")));
    }

    /// A note that data says already, where data is asked for.
    pub(in crate::cli) fn tell(&self, text: &str) {
        if !self.json {
            self.say(text);
        }
    }

    /// The last words.
    pub(in crate::cli) fn end(&self, summary: &str) {
        self.bar.finish_and_clear();
        if self.json {
            self.say(summary);
        } else {
            crate::cli::print(summary);
        }
    }

    /// A line of data, where data is asked for.
    pub(in crate::cli) fn line(&self, data: &Value) {
        if self.json {
            crate::cli::print(&data.to_string());
        }
    }
}
