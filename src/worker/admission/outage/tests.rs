use super::state::{IDLE_END, MAX_NEWLY_FAILING, MAX_REMEMBERED, REFUTED_FOR};
use super::*;
use crate::domain::outcome::{Reason, Receipt};
use crate::worker::sample;

fn id(name: &str) -> DestinationIdentity {
    DestinationIdentity::parse(name).unwrap()
}

/// Destination of a customer by the name's first letter.
fn of(name: &str) -> Arc<Destination> {
    sample::destination(name, &format!("{:012}", u32::from(name.as_bytes()[0]))).into()
}

fn succeed(outage: &OutageDetector, name: &str) {
    outage.observe(&of(name), TransferResult::Delivered(Receipt::default()), 0);
}

/// A failure as it is observed.
#[derive(Debug, PartialEq)]
enum Seen {
    As(Reason),
    Suspicious,
}
use Seen::{As, Suspicious};

fn fail(outage: &OutageDetector, name: &str, reason: Reason) -> Seen {
    fail_after(outage, name, reason, 0)
}

fn fail_after(outage: &OutageDetector, name: &str, reason: Reason, granted: u64) -> Seen {
    match outage.observe(&of(name), TransferResult::Failed(Failure::new(reason, "no")), granted) {
        ObservedResult::Known(TransferResult::Failed(failure)) => As(failure.reason),
        ObservedResult::Suspicious(TransferResult::Failed(_), _) => Suspicious,
        other => panic!("{other:?}"),
    }
}

/// Names of the destinations that are asked; `None` if nobody is.
fn asked(outage: &OutageDetector, reason: Reason) -> Option<Vec<String>> {
    let controls = outage.controls(Symptom::of(reason).unwrap())?;
    Some(controls.iter().map(|control| control.id.to_string()).collect())
}

fn conclude(outage: &OutageDetector, reason: Reason, confirmed: bool) -> Option<Duration> {
    outage.conclude(Symptom::of(reason).unwrap(), confirmed)
}

/// An outage that began with the failure of these destinations, which worked before.
fn started(names: &[&str], reason: Reason) -> OutageDetector {
    let outage = OutageDetector::default();
    names.iter().for_each(|name| succeed(&outage, name));
    for name in names {
        fail(&outage, name, reason);
    }
    assert!(conclude(&outage, reason, true).is_some(), "{names:?} are not suspicious");
    outage
}

#[tokio::test(start_paused = true)]
async fn three_that_worked_and_fail_alike_are_an_outage_until_one_succeeds() {
    let outage = OutageDetector::default();
    for name in ["a", "b", "c", "d"] {
        succeed(&outage, name);
    }
    let denied = Reason::BucketNotFound;
    assert_eq!(fail(&outage, "a", denied), As(denied));
    assert_eq!(fail(&outage, "a", denied), As(denied));
    assert_eq!(fail(&outage, "b", denied), As(denied));
    assert_eq!(fail(&outage, "b", Reason::SourceNotFound), As(Reason::SourceNotFound));
    assert_eq!(fail(&outage, "c", denied), Suspicious);
    let result = TransferResult::Failed(Failure::new(denied, "no"));
    assert!(!outage.covers(&result), "nothing has confirmed it");
    assert!(conclude(&outage, denied, true).is_some() && outage.covers(&result));
    let covered = outage.covered(&of("c"), result);
    assert!(matches!(covered, TransferResult::Failed(failure) if failure.reason == Reason::Outage));
    assert_eq!(fail(&outage, "d", denied), As(Reason::Outage));
    assert_eq!(fail(&outage, "d", Reason::KmsDenied), As(Reason::KmsDenied));
    assert!(outage.defers(&id("a")).is_some() && outage.defers(&id("e")).is_none());
    succeed(&outage, "e");
    assert!(outage.defers(&id("a")).is_none());
    assert_eq!(fail(&outage, "d", denied), As(denied));
}

#[tokio::test(start_paused = true)]
async fn a_suspicion_that_is_refuted_is_not_raised_again_at_once() {
    let outage = OutageDetector::default();
    for name in ["a", "b", "c"] {
        succeed(&outage, name);
    }
    let broken = Reason::Connection;
    fail(&outage, "a", broken);
    fail(&outage, "b", broken);
    assert_eq!(fail(&outage, "c", broken), Suspicious);
    assert_eq!(fail(&outage, "c", broken), Suspicious, "no verdict yet");
    assert_eq!(conclude(&outage, broken, false), None);
    assert_eq!(fail(&outage, "c", broken), As(broken));
    assert!(asked(&outage, broken).is_none() && !outage.is_outage());
    tokio::time::advance(REFUTED_FOR).await;
    assert_eq!(fail(&outage, "c", broken), Suspicious);
}

#[tokio::test(start_paused = true)]
async fn who_never_worked_is_no_evidence_once_anybody_has() {
    let outage = OutageDetector::default();
    succeed(&outage, "z");
    for round in 0..3 {
        for name in ["a", "b", "c", "d", "e", "f"] {
            for reason in [Reason::AssumeRoleDenied, Reason::Connection, Reason::StsUnavailable] {
                assert_eq!(fail(&outage, &format!("{name}-{round}"), reason), As(reason));
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_start_all_that_fail_alike_are_suspicious_and_nobody_of_them_is_asked() {
    for reason in [Reason::Timeout, Reason::StsUnavailable, Reason::AssumeRoleDenied] {
        let outage = OutageDetector::default();
        assert_eq!(fail(&outage, "a", reason), As(reason));
        assert_eq!(fail(&outage, "b", reason), As(reason));
        assert_eq!(fail(&outage, "c", reason), Suspicious);
        assert_eq!(asked(&outage, reason), Some(Vec::new()), "{reason:?}");
        succeed(&outage, "z");
        assert_eq!(asked(&outage, reason), None, "one has worked meanwhile");
        assert_eq!(conclude(&outage, reason, true), None);
    }
}

#[tokio::test(start_paused = true)]
async fn destinations_that_were_broken_before_count_once() {
    let outage = OutageDetector::default();
    for name in ["a", "b", "c", "d"] {
        fail(&outage, name, Reason::BucketNotFound);
    }
    succeed(&outage, "e");
    for name in ["a", "b", "c", "d", "f"] {
        assert_eq!(fail(&outage, name, Reason::BucketNotFound), As(Reason::BucketNotFound));
    }
}

#[tokio::test(start_paused = true)]
async fn most_of_those_that_were_tried_must_fail_within_the_window() {
    let outage = OutageDetector::default();
    let names = ["a", "b", "c", "d", "e", "f"];
    names.iter().for_each(|name| succeed(&outage, name));
    for name in ["a", "b", "c"] {
        assert_eq!(fail(&outage, name, Reason::Connection), As(Reason::Connection), "{name}: three of six");
    }
    assert_eq!(fail(&outage, "d", Reason::Connection), Suspicious);
    succeed(&outage, "d");
    assert_eq!(asked(&outage, Reason::Connection), None, "it works again");
    let outage = OutageDetector::default();
    names.iter().for_each(|name| succeed(&outage, name));
    for name in names {
        assert_eq!(fail(&outage, name, Reason::Connection), As(Reason::Connection));
        tokio::time::advance(Duration::from_secs(40)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn those_that_are_denied_are_asked_last_and_those_that_get_no_answer_first() {
    let outage = OutageDetector::default();
    for name in ["a", "b", "c", "c-2", "d"] {
        succeed(&outage, name);
    }
    for name in ["a", "b", "c"] {
        fail(&outage, name, Reason::AssumeRoleDenied);
    }
    assert_eq!(asked(&outage, Reason::AssumeRoleDenied).unwrap(), ["d"], "it shares nothing with them");
    fail(&outage, "d", Reason::AssumeRoleDenied);
    assert_eq!(asked(&outage, Reason::AssumeRoleDenied).unwrap(), ["a", "b", "c", "d"], "nobody else is left");
    let outage = OutageDetector::default();
    for name in ["a", "b", "c", "d"] {
        succeed(&outage, name);
    }
    for name in ["a", "b", "c"] {
        fail(&outage, name, Reason::Timeout);
    }
    assert_eq!(asked(&outage, Reason::Timeout).unwrap(), ["a", "b", "c"]);
}

#[tokio::test(start_paused = true)]
async fn a_customer_with_another_destination_that_works_is_no_evidence() {
    let outage = OutageDetector::default();
    for name in ["a", "b", "c", "c-2"] {
        succeed(&outage, name);
    }
    for name in ["a", "b", "c"] {
        assert_eq!(fail(&outage, name, Reason::BucketNotFound), As(Reason::BucketNotFound));
    }
    assert_eq!(fail(&outage, "c-2", Reason::BucketNotFound), Suspicious);
}

#[tokio::test(start_paused = true)]
async fn cached_denials_are_no_evidence_and_an_old_outage_is_over() {
    let outage = OutageDetector::default();
    for name in ["a", "b", "c", "d", "e", "f"] {
        succeed(&outage, name);
        let remembered = Failure { remembered: true, ..Failure::new(Reason::AssumeRoleDenied, "no") };
        let seen = outage.observe(&of(name), TransferResult::Failed(remembered), 0);
        assert!(matches!(seen, ObservedResult::Known(_)), "{seen:?}");
    }
    let outage = started(&["a", "b", "c"], Reason::StsUnavailable);
    assert!(outage.defers(&id("a")).is_some());
    tokio::time::advance(IDLE_END + Duration::from_secs(1)).await;
    assert_eq!(fail(&outage, "a", Reason::StsUnavailable), As(Reason::StsUnavailable));
}

#[tokio::test(start_paused = true)]
async fn failures_of_one_customer_are_no_outage() {
    let outage = OutageDetector::default();
    let his = ["a-1", "a-2", "a-3", "a-4", "a-5", "a-6"];
    his.iter().for_each(|name| succeed(&outage, name));
    for name in his {
        assert_eq!(fail(&outage, name, Reason::BucketNotFound), As(Reason::BucketNotFound));
    }
}

#[tokio::test(start_paused = true)]
async fn during_denials_of_sts_only_a_new_session_proves_recovery() {
    let outage = OutageDetector::default();
    let denied = Reason::AssumeRoleDenied;
    for name in ["a", "b", "c", "d"] {
        succeed(&outage, name);
    }
    for name in ["a", "b"] {
        assert_eq!(fail(&outage, name, denied), As(denied));
        tokio::time::advance(Duration::from_secs(150)).await;
        succeed(&outage, "d");
    }
    assert_eq!(fail(&outage, "c", denied), Suspicious);
    assert_eq!(conclude(&outage, denied, true), Some(Duration::from_secs(300)), "the age of the evidence");
    succeed(&outage, "d");
    assert!(outage.is_outage(), "its session is an old one");
    outage.succeeded(&of("d"), 1);
    assert!(!outage.is_outage(), "a role was assumed");
    for name in ["a", "b", "c"] {
        assert_eq!(fail_after(&outage, name, denied, 1), As(denied));
    }
}

#[tokio::test(start_paused = true)]
async fn a_role_that_is_granted_ends_the_evidence_against_sts() {
    let outage = OutageDetector::default();
    let names = ["a", "b", "c", "d"];
    names.iter().for_each(|name| succeed(&outage, name));
    for (granted, name) in (0..).zip(names) {
        assert_eq!(fail_after(&outage, name, Reason::AssumeRoleDenied, granted), As(Reason::AssumeRoleDenied));
    }
}

#[tokio::test(start_paused = true)]
async fn long_denials_are_judged_one_by_one_in_the_end() {
    let outage = started(&["a", "b", "c"], Reason::AccessDenied);
    for _ in 0..31 {
        assert!(outage.is_outage());
        tokio::time::advance(Duration::from_secs(59)).await;
        fail(&outage, "a", Reason::AccessDenied);
    }
    assert_eq!(fail(&outage, "a", Reason::AccessDenied), As(Reason::AccessDenied));
}

#[tokio::test(start_paused = true)]
async fn jobs_deferred_in_a_row_are_paused_ever_longer() {
    let outage = started(&["a", "b", "c"], Reason::Timeout);
    let pause = || outage.defers(&id("a")).unwrap().1.as_millis();
    let pauses: Vec<_> = (0..30).map(|_| pause()).collect();
    assert_eq!(pauses[..3], [0, 10, 20]);
    assert_eq!(pauses[25..], [250; 5]);
    fail(&outage, "f", Reason::Timeout);
    assert_eq!(pause(), 0, "another destination was tried");
}

/// Fails so many destinations that came with jobs, each of a tenant of its own.
fn fail_made_up(outage: &OutageDetector, count: usize, reason: Reason) {
    let sample = sample::inline("made-up", "tenant");
    for n in 0..count {
        let (identity, tenant) = (sample::made_up(n), Some(format!("tenant-{n}")));
        let destination = Destination { identity, tenant, ..sample.clone() }.into();
        outage.observe(&destination, TransferResult::Failed(Failure::new(reason, "no")), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_hundred_thousand_made_up_tenants_are_bounded_and_hide_no_outage() {
    let denied = Reason::BucketNotFound;
    let outage = OutageDetector::default();
    fail_made_up(&outage, 2000, denied);
    assert_eq!(outage.state.lock().newly_failing.len(), MAX_NEWLY_FAILING, "after a start, all are evidence");
    ["a", "b", "c"].iter().for_each(|name| succeed(&outage, name));
    fail_made_up(&outage, 100_000, denied);
    assert!(outage.state.lock().last.len() <= MAX_REMEMBERED);
    assert_eq!(["a", "b", "c"].map(|name| fail(&outage, name, denied)), [As(denied), As(denied), Suspicious]);
    assert!(conclude(&outage, denied, true).is_some());
    fail_made_up(&outage, 100_000, denied);
    assert!(outage.state.lock().current.as_ref().unwrap().failed.len() <= MAX_REMEMBERED);
    assert!(outage.defers(&id("a")).is_some(), "it failed within the last minute");
}
