//! All transfers of a worker together: what is usual, and what is left for one destination while others need the slots.

use std::collections::HashSet;

use crate::domain::destination::DestinationId;

/// A destination is slow whose transfers take so many times what is usual.
const SLOW: f64 = 4.0;
/// The weight of the newest transfer in what is usual.
const WEIGHT: f64 = 0.05;
/// A transfer counts as at least this long, seconds.
const SHORTEST: f64 = 0.001;

/// What runs, destination or not.
#[derive(Debug, Default)]
pub(super) struct Whole {
    slots: u32,
    running: u32,
    /// Jobs that wait without a slot.
    pub(super) waiting: usize,
    /// Destinations with a transfer that runs.
    active: u32,
    /// The geometric mean of what transfers take, seconds: a single one that takes an hour hardly moves it.
    took: Option<f64>,
    /// Destinations with jobs that wait because others need the slots: whenever a transfer ends, they are looked at.
    held_back: HashSet<DestinationId>,
}

impl Whole {
    pub(super) fn new(slots: u32) -> Self {
        Self { slots, ..Self::default() }
    }

    /// A transfer begins into a destination that had `own` of them.
    pub(super) fn begins(&mut self, own: usize) {
        self.running += 1;
        self.active += u32::from(own == 0);
    }

    /// A transfer has ended that left its destination `own` of them.
    pub(super) fn ends(&mut self, own: usize) {
        self.running = self.running.saturating_sub(1);
        self.active = self.active.saturating_sub(u32::from(own == 0));
    }

    /// A file was delivered within this time.
    pub(super) fn measure(&mut self, took: f64) {
        let took = took.max(SHORTEST);
        self.took = Some(self.took.map_or(took, |usual| usual * (took / usual).powf(WEIGHT)));
    }

    /// Whether transfers that take so many seconds are slow.
    pub(super) fn is_slow(&self, takes: f64) -> bool {
        self.took.is_some_and(|usual| takes > usual * SLOW)
    }

    /// How many transfers a slow destination may have that has `own` of them.
    ///
    /// A quick one gives its slots back at once; a slow one would by and by sit on all that it is allowed. So while most slots are taken it
    /// has no more than its share of them; a quarter of the slots is nobody's share.
    pub(super) fn leaves(&self, own: usize) -> u32 {
        let shared = self.slots - self.slots / 4;
        let active = self.active + u32::from(own == 0);
        let share = if active <= 1 { self.slots } else { shared / active };
        let others = self.running.saturating_sub(u32::try_from(own).unwrap_or(u32::MAX));
        share.max(shared.saturating_sub(others)).max(1)
    }

    /// Whether a destination has jobs that wait for slots which others need.
    pub(super) fn note_held_back(&mut self, destination: &DestinationId, held_back: bool) {
        if !held_back {
            self.held_back.remove(destination);
        } else if !self.held_back.contains(destination) {
            self.held_back.insert(destination.clone());
        }
    }

    pub(super) fn held_back(&self) -> Vec<DestinationId> {
        self.held_back.iter().cloned().collect()
    }

    #[cfg(test)]
    pub(super) fn running(&self) -> u32 {
        self.running
    }

    /// Whether nothing runs and nobody waits.
    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        self.running == 0 && self.active == 0 && self.waiting == 0
    }
}
