//! Cancellations that arrive while a run publishes. Workers would skip everything published after
//! them.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::domain::control::{BackfillId, Control, EarlierCancellations};
use crate::queue::Admin;
use crate::runtime::output::Output;
use crate::runtime::retry::Retry;

const MIN_RETRY_DELAY: Duration = Duration::from_secs(1);
const MAX_RETRY_DELAY: Duration = Duration::from_secs(30);

/// One run of a backfill.
#[derive(Debug, Clone)]
pub struct BackfillRun {
    /// Id of the backfill.
    pub backfill: BackfillId,
    /// Start of the run.
    pub started_at: Timestamp,
    /// Cancellations that were published before; `None` if they could not be read.
    pub earlier: Option<EarlierCancellations>,
}

/// Task that watches the control messages for the cancellation of one backfill.
pub struct CancellationWatcher {
    at: watch::Receiver<Option<Timestamp>>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl CancellationWatcher {
    /// Starts to watch. Control messages that can't be read are reported once and retried.
    pub fn start(admin: Arc<dyn Admin>, run: BackfillRun, output: Arc<dyn Output>) -> Self {
        let (notify, at) = watch::channel(None);
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let mut receive = |body: &[u8]| {
                if let Some(at) = cancelled_at(body, &run) {
                    notify.send_replace(Some(at));
                }
            };
            let (mut retry, mut reported) = (Retry::endless(MIN_RETRY_DELAY, MAX_RETRY_DELAY), false);
            while let Err(problem) = admin.follow_control(&mut receive, &stopped).await {
                if !stopped.is_cancelled() && !std::mem::replace(&mut reported, true) {
                    output.notice(&format!("cancellations are not received while this publishes: {problem}"));
                }
                let wait = tokio::time::sleep(retry.next_wait(None).unwrap_or(MAX_RETRY_DELAY));
                tokio::select! {
                    () = stopped.cancelled() => return,
                    () = wait => {}
                }
            }
        });
        Self { at, stop, task }
    }

    /// Returns the time of the cancellation, as soon as it is known. Cancel safe.
    pub async fn cancelled(&mut self) -> Timestamp {
        match self.at.wait_for(Option::is_some).await.map(|at| *at) {
            Ok(Some(at)) => at,
            // The task has ended.
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }

    /// Ends the task.
    pub async fn close(self) {
        self.stop.cancel();
        let _ = self.task.await;
    }
}

/// Returns the cancellations of a backfill so far; `None` if they can't be read.
pub async fn earlier_cancellations(admin: &dyn Admin, backfill: &BackfillId) -> Option<EarlierCancellations> {
    let messages = admin.control_messages().await.ok()?;
    Some(EarlierCancellations::of(backfill, messages.iter().map(AsRef::as_ref)))
}

/// Time at which this message cancels the run. As in workers, a run that started after it was
/// repeated on purpose.
fn cancelled_at(body: &[u8], run: &BackfillRun) -> Option<Timestamp> {
    let control = Control::parse(body).ok().filter(|control| control.cancels(&run.backfill))?;
    let covers = match &run.earlier {
        Some(earlier) => !earlier.contains(control.id),
        None => control.at >= run.started_at,
    };
    covers.then_some(control.at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::control::ControlCommand;
    use crate::domain::destination::DestinationIdentity;

    #[test]
    fn a_cancellation_ends_earlier_runs_of_its_backfill() {
        let id = |name: &str| BackfillId::parse(name).unwrap();
        let second = |second: i64| Timestamp::from_second(1_800_000_000 + second).unwrap();
        let run = BackfillRun { backfill: id("b"), started_at: second(10), earlier: None };
        let at = |command, at| cancelled_at(&Control::new(command, second(at)).render(), &run);
        assert_eq!(at(ControlCommand::CancelBackfill(id("b")), 10), Some(second(10)));
        assert_eq!(at(ControlCommand::CancelBackfill(id("b")), 9), None, "repeated on purpose");
        assert_eq!(at(ControlCommand::CancelBackfill(id("c")), 11), None);
        assert_eq!(at(ControlCommand::ResetCircuit(DestinationIdentity::parse("b").unwrap()), 11), None);
        let earlier = Some(EarlierCancellations::default());
        let first = BackfillRun { earlier, ..run };
        assert_eq!(cancelled_at(b"not a control message", &first), None);
        let cancel = Control::new(ControlCommand::CancelBackfill(id("b")), second(1)).render();
        assert_eq!(cancelled_at(&cancel, &first), Some(second(1)), "the clock of that machine is behind");
        let earlier = Some(EarlierCancellations::of(&id("b"), [cancel.as_slice()]));
        assert_eq!(cancelled_at(&cancel, &BackfillRun { earlier, ..first }), None, "repeated on purpose");
    }
}
