//! The part of an outcome that commands show and count.

use jiff::Timestamp;
use serde::Deserialize;

use crate::domain::outcome::OutcomeKind;

/// Outcome as a consumer reads it. Unknown fields are ignored.
#[derive(Debug, Deserialize)]
pub struct ObservedOutcome {
    /// Id of the job.
    pub subject: String,
    #[serde(rename = "type")]
    kind: String,
    /// Time of the event.
    pub time: Timestamp,
    /// Details of a failure.
    #[serde(default)]
    pub data: OutcomeDetails,
}

/// Details of an outcome for people.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct OutcomeDetails {
    /// Id of the destination.
    pub destination: Option<String>,
    /// Reason of the failure.
    pub reason: Option<String>,
    /// Message of the failure.
    pub message: Option<String>,
    /// Remedy.
    pub hint: Option<String>,
    /// Time of the next attempt.
    pub retry_at: Option<String>,
}

impl ObservedOutcome {
    /// Returns the kind of the outcome; `None` for any other event.
    pub fn kind(&self) -> Option<OutcomeKind> {
        OutcomeKind::ALL.into_iter().find(|kind| kind.event_type() == self.kind)
    }

    /// Returns true for an outcome of jobs published at `since` or later. Those of earlier runs do
    /// not count.
    pub fn counts(&self, since: Option<Timestamp>) -> bool {
        since.is_none_or(|since| self.time >= since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_of_an_earlier_run_do_not_count() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let counts = |kind: &str, second| {
            let kind = format!("consign.transfer.{kind}.v1");
            let event = serde_json::json!({"subject": "a", "type": kind, "time": at(second)});
            let outcome: ObservedOutcome = serde_json::from_value(event).unwrap();
            (outcome.counts(Some(at(100))), outcome.counts(None))
        };
        assert_eq!([counts("skipped", 100), counts("failed", 101), counts("delivered", 100)], [(true, true); 3]);
        assert_eq!([counts("skipped", 99), counts("failed", 1), counts("delivered", 99)], [(false, true); 3]);
    }
}
