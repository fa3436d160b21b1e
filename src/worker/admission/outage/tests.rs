use super::*;
use crate::domain::outcome::Receipt;
use crate::worker::sample;

fn id(name: &str) -> DestinationId {
    DestinationId::parse(name).unwrap()
}

/// Destination of a customer by the name's first letter.
fn of(name: &str) -> Destination {
    sample::destination(name, &format!("{:012}", u32::from(name.as_bytes()[0])))
}

fn succeed(outage: &OutageDetector, name: &str) {
    outage.observe(&of(name), TransferResult::Delivered(Receipt::default()), 0);
}

/// Returns the observed reason, and whether the outage started with it.
fn fail(outage: &OutageDetector, name: &str, reason: Reason) -> (Reason, bool) {
    match outage.observe(&of(name), TransferResult::Failed(Failure::new(reason, "no")), 0) {
        ObservedResult::Known(TransferResult::Failed(failure)) => (failure.reason, false),
        ObservedResult::OutageStarted(TransferResult::Failed(failure), _) => (failure.reason, true),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn three_that_worked_and_fail_alike_are_an_outage_until_one_succeeds() {
    let outage = OutageDetector::default();
    for name in ["a", "b", "c", "d"] {
        succeed(&outage, name);
    }
    let denied = Reason::BucketNotFound;
    assert_eq!(fail(&outage, "a", denied), (denied, false));
    assert_eq!(fail(&outage, "a", denied), (denied, false));
    assert_eq!(fail(&outage, "b", denied), (denied, false));
    assert_eq!(fail(&outage, "b", Reason::SourceNotFound), (Reason::SourceNotFound, false));
    assert_eq!(fail(&outage, "c", denied), (Reason::Outage, true));
    assert_eq!(fail(&outage, "d", denied), (Reason::Outage, false));
    assert_eq!(fail(&outage, "d", Reason::KmsDenied), (Reason::KmsDenied, false));
    assert!(outage.defers(&id("a")).is_some() && outage.defers(&id("e")).is_none());
    succeed(&outage, "e");
    assert!(outage.defers(&id("a")).is_none());
    assert_eq!(fail(&outage, "d", denied), (denied, false));
}

#[tokio::test(start_paused = true)]
async fn after_a_start_more_failures_are_needed() {
    let outage = OutageDetector::default();
    let names = ["a", "b", "c", "d"];
    assert!(names.iter().all(|name| fail(&outage, name, Reason::Timeout).0 == Reason::Timeout));
    assert_eq!(fail(&outage, "e", Reason::S3Unavailable), (Reason::Outage, true));
}

#[tokio::test(start_paused = true)]
async fn destinations_that_were_broken_before_count_once() {
    let outage = OutageDetector::default();
    for name in ["a", "b", "c", "d"] {
        fail(&outage, name, Reason::BucketNotFound);
    }
    succeed(&outage, "e");
    for name in ["a", "b", "c", "d"] {
        assert_eq!(fail(&outage, name, Reason::BucketNotFound).0, Reason::BucketNotFound);
    }
    assert_eq!(fail(&outage, "f", Reason::BucketNotFound).0, Reason::BucketNotFound);
}

#[tokio::test(start_paused = true)]
async fn failures_with_a_success_or_much_time_between_are_no_outage() {
    let outage = OutageDetector::default();
    let names = ["a", "b", "c", "d"];
    names.iter().for_each(|name| succeed(&outage, name));
    fail(&outage, "a", Reason::Connection);
    fail(&outage, "b", Reason::Connection);
    succeed(&outage, "d");
    assert_eq!(fail(&outage, "c", Reason::Connection).0, Reason::Connection);
    let outage = OutageDetector::default();
    names.iter().for_each(|name| succeed(&outage, name));
    for name in names {
        assert_eq!(fail(&outage, name, Reason::Connection).0, Reason::Connection);
        tokio::time::advance(Duration::from_secs(40)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn cached_denials_are_no_evidence_and_an_old_outage_is_over() {
    let outage = OutageDetector::default();
    for name in ["a", "b", "c", "d", "e", "f"] {
        let remembered = Failure { remembered: true, ..Failure::new(Reason::AssumeRoleDenied, "no") };
        assert!(
            matches!(outage.observe(&of(name), TransferResult::Failed(remembered), 0), ObservedResult::Known(TransferResult::Failed(f)) if f.reason != Reason::Outage)
        );
    }
    for name in ["a", "b", "c", "d", "e"] {
        fail(&outage, name, Reason::StsUnavailable);
    }
    assert!(outage.defers(&id("a")).is_some());
    tokio::time::advance(IDLE_END + Duration::from_secs(1)).await;
    assert_eq!(fail(&outage, "a", Reason::StsUnavailable).0, Reason::StsUnavailable);
}

#[tokio::test(start_paused = true)]
async fn failures_of_one_customer_are_no_outage() {
    let outage = OutageDetector::default();
    let his = ["a-1", "a-2", "a-3", "a-4", "a-5", "a-6"];
    his.iter().for_each(|name| succeed(&outage, name));
    for name in his {
        assert_eq!(fail(&outage, name, Reason::BucketNotFound).0, Reason::BucketNotFound);
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
        assert_eq!(fail(&outage, name, denied).0, denied);
        tokio::time::advance(Duration::from_secs(150)).await;
        succeed(&outage, "d");
    }
    let met = outage.observe(&of("c"), TransferResult::Failed(Failure::new(denied, "no")), 0);
    assert!(matches!(met, ObservedResult::OutageStarted(_, since) if since == Duration::from_secs(300)), "{met:?}");
    succeed(&outage, "d");
    assert!(outage.is_outage(), "its session is an old one");
    outage.succeeded(&of("d"), 1);
    assert!(!outage.is_outage(), "a role was assumed");
    let later = |name| outage.observe(&of(name), TransferResult::Failed(Failure::new(denied, "no")), 1);
    for name in ["a", "b", "c"] {
        assert!(
            matches!(later(name), ObservedResult::Known(TransferResult::Failed(failure)) if failure.reason == denied)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn long_denials_are_judged_one_by_one_in_the_end() {
    let outage = OutageDetector::default();
    let names = ["a", "b", "c", "d", "e"];
    for name in names {
        fail(&outage, name, Reason::AccessDenied);
    }
    for _ in 0..31 {
        assert!(outage.is_outage());
        tokio::time::advance(Duration::from_secs(59)).await;
        fail(&outage, "a", Reason::AccessDenied);
    }
    assert_eq!(fail(&outage, "a", Reason::AccessDenied).0, Reason::AccessDenied);
}

#[tokio::test(start_paused = true)]
async fn jobs_deferred_in_a_row_are_paused_ever_longer() {
    let outage = OutageDetector::default();
    for name in ["a", "b", "c", "d", "e"] {
        fail(&outage, name, Reason::Timeout);
    }
    let pause = || outage.defers(&id("a")).unwrap().1.as_millis();
    let pauses: Vec<_> = (0..30).map(|_| pause()).collect();
    assert_eq!(pauses[..3], [0, 10, 20]);
    assert_eq!(pauses[25..], [250; 5]);
    fail(&outage, "f", Reason::Timeout);
    assert_eq!(pause(), 0, "another destination was tried");
}
