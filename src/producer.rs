//! The producer's side of the queue: jobs that are ready to be published, and their outcomes.

pub mod counts;
pub mod job;
pub mod outcome;
pub mod pending;
pub mod tracker;

/// Concurrent publishes that wait for their confirms.
pub const CONFIRM_WINDOW: usize = 64;
