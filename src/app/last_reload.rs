//! The result of the last reload. After a failed one, the running configuration is older than the
//! file.

use std::sync::Arc;

use jiff::Timestamp;
use parking_lot::Mutex;
use serde::Serialize;

/// Lines of problems that are kept; a file may have thousands.
const MAX_LINES: usize = 10;

/// A reload that failed: `reload_refused` of `/status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct FailedReload {
    at: Timestamp,
    /// One problem per line, at most [`MAX_LINES`]; without secrets.
    problem: String,
}

/// The last reload, shared by the reload handler and the status.
#[derive(Debug, Clone, Default)]
pub(super) struct LastReload(Arc<Mutex<Option<FailedReload>>>);

impl LastReload {
    /// Records a successful reload.
    pub(super) fn succeeded(&self) {
        *self.0.lock() = None;
    }

    /// Records a failed reload.
    pub(super) fn failed(&self, problems: &str, at: Timestamp) {
        *self.0.lock() = Some(FailedReload { at, problem: bounded(problems) });
    }

    /// Returns the failure; `None` if the last reload succeeded or there was none.
    pub(super) fn failure(&self) -> Option<FailedReload> {
        self.0.lock().clone()
    }
}

fn bounded(problems: &str) -> String {
    let mut lines: Vec<_> = problems.lines().take(MAX_LINES).collect();
    let more = problems.lines().count() - lines.len();
    let rest = format!("... and {more} more, which the log and `consign config validate` show");
    lines.extend((more > 0).then_some(rest.as_str()));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_bounded_and_cleared_by_a_successful_reload() {
        let last = LastReload::default();
        assert_eq!(last.failure(), None);
        let problems: Vec<_> = (1..=12).map(|line| format!("consign.toml:{line}: wrong")).collect();
        last.failed(&problems.join("\n"), Timestamp::UNIX_EPOCH);
        let FailedReload { at, problem } = last.failure().unwrap();
        assert_eq!((at, problem.lines().count()), (Timestamp::UNIX_EPOCH, MAX_LINES + 1));
        assert!(
            problem
                .ends_with("consign.toml:10: wrong\n... and 2 more, which the log and `consign config validate` show")
        );
        last.failed("one", Timestamp::UNIX_EPOCH);
        assert_eq!(last.failure().unwrap().problem, "one");
        last.succeeded();
        assert_eq!(last.failure(), None);
    }
}
