//! Waiting for outcomes: subscribed before the first job is published, so that none is missed.

use std::collections::{BTreeSet, HashMap};
use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::progress::Report;
use super::seen::{Seen, SeenData};
use crate::cli::Exit;
use crate::cli::left::{self, Left, Open, Workers};
use crate::cli::text::moment;
use crate::config::BrokerConfig;
use crate::domain::outcome::OutcomeKind;
use crate::queue::{Outcomes, QueueError};
use crate::runtime::shutdown::TerminationSignal;

/// Without an outcome for so long, it is asked why.
const QUIET: Duration = Duration::from_secs(5);
/// Once that was said, it is asked again no sooner than after this.
const SAID: Duration = Duration::from_secs(10);

/// What is known of the jobs that were published.
#[derive(Debug, Default)]
struct Ledger {
    jobs: Mutex<Jobs>,
    lost: Mutex<Option<String>>,
}

#[derive(Debug, Default)]
struct Jobs {
    by_id: HashMap<String, Known>,
    tally: Tally,
}

/// A job's last outcome, if any; delivered beats every other, and what is terminal beats `retrying`.
#[derive(Debug, Default)]
struct Known {
    destination: String,
    kind: Option<OutcomeKind>,
    /// What it said, while the job has not ended.
    retrying: Option<SeenData>,
}

impl Known {
    fn open(&self) -> Option<Open<'_>> {
        let ended = self.kind.is_some_and(OutcomeKind::is_terminal);
        (!ended).then_some(Open { jobs: 1, destination: Some(&self.destination), last: self.retrying.as_ref() })
    }
}

impl Ledger {
    fn jobs(&self) -> MutexGuard<'_, Jobs> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tally(&self) -> Tally {
        self.jobs().tally
    }

    fn expect(&self, id: &str, destination: &str) {
        let Jobs { by_id, tally } = &mut *self.jobs();
        let known = Known { destination: destination.to_owned(), ..Known::default() };
        if by_id.insert(id.to_owned(), known).is_none() {
            tally.left += 1;
        }
    }

    fn forget(&self, id: &str) {
        let Jobs { by_id, tally } = &mut *self.jobs();
        if let Some(known) = by_id.remove(id) {
            *tally.of(known.kind) -= 1;
        }
    }

    /// Notes an outcome; whether no terminal one of this job came before, or `None` where it is not ours.
    fn note(&self, id: &str, kind: OutcomeKind, data: &SeenData) -> Option<bool> {
        let Jobs { by_id, tally } = &mut *self.jobs();
        let known = by_id.get_mut(id)?;
        let first = known.kind.is_none_or(|known| !known.is_terminal());
        if known.kind != Some(OutcomeKind::Delivered) && (first || kind.is_terminal()) {
            *tally.of(known.kind) -= 1;
            known.kind = Some(kind);
            known.retrying = (!kind.is_terminal()).then(|| data.clone());
            *tally.of(known.kind) += 1;
        }
        Some(first)
    }

    /// What has not ended, with the reason as far as workers know it.
    async fn waiting(&self, workers: &Workers) -> Left {
        let destinations: BTreeSet<String> =
            self.jobs().by_id.values().filter(|job| job.open().is_some()).map(|job| job.destination.clone()).collect();
        let heard = workers.troubles(&destinations.iter().map(String::as_str).collect()).await;
        left::grouped(self.jobs().by_id.values().filter_map(Known::open), &heard)
    }

    fn lost(&self) -> MutexGuard<'_, Option<String>> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Jobs by their outcome.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub(in crate::cli) struct Tally {
    pub(in crate::cli) delivered: usize,
    pub(in crate::cli) skipped: usize,
    pub(in crate::cli) failed: usize,
    pub(in crate::cli) expired: usize,
    pub(in crate::cli) retrying: usize,
    /// Without any outcome so far.
    pub(in crate::cli) left: usize,
}

impl Tally {
    pub(in crate::cli) fn of(&mut self, state: Option<OutcomeKind>) -> &mut usize {
        match state {
            Some(OutcomeKind::Delivered) => &mut self.delivered,
            Some(OutcomeKind::Skipped) => &mut self.skipped,
            Some(OutcomeKind::Failed) => &mut self.failed,
            Some(OutcomeKind::Expired) => &mut self.expired,
            Some(OutcomeKind::Retrying) => &mut self.retrying,
            None => &mut self.left,
        }
    }

    fn good(self) -> usize {
        self.delivered + self.skipped
    }

    fn bad(self) -> usize {
        self.failed + self.expired
    }

    fn open(self) -> usize {
        self.retrying + self.left
    }

    fn all(self) -> u64 {
        u64::try_from(self.good() + self.bad() + self.open()).unwrap_or(u64::MAX)
    }
}

impl fmt::Display for Tally {
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

/// Listens while jobs are published and after.
pub(in crate::cli) struct Waiter {
    ledger: Arc<Ledger>,
    report: Arc<Report>,
    changed: watch::Receiver<()>,
    task: JoinHandle<()>,
}

impl Waiter {
    /// Listens from now on.
    pub(in crate::cli) async fn subscribe(
        broker: &BrokerConfig,
        name: &str,
        report: Arc<Report>,
    ) -> Result<Self, QueueError> {
        let outcomes = Outcomes::subscribe(broker, name).await?;
        let ledger = Arc::new(Ledger::default());
        let (tell, changed) = watch::channel(());
        let task = tokio::spawn(listen(outcomes, Arc::clone(&ledger), Arc::clone(&report), tell));
        Ok(Self { ledger, report, changed, task })
    }

    /// A job with this id is about to be published.
    pub(in crate::cli) fn expect(&self, id: &str, destination: &str) {
        self.ledger.expect(id, destination);
    }

    /// It was not published after all.
    pub(in crate::cli) fn forget(&self, id: &str) {
        self.ledger.forget(id);
    }

    /// An outcome that was told before this began to listen. Of those before `since` only `delivered` counts: the others are of an
    /// earlier try.
    pub(in crate::cli) fn earlier(&self, body: &[u8], since: Option<Timestamp>) {
        show(&self.ledger, &self.report, body, since);
    }

    /// Waits until every job has ended, the time is over, or the broker is lost. `unpublished` count as failed. Where jobs are left,
    /// `workers` are asked why.
    pub(in crate::cli) async fn finish(mut self, limit: Option<Duration>, unpublished: u64, workers: &Workers) -> Exit {
        let tally = self.ledger.tally();
        self.report.waiting(tally.all());
        self.report.already(tally.all().saturating_sub(u64::try_from(tally.open()).unwrap_or(u64::MAX)));
        let end = self.end(limit, workers).await;
        self.task.abort();
        let tally = self.ledger.tally();
        let mut summary = tally.to_string();
        if end == End::Interrupted {
            self.report.end(&format!("{summary} (interrupted; the jobs stay queued)"));
            return Exit::Signal(TerminationSignal::Interrupt);
        }
        if tally.open() > 0 {
            let why = self.ledger.lost().clone();
            let late = if end == End::Late { "the time is over" } else { "the broker was lost" };
            let why = why.unwrap_or_else(|| late.to_owned());
            let waiting = self.ledger.waiting(workers).await;
            self.report.line(&json!({ "waiting_for": waiting }));
            summary = format!("{summary} ({why}){}", waiting.lines());
        }
        self.report.end(&summary);
        exit(tally, unpublished)
    }

    /// Waits, and says meanwhile why nothing comes.
    async fn end(&mut self, limit: Option<Duration>, workers: &Workers) -> End {
        let (ledger, report) = (Arc::clone(&self.ledger), Arc::clone(&self.report));
        let ended = self.changed.wait_for(|()| {
            let tally = ledger.tally();
            report.numbers(&tally.to_string());
            tally.open() == 0 || ledger.lost().is_some()
        });
        tokio::select! {
            in_time = within(limit, ended) => if in_time { End::All } else { End::Late },
            Ok(()) = tokio::signal::ctrl_c() => End::Interrupted,
            never = explain(&self.ledger, &self.report, workers) => match never {},
        }
    }
}

/// How a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Every job did, or the broker is lost.
    All,
    Late,
    Interrupted,
}

/// Says which destinations are why nothing comes, and again when that has changed. Who is told outcomes needs no more.
async fn explain(ledger: &Ledger, report: &Report, workers: &Workers) -> Infallible {
    let (mut said, mut pause) = (String::new(), QUIET);
    loop {
        let before = ledger.tally();
        tokio::time::sleep(pause).await;
        if ledger.tally() != before {
            continue;
        }
        let why = ledger.waiting(workers).await.for_destinations();
        if why != said && !why.is_empty() {
            report.say(&format!("waiting:{why}"));
            pause = SAID;
        }
        said = why;
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
    if tally.bad() == 0 && tally.open() == 0 && unpublished == 0 {
        Exit::Done
    } else if tally.good() > 0 || tally.open() > 0 {
        Exit::Partly
    } else {
        Exit::Failed
    }
}

async fn listen(mut outcomes: Outcomes, ledger: Arc<Ledger>, report: Arc<Report>, tell: watch::Sender<()>) {
    loop {
        match outcomes.next().await {
            Ok(message) => {
                show(&ledger, &report, &message.body, None);
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

fn show(ledger: &Ledger, report: &Report, body: &[u8], since: Option<Timestamp>) {
    let Ok(event) = serde_json::from_slice::<Value>(body) else { return };
    let Ok(seen) = Seen::deserialize(&event) else { return };
    let Some(kind) = seen.kind().filter(|_| seen.counts(since)) else { return };
    let Some(first) = ledger.note(&seen.subject, kind, &seen.data) else { return };
    if first || kind == OutcomeKind::Delivered {
        report.outcome(&event, &sentence(&seen, kind), (kind, first && kind.is_terminal()));
    }
}

fn sentence(seen: &Seen, kind: OutcomeKind) -> String {
    let mut text = format!("{}: {}", seen.subject, kind.as_str());
    let details = [&seen.data.reason, &seen.data.message, &seen.data.hint].into_iter().flatten();
    for detail in details.filter(|detail| !detail.is_empty()) {
        text = format!("{text}: {detail}");
    }
    match &seen.data.retry_at {
        Some(at) => format!("{text} (again at {})", moment(at)),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delivered_beats_every_other_outcome() {
        let ledger = Ledger::default();
        let nothing = SeenData::default();
        ledger.expect("a", "acme");
        ledger.expect("a", "acme");
        let mut known = Vec::new();
        assert_eq!(ledger.note("b", OutcomeKind::Delivered, &nothing), None);
        for (kind, first) in [
            (OutcomeKind::Retrying, true),
            (OutcomeKind::Failed, true),
            (OutcomeKind::Retrying, false),
            (OutcomeKind::Delivered, false),
            (OutcomeKind::Failed, false),
        ] {
            assert_eq!(ledger.note("a", kind, &nothing), Some(first));
            known.push(ledger.tally().to_string());
        }
        let failed = "0 delivered, 1 failed";
        assert_eq!(known, ["0 delivered, 1 retrying", failed, failed, "1 delivered", "1 delivered"]);
        ledger.forget("a");
        assert_eq!(ledger.tally(), Tally::default());
    }

    #[test]
    fn the_exit_code_says_how_it_went() {
        let exit = |delivered, failed, left, unpublished| {
            exit(Tally { delivered, failed, left, ..Tally::default() }, unpublished)
        };
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
            r#"{"subject":"a","time":"2027-01-15T08:00:00Z","type":"consign.transfer.failed.v1","data":{"reason":"kms_denied","message":"m","hint":"h","retry_at":"2027-01-15T08:02:00.123456789Z"}}"#,
        )
        .unwrap();
        let kind = seen.kind().unwrap();
        assert_eq!(sentence(&seen, kind), "a: failed: kms_denied: m: h (again at 2027-01-15T08:02:00Z)");
    }
}
