//! Scripted scenarios: the required result of one certain fault.

use std::time::Duration;

use super::job_plan::{DESTINATIONS, ExistingObject, JobBehavior, JobPlan, UploadShape};
use super::run_scenario;
use super::runner::ScenarioResult;
use super::scenario::{Scenario, ScenarioEvent, body};
use super::world::LogMode;
use crate::domain::lane::Lane;

/// A job of ten parts that takes five minutes.
fn long_job() -> JobPlan {
    JobPlan {
        id: "job-0".to_owned(),
        destination: 0,
        object: 0,
        generation: 1,
        lane: Lane::Scheduled,
        body: body("job-0", DESTINATIONS[0], "job-0.csv", ""),
        published: vec![Duration::from_secs(1)],
        shape: UploadShape::Multipart { count: 10, each: Duration::from_secs(30), part_size: 8 << 20, resumable: true },
        scripted: Vec::new(),
        behavior: JobBehavior::Succeeds,
        existing: ExistingObject::Replace,
        expires: None,
    }
}

/// Drops a worker's connection after 20 s and drains the worker after 150 s.
fn lost_and_drained(lease_after: Duration) -> ScenarioResult {
    let events = [
        (Duration::from_secs(20), ScenarioEvent::LoseConnection),
        (Duration::from_secs(150), ScenarioEvent::Drain(Duration::from_secs(5))),
    ];
    run_scenario(|| Scenario::scripted(long_job(), lease_after, &events), LogMode::Collected(Vec::new()))
}

fn assert_resumed(result: &ScenarioResult) {
    let count = |what| result.statistics.counts.get(what).copied().unwrap_or_default();
    let log = result.log.join("\n");
    assert!(result.violations.is_empty(), "{:?}\n{log}", result.violations);
    assert_eq!((count("delivered"), count("connections lost") > 0, count("resumed")), (1, true, 1), "{log}");
    assert_eq!((count("uploads"), count("repeated parts")), (1, 0), "{log}");
}

#[test]
fn an_attempt_whose_delivery_was_lost_leases_the_redelivery() {
    let result = lost_and_drained(Duration::from_secs(60));
    assert_resumed(&result);
    let leased = result.log.iter().any(|line| line.ends_with("worker 0 has a lease for job-0"));
    assert!(leased, "{}", result.log.join("\n"));
}

#[test]
fn an_attempt_whose_delivery_was_lost_hands_off_the_redelivery() {
    assert_resumed(&lost_and_drained(Duration::from_secs(600)));
}
