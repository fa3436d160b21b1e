//! Quarantine of jobs that may be crashing workers.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::time::timeout;

use super::Deferral;

/// Time that a job waits for the end of another one that may be crashing workers.
const QUARANTINE_TIMEOUT: Duration = Duration::from_secs(10);
/// Lost workers from which on a job runs alone.
const QUARANTINE_CRASHES: u32 = 2;

/// Jobs over which workers were lost more than once run one at a time, so that the one which
/// crashes them is distinguished from the others.
#[derive(Debug, Default)]
pub(super) struct Quarantine(Arc<Mutex<()>>);

impl Quarantine {
    /// Returns the permit of a job over which at least [`QUARANTINE_CRASHES`] workers were lost, or
    /// `None` for any other job. A job that waits longer than [`QUARANTINE_TIMEOUT`] is deferred,
    /// because it holds a slot meanwhile.
    pub(super) async fn enter(&self, crashes: u32) -> Result<Option<OwnedMutexGuard<()>>, Deferral> {
        if crashes < QUARANTINE_CRASHES {
            return Ok(None);
        }
        let acquired = timeout(QUARANTINE_TIMEOUT, self.0.clone().lock_owned()).await;
        acquired.map(Some).map_err(|_| Deferral::Quarantined)
    }

    /// Returns true while no job is quarantined.
    #[cfg(test)]
    pub(super) fn is_free(&self) -> bool {
        self.0.try_lock().is_ok()
    }
}
