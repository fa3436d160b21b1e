//! The ways work comes in.

use super::text_enum::text_enum;

text_enum! {
    /// The ways work comes in. `continued` is taken first, then `scheduled`; `backfill` has a
    /// ceiling of its own. The texts stand in routing keys, queue names and metric labels; the
    /// order is the one in which the lanes are served.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
    pub enum Lane {
        /// Handed-over work.
        Continued = "continued",
        /// Regular jobs.
        Scheduled = "scheduled",
        /// Batch backfills.
        Backfill = "backfill",
    }
}
