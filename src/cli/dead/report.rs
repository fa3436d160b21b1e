//! What is seen of work on many letters: a bar on a terminal, a line per letter with `--json`, and a summary.

use std::io::IsTerminal as _;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};

use crate::cli::broker::exit;
use crate::cli::text::plain;
use crate::cli::{Exit, note, print};
use crate::queue::{DeadLetter, QueueError};

/// How many were dealt with, and in which way. Standard output carries data, standard error everything else.
#[derive(Debug)]
pub(super) struct Report {
    bar: ProgressBar,
    json: bool,
    /// What is done to a letter: `requeued`.
    done_word: &'static str,
    done: u64,
    refused: u64,
    failed: u64,
    stopped_by: Option<QueueError>,
}

impl Report {
    /// `letters` is how many there are to look at.
    pub(super) fn new(letters: u64, json: bool, done_word: &'static str) -> Self {
        let bar = ProgressBar::new(letters);
        if json || !std::io::stderr().is_terminal() {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {human_pos}/{human_len} {elapsed}") {
            bar.set_style(style);
        }
        bar.set_message(format!("0 {done_word}"));
        Self { bar, json, done_word, done: 0, refused: 0, failed: 0, stopped_by: None }
    }

    /// A letter was looked at.
    pub(super) fn looked(&self) {
        self.bar.inc(1);
    }

    pub(super) fn done(&mut self, letter: &DeadLetter, run: Option<u32>) {
        self.done += 1;
        self.bar.set_message(format!("{} {}", self.done, self.done_word));
        self.line(letter, true, run.map(|run| ("run", run.into())));
    }

    /// Nothing was tried. The reason was said once for all letters alike.
    pub(super) fn refused(&mut self, letter: &DeadLetter, why: &str) {
        self.refused += 1;
        self.line(letter, false, Some(("error", why.into())));
    }

    /// It was tried in vain. Whether it makes sense to go on.
    pub(super) fn failed(&mut self, letter: &DeadLetter, problem: &QueueError) -> bool {
        self.failed += 1;
        let name = letter.job_id().map_or_else(|| letter.id().to_string(), plain);
        self.say(&format!("{name}: {problem}"));
        self.line(letter, false, Some(("error", problem.to_string().into())));
        let hopeless = matches!(
            problem,
            QueueError::Unavailable(_) | QueueError::Denied(_) | QueueError::Lost | QueueError::Topology(_)
        );
        if hopeless {
            self.stopped_by = Some(problem.clone());
        }
        !hopeless
    }

    /// The queue can't be looked at any further.
    pub(super) fn stopped(&mut self, problem: QueueError) {
        self.say(&problem.to_string());
        self.stopped_by = Some(problem);
    }

    /// A note for people.
    pub(super) fn say(&self, text: &str) {
        self.bar.suspend(|| note(text));
    }

    /// The last words. `words` is what was done to the letters that were meant, if there were any.
    pub(super) fn end(&self, words: &str) -> Exit {
        let nothing = self.done + self.refused + self.failed == 0 && self.stopped_by.is_none();
        match self.bar.length() {
            Some(0) if nothing => self.close("there are no dead letters"),
            _ if nothing => self.close("no dead letter matches"),
            _ => self.sum_up(words),
        }
    }

    /// As [`Self::end`], where it is not asked whether any were meant.
    pub(super) fn sum_up(&self, words: &str) -> Exit {
        let refused = if self.refused > 0 { format!(", {} refused", self.refused) } else { String::new() };
        let failed = if self.failed > 0 { format!(", {} failed", self.failed) } else { String::new() };
        let ended = if self.stopped_by.is_some() { "; not all were looked at" } else { "" };
        self.close(&format!("{} {words}{refused}{failed}{ended}", self.done))
    }

    fn close(&self, summary: &str) -> Exit {
        self.bar.finish_and_clear();
        if self.json {
            note(summary);
        } else {
            print(summary);
        }
        self.exit()
    }

    fn exit(&self) -> Exit {
        match (self.done, self.refused, self.failed, &self.stopped_by) {
            (_, 0, 0, None) => Exit::Done,
            (0, 0, _, Some(problem)) => exit(problem),
            (0, 0, _, None) => Exit::Failed,
            (0, _, 0, None) => Exit::Problem,
            _ => Exit::Partly,
        }
    }

    fn line(&self, letter: &DeadLetter, done: bool, more: Option<(&str, Value)>) {
        if !self.json {
            return;
        }
        let mut line = json!({
            "letter": letter.id().as_str(), "job_id": letter.job_id(), "destination": letter.destination(),
        });
        line[self.done_word.replace(' ', "_")] = done.into();
        if let Some((name, value)) = more {
            line[name] = value;
        }
        print(&line.to_string());
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::queue::Properties;

    #[test]
    fn the_exit_says_whether_all_some_or_nothing_was_done() {
        let letter = DeadLetter::new("job.scheduled.a".to_owned(), Bytes::new(), Properties::default(), None);
        let report = || Report::new(1, false, "requeued");
        let away = || QueueError::Unavailable("away".to_owned());
        assert_eq!(report().exit(), Exit::Done);
        let mut refused = report();
        refused.refused(&letter, "");
        assert_eq!(refused.exit(), Exit::Problem);
        refused.done(&letter, None);
        assert_eq!(refused.exit(), Exit::Partly);
        let mut full = report();
        assert!(full.failed(&letter, &QueueError::Refused("full".to_owned())), "another one may fit");
        assert_eq!(full.exit(), Exit::Failed);
        let mut lost = report();
        assert!(!lost.failed(&letter, &away()));
        assert_eq!(lost.exit(), Exit::Unavailable);
        let mut half = report();
        half.done(&letter, None);
        half.stopped(away());
        assert_eq!(half.exit(), Exit::Partly);
    }
}
