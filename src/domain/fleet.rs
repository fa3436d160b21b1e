//! Share of one worker in the limits of a fleet.

use std::num::{NonZeroU32, NonZeroU64};

/// Place of one worker among all live ones. Limits of a customer hold for the whole fleet, so each
/// worker takes its share of them. The shares of all workers add up to the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FleetShare {
    /// Live workers, this one included.
    pub workers: NonZeroU32,
    /// Number of live workers before this one, in an order that all of them know.
    pub index: u32,
}

impl Default for FleetShare {
    /// One worker alone.
    fn default() -> Self {
        Self { workers: NonZeroU32::MIN, index: 0 }
    }
}

impl FleetShare {
    /// Returns this worker's share of `limit` concurrent transfers, which may be 0. `salt` differs
    /// between destinations, so that the remainders go to different workers.
    pub fn transfers(self, limit: u32, salt: u32) -> u32 {
        let workers = self.workers.get();
        let place = (self.index % workers + salt % workers) % workers;
        limit / workers + u32::from(place < limit % workers)
    }

    /// Returns this worker's share of `rate` bytes a second.
    pub fn rate(self, rate: NonZeroU64) -> NonZeroU64 {
        NonZeroU64::new(rate.get() / u64::from(self.workers.get())).unwrap_or(NonZeroU64::MIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(workers: u32, limit: u32, salt: u32) -> Vec<u32> {
        let workers = NonZeroU32::new(workers).unwrap();
        (0..workers.get()).map(|index| FleetShare { workers, index }.transfers(limit, salt)).collect()
    }

    #[test]
    fn the_shares_of_all_workers_add_up_to_the_limit() {
        for (workers, limit, salt) in
            [(1, 1, 0), (1, 8, 9), (2, 1, 0), (2, 1, 1), (8, 3, 5), (8, 20, u32::MAX), (3, 3, 1)]
        {
            let shares = shares(workers, limit, salt);
            assert_eq!(shares.iter().sum::<u32>(), limit, "{shares:?}");
            let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
            assert!(most - least <= 1, "{shares:?}");
        }
    }

    #[test]
    fn the_remainder_goes_to_different_workers() {
        assert_ne!(shares(4, 1, 0), shares(4, 1, 1));
    }

    #[test]
    fn a_rate_is_divided_and_never_zero() {
        let share = FleetShare { workers: NonZeroU32::new(8).unwrap(), index: 3 };
        assert_eq!(share.rate(NonZeroU64::new(1 << 20).unwrap()).get(), (1 << 20) / 8);
        assert_eq!(share.rate(NonZeroU64::MIN).get(), 1);
    }
}
