//! Bound of what is known of destinations.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::CircuitBreakers;
use super::breaker::CircuitBreaker;
use crate::domain::destination::DestinationIdentity;
use crate::worker::admission::bounds::make_room;

/// Most destinations with evidence or an open breaker. Inline destinations are unlimited in number;
/// beyond this, new ones have no breaker.
pub(super) const MAX_TRACKED: usize = 10_000;
/// Age at which evidence makes room for others.
pub(super) const EVIDENCE_TTL: Duration = Duration::from_hours(1);

impl CircuitBreakers {
    /// Returns the breaker of a destination; `None` where there are too many.
    pub(super) fn tracked<'a>(
        &self,
        breakers: &'a mut HashMap<DestinationIdentity, CircuitBreaker>,
        destination: &DestinationIdentity,
    ) -> Option<&'a mut CircuitBreaker> {
        if breakers.len() >= MAX_TRACKED && !breakers.contains_key(destination) {
            if self.sweeps.is_due() {
                self.drop_old(breakers);
            }
            if breakers.len() >= MAX_TRACKED && !destination.is_inline() {
                self.drop_oldest_inline(breakers);
            }
            if breakers.len() >= MAX_TRACKED {
                return None;
            }
        }
        let breaker = breakers.entry(destination.clone()).or_insert_with(CircuitBreaker::new);
        breaker.touched = Instant::now();
        Some(breaker)
    }

    fn drop_old(&self, breakers: &mut HashMap<DestinationIdentity, CircuitBreaker>) {
        breakers.retain(|destination, breaker| {
            let kept = breaker.touched.elapsed() < EVIDENCE_TTL;
            if !kept && breaker.open.is_some() {
                self.metrics.destinations().set_circuit_open(destination.id(), false);
            }
            kept
        });
    }

    /// Configured destinations have a breaker, however many others came with jobs.
    fn drop_oldest_inline(&self, breakers: &mut HashMap<DestinationIdentity, CircuitBreaker>) {
        let inline = breakers.iter().filter(|(destination, _)| destination.is_inline());
        let oldest = inline.min_by_key(|(_, breaker)| breaker.touched).map(|(destination, _)| destination.clone());
        if let Some(oldest) = oldest {
            breakers.remove(&oldest);
            self.show(breakers, &oldest);
        }
    }
}

/// Records the latest of two times.
pub(super) fn record_time<T: Ord + Copy>(
    times: &Mutex<HashMap<DestinationIdentity, T>>,
    destination: &DestinationIdentity,
    at: T,
) {
    let mut times = times.lock();
    if let Some(known) = times.get_mut(destination) {
        *known = at.max(*known);
        return;
    }
    make_room(&mut times, MAX_TRACKED);
    times.insert(destination.clone(), at);
}
