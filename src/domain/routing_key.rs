//! Routing keys: `job.<lane>.<destination>` of a job, `transfer.<outcome>.<destination>` of an
//! outcome. The only place that builds or parses one.

use std::fmt::Display;

use super::lane::Lane;

/// Destination word of a job that was published straight into a queue, without a routing key of its
/// own.
const DIRECT: &str = "_direct";
/// Lanes that the exchange binds. Handed-off work reaches `continued` by another exchange.
const PUBLISHED: [Lane; 2] = [Lane::Scheduled, Lane::Backfill];

/// Returns the routing key of a job: `job.scheduled.acme`.
pub fn job(lane: Lane, destination: impl Display) -> String {
    format!("job.{}.{destination}", lane.as_str())
}

/// Returns both routing keys under which jobs of a destination are published.
pub fn jobs_of(destination: impl Display) -> [String; 2] {
    PUBLISHED.map(|lane| job(lane, &destination))
}

/// Returns the binding pattern of a lane: `job.scheduled.*`.
pub fn job_pattern(lane: Lane) -> String {
    job(lane, '*')
}

/// Returns the routing key for a job that has none: one of its lane, so that a copy of it finds its
/// way back from a wait queue.
pub fn unaddressed(lane: Lane) -> String {
    match lane {
        Lane::Backfill => job(lane, DIRECT),
        Lane::Scheduled | Lane::Continued => job(Lane::Scheduled, DIRECT),
    }
}

/// Returns the lane that the bindings route this key to; `None` unless it is
/// `job.scheduled.<one word>` or `job.backfill.<one word>`.
pub fn bound_lane(key: &str) -> Option<Lane> {
    let word = |lane: Lane| key.strip_prefix("job.")?.strip_prefix(lane.as_str())?.strip_prefix('.');
    PUBLISHED.into_iter().find(|lane| word(*lane).is_some_and(|word| !word.contains('.')))
}

/// Returns the lane that a job was published to, whichever lane it was delivered by.
pub fn published_lane(key: &str) -> Lane {
    if key.starts_with("job.backfill.") { Lane::Backfill } else { Lane::Scheduled }
}

/// Returns the last word of a key, which names the destination; `None` for an unaddressed job.
pub fn destination(key: &str) -> Option<&str> {
    key.rsplit('.').next().filter(|word| *word != DIRECT)
}

/// Returns the routing key of an outcome: `transfer.delivered.acme`.
pub fn outcome(kind: &str, destination: impl Display) -> String {
    format!("transfer.{kind}.{destination}")
}

/// Returns true for the routing key of an outcome of this kind.
pub fn is_outcome(key: &str, kind: &str) -> bool {
    key.strip_prefix("transfer.").and_then(|rest| rest.strip_prefix(kind)).is_some_and(|rest| rest.starts_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_jobs_are_parsed_as_they_are_built() {
        for lane in PUBLISHED {
            let key = job(lane, "acme");
            assert_eq!((bound_lane(&key), published_lane(&key), destination(&key)), (Some(lane), lane, Some("acme")));
        }
        assert_eq!(jobs_of("a"), ["job.scheduled.a", "job.backfill.a"]);
        assert_eq!(job_pattern(Lane::Backfill), "job.backfill.*");
    }

    #[test]
    fn a_key_of_another_form_is_bound_to_no_lane() {
        for key in
            ["", "job", "job.scheduled", "job.continued.a", "job.scheduled.a.b", "worker-7", "consign.jobs.backfill"]
        {
            assert_eq!(bound_lane(key), None, "{key}");
        }
    }

    #[test]
    fn an_unaddressed_job_has_a_lane_and_no_destination() {
        for (lane, key) in [
            (Lane::Continued, "job.scheduled._direct"),
            (Lane::Scheduled, "job.scheduled._direct"),
            (Lane::Backfill, "job.backfill._direct"),
        ] {
            assert_eq!(unaddressed(lane), key);
            assert!(bound_lane(key).is_some() && destination(key).is_none());
        }
    }

    #[test]
    fn an_outcome_is_recognized_by_its_whole_kind() {
        let key = outcome("delivered", "acme");
        assert_eq!(key, "transfer.delivered.acme");
        assert!(is_outcome(&key, "delivered"));
        assert!(!is_outcome(&key, "deliver") && !is_outcome(&key, "failed") && !is_outcome("x", "failed"));
    }
}
