//! The last reload, where it was refused: what runs is older than what is written.

use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use serde::Serialize;

/// Problems that are kept; a file may have thousands.
const KEPT: usize = 10;

/// When a reload was refused, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Refused {
    at: Timestamp,
    /// One problem a line, at most so many; without secrets.
    problem: String,
}

/// Shared by who reloads and who shows it.
#[derive(Debug, Clone, Default)]
pub(super) struct LastReload(Arc<Mutex<Option<Refused>>>);

impl LastReload {
    /// What runs is what is written.
    pub(super) fn succeeded(&self) {
        self.set(None);
    }

    /// What runs stays.
    pub(super) fn refused(&self, problems: &str, at: Timestamp) {
        self.set(Some(Refused { at, problem: bounded(problems) }));
    }

    /// `None` while the last reload was fine, or there was none.
    pub(super) fn problem(&self) -> Option<Refused> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, refused: Option<Refused>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = refused;
    }
}

fn bounded(problems: &str) -> String {
    let mut lines: Vec<_> = problems.lines().take(KEPT).collect();
    let more = problems.lines().count() - lines.len();
    let rest = format!("... and {more} more, which the log and `consign config validate` show");
    lines.extend((more > 0).then_some(rest.as_str()));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_bounded_and_forgotten_when_a_reload_succeeds() {
        let last = LastReload::default();
        assert_eq!(last.problem(), None);
        let problems: Vec<_> = (1..=12).map(|line| format!("consign.toml:{line}: wrong")).collect();
        last.refused(&problems.join("\n"), Timestamp::UNIX_EPOCH);
        let Refused { at, problem } = last.problem().unwrap();
        assert_eq!((at, problem.lines().count()), (Timestamp::UNIX_EPOCH, KEPT + 1));
        assert!(
            problem
                .ends_with("consign.toml:10: wrong\n... and 2 more, which the log and `consign config validate` show")
        );
        last.refused("one", Timestamp::UNIX_EPOCH);
        assert_eq!(last.problem().unwrap().problem, "one");
        last.succeeded();
        assert_eq!(last.problem(), None);
    }
}
