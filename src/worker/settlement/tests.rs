use super::*;
use crate::domain::control::BackfillId;
use crate::domain::generation::NewerDelivery;
use crate::domain::job;
use crate::domain::outcome::{Class, History, Receipt};
use crate::worker::admission::Deferred;
use crate::worker::sample;

const POLICY: RetryPolicy = RetryPolicy {
    max_attempts: 8,
    denied_for: Duration::from_secs(60),
    max_deferral_age: RetryPolicy::MAX_DEFERRAL_AGE,
};
const LANES: [Lane; 3] = Lane::ALL;
const LEASES: [LeaseStatus; 3] = [LeaseStatus::Absent, LeaseStatus::Held, LeaseStatus::Lost];

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

fn decoded(history: History) -> DecodedJob {
    let body = br#"{"version":1,"id":"a","source":{"url":"https://example.com/a"},"destination":"acme","key":"a.csv"}"#;
    let job = job::parse(None, None, body).unwrap();
    let destination = std::sync::Arc::new(sample::destination("acme", "123456789012"));
    DecodedJob { job, destination, lease: None, headers: JobHeaders { history, ..JobHeaders::default() } }
}

/// Circumstances under which every reason is planned.
#[derive(Debug, Clone, Copy)]
struct Case {
    lane: Lane,
    lease: LeaseStatus,
    upload: bool,
}

fn cases() -> impl Iterator<Item = Case> {
    LANES.into_iter().flat_map(|lane| {
        LEASES.into_iter().flat_map(move |lease| [false, true].map(|upload| Case { lane, lease, upload }))
    })
}

fn plan_of(case: Case, job: &DecodedJob, conclusion: Conclusion) -> SettlementPlan {
    let (policy, properties) = (POLICY, Properties::default());
    let context = SettlementContext {
        prefix: "consign",
        policy: &policy,
        lane: case.lane,
        properties: &properties,
        job,
        started_at: now(),
        now: now(),
        took: Duration::from_secs(1),
        next_probe: None,
        last_success_at: None,
        lease: LeaseSnapshot {
            state: case.lease,
            upload_id: case.upload.then(|| "upload".into()),
            first_started_at: now(),
            crashes: 0,
        },
    };
    plan(&context, conclusion)
}

fn failed(case: Case, history: History, reason: Reason) -> SettlementPlan {
    let result = TransferResult::Failed(Failure::new(reason, "no"));
    plan_of(case, &decoded(history), Conclusion::Attempted(result))
}

/// The table: metric action and outcome of a first attempt that failed with this reason.
fn expected(reason: Reason, case: Case) -> (&'static str, Option<OutcomeKind>) {
    let requeued = match (case.lease, case.upload) {
        (LeaseStatus::Lost, _) => "ack",
        (LeaseStatus::Held, _) | (LeaseStatus::Absent, true) => "lease",
        (LeaseStatus::Absent, false) => "return",
    };
    match reason.class() {
        _ if matches!(reason, Reason::RoleAuthOff | Reason::CrashLoop) => ("dead", Some(OutcomeKind::Failed)),
        _ if reason == Reason::Outage => ("defer", None),
        Class::Transient | Class::Session | Class::Defect => ("retry", Some(OutcomeKind::Retrying)),
        Class::Destination => ("defer", None),
        Class::Job => ("dead", Some(OutcomeKind::Failed)),
        Class::Interrupted | Class::Worker => (requeued, None),
    }
}

#[test]
fn every_reason_in_every_lane_and_lease_state_has_its_settlement() {
    for case in cases() {
        for reason in Reason::ALL {
            let plan = failed(case, History::default(), reason);
            let planned = (plan.settlement.action(), plan.kind());
            assert_eq!(planned, expected(reason, case), "{reason:?} {case:?}");
            assert_eq!(plan.counted, Some(reason), "each failed attempt is counted");
            let waits = matches!(planned.0, "retry" | "defer" | "lease");
            assert_eq!(
                plan.body == CopyBody::Checkpoint,
                waits,
                "a copy takes the checkpoint along: {reason:?} {case:?}"
            );
            let terminal = plan.kind().is_some_and(OutcomeKind::is_terminal);
            assert_eq!(plan.body == CopyBody::Original, terminal, "a dead letter has the original body: {reason:?}");
            assert_eq!(plan.abort_upload, terminal && case.lease != LeaseStatus::Lost, "{reason:?} {case:?}");
            let elsewhere =
                matches!(planned.0, "return" | "lease") || case.lease == LeaseStatus::Lost && planned.0 == "ack";
            assert_eq!(plan.is_final, !elsewhere, "{reason:?} {case:?}");
            assert_eq!(plan.deferred.is_some(), planned.0 == "defer", "{reason:?}");
            assert_eq!(plan.word() == "return", elsewhere, "it is reported as returned: {reason:?} {case:?}");
        }
    }
}

#[test]
fn the_last_charged_attempt_ends_exhausted_and_its_failure_is_counted_as_such() {
    for case in cases() {
        let plan = failed(case, History { attempts: 7, ..History::default() }, Reason::SlowDown);
        assert_eq!((plan.settlement.action(), plan.counted), ("dead", Some(Reason::Exhausted)));
        assert_eq!(plan.failure.unwrap().reason, Reason::SlowDown);
        let Settlement::DeadLetter { headers } = plan.settlement else { panic!("not dead-lettered") };
        assert_eq!(headers["x-error-reason"], "exhausted");
        assert_eq!(headers["x-attempts"], "8");
        assert!(headers.contains_key("x-begun-at"), "the object may have been written since then");
    }
}

#[test]
fn a_result_without_failure_is_acknowledged_with_its_outcome() {
    let backfill = BackfillId::parse("b").unwrap();
    let results = || {
        [
            (TransferResult::Delivered(Receipt { bytes: 7, ..Receipt::default() }), OutcomeKind::Delivered),
            (TransferResult::Skipped, OutcomeKind::Skipped),
            (TransferResult::Expired, OutcomeKind::Expired),
            (TransferResult::Cancelled(backfill.clone()), OutcomeKind::Skipped),
            (TransferResult::Superseded(newer()), OutcomeKind::Skipped),
        ]
    };
    for case in cases() {
        for (result, kind) in results() {
            let plan = plan_of(case, &decoded(History::default()), Conclusion::Attempted(result));
            assert_eq!((plan.settlement.action(), plan.kind(), plan.is_final), ("ack", Some(kind), true));
            assert_eq!(plan.abort_upload, case.lease != LeaseStatus::Lost);
            assert!(plan.counted.is_none() && plan.deferred.is_none());
        }
    }
}

fn newer() -> NewerDelivery {
    NewerDelivery { generation: 2, job: "acme/02:00".into() }
}

#[test]
fn a_superseded_job_names_the_job_that_won() {
    let case = Case { lane: Lane::Scheduled, lease: LeaseStatus::Absent, upload: true };
    for conclusion in [
        Conclusion::Attempted(TransferResult::Superseded(newer())),
        Conclusion::Deferred(Deferral::Superseded(newer())),
    ] {
        let plan = plan_of(case, &decoded(History::default()), conclusion);
        assert_eq!(plan.superseded_by, Some(newer()));
        assert!(plan.abort_upload && !plan.may_write_later());
        let outcome: serde_json::Value = serde_json::from_slice(&plan.outcome.unwrap().event.body).unwrap();
        assert_eq!(outcome["type"], "consign.transfer.skipped.v1");
        assert_eq!(outcome["data"]["reason"], "superseded");
        assert_eq!(outcome["data"]["superseded_by"]["job_id"], "acme/02:00");
        assert_eq!(outcome["data"]["superseded_by"]["generation"], 2);
        let message = outcome["data"]["message"].as_str().unwrap();
        assert_eq!(message, "a newer generation of this object was delivered: acme/02:00 (generation 2)");
    }
}

#[test]
fn a_job_whose_object_is_busy_keeps_its_upload_and_waits_uncharged() {
    let case = Case { lane: Lane::Scheduled, lease: LeaseStatus::Absent, upload: true };
    let planned = |conclusion| plan_of(case, &decoded(History::default()), conclusion);
    let attempted = planned(Conclusion::Attempted(TransferResult::ObjectBusy));
    let waited = planned(Conclusion::Deferred(Deferral::ObjectBusy));
    for (plan, body) in [(attempted, CopyBody::Checkpoint), (waited, CopyBody::AsDelivered)] {
        assert_eq!(
            (plan.settlement.action(), plan.deferred, plan.body),
            ("defer", Some(DeferCause::Concurrency), body)
        );
        assert!(!plan.abort_upload && plan.outcome.is_none() && plan.may_write_later());
    }
}

#[test]
fn a_job_that_did_not_start_is_settled_as_it_came() {
    let failure = || Box::new(Failure::new(Reason::BucketNotFound, "no"));
    let limited = || Deferral::Limited(Deferred { wait: Duration::from_secs(40), cause: DeferCause::Concurrency });
    let unhealthy = || Deferral::Unhealthy { failure: failure(), next_probe: Duration::from_secs(600) };
    for case in cases().filter(|case| case.lease == LeaseStatus::Absent) {
        let planned = |deferral| plan_of(case, &decoded(History::default()), Conclusion::Deferred(deferral));
        for (deferral, action, delay, cause) in [
            (limited(), "defer", Some(RetryDelay::S30), Some(DeferCause::Concurrency)),
            (unhealthy(), "defer", Some(RetryDelay::M10), Some(DeferCause::Circuit)),
            (Deferral::Quarantined, "defer", Some(RetryDelay::S30), None),
            (Deferral::Stopped, "return", None, None),
        ] {
            let plan = planned(deferral);
            assert_eq!((plan.settlement.action(), plan.delay(), plan.deferred), (action, delay, cause));
            assert_eq!((plan.body, plan.abort_upload, plan.counted), (CopyBody::AsDelivered, false, None));
            assert!(plan.outcome.is_none());
            if let Settlement::Defer { headers, .. } = plan.settlement {
                assert_eq!(headers["x-turns"], "1", "a copy must never be taken for its original");
            }
        }
        let plan = planned(Deferral::Cancelled(BackfillId::parse("b").unwrap()));
        assert_eq!(
            (plan.settlement.action(), plan.kind(), plan.body),
            ("ack", Some(OutcomeKind::Skipped), CopyBody::Original)
        );
        assert!(plan.abort_upload, "the upload that it carried has no other end");
    }
}

#[test]
fn an_expired_job_that_waits_for_a_permit_ends_with_its_charged_attempts() {
    let mut job = decoded(History { attempts: 3, ..History::default() });
    job.job.expires_at = Some(now());
    let case = Case { lane: Lane::Scheduled, lease: LeaseStatus::Absent, upload: false };
    let limited = Deferral::Limited(Deferred { wait: Duration::ZERO, cause: DeferCause::Rate });
    let plan = plan_of(case, &job, Conclusion::Deferred(limited));
    assert_eq!((plan.settlement.action(), plan.kind()), ("ack", Some(OutcomeKind::Expired)));
    let body: serde_json::Value = serde_json::from_slice(&plan.outcome.unwrap().event.body).unwrap();
    assert_eq!(body["data"]["attempts"], 3);
}

#[test]
fn an_outcome_without_details_is_the_same_outcome() {
    let job = decoded(History::default());
    let case = Case { lane: Lane::Scheduled, lease: LeaseStatus::Absent, upload: false };
    let first = plan_of(case, &job, Conclusion::Attempted(TransferResult::Delivered(Receipt::default())));
    let first = first.outcome.unwrap().event;
    let again = delivered_before("consign", &Properties::default(), &job, now());
    assert_eq!((&again.id, &again.routing_key), (&first.id, &first.routing_key));
    let body: serde_json::Value = serde_json::from_slice(&again.body).unwrap();
    assert_eq!((&body["type"], &body["data"]["key"]), (&"consign.transfer.delivered.v1".into(), &"a.csv".into()));
}

#[test]
fn a_survived_crash_is_no_longer_counted_in_a_copy() {
    let mut job = decoded(History::default());
    job.headers.crashes = 2;
    let (policy, properties) = (POLICY, Properties::default());
    let context = SettlementContext {
        prefix: "consign",
        policy: &policy,
        lane: Lane::Continued,
        properties: &properties,
        job: &job,
        started_at: now(),
        now: now(),
        took: Duration::ZERO,
        next_probe: None,
        last_success_at: None,
        lease: LeaseSnapshot { state: LeaseStatus::Held, upload_id: None, first_started_at: now(), crashes: 2 },
    };
    let interrupted = TransferResult::Failed(Failure::new(Reason::Shutdown, "drain"));
    let plan = plan(&context, Conclusion::Attempted(interrupted));
    let Settlement::HandOff { headers } = plan.settlement else { panic!("not handed off") };
    assert_eq!(headers["x-crashes"], "0");
}

#[test]
fn a_duplicate_is_acknowledged_only_where_nothing_of_it_is_lost() {
    let settled = |end: Option<&JobEnd>, carried| of_duplicate(end, carried, now());
    let continued = JobEnd::Continued(Some("u".into()));
    for (end, carried, action) in [
        (Some(&JobEnd::Ended(None)), Some("u"), "ack"),
        (Some(&continued), None, "ack"),
        (Some(&continued), Some("u"), "ack"),
        (Some(&continued), Some("other"), "defer"),
        (Some(&JobEnd::Continued(None)), Some("u"), "defer"),
        (Some(&JobEnd::Open), Some("u"), "return"),
        (None, None, "defer"),
    ] {
        assert_eq!(settled(end, carried).action(), action, "{end:?} {carried:?}");
    }
    assert!(matches!(settled(None, None), Settlement::Defer { delay: RetryDelay::S30, .. }));
}
