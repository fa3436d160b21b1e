//! Stories that are not drawn but written: what must come of one certain fault.

use std::time::Duration;

use super::perform;
use super::plan::{DESTINATIONS, Fate, Plan, Shape, Taken};
use super::play::Ending;
use super::story::{Happening, Story, body};
use super::world::Log;
use crate::domain::lane::Lane;

/// A job of ten parts that takes five minutes.
fn long_job() -> Plan {
    Plan {
        id: "job-0".to_owned(),
        destination: 0,
        lane: Lane::Scheduled,
        body: body("job-0", DESTINATIONS[0], "job-0.csv", ""),
        published: vec![Duration::from_secs(1)],
        shape: Shape::Parts { count: 10, each: Duration::from_secs(30), part_size: 8 << 20, resumable: true },
        acts: Vec::new(),
        fate: Fate::Delivered,
        taken: Taken::Replace,
        expires: None,
    }
}

/// A worker's session is lost after 20 s, and the worker is replaced after 150 s.
fn lost_and_drained(lease_after: Duration) -> Ending {
    let happenings = [
        (Duration::from_secs(20), Happening::Lose),
        (Duration::from_secs(150), Happening::Drain(Duration::from_secs(5))),
    ];
    perform(|| Story::written(long_job(), lease_after, &happenings), Log::BackfillOutcomes(Vec::new()))
}

fn continued(ending: &Ending) {
    let count = |what| ending.tally.counts.get(what).copied().unwrap_or_default();
    let log = ending.log.join("\n");
    assert!(ending.wrong.is_empty(), "{:?}\n{log}", ending.wrong);
    assert_eq!((count("delivered"), count("sessions lost") > 0, count("resumed")), (1, true, 1), "{log}");
    assert_eq!((count("uploads"), count("parts twice")), (1, 0), "{log}");
}

#[test]
fn work_whose_delivery_was_lost_takes_a_lease_on_the_one_that_came_again() {
    let ending = lost_and_drained(Duration::from_secs(60));
    continued(&ending);
    let leased = ending.log.iter().any(|line| line.ends_with("worker 0 has a lease for job-0"));
    assert!(leased, "{}", ending.log.join("\n"));
}

#[test]
fn work_whose_delivery_was_lost_is_handed_over_by_the_one_that_came_again() {
    continued(&lost_and_drained(Duration::from_secs(600)));
}
