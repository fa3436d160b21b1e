//! Jobs counted by outcome.

use std::fmt;

use crate::domain::outcome::OutcomeKind;

/// Number of jobs by their last outcome.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct OutcomeCounts {
    /// Delivered jobs.
    pub delivered: usize,
    /// Skipped jobs.
    pub skipped: usize,
    /// Failed jobs.
    pub failed: usize,
    /// Jobs past their `expires_at`.
    pub expired: usize,
    /// Jobs that wait for their next attempt.
    pub retrying: usize,
    /// Jobs without an outcome so far.
    pub left: usize,
}

impl OutcomeCounts {
    /// Returns the counter of an outcome; `None` stands for jobs without one.
    pub fn of(&mut self, kind: Option<OutcomeKind>) -> &mut usize {
        match kind {
            Some(OutcomeKind::Delivered) => &mut self.delivered,
            Some(OutcomeKind::Skipped) => &mut self.skipped,
            Some(OutcomeKind::Failed) => &mut self.failed,
            Some(OutcomeKind::Expired) => &mut self.expired,
            Some(OutcomeKind::Retrying) => &mut self.retrying,
            None => &mut self.left,
        }
    }

    /// Returns the number of jobs that ended well.
    pub fn succeeded(self) -> usize {
        self.delivered + self.skipped
    }

    /// Returns the number of jobs that ended in a failure.
    pub fn unsuccessful(self) -> usize {
        self.failed + self.expired
    }

    /// Returns the number of jobs that have not ended.
    pub fn pending(self) -> usize {
        self.retrying + self.left
    }

    /// Returns the number of all jobs.
    pub fn total(self) -> u64 {
        u64::try_from(self.succeeded() + self.unsuccessful() + self.pending()).unwrap_or(u64::MAX)
    }
}

impl fmt::Display for OutcomeCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { delivered, skipped, failed, expired, retrying, left } = self;
        let counts = [
            (delivered, "delivered"),
            (skipped, "skipped"),
            (failed, "failed"),
            (expired, "expired"),
            (retrying, "retrying"),
            (left, "left"),
        ];
        let shown = counts.into_iter().filter(|(count, word)| **count > 0 || *word == "delivered");
        f.write_str(&shown.map(|(count, word)| format!("{count} {word}")).collect::<Vec<_>>().join(", "))
    }
}
