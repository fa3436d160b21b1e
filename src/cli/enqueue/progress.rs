//! What the user sees: a bar on a terminal, a line per job with `--json`, and a summary.

use std::io::{IsTerminal as _, Write as _};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};

use super::input::{Prepared, Refusal};

/// Standard output carries data, standard error carries everything else.
pub(super) struct Report {
    bar: ProgressBar,
    json: bool,
}

impl Report {
    pub(super) fn new(length: Option<u64>, json: bool) -> Self {
        let bar = length.map_or_else(ProgressBar::no_length, ProgressBar::new);
        if json || length == Some(1) || !std::io::stderr().is_terminal() {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {human_pos}/{human_len} {elapsed}") {
            bar.set_style(style);
        }
        bar.set_message("publishing");
        Self { bar, json }
    }

    pub(super) fn published(&self, job: &Prepared) {
        self.bar.inc(1);
        self.line(&json!({ "id": job.id, "destination": job.destination, "published": true }));
    }

    pub(super) fn not_published(&self, job: &Prepared, why: &str) {
        self.say(&format!("{}: {why}", job.id));
        self.line(&json!({ "id": job.id, "destination": job.destination, "published": false, "error": why }));
    }

    pub(super) fn refused(&self, refusal: &Refusal) {
        self.say(&format!("{refusal}; nothing after it was published"));
    }

    /// From publishing to waiting for `count` outcomes.
    pub(super) fn waiting(&self, count: u64) {
        self.bar.set_message("waiting");
        self.bar.set_length(count);
        self.bar.set_position(0);
    }

    /// An outcome came in.
    pub(super) fn outcome(&self, event: &Value, text: &str, terminal: bool) {
        if terminal {
            self.bar.inc(1);
        }
        self.line(event);
        if !self.json {
            self.say(text);
        }
    }

    /// A note for people.
    pub(super) fn say(&self, text: &str) {
        // Standard error may be closed; that ends nothing.
        self.bar.suspend(|| drop(writeln!(std::io::stderr(), "{text}")));
    }

    /// The last words.
    pub(super) fn end(&self, summary: &str) {
        self.bar.finish_and_clear();
        if self.json {
            self.say(summary);
        } else {
            crate::cli::print(summary);
        }
    }

    fn line(&self, data: &Value) {
        if self.json {
            crate::cli::print(&data.to_string());
        }
    }
}
