//! Health of the worker itself: a fault of its own ends consumption, and leaves the jobs in the
//! queue to healthy workers. In an outage, which all workers see, jobs run one at a time.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::{Mutex as AsyncMutex, Notify, OwnedMutexGuard};
use tokio::time::Instant;

use crate::domain::outcome::{Class, Failure, Reason, TransferResult};

/// Pause after a fault of the worker. It doubles each time, up to the longest. Each pause ends with
/// a single job: a job that is requeued too often would reach the broker's delivery limit.
const FIRST_PAUSE: Duration = Duration::from_secs(15);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// Health of the worker.
#[derive(Debug, Default)]
pub(in crate::worker) struct WorkerHealth {
    state: Mutex<HealthState>,
    probe: Arc<AsyncMutex<()>>,
    /// Notified when the fault begins or ends. It wakes those who wait in order, which the
    /// simulation needs; a watch channel does not.
    changed: Notify,
}

#[derive(Debug, Default)]
struct HealthState {
    draining: bool,
    fault: Option<WorkerFault>,
}

#[derive(Debug, Clone)]
struct WorkerFault {
    pause: Duration,
    until: Instant,
    why: String,
    reason: Reason,
    /// Time of the first failure for this reason.
    since: Timestamp,
    /// False in an outage: no worker is healthier than this one.
    own: bool,
}

impl WorkerHealth {
    /// Observes the result of an attempt: a fault of the worker pauses it, an answer that needed a
    /// working identity ends the pause.
    pub(super) fn observe(&self, result: &TransferResult) {
        match result {
            TransferResult::Failed(failure) if failure.class() == Class::Worker => self.pause(failure),
            TransferResult::Delivered(_) | TransferResult::Skipped => self.recover(),
            // Denied by S3 with a request id: the request was signed and read.
            TransferResult::Failed(failure) if failure.aws_request_id.is_some() => self.recover(),
            TransferResult::Failed(_)
            | TransferResult::Expired
            | TransferResult::Cancelled(_)
            | TransferResult::Superseded(_)
            | TransferResult::ObjectBusy => {}
        }
    }

    /// Ends the pause.
    pub(super) fn recover(&self) {
        self.state.lock().fault = None;
        self.changed.notify_waiters();
    }

    fn pause(&self, failure: &Failure) {
        let mut state = self.state.lock();
        let own = failure.reason != Reason::Outage;
        let pause = match &state.fault {
            // Failures at the same time are no new evidence.
            Some(fault) if fault.until > Instant::now() && (fault.own || !own) => return,
            Some(fault) => (fault.pause * 2).min(LONGEST_PAUSE),
            None => FIRST_PAUSE,
        };
        tracing::error!(
            event = "worker_fault",
            reason = failure.reason.as_str(),
            cause = %failure,
            remedy = failure.hint,
            seconds = pause.as_secs(),
            next = "it requeues jobs that have not started, and tries one job after the pause",
            "the worker has a fault and pauses consumption"
        );
        let same = state.fault.as_ref().filter(|fault| fault.reason == failure.reason);
        let since = same.map_or_else(Timestamp::now, |fault| fault.since);
        let remedy = if failure.hint.is_empty() { String::new() } else { format!("; {}", failure.hint) };
        let why = format!("{}: {failure}{remedy} (since {since:.0})", failure.reason.as_str());
        let until = Instant::now() + pause;
        state.fault = Some(WorkerFault { pause, until, why, reason: failure.reason, since, own });
        drop(state);
        self.changed.notify_waiters();
    }

    /// Returns true while the worker has a fault of its own.
    pub(in crate::worker) fn is_sick(&self) -> bool {
        self.state.lock().fault.as_ref().is_some_and(|fault| fault.own)
    }

    /// Resolves while the worker has a fault of its own.
    pub(in crate::worker) async fn sick(&self) {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if self.is_sick() {
                return;
            }
            changed.await;
        }
    }

    /// Stops consumption for good.
    pub(in crate::worker) fn drain(&self) {
        self.state.lock().draining = true;
    }

    /// Returns why no job, or only one at a time, is consumed; `None` for a healthy worker.
    pub(in crate::worker) fn fault(&self) -> Option<String> {
        let state = self.state.lock();
        if state.draining {
            return Some("draining".to_owned());
        }
        state.fault.as_ref().map(|fault| fault.why.clone())
    }

    /// Waits until a job may be consumed: at once in a healthy worker, else when the pause is over,
    /// and then with the permit to be the only one until it has ended.
    pub(in crate::worker) async fn ready_for_job(&self) -> Option<OwnedMutexGuard<()>> {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            let fault = self.state.lock().fault.clone()?;
            if fault.until > Instant::now() {
                tokio::select! {
                    () = tokio::time::sleep_until(fault.until) => {}
                    () = &mut changed => {}
                }
                continue;
            }
            let probe = tokio::select! {
                biased;
                () = &mut changed => continue,
                probe = self.probe.clone().lock_owned() => probe,
            };
            // The probe before this one may have ended the pause or started another.
            match &self.state.lock().fault {
                None => return None,
                Some(fault) if fault.until <= Instant::now() => return Some(probe),
                Some(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::outcome::{Reason, Receipt};

    fn ours() -> TransferResult {
        TransferResult::Failed(Failure::new(Reason::IdentityDenied, "ours"))
    }

    fn over(health: &WorkerHealth) {
        if let Some(fault) = &mut health.state.lock().fault {
            fault.until = Instant::now();
        }
    }

    #[tokio::test]
    async fn a_fault_of_the_worker_pauses_it_until_an_answer_ends_the_pause() {
        let health = WorkerHealth::default();
        health.observe(&TransferResult::Failed(Failure::new(Reason::AccessDenied, "theirs")));
        assert_eq!(health.fault(), None);
        assert!(health.ready_for_job().await.is_none());
        health.observe(&ours());
        assert!(health.fault().unwrap().contains("identity_denied"));
        assert!(futures_util::poll!(Box::pin(health.ready_for_job())).is_pending());
        over(&health);
        let probe = health.ready_for_job().await.unwrap();
        assert!(futures_util::poll!(Box::pin(health.ready_for_job())).is_pending());
        health.observe(&TransferResult::Delivered(Receipt::default()));
        drop(probe);
        assert!(health.ready_for_job().await.is_none());
        health.drain();
        assert_eq!(health.fault().as_deref(), Some("draining"));
    }

    #[tokio::test]
    async fn only_a_fault_of_its_own_makes_the_worker_sick() {
        let health = WorkerHealth::default();
        let outage = TransferResult::Failed(Failure::new(Reason::Outage, "everybody's"));
        let mut sick = Box::pin(health.sick());
        health.observe(&outage);
        assert!(futures_util::poll!(&mut sick).is_pending() && !health.is_sick());
        assert!(futures_util::poll!(Box::pin(health.ready_for_job())).is_pending(), "one job at a time");
        health.observe(&ours());
        assert!(futures_util::poll!(&mut sick).is_ready() && health.is_sick());
        health.observe(&outage);
        assert!(health.is_sick(), "an outage is no recovery");
        health.recover();
        assert!(!health.is_sick() && futures_util::poll!(Box::pin(health.sick())).is_pending());
    }

    #[test]
    fn the_reason_says_since_when_and_what_to_do() {
        let health = WorkerHealth::default();
        let failure = Failure::new(Reason::Outage, "S3 does not answer").hint("check the network");
        health.observe(&TransferResult::Failed(failure.clone()));
        let (first, since) = (health.fault().unwrap(), health.state.lock().fault.as_ref().unwrap().since);
        assert_eq!(first, format!("outage: S3 does not answer; check the network (since {since:.0})"));
        over(&health);
        health.observe(&TransferResult::Failed(failure));
        assert_eq!(health.fault().unwrap(), first, "the time of the first failure stays");
    }

    #[test]
    fn each_pause_is_longer_and_simultaneous_faults_count_once() {
        let health = WorkerHealth::default();
        let mut pauses = Vec::new();
        for _ in 0..6 {
            health.observe(&ours());
            health.observe(&ours());
            pauses.push(health.state.lock().fault.as_ref().unwrap().pause.as_secs());
            over(&health);
        }
        assert_eq!(pauses, [15, 30, 60, 120, 240, 300]);
        let refused = Failure { aws_request_id: Some("r".into()), ..Failure::new(Reason::AccessDenied, "theirs") };
        health.observe(&TransferResult::Failed(refused));
        assert_eq!(health.fault(), None);
    }
}
