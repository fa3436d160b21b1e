//! Load of a whole worker: mean transfer time, and the share of one destination while others need
//! the slots.

use std::collections::HashSet;

use crate::domain::destination::DestinationIdentity;

/// Multiple of the mean transfer time from which on a destination counts as slow.
const SLOW_FACTOR: f64 = 4.0;
/// Weight of the newest transfer in the mean.
const MEAN_WEIGHT: f64 = 0.05;
/// Least duration of a transfer in the mean, in seconds.
const MIN_TRANSFER_SECS: f64 = 0.001;

/// Transfers of all destinations.
#[derive(Debug, Default)]
pub(super) struct WorkerLoad {
    slots: u32,
    running: u32,
    /// Jobs that wait without a slot.
    pub(super) waiting: usize,
    /// Destinations with a running transfer.
    active: u32,
    /// Geometric mean of transfer times in seconds: one transfer of an hour hardly moves it.
    mean_seconds: Option<f64>,
    /// Destinations whose jobs wait for slots that others need. They are reconsidered whenever a
    /// transfer ends.
    slot_bound: HashSet<DestinationIdentity>,
}

impl WorkerLoad {
    pub(super) fn new(slots: u32) -> Self {
        Self { slots, ..Self::default() }
    }

    /// Records the start of a transfer into a destination that had `own` of them.
    pub(super) fn started(&mut self, own: usize) {
        self.running += 1;
        self.active += u32::from(own == 0);
    }

    /// Records the end of a transfer that left its destination `own` of them.
    pub(super) fn finished(&mut self, own: usize) {
        self.running = self.running.saturating_sub(1);
        self.active = self.active.saturating_sub(u32::from(own == 0));
    }

    /// Adds the seconds of a delivery to the mean.
    pub(super) fn measure(&mut self, seconds: f64) {
        let seconds = seconds.max(MIN_TRANSFER_SECS);
        self.mean_seconds = Some(self.mean_seconds.map_or(seconds, |mean| mean * (seconds / mean).powf(MEAN_WEIGHT)));
    }

    /// Returns true if transfers of this many seconds are slow.
    pub(super) fn is_slow(&self, seconds: f64) -> bool {
        self.mean_seconds.is_some_and(|mean| seconds > mean * SLOW_FACTOR)
    }

    /// Returns the transfers that a slow destination may have which has `own` of them.
    ///
    /// A fast destination releases its slots at once, and a slow one would in time hold all that
    /// its limit allows. So while most slots are taken, it has no more than its share. A quarter of
    /// the slots belongs to no share.
    pub(super) fn share_of(&self, own: usize) -> u32 {
        let shared = self.slots - self.slots / 4;
        let active = self.active + u32::from(own == 0);
        let share = if active <= 1 { self.slots } else { shared / active };
        let others = self.running.saturating_sub(u32::try_from(own).unwrap_or(u32::MAX));
        share.max(shared.saturating_sub(others)).max(1)
    }

    /// Records whether a destination has jobs that wait for slots which others need.
    pub(super) fn set_slot_bound(&mut self, destination: &DestinationIdentity, slot_bound: bool) {
        if !slot_bound {
            self.slot_bound.remove(destination);
        } else if !self.slot_bound.contains(destination) {
            self.slot_bound.insert(destination.clone());
        }
    }

    pub(super) fn slot_bound(&self) -> Vec<DestinationIdentity> {
        self.slot_bound.iter().cloned().collect()
    }

    #[cfg(test)]
    pub(super) fn running(&self) -> u32 {
        self.running
    }

    /// Returns true when nothing runs and nothing waits.
    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        self.running == 0 && self.active == 0 && self.waiting == 0
    }
}
