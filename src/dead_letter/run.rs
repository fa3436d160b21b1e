//! Counts and output of an operation on many letters.

use serde_json::{Value, json};

use super::filter::LetterSelection;
use crate::domain::generation::NewerDelivery;
use crate::queue::{DeadLetter, DeadLetters, QueueError};
use crate::runtime::output::{Output, printable};

/// Counts of an operation, reported letter by letter.
pub struct LetterRun<'a> {
    pub(super) output: &'a dyn Output,
    /// Participle of the operation: `requeued`.
    verb: &'static str,
    /// Name of the boolean in events.
    key: String,
    /// Counts so far.
    pub counts: LetterCounts,
}

/// Result of an operation on many letters.
#[derive(Debug, Clone, Default)]
pub struct LetterCounts {
    /// Letters that were processed.
    pub done: u64,
    /// Of these, letters whose jobs will be skipped, because a newer generation was delivered.
    pub superseded: u64,
    /// Letters that were left alone.
    pub refused: u64,
    /// Letters at which the operation failed.
    pub failed: u64,
    /// Error that ended the operation early.
    pub stopped_by: Option<QueueError>,
}

impl LetterCounts {
    /// Returns true where no letter was selected and nothing failed.
    pub fn is_empty(&self) -> bool {
        self.done + self.refused + self.failed == 0 && self.stopped_by.is_none()
    }
}

impl<'a> LetterRun<'a> {
    /// A run without letters.
    pub fn new(output: &'a dyn Output, verb: &'static str) -> Self {
        Self { output, verb, key: verb.replace(' ', "_"), counts: LetterCounts::default() }
    }

    /// Replaces the name of the boolean in events, which is the verb otherwise.
    #[must_use]
    pub fn with_key(self, key: &str) -> Self {
        Self { key: key.to_owned(), ..self }
    }

    /// Returns the next selected letter; `None` at the end, or when no more letters can be read.
    pub async fn next(&mut self, letters: &mut dyn DeadLetters, selection: &mut LetterSelection) -> Option<DeadLetter> {
        let next = selection.next(letters, || self.output.advance(1)).await;
        next.unwrap_or_else(|problem| {
            self.stopped(problem);
            None
        })
    }

    /// Records that no more letters can be read.
    pub fn stopped(&mut self, problem: QueueError) {
        self.output.notice(&problem.to_string());
        self.counts.stopped_by = Some(problem);
    }

    /// Counts a processed letter.
    pub fn done(&mut self, letter: &DeadLetter) {
        self.processed(letter, &[]);
    }

    /// Counts a requeued letter. Its job will be skipped if `newer` was delivered.
    pub fn requeued(&mut self, letter: &DeadLetter, newer: Option<&NewerDelivery>) {
        self.counts.superseded += u64::from(newer.is_some());
        let new_run = ("run", letter.run().saturating_add(1).into());
        let by = newer.map(|newer| json!({ "job_id": &*newer.job, "generation": newer.generation }));
        let details: Vec<_> = [new_run].into_iter().chain(by.map(|by| ("superseded_by", by))).collect();
        self.processed(letter, &details);
    }

    fn processed(&mut self, letter: &DeadLetter, details: &[(&str, Value)]) {
        self.counts.done += 1;
        self.output.label(format!("{} {}", self.counts.done, self.verb));
        self.event(letter, true, details);
    }

    /// Counts a letter that is left alone. The reason is reported once for all such letters.
    pub fn refused(&mut self, letter: &DeadLetter, reason: &str) {
        self.counts.refused += 1;
        self.event(letter, false, &[("error", reason.into())]);
    }

    /// Counts a letter at which the operation failed. Returns true where the next letter may
    /// succeed.
    pub fn failed(&mut self, letter: &DeadLetter, problem: &QueueError) -> bool {
        self.counts.failed += 1;
        let name = letter.job_id().map_or_else(|| letter.id().to_string(), printable);
        self.output.notice(&format!("{name}: {problem}"));
        self.event(letter, false, &[("error", problem.to_string().into())]);
        let fatal = matches!(
            problem,
            QueueError::Unavailable(_) | QueueError::Denied(_) | QueueError::Lost | QueueError::Topology(_)
        );
        if fatal {
            self.counts.stopped_by = Some(problem.clone());
        }
        !fatal
    }

    fn event(&self, letter: &DeadLetter, done: bool, details: &[(&str, Value)]) {
        let mut event = json!({
            "letter": letter.id().as_str(), "job_id": letter.job_id(), "destination": letter.destination(),
        });
        event[&*self.key] = done.into();
        for (name, value) in details {
            event[*name] = value.clone();
        }
        self.output.event(&event);
    }
}
