//! Names of the exchanges and queues of consign.

use crate::domain::lane::Lane;
use crate::domain::outcome::RetryDelay;

/// Names of one installation, all derived from its prefix.
#[derive(Debug, Clone)]
pub(super) struct Names {
    prefix: String,
}

impl Names {
    /// Names under `broker.prefix`.
    pub(super) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    /// Exchange to which producers publish.
    pub(super) fn jobs_exchange(&self) -> String {
        self.prefix.clone()
    }

    /// Queue of a lane.
    pub(super) fn jobs(&self, lane: Lane) -> String {
        format!("{}.jobs.{}", self.prefix, lane.as_str())
    }

    /// Headers exchange of the wait queues.
    pub(super) fn wait_exchange(&self) -> String {
        self.named("wait")
    }

    /// Wait queue of a retry delay.
    pub(super) fn wait(&self, delay: RetryDelay) -> String {
        format!("{}.wait.{}", self.prefix, delay.as_str())
    }

    /// Exchange of the dead letters.
    pub(super) fn dead_exchange(&self) -> String {
        self.named("dlx")
    }

    /// Queue of the dead letters.
    pub(super) fn dead(&self) -> String {
        self.named("dead")
    }

    /// Exclusive queue that serves as the lock of a pass over the dead letters.
    pub(super) fn dead_lock(&self) -> String {
        self.named("dead.lock")
    }

    /// Exchange of the outcomes.
    pub(super) fn outcomes_exchange(&self) -> String {
        self.named("outcomes")
    }

    /// Stream of control messages.
    pub(super) fn control(&self) -> String {
        self.named("control")
    }

    /// Exchange of the leases.
    pub(super) fn lease_exchange(&self) -> String {
        self.named("lease")
    }

    /// Exchange of expired leases: routes each to its owner by the lease's key.
    pub(super) fn owners_exchange(&self) -> String {
        self.named("owners")
    }

    /// Exchange of jobs without an owner.
    pub(super) fn orphans_exchange(&self) -> String {
        self.named("orphans")
    }

    /// Queue of one owner, to which its leases return.
    pub(super) fn owner(&self, process: &str) -> String {
        format!("{}.owner.{process}", self.prefix)
    }

    /// Queue that discards the settled leases of an owner that has closed.
    pub(super) fn discarded_leases(&self, process: &str) -> String {
        format!("{}.owner.{process}.ended", self.prefix)
    }

    /// Another name below the prefix.
    pub(super) fn named(&self, last: &str) -> String {
        format!("{}.{last}", self.prefix)
    }
}
