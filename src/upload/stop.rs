//! Signals that end an attempt early.

use tokio_util::sync::CancellationToken;

/// Signals that end an attempt early, in two steps: the first for a worker that drains, the second
/// for one whose drain time is over.
#[derive(Debug, Clone, Default)]
pub struct StopSignals {
    /// An upload that another worker can continue sends no new part, waits a few seconds for the
    /// parts in flight, and keeps its checkpoint in the [`OpenUpload`](super::OpenUpload).
    /// Everything else continues.
    pub hand_off: CancellationToken,
    /// The attempt ends as soon as it can.
    pub cancel: CancellationToken,
}

impl StopSignals {
    /// A stop for one attempt: it follows this one, and can be pulled on its own.
    #[must_use]
    pub fn child(&self) -> Self {
        Self { hand_off: self.hand_off.child_token(), cancel: self.cancel.child_token() }
    }
}
