//! A run that publishes hears of its own cancellation, as the workers do: nobody would work on what it went on to publish.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::cli::enqueue::progress::Report;
use crate::config::BrokerConfig;
use crate::domain::control::{BackfillId, Control, ControlCommand};
use crate::queue;
use crate::runtime::retry::Retry;

const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Listens for the cancellation of one backfill.
pub(super) struct Heed {
    at: watch::Receiver<Option<Timestamp>>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Heed {
    /// For a run that began at `begun`. Where control messages can't be read, that is said once and tried again.
    pub(super) fn start(
        broker: BrokerConfig,
        client: String,
        (backfill, begun): (BackfillId, Timestamp),
        report: Arc<Report>,
    ) -> Self {
        let (told, at) = watch::channel(None);
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let mut note = |body: &[u8]| {
                if let Some(at) = cancelled_at(body, &backfill, begun) {
                    told.send_replace(Some(at));
                }
            };
            let (mut retry, mut silent) = (Retry::endless(FIRST_WAIT, LONGEST_WAIT), false);
            while let Err(problem) = queue::follow_control(&broker, &client, &mut note, &stopped).await {
                if !stopped.is_cancelled() && !std::mem::replace(&mut silent, true) {
                    report.say(&format!("a cancellation would not be heard here while this publishes: {problem}"));
                }
                let wait = tokio::time::sleep(retry.next_wait(None).unwrap_or(LONGEST_WAIT));
                tokio::select! {
                    () = stopped.cancelled() => return,
                    () = wait => {}
                }
            }
        });
        Self { at, stop, task }
    }

    /// When it was cancelled, as soon as that is known. Cancel safe.
    pub(super) async fn cancelled(&mut self) -> Timestamp {
        match self.at.wait_for(Option::is_some).await.map(|at| *at) {
            Ok(Some(at)) => at,
            // Nobody listens any more.
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }

    /// Ends the listening.
    pub(super) async fn close(self) {
        self.stop.cancel();
        let _ = self.task.await;
    }
}

/// When this message cancels what was begun then, as workers read it: whatever was begun later was begun again on purpose.
fn cancelled_at(body: &[u8], backfill: &BackfillId, begun: Timestamp) -> Option<Timestamp> {
    let control = Control::parse(body).ok()?;
    let ours = matches!(&control.command, ControlCommand::CancelBackfill(cancelled) if cancelled == backfill);
    (ours && control.at >= begun).then_some(control.at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::destination::DestinationId;

    #[test]
    fn a_cancellation_is_for_this_backfill_and_for_what_was_begun_before_it() {
        let id = |name: &str| BackfillId::parse(name).unwrap();
        let second = |second: i64| Timestamp::from_second(1_800_000_000 + second).unwrap();
        let at = |wish, at| cancelled_at(&Control::new(wish, second(at)).render(), &id("b"), second(10));
        assert_eq!(at(ControlCommand::CancelBackfill(id("b")), 10), Some(second(10)));
        assert_eq!(at(ControlCommand::CancelBackfill(id("b")), 9), None, "published again on purpose");
        assert_eq!(at(ControlCommand::CancelBackfill(id("c")), 11), None);
        assert_eq!(at(ControlCommand::ResetCircuit(DestinationId::parse("b").unwrap()), 11), None);
        assert_eq!(cancelled_at(b"no control message", &id("b"), second(0)), None);
    }
}
