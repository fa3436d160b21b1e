//! Whether this worker can work at all: a fault of its own stops the taking, not the jobs.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::outcome::{Class, Ended, Failure};

/// How long no job is taken after a fault of the worker itself; then the next job shows whether it is healed.
const PAUSE: Duration = Duration::from_secs(15);

/// The worker's own state.
#[derive(Debug, Default)]
pub(super) struct Health(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    draining: bool,
    fault: Option<(Instant, String)>,
}

impl Health {
    /// Notes what the end of a transfer says about the worker: a fault pauses it, any other answer heals it.
    pub(super) fn note(&self, ended: &Ended) {
        match ended {
            Ended::Failed(failure) if failure.class() == Class::Worker => self.pause(failure),
            Ended::Delivered(_) => self.state().fault = None,
            _ => {}
        }
    }

    fn pause(&self, failure: &Failure) {
        tracing::error!(reason = failure.reason.as_str(), cause = %failure, "this worker can't work; it takes no jobs for a while");
        self.state().fault = Some((Instant::now() + PAUSE, format!("{}: {failure}", failure.reason.as_str())));
    }

    /// From now on nothing is taken any more.
    pub(super) fn drain(&self) {
        self.state().draining = true;
    }

    /// Why no job is taken, if so. A fault counts until a delivery has shown that it is healed.
    pub(super) fn fault(&self) -> Option<String> {
        let state = self.state();
        if state.draining {
            return Some("draining".to_owned());
        }
        state.fault.as_ref().map(|(_, why)| why.clone())
    }

    /// Returns when the pause after a fault is over.
    pub(super) async fn wait_until_able(&self) {
        loop {
            let until = self.state().fault.as_ref().map(|(until, _)| *until);
            match until {
                Some(until) if until > Instant::now() => tokio::time::sleep_until(until).await,
                _ => return,
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::{Reason, Receipt};

    #[test]
    fn a_fault_of_the_worker_pauses_it_until_a_delivery_heals_it() {
        let health = Health::default();
        health.note(&Ended::Failed(Failure::new(Reason::AccessDenied, "theirs")));
        assert_eq!(health.fault(), None);
        health.note(&Ended::Failed(Failure::new(Reason::IdentityDenied, "ours")));
        assert!(health.state().fault.as_ref().is_some_and(|(until, _)| *until > Instant::now()));
        assert!(health.fault().unwrap().contains("identity_denied"));
        health.note(&Ended::Delivered(Receipt::default()));
        assert_eq!(health.fault(), None);
        health.drain();
        assert_eq!(health.fault().as_deref(), Some("draining"));
    }
}
