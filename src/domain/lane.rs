//! The ways work comes in.

/// The ways work comes in. `continued` is taken first, then `scheduled`; `backfill` has a ceiling
/// of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lane {
    /// Handed-over work.
    Continued,
    /// Regular jobs.
    Scheduled,
    /// Batch backfills.
    Backfill,
}

impl Lane {
    /// All lanes in the order in which they are served.
    pub const ALL: [Self; 3] = [Self::Continued, Self::Scheduled, Self::Backfill];

    /// The word used in routing keys, queue names and metric labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Continued => "continued",
            Self::Scheduled => "scheduled",
            Self::Backfill => "backfill",
        }
    }
}
