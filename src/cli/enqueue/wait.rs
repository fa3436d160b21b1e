//! Waiting for outcomes: subscribed before the first job is published, so that none is missed.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::progress::Report;
use crate::cli::Exit;
use crate::config::BrokerConfig;
use crate::outcome::OutcomeKind;
use crate::queue::{Outcomes, QueueError};

/// What is known of the jobs that were published.
#[derive(Debug, Default)]
struct Ledger {
    /// `None` while the terminal outcome is out. Delivered beats every other.
    jobs: Mutex<HashMap<String, Option<OutcomeKind>>>,
    lost: Mutex<Option<String>>,
}

impl Ledger {
    fn jobs(&self) -> MutexGuard<'_, HashMap<String, Option<OutcomeKind>>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tally(&self) -> Tally {
        let jobs = self.jobs();
        let count = |wanted: fn(&OutcomeKind) -> bool| jobs.values().flatten().filter(|kind| wanted(kind)).count();
        let good = count(|kind| matches!(kind, OutcomeKind::Delivered | OutcomeKind::Skipped));
        let ended = count(|_| true);
        Tally { good, bad: ended - good, open: jobs.len() - ended }
    }

    /// Notes an outcome; whether it is the first terminal one of a job of ours, or `None` where it is not ours.
    fn note(&self, id: &str, kind: OutcomeKind) -> Option<bool> {
        let mut jobs = self.jobs();
        let state = jobs.get_mut(id)?;
        let first = state.is_none();
        if kind.is_terminal() && *state != Some(OutcomeKind::Delivered) {
            *state = Some(kind);
        }
        Some(first)
    }

    fn lost(&self) -> MutexGuard<'_, Option<String>> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tally {
    good: usize,
    bad: usize,
    open: usize,
}

/// The part of an outcome that is shown.
#[derive(Debug, Deserialize)]
struct Seen {
    subject: String,
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    data: SeenData,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct SeenData {
    reason: Option<String>,
    message: Option<String>,
    hint: Option<String>,
    retry_at: Option<String>,
}

/// Listens while jobs are published and after.
pub(super) struct Waiter {
    ledger: Arc<Ledger>,
    report: Arc<Report>,
    changed: watch::Receiver<()>,
    task: JoinHandle<()>,
}

impl Waiter {
    /// Listens from now on.
    pub(super) async fn subscribe(broker: &BrokerConfig, name: &str, report: Arc<Report>) -> Result<Self, QueueError> {
        let outcomes = Outcomes::subscribe(broker, name).await?;
        let ledger = Arc::new(Ledger::default());
        let (tell, changed) = watch::channel(());
        let task = tokio::spawn(listen(outcomes, Arc::clone(&ledger), Arc::clone(&report), tell));
        Ok(Self { ledger, report, changed, task })
    }

    /// A job with this id is about to be published.
    pub(super) fn expect(&self, id: &str) {
        self.ledger.jobs().entry(id.to_owned()).or_default();
    }

    /// It was not published after all.
    pub(super) fn forget(&self, id: &str) {
        self.ledger.jobs().remove(id);
    }

    /// Waits until every job has ended, the time is over, or the broker is lost. `unpublished` count as failed.
    pub(super) async fn finish(mut self, limit: Option<Duration>, unpublished: u64) -> Exit {
        let tally = self.ledger.tally();
        self.report.waiting(u64::try_from(tally.good + tally.bad + tally.open).unwrap_or(u64::MAX));
        let ledger = Arc::clone(&self.ledger);
        let ended = self.changed.wait_for(|()| ledger.tally().open == 0 || ledger.lost().is_some());
        let in_time = within(limit, ended).await;
        self.task.abort();
        let tally = self.ledger.tally();
        let mut summary = format!("{} delivered or skipped, {} failed", tally.good, tally.bad);
        if tally.open > 0 {
            let why = self.ledger.lost().clone();
            let why =
                why.unwrap_or_else(|| if in_time { "the broker was lost" } else { "the time is over" }.to_owned());
            summary = format!("{summary}, {} without an outcome yet ({why})", tally.open);
        }
        self.report.end(&summary);
        exit(tally, unpublished)
    }
}

async fn within<T>(limit: Option<Duration>, future: impl Future<Output = T>) -> bool {
    let Some(limit) = limit else {
        future.await;
        return true;
    };
    tokio::time::timeout(limit, future).await.is_ok()
}

fn exit(tally: Tally, unpublished: u64) -> Exit {
    if tally.bad == 0 && tally.open == 0 && unpublished == 0 {
        Exit::Done
    } else if tally.good > 0 || tally.open > 0 {
        Exit::Partly
    } else {
        Exit::Failed
    }
}

async fn listen(mut outcomes: Outcomes, ledger: Arc<Ledger>, report: Arc<Report>, tell: watch::Sender<()>) {
    loop {
        match outcomes.next().await {
            Ok(message) => {
                show(&ledger, &report, &message.body);
                tell.send_replace(());
            }
            Err(problem) => {
                *ledger.lost() = Some(problem.to_string());
                tell.send_replace(());
                return;
            }
        }
    }
}

fn show(ledger: &Ledger, report: &Report, body: &[u8]) {
    let Ok(event) = serde_json::from_slice::<Value>(body) else { return };
    let Ok(seen) = Seen::deserialize(&event) else { return };
    let Some(kind) = kind_of(&seen.kind) else { return };
    let Some(first) = ledger.note(&seen.subject, kind) else { return };
    if first || kind == OutcomeKind::Delivered {
        report.outcome(&event, &sentence(&seen, kind), first && kind.is_terminal());
    }
}

fn kind_of(event_type: &str) -> Option<OutcomeKind> {
    use OutcomeKind::{Delivered, Expired, Failed, Retrying, Skipped};
    [Delivered, Failed, Retrying, Skipped, Expired].into_iter().find(|kind| kind.event_type() == event_type)
}

fn sentence(seen: &Seen, kind: OutcomeKind) -> String {
    let mut text = format!("{}: {}", seen.subject, kind.as_str());
    let details = [&seen.data.reason, &seen.data.message, &seen.data.hint].into_iter().flatten();
    for detail in details.filter(|detail| !detail.is_empty()) {
        text = format!("{text}: {detail}");
    }
    match &seen.data.retry_at {
        Some(at) => format!("{text} (again at {at})"),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delivered_beats_every_other_outcome() {
        let ledger = Ledger::default();
        ledger.jobs().insert("a".to_owned(), None);
        assert_eq!(ledger.note("b", OutcomeKind::Delivered), None);
        assert_eq!(ledger.note("a", OutcomeKind::Retrying), Some(true));
        assert_eq!(ledger.tally(), Tally { good: 0, bad: 0, open: 1 });
        assert_eq!(ledger.note("a", OutcomeKind::Failed), Some(true));
        assert_eq!(ledger.tally(), Tally { good: 0, bad: 1, open: 0 });
        assert_eq!(ledger.note("a", OutcomeKind::Delivered), Some(false));
        assert_eq!(ledger.note("a", OutcomeKind::Failed), Some(false));
        assert_eq!(ledger.tally(), Tally { good: 1, bad: 0, open: 0 });
    }

    #[test]
    fn the_exit_code_says_how_it_went() {
        let exit = |good, bad, open, unpublished| exit(Tally { good, bad, open }, unpublished);
        assert_eq!(exit(3, 0, 0, 0), Exit::Done);
        assert_eq!(exit(2, 1, 0, 0), Exit::Partly);
        assert_eq!(exit(2, 0, 1, 0), Exit::Partly);
        assert_eq!(exit(2, 0, 0, 1), Exit::Partly);
        assert_eq!(exit(0, 3, 0, 0), Exit::Failed);
        assert_eq!(exit(0, 0, 3, 0), Exit::Partly, "nobody knows yet");
    }

    #[test]
    fn a_sentence_tells_what_to_do() {
        let seen: Seen = serde_json::from_str(
            r#"{"subject":"a","type":"consign.transfer.failed.v1","data":{"reason":"kms_denied","message":"m","hint":"h"}}"#,
        )
        .unwrap();
        let kind = kind_of(&seen.kind).unwrap();
        assert_eq!(sentence(&seen, kind), "a: failed: kms_denied: m: h");
    }
}
