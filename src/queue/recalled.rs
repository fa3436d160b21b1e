//! What is called back from the wait ladder, whichever queue it is.

use std::collections::BTreeSet;

use crate::domain::destination::DestinationId;
use crate::domain::lane::Lane;

/// The header by which a copy says that it waits for its destination to be mended, and since when. Retries and jobs that only wait for
/// their turn have none.
pub const DEFERRED_SINCE: &str = "x-deferred-since";

/// What came of [`Queue::release_delayed`](super::Queue::release_delayed).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Released {
    /// Copies that are in their lanes again.
    pub count: u64,
    /// So much waits that not all of it was looked through. What was not comes when its wait is over.
    pub partly: bool,
}

/// The routing keys by which jobs of these destinations come.
pub(super) fn keys(destinations: &BTreeSet<DestinationId>) -> BTreeSet<String> {
    let of = |id: &DestinationId| [Lane::Scheduled, Lane::Backfill].map(|lane| format!("job.{}.{id}", lane.as_str()));
    destinations.iter().flat_map(of).collect()
}
