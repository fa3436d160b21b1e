//! Whether this worker can work at all: a fault of its own stops the taking, not the jobs.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::domain::outcome::{Class, Failure, TransferResult};

/// How long no job is taken after a fault of the worker itself; doubled each time, up to the longest. Each pause ends with one
/// job alone: a job that is given back too often would be lost to the broker's delivery limit.
const FIRST_PAUSE: Duration = Duration::from_secs(15);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// The worker's own state.
#[derive(Debug)]
pub(in crate::worker) struct Health {
    state: Mutex<State>,
    probe: Arc<Semaphore>,
    healed: Notify,
}

#[derive(Debug, Default)]
struct State {
    draining: bool,
    fault: Option<Fault>,
}

#[derive(Debug, Clone)]
struct Fault {
    pause: Duration,
    until: Instant,
    why: String,
}

impl Default for Health {
    fn default() -> Self {
        Self { state: Mutex::default(), probe: Arc::new(Semaphore::new(1)), healed: Notify::new() }
    }
}

impl Health {
    /// Notes what the end of a transfer says about the worker: a fault pauses it, an answer that needed a working identity heals
    /// it.
    pub(in crate::worker) fn note(&self, ended: &TransferResult) {
        match ended {
            TransferResult::Failed(failure) if failure.class() == Class::Worker => self.pause(failure),
            TransferResult::Delivered(_) | TransferResult::Skipped => self.heal(),
            // Refused by S3 with a request id: signed, read and judged.
            TransferResult::Failed(failure) if failure.aws_request_id.is_some() => self.heal(),
            TransferResult::Failed(_) | TransferResult::Expired | TransferResult::Cancelled(_) => {}
        }
    }

    /// All is well again.
    pub(in crate::worker) fn heal(&self) {
        self.state().fault = None;
        self.healed.notify_waiters();
    }

    fn pause(&self, failure: &Failure) {
        let mut state = self.state();
        let pause = match &state.fault {
            // Others that failed at the same time say nothing new.
            Some(fault) if fault.until > Instant::now() => return,
            Some(fault) => (fault.pause * 2).min(LONGEST_PAUSE),
            None => FIRST_PAUSE,
        };
        tracing::error!(
            reason = failure.reason.as_str(), cause = %failure, remedy = failure.hint, seconds = pause.as_secs(),
            "this worker can't work; it takes no jobs for a while"
        );
        let why = format!("{}: {failure}", failure.reason.as_str());
        state.fault = Some(Fault { pause, until: Instant::now() + pause, why });
    }

    /// From now on nothing is taken any more.
    pub(in crate::worker) fn drain(&self) {
        self.state().draining = true;
    }

    /// Why no job is taken now, or only one at a time, if so.
    pub(in crate::worker) fn fault(&self) -> Option<String> {
        let state = self.state();
        if state.draining {
            return Some("draining".to_owned());
        }
        state.fault.as_ref().map(|fault| fault.why.clone())
    }

    /// Returns when a job may be taken: at once while all is well; after a fault when the pause is over, and then with the right to
    /// be the only one until it has ended.
    pub(in crate::worker) async fn able(&self) -> Option<OwnedSemaphorePermit> {
        loop {
            let mut healed = std::pin::pin!(self.healed.notified());
            healed.as_mut().enable();
            let fault = self.state().fault.clone()?;
            if fault.until > Instant::now() {
                tokio::select! {
                    () = tokio::time::sleep_until(fault.until) => {}
                    () = &mut healed => {}
                }
                continue;
            }
            let probe = tokio::select! {
                biased;
                () = &mut healed => continue,
                probe = self.probe.clone().acquire_owned() => probe.ok()?,
            };
            // The probe before this one may have healed the worker or paused it again.
            match &self.state().fault {
                None => return None,
                Some(fault) if fault.until <= Instant::now() => return Some(probe),
                Some(_) => {}
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::outcome::{Reason, Receipt};

    fn ours() -> TransferResult {
        TransferResult::Failed(Failure::new(Reason::IdentityDenied, "ours"))
    }

    fn over(health: &Health) {
        if let Some(fault) = &mut health.state().fault {
            fault.until = Instant::now();
        }
    }

    #[tokio::test]
    async fn a_fault_of_the_worker_pauses_it_until_an_answer_heals_it() {
        let health = Health::default();
        health.note(&TransferResult::Failed(Failure::new(Reason::AccessDenied, "theirs")));
        assert_eq!(health.fault(), None);
        assert!(health.able().await.is_none());
        health.note(&ours());
        assert!(health.fault().unwrap().contains("identity_denied"));
        assert!(futures_util::poll!(Box::pin(health.able())).is_pending());
        over(&health);
        let probe = health.able().await.unwrap();
        assert!(futures_util::poll!(Box::pin(health.able())).is_pending());
        health.note(&TransferResult::Delivered(Receipt::default()));
        drop(probe);
        assert!(health.able().await.is_none());
        health.drain();
        assert_eq!(health.fault().as_deref(), Some("draining"));
    }

    #[test]
    fn each_pause_is_longer_and_simultaneous_faults_count_once() {
        let health = Health::default();
        let mut pauses = Vec::new();
        for _ in 0..6 {
            health.note(&ours());
            health.note(&ours());
            pauses.push(health.state().fault.as_ref().unwrap().pause.as_secs());
            over(&health);
        }
        assert_eq!(pauses, [15, 30, 60, 120, 240, 300]);
        let refused = Failure { aws_request_id: Some("r".into()), ..Failure::new(Reason::AccessDenied, "theirs") };
        health.note(&TransferResult::Failed(refused));
        assert_eq!(health.fault(), None);
    }
}
