//! Reports of this worker to the others of its fleet, on the control stream.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::parts::WorkerClock;
use crate::domain::control::{Control, ControlCommand};
use crate::queue::Queue;

/// Reports that are not published yet. Further ones are dropped: no worker depends on them.
const MAX_REPORTS: usize = 1024;
/// Limit for publishing one report.
const PUBLISH_TIMEOUT: Duration = Duration::from_mins(1);

/// Sender of reports. They are published in order, by [`FleetReports::publish`].
#[derive(Debug, Clone)]
pub(super) struct FleetReports {
    sender: mpsc::Sender<ControlCommand>,
    pending: Arc<Mutex<Option<mpsc::Receiver<ControlCommand>>>>,
}

impl FleetReports {
    /// Creates a sender whose reports wait to be published.
    pub(super) fn new() -> Self {
        let (sender, pending) = mpsc::channel(MAX_REPORTS);
        Self { sender, pending: Arc::new(Mutex::new(Some(pending))) }
    }

    /// Reports to all workers, this one included. Never waits.
    pub(super) fn send(&self, report: ControlCommand) {
        if let Err(error) = self.sender.try_send(report) {
            tracing::debug!(event = "report_dropped", %error, "a report to the other workers was dropped");
        }
    }

    /// Publishes reports as they are sent. Never returns, except when called a second time.
    pub(super) async fn publish(self, queue: Arc<dyn Queue>, clock: WorkerClock) {
        let pending = self.pending.lock().take();
        let Some(mut pending) = pending else { return };
        while let Some(report) = pending.recv().await {
            let control = Control::new(report, clock());
            let published = timeout(PUBLISH_TIMEOUT, queue.publish_control(control.render().into())).await;
            if !matches!(published, Ok(Ok(()))) {
                tracing::debug!(event = "report_failed", "a report did not reach the other workers");
            }
        }
    }

    /// Takes the reports that wait, for tests.
    #[cfg(test)]
    pub(super) fn drain(&self) -> Vec<ControlCommand> {
        let mut pending = self.pending.lock();
        pending.as_mut().map(|pending| std::iter::from_fn(|| pending.try_recv().ok()).collect()).unwrap_or_default()
    }
}
