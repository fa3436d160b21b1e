//! Requeuing of letters: their jobs return to their lanes.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::filter::LetterSelection;
use super::gate::{DestinationProbe, RequeueGate};
use super::newer::ReportedDeliveries;
use super::run::LetterRun;
use crate::queue::{DeadLetter, DeadLetters};
use crate::runtime::output::printable;

/// Options of a requeue.
#[derive(Debug, Clone, Copy)]
pub struct RequeueOptions {
    /// True where nothing is requeued.
    pub dry_run: bool,
    /// True where jobs past their `expires_at` are requeued, too.
    pub force: bool,
    /// True where the jobs count as the newest refresh of their objects.
    pub as_new: bool,
    /// Time between two jobs.
    pub interval: Option<Duration>,
}

/// Requeue of many letters.
pub struct Requeue<P> {
    options: RequeueOptions,
    /// `None` where every destination may receive its jobs.
    gate: Option<RequeueGate<P>>,
    delivered: ReportedDeliveries,
    next_at: Option<Instant>,
    /// True once an expired job was reported.
    expiry_reported: bool,
    /// True once a superseded job was reported.
    superseded_reported: bool,
}

impl<P: DestinationProbe> Requeue<P> {
    /// A requeue. Without a gate no destination is probed. Jobs that `delivered` supersedes are
    /// requeued and reported; with `as_new` none is.
    pub fn new(options: RequeueOptions, gate: Option<RequeueGate<P>>, delivered: ReportedDeliveries) -> Self {
        Self { options, gate, delivered, next_at: None, expiry_reported: false, superseded_reported: false }
    }

    /// Requeues the selected letters. Dropped halfway, it leaves every letter either where it was
    /// or requeued.
    pub async fn run(mut self, letters: &mut dyn DeadLetters, mut selection: LetterSelection, run: &mut LetterRun<'_>) {
        while let Some(letter) = run.next(letters, &mut selection).await {
            if !self.requeue(letters, &letter, run).await {
                return;
            }
        }
    }

    /// Requeues one letter. Returns true where the next letter may succeed.
    async fn requeue(&mut self, letters: &mut dyn DeadLetters, letter: &DeadLetter, run: &mut LetterRun<'_>) -> bool {
        if let Some(reason) = self.refusal(letter, run).await {
            run.refused(letter, &reason);
            return true;
        }
        if self.options.dry_run {
            self.requeued(letter, run);
            return true;
        }
        self.wait().await;
        let as_new = self.options.as_new;
        let newest = as_new.then(|| self.delivered.assign_newest(letter, Timestamp::now())).flatten();
        match letters.requeue(newest).await {
            Ok(()) => {
                self.requeued(letter, run);
                true
            }
            Err(problem) => run.failed(letter, &problem),
        }
    }

    fn requeued(&mut self, letter: &DeadLetter, run: &mut LetterRun<'_>) {
        let newer = self.delivered.superseding(letter).filter(|_| !self.options.as_new);
        run.requeued(letter, newer);
        if let Some(newer) = newer.filter(|_| !std::mem::replace(&mut self.superseded_reported, true)) {
            let (job, newer) = (letter.job_id().map_or_else(String::new, printable), printable(&newer.to_string()));
            run.output.notice(&format!(
                "{job}: superseded by {newer}, which was delivered; workers skip such jobs (--as-new makes them the newest)"
            ));
        }
    }

    async fn refusal(&mut self, letter: &DeadLetter, run: &LetterRun<'_>) -> Option<String> {
        if let Some(size) = letter.properties().unread {
            return Some(format!("its body of {size} bytes is too large to be read, and is not a job"));
        }
        if self.options.as_new && !self.delivered.can_assign(letter) {
            return Some(
                "the highest generation of its object is not known, as control messages can't be read".to_owned(),
            );
        }
        if let Some(reason) = self.expired(letter) {
            if !std::mem::replace(&mut self.expiry_reported, true) {
                run.output.notice(&format!(
                    "{reason}; the dead letters of these jobs are kept (--force requeues them anyway)"
                ));
            }
            return Some(reason);
        }
        let decision = self.gate.as_mut()?.decide(letter).await;
        if decision.is_new {
            let name = letter.destination().map_or_else(|| "a destination without a name".to_owned(), printable);
            let hint = if decision.refusal.is_some() {
                "; its dead letters are kept (--force requeues them anyway, without a test)"
            } else {
                ""
            };
            let texts = decision.refusal.iter().chain(&decision.remark);
            texts.for_each(|text| run.output.notice(&format!("{name}: {text}{hint}")));
        }
        decision.refusal
    }

    /// Reason against a job past its `expires_at`: a worker would end it as expired at once, and
    /// nothing would remain of it.
    fn expired(&self, letter: &DeadLetter) -> Option<String> {
        let expires_at = letter.job().ok()?.expires_at?;
        if self.options.force || expires_at > Timestamp::now() {
            return None;
        }
        let job = letter.job_id().map_or_else(String::new, printable);
        Some(format!("{job}: its expires_at ({expires_at:.0}) has passed"))
    }

    async fn wait(&mut self) {
        let Some(interval) = self.options.interval else { return };
        if let Some(at) = self.next_at {
            tokio::time::sleep_until(at).await;
        }
        self.next_at = Some(Instant::now() + interval);
    }
}
