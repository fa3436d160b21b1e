//! Waiting for the outcomes of published jobs. The subscription begins before the first job is
//! published, so that no outcome is missed.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::Exit;
use super::output::ProgressReporter;
use super::output::text::timestamp;
use super::pending::{destination_lines, lines};
use super::workers::Workers;
use crate::domain::outcome::OutcomeKind;
use crate::producer::counts::OutcomeCounts;
use crate::producer::outcome::ObservedOutcome;
use crate::producer::pending::PendingReport;
use crate::producer::tracker::OutcomeTracker;
use crate::queue::{Admin, Outcomes, QueueError};
use crate::runtime::output::Output as _;
use crate::runtime::shutdown::TerminationSignal;

/// Time without an outcome after which workers are asked for the cause.
const QUIET_TIME: Duration = Duration::from_secs(5);
/// Time between two queries once a cause was shown.
const EXPLAIN_INTERVAL: Duration = Duration::from_secs(10);
/// Time between two lines of counts where there is no bar.
const COUNTS_INTERVAL: Duration = Duration::from_secs(10);

/// Outcomes that are shown to people, one line each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ShownOutcomes {
    All,
    /// Of many jobs the successful ones are only counted.
    Failures,
}

/// Options of a wait.
pub(super) struct WaitOptions<'a> {
    /// Time limit.
    pub(super) timeout: Option<Duration>,
    /// Jobs that could not be published; they count as failed.
    pub(super) unpublished: u64,
    /// Workers that are asked for the cause of pending jobs.
    pub(super) workers: &'a Workers,
}

/// State shared with the task that receives outcomes.
struct WaitState {
    tracker: Mutex<OutcomeTracker>,
    /// Error that ended the subscription.
    lost: Mutex<Option<String>>,
    progress: Arc<ProgressReporter>,
    shown: ShownOutcomes,
    /// Time of the last line of counts.
    counts_shown_at: Mutex<Instant>,
}

impl WaitState {
    fn counts(&self) -> OutcomeCounts {
        self.tracker.lock().counts()
    }

    /// Pending jobs, with the cause as far as workers know it.
    async fn pending(&self, workers: &Workers) -> PendingReport {
        let destinations = self.tracker.lock().pending_destinations();
        let reports = workers.reports(&destinations.iter().map(String::as_str).collect()).await;
        PendingReport::new(self.tracker.lock().pending(), &reports)
    }

    /// Records and shows an outcome. Those before `since` do not count.
    fn receive(&self, body: &[u8], since: Option<Timestamp>) {
        let Ok(event) = serde_json::from_slice::<Value>(body) else { return };
        let Ok(outcome) = ObservedOutcome::deserialize(&event) else { return };
        let Some(kind) = outcome.kind().filter(|_| outcome.counts(since)) else { return };
        let Some(first) = self.tracker.lock().record(&outcome.subject, kind, &outcome.data) else { return };
        if !first && kind != OutcomeKind::Delivered {
            return;
        }
        if first && kind.is_terminal() {
            self.progress.advance(1);
        }
        self.progress.event(&event);
        let succeeded = matches!(kind, OutcomeKind::Delivered | OutcomeKind::Skipped);
        if !self.progress.json && (self.shown == ShownOutcomes::All || !succeeded) {
            self.progress.notice(&outcome_line(&outcome, kind));
        }
    }

    /// Shows the counts: beside the bar, or as a line now and then.
    fn show_counts(&self, counts: OutcomeCounts) {
        if self.progress.has_bar() {
            self.progress.label(counts.to_string());
        } else if self.shown == ShownOutcomes::Failures {
            let mut shown_at = self.counts_shown_at.lock();
            if shown_at.elapsed() >= COUNTS_INTERVAL {
                *shown_at = Instant::now();
                self.progress.notice(&counts.to_string());
            }
        }
    }
}

/// Subscription to the outcomes of published jobs.
pub(super) struct OutcomeWaiter {
    state: Arc<WaitState>,
    changed: watch::Receiver<()>,
    task: JoinHandle<()>,
}

impl OutcomeWaiter {
    /// Subscribes to outcomes from now on.
    pub(super) async fn subscribe(
        admin: &dyn Admin,
        progress: Arc<ProgressReporter>,
        shown: ShownOutcomes,
    ) -> Result<Self, QueueError> {
        let outcomes = admin.subscribe().await?;
        let state = Arc::new(WaitState {
            tracker: Mutex::default(),
            lost: Mutex::default(),
            progress,
            shown,
            counts_shown_at: Mutex::new(Instant::now()),
        });
        let (notify, changed) = watch::channel(());
        let task = tokio::spawn(receive_all(outcomes, Arc::clone(&state), notify));
        Ok(Self { state, changed, task })
    }

    /// Adds a job that is about to be published.
    pub(super) fn expect(&self, id: &str, destination: &str) {
        self.state.tracker.lock().expect(id, destination);
    }

    /// Removes a job that was not published.
    pub(super) fn forget(&self, id: &str, destination: &str) {
        self.state.tracker.lock().forget(id, destination);
    }

    /// Records an outcome from before the subscription. Those before `since` belong to an earlier
    /// run, and do not count.
    pub(super) fn record_earlier(&self, body: &[u8], since: Option<Timestamp>) {
        self.state.receive(body, since);
    }

    /// Waits until every job has ended, the time is over, or the broker is lost. Workers are asked
    /// for the cause of pending jobs.
    pub(super) async fn finish(mut self, options: WaitOptions<'_>) -> Exit {
        let (state, counts) = (Arc::clone(&self.state), self.state.counts());
        state.progress.restart(counts.total(), "waiting");
        state.progress.advance(counts.total().saturating_sub(u64::try_from(counts.pending()).unwrap_or(u64::MAX)));
        let end = self.wait(&options).await;
        self.task.abort();
        let counts = state.counts();
        let mut summary = summarize(counts, options.unpublished);
        if end == WaitEnd::Interrupted {
            state.progress.finish(&format!("{summary} (interrupted; the jobs stay queued)"));
            return Exit::Signal(TerminationSignal::Interrupt);
        }
        if counts.pending() > 0 {
            let lost = state.lost.lock().clone();
            let fallback = if end == WaitEnd::TimedOut { "timed out" } else { "the broker was lost" };
            let reason = lost.unwrap_or_else(|| fallback.to_owned());
            let pending = state.pending(options.workers).await;
            state.progress.event(&json!({ "waiting_for": pending }));
            summary = format!("{summary} ({reason}){}", lines(&pending));
        }
        state.progress.finish(&summary);
        exit(counts, options.unpublished)
    }

    /// Waits, and reports meanwhile why no outcomes arrive.
    async fn wait(&mut self, options: &WaitOptions<'_>) -> WaitEnd {
        let state = Arc::clone(&self.state);
        let ended = self.changed.wait_for(|()| {
            let counts = state.counts();
            state.show_counts(counts);
            counts.pending() == 0 || state.lost.lock().is_some()
        });
        tokio::select! {
            in_time = timeout(options.timeout.unwrap_or(Duration::MAX), ended) => {
                if in_time.is_ok() { WaitEnd::Ended } else { WaitEnd::TimedOut }
            }
            Ok(()) = tokio::signal::ctrl_c() => WaitEnd::Interrupted,
            never = explain(&self.state, options.workers) => match never {},
        }
    }
}

/// End of a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WaitEnd {
    /// Every job ended, or the broker is lost.
    Ended,
    TimedOut,
    Interrupted,
}

/// Reports the destinations that pending jobs wait for, and again after a change. Nothing is
/// reported while outcomes arrive.
async fn explain(state: &WaitState, workers: &Workers) -> Infallible {
    let (mut shown, mut pause) = (String::new(), QUIET_TIME);
    loop {
        let before = state.counts();
        tokio::time::sleep(pause).await;
        if state.counts() != before {
            continue;
        }
        let cause = destination_lines(&state.pending(workers).await);
        if cause != shown && !cause.is_empty() {
            state.progress.notice(&format!("waiting:{cause}"));
            pause = EXPLAIN_INTERVAL;
        }
        shown = cause;
    }
}

fn summarize(counts: OutcomeCounts, unpublished: u64) -> String {
    if unpublished == 0 { counts.to_string() } else { format!("{counts}, {unpublished} not published") }
}

fn exit(counts: OutcomeCounts, unpublished: u64) -> Exit {
    if counts.unsuccessful() == 0 && counts.pending() == 0 && unpublished == 0 {
        Exit::Done
    } else if counts.succeeded() > 0 || counts.pending() > 0 {
        Exit::Partly
    } else {
        Exit::Failed
    }
}

async fn receive_all(mut outcomes: Box<dyn Outcomes>, state: Arc<WaitState>, notify: watch::Sender<()>) {
    loop {
        match outcomes.next().await {
            Ok(message) => {
                state.receive(&message.body, None);
                notify.send_replace(());
            }
            Err(problem) => {
                *state.lost.lock() = Some(problem.to_string());
                notify.send_replace(());
                return;
            }
        }
    }
}

fn outcome_line(outcome: &ObservedOutcome, kind: OutcomeKind) -> String {
    let mut text = format!("{}: {}", outcome.subject, kind.as_str());
    let details = [(": ", &outcome.data.reason), (": ", &outcome.data.message), ("; ", &outcome.data.hint)];
    for (before, detail) in details {
        if let Some(detail) = detail.as_deref().filter(|detail| !detail.is_empty()) {
            text = format!("{text}{before}{detail}");
        }
    }
    match &outcome.data.retry_at {
        Some(at) => format!("{text} (next attempt at {})", timestamp(at)),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_depends_on_the_outcomes() {
        let exit = |delivered, failed, left, unpublished| {
            exit(OutcomeCounts { delivered, failed, left, ..OutcomeCounts::default() }, unpublished)
        };
        assert_eq!(exit(3, 0, 0, 0), Exit::Done);
        assert_eq!(exit(2, 1, 0, 0), Exit::Partly);
        assert_eq!(exit(2, 0, 1, 0), Exit::Partly);
        assert_eq!(exit(2, 0, 0, 1), Exit::Partly);
        assert_eq!(exit(0, 3, 0, 0), Exit::Failed);
        assert_eq!(exit(0, 0, 3, 0), Exit::Partly, "not known yet");
    }

    #[test]
    fn the_summary_counts_jobs_that_were_not_published() {
        let counts = OutcomeCounts { delivered: 1, ..OutcomeCounts::default() };
        assert_eq!([summarize(counts, 0), summarize(counts, 1)], ["1 delivered", "1 delivered, 1 not published"]);
    }

    #[test]
    fn a_line_has_reason_message_and_remedy() {
        let outcome: ObservedOutcome = serde_json::from_str(
            r#"{"subject":"a","time":"2027-01-15T08:00:00Z","type":"consign.transfer.failed.v1","data":{"reason":"kms_denied","message":"m","hint":"h","retry_at":"2027-01-15T08:02:00.123456789Z"}}"#,
        )
        .unwrap();
        let line = outcome_line(&outcome, outcome.kind().unwrap());
        assert_eq!(line, "a: failed: kms_denied: m; h (next attempt at 2027-01-15T08:02:00Z)");
    }
}
