//! Bound of what is remembered of destinations. Inline destinations are unlimited in number, so
//! they make room first: no configured destination is forgotten because of them.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::domain::destination::DestinationIdentity;

/// Makes room for one more entry where there are `most`: drops those of all inline destinations,
/// and everything if that is not enough.
pub(super) fn make_room<V>(entries: &mut HashMap<DestinationIdentity, V>, most: usize) {
    if entries.len() < most {
        return;
    }
    entries.retain(|destination, _| !destination.is_inline());
    if entries.len() >= most {
        entries.clear();
    }
}

/// Least time between two searches of all entries for old ones. Without it, each newcomer to a full
/// map would cost one.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Limits how often a full map is searched for old entries.
#[derive(Debug, Default)]
pub(super) struct Sweeps(Mutex<Option<Instant>>);

impl Sweeps {
    /// Returns true if the last search was a while ago; then the caller searches.
    pub(super) fn is_due(&self) -> bool {
        let mut last = self.0.lock();
        let is_due = last.is_none_or(|last| last.elapsed() >= SWEEP_INTERVAL);
        if is_due {
            *last = Some(Instant::now());
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::sample;

    #[test]
    fn inline_destinations_make_room_first() {
        let configured = DestinationIdentity::parse("acme").unwrap();
        let mut entries = HashMap::from([(configured.clone(), true)]);
        for n in 0..100_000 {
            make_room(&mut entries, 10);
            entries.insert(sample::made_up(n), true);
            assert!(entries.len() <= 10 && entries.contains_key(&configured));
        }
        let mut entries = (0..10).map(|n| (DestinationIdentity::parse(&format!("c{n}")).unwrap(), true)).collect();
        make_room(&mut entries, 11);
        assert_eq!(entries.len(), 10);
        make_room(&mut entries, 10);
        assert!(entries.is_empty());
    }
}
