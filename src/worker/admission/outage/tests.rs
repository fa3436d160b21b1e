use super::*;
use crate::domain::outcome::Receipt;
use crate::worker::sample;

fn id(name: &str) -> DestinationId {
    DestinationId::parse(name).unwrap()
}

/// A customer of his own, by the name's first letter.
fn of(name: &str) -> Destination {
    sample::destination(name, &format!("{:012}", u32::from(name.as_bytes()[0])))
}

fn good(outage: &OutageDetector, name: &str) {
    outage.observe(&of(name), TransferResult::Delivered(Receipt::default()), 0);
}

/// The reason in the end, and whether the outage began with it.
fn bad(outage: &OutageDetector, name: &str, reason: Reason) -> (Reason, bool) {
    match outage.observe(&of(name), TransferResult::Failed(Failure::new(reason, "no")), 0) {
        ObservedResult::Known(TransferResult::Failed(failure)) => (failure.reason, false),
        ObservedResult::OutageStarted(TransferResult::Failed(failure), _) => (failure.reason, true),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn three_that_worked_and_fail_alike_are_an_outage_until_one_works() {
    let outage = OutageDetector::default();
    for name in ["a", "b", "c", "d"] {
        good(&outage, name);
    }
    let denied = Reason::BucketNotFound;
    assert_eq!(bad(&outage, "a", denied), (denied, false));
    assert_eq!(bad(&outage, "a", denied), (denied, false));
    assert_eq!(bad(&outage, "b", denied), (denied, false));
    assert_eq!(bad(&outage, "b", Reason::SourceNotFound), (Reason::SourceNotFound, false));
    assert_eq!(bad(&outage, "c", denied), (Reason::Outage, true));
    assert_eq!(bad(&outage, "d", denied), (Reason::Outage, false));
    assert_eq!(bad(&outage, "d", Reason::KmsDenied), (Reason::KmsDenied, false));
    assert!(outage.defers(&id("a")).is_some() && outage.defers(&id("e")).is_none());
    good(&outage, "e");
    assert!(outage.defers(&id("a")).is_none());
    assert_eq!(bad(&outage, "d", denied), (denied, false));
}

#[tokio::test(start_paused = true)]
async fn after_a_start_it_takes_more() {
    let outage = OutageDetector::default();
    let names = ["a", "b", "c", "d"];
    assert!(names.iter().all(|name| bad(&outage, name, Reason::Timeout).0 == Reason::Timeout));
    assert_eq!(bad(&outage, "e", Reason::S3Unavailable), (Reason::Outage, true));
}

#[tokio::test(start_paused = true)]
async fn those_that_were_broken_before_count_once() {
    let outage = OutageDetector::default();
    for name in ["a", "b", "c", "d"] {
        bad(&outage, name, Reason::BucketNotFound);
    }
    good(&outage, "e");
    for name in ["a", "b", "c", "d"] {
        assert_eq!(bad(&outage, name, Reason::BucketNotFound).0, Reason::BucketNotFound);
    }
    assert_eq!(bad(&outage, "f", Reason::BucketNotFound).0, Reason::BucketNotFound);
}

#[tokio::test(start_paused = true)]
async fn a_good_answer_between_and_time_between_are_no_outage() {
    let outage = OutageDetector::default();
    let names = ["a", "b", "c", "d"];
    names.iter().for_each(|name| good(&outage, name));
    bad(&outage, "a", Reason::Connection);
    bad(&outage, "b", Reason::Connection);
    good(&outage, "d");
    assert_eq!(bad(&outage, "c", Reason::Connection).0, Reason::Connection);
    let outage = OutageDetector::default();
    names.iter().for_each(|name| good(&outage, name));
    for name in names {
        assert_eq!(bad(&outage, name, Reason::Connection).0, Reason::Connection);
        tokio::time::advance(Duration::from_secs(40)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn remembered_refusals_say_nothing_new_and_an_old_outage_is_over() {
    let outage = OutageDetector::default();
    for name in ["a", "b", "c", "d", "e", "f"] {
        let remembered = Failure { remembered: true, ..Failure::new(Reason::AssumeRoleDenied, "no") };
        assert!(
            matches!(outage.observe(&of(name), TransferResult::Failed(remembered), 0), ObservedResult::Known(TransferResult::Failed(f)) if f.reason != Reason::Outage)
        );
    }
    for name in ["a", "b", "c", "d", "e"] {
        bad(&outage, name, Reason::StsUnavailable);
    }
    assert!(outage.defers(&id("a")).is_some());
    tokio::time::advance(IDLE_END + Duration::from_secs(1)).await;
    assert_eq!(bad(&outage, "a", Reason::StsUnavailable).0, Reason::StsUnavailable);
}

#[tokio::test(start_paused = true)]
async fn what_one_customer_does_to_all_his_buckets_is_no_outage() {
    let outage = OutageDetector::default();
    let his = ["a-1", "a-2", "a-3", "a-4", "a-5", "a-6"];
    his.iter().for_each(|name| good(&outage, name));
    for name in his {
        assert_eq!(bad(&outage, name, Reason::BucketNotFound).0, Reason::BucketNotFound);
    }
}

#[tokio::test(start_paused = true)]
async fn where_sts_refuses_everybody_sessions_from_before_prove_nothing_and_a_new_one_does() {
    let outage = OutageDetector::default();
    let denied = Reason::AssumeRoleDenied;
    for name in ["a", "b", "c", "d"] {
        good(&outage, name);
    }
    for name in ["a", "b"] {
        assert_eq!(bad(&outage, name, denied).0, denied);
        tokio::time::advance(Duration::from_secs(150)).await;
        good(&outage, "d");
    }
    let met = outage.observe(&of("c"), TransferResult::Failed(Failure::new(denied, "no")), 0);
    assert!(matches!(met, ObservedResult::OutageStarted(_, since) if since == Duration::from_secs(300)), "{met:?}");
    good(&outage, "d");
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
async fn refusals_that_last_are_judged_one_by_one_after_all() {
    let outage = OutageDetector::default();
    let names = ["a", "b", "c", "d", "e"];
    for name in names {
        bad(&outage, name, Reason::AccessDenied);
    }
    for _ in 0..31 {
        assert!(outage.is_outage());
        tokio::time::advance(Duration::from_secs(59)).await;
        bad(&outage, "a", Reason::AccessDenied);
    }
    assert_eq!(bad(&outage, "a", Reason::AccessDenied).0, Reason::AccessDenied);
}

#[tokio::test(start_paused = true)]
async fn jobs_that_are_sent_away_in_a_row_go_slower_and_slower() {
    let outage = OutageDetector::default();
    for name in ["a", "b", "c", "d", "e"] {
        bad(&outage, name, Reason::Timeout);
    }
    let pause = || outage.defers(&id("a")).unwrap().1.as_millis();
    let pauses: Vec<_> = (0..30).map(|_| pause()).collect();
    assert_eq!(pauses[..3], [0, 10, 20]);
    assert_eq!(pauses[25..], [250; 5]);
    bad(&outage, "f", Reason::Timeout);
    assert_eq!(pause(), 0, "somebody else was asked");
}
