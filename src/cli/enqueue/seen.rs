//! The part of an outcome that commands show and count.

use jiff::Timestamp;
use serde::Deserialize;

use crate::domain::outcome::OutcomeKind;

/// An outcome as it is read: whatever else is in it may change.
#[derive(Debug, Deserialize)]
pub(in crate::cli) struct Seen {
    /// The job.
    pub(in crate::cli) subject: String,
    #[serde(rename = "type")]
    kind: String,
    /// When it was told.
    pub(in crate::cli) time: Timestamp,
    /// Why, where something went wrong.
    #[serde(default)]
    pub(in crate::cli) data: SeenData,
}

/// Of its data what a person reads.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(in crate::cli) struct SeenData {
    pub(in crate::cli) destination: Option<String>,
    pub(in crate::cli) reason: Option<String>,
    pub(in crate::cli) message: Option<String>,
    pub(in crate::cli) hint: Option<String>,
    pub(in crate::cli) retry_at: Option<String>,
}

impl Seen {
    /// What it says; `None` for an event of another kind.
    pub(in crate::cli) fn kind(&self) -> Option<OutcomeKind> {
        use OutcomeKind::{Delivered, Expired, Failed, Retrying, Skipped};
        [Delivered, Failed, Retrying, Skipped, Expired].into_iter().find(|kind| kind.event_type() == self.kind)
    }

    /// Whether it says something of what was published at `since` or later: of an earlier try only what was delivered counts.
    pub(in crate::cli) fn counts(&self, since: Option<Timestamp>) -> bool {
        since.is_none_or(|since| self.time >= since) || self.kind() == Some(OutcomeKind::Delivered)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_an_earlier_try_only_what_was_delivered_counts() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let told = |kind: &str, second| {
            let kind = format!("consign.transfer.{kind}.v1");
            let event = serde_json::json!({"subject": "a", "type": kind, "time": at(second)});
            let seen: Seen = serde_json::from_value(event).unwrap();
            (seen.counts(Some(at(100))), seen.counts(None))
        };
        assert_eq!([told("skipped", 100), told("failed", 101), told("delivered", 1)], [(true, true); 3]);
        assert_eq!([told("skipped", 99), told("failed", 1)], [(false, true); 2]);
    }
}
