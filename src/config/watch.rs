//! Changed files are noticed by looking at them: that also works on network file systems and in
//! containers, and costs one `stat` a file.

use std::time::Duration;

/// Time between two looks.
pub const WATCH_INTERVAL: Duration = Duration::from_secs(3);
/// Looks in a row at files that change all the time, after which they are read as they are.
const MAX_UNSETTLED: u32 = 2;
/// Looks after which a reload with problems is tried again: their cause may lie in a file that is
/// not watched, such as a secret that was not mounted yet.
const LOOKS_BEFORE_RETRY: u32 = 20;

/// The fingerprints of the files: when they were read, and at the last look.
#[derive(Debug, Clone, Default)]
pub(super) struct FileWatch {
    taken: u64,
    seen: u64,
    unsettled: u32,
    /// Looks until the next try; 0 if the last one had no problems.
    until_retry: u32,
}

impl FileWatch {
    /// Notes the fingerprint right before the files are read.
    pub(super) fn took(&mut self, now: u64) {
        *self = Self { taken: now, seen: now, unsettled: 0, until_retry: 0 };
    }

    /// Notes that what was read has problems.
    pub(super) fn had_problems(&mut self) {
        self.until_retry = LOOKS_BEFORE_RETRY;
    }

    /// Returns true if the files differ from those that were read, and are no longer being
    /// written: an editor may remove a file for a moment, and a copy of many takes a while.
    pub(super) fn poll(&mut self, now: u64) -> bool {
        if now == self.taken {
            let until_retry = self.until_retry.saturating_sub(1);
            let retry = self.until_retry == 1;
            *self = Self { taken: now, seen: now, unsettled: 0, until_retry };
            return retry;
        }
        let settled = now == self.seen || self.unsettled >= MAX_UNSETTLED;
        self.seen = now;
        self.unsettled += 1;
        settled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_taken_up_once_it_has_settled() {
        let mut watch = FileWatch::default();
        watch.took(1);
        assert!(!watch.poll(1) && !watch.poll(1), "nothing has changed");
        assert!(!watch.poll(2), "just now");
        assert!(watch.poll(2), "no longer");
        watch.took(2);
        assert!(!watch.poll(2));
        assert!(!watch.poll(3) && !watch.poll(2) && !watch.poll(3) && watch.poll(3), "there and back");
    }

    #[test]
    fn a_reload_with_problems_is_tried_again() {
        let mut watch = FileWatch::default();
        watch.took(1);
        watch.had_problems();
        let tries = (1..=3 * LOOKS_BEFORE_RETRY).filter(|_| watch.poll(1)).count();
        assert_eq!(tries, 1, "until it had problems again");
        watch.had_problems();
        assert!(!watch.poll(2) && watch.poll(2), "a change does not wait");
    }

    #[test]
    fn files_that_change_all_the_time_are_read_within_three_looks() {
        let mut watch = FileWatch::default();
        watch.took(1);
        assert!(!watch.poll(2) && !watch.poll(3) && watch.poll(4));
        assert!(WATCH_INTERVAL * 3 < Duration::from_secs(10));
    }
}
