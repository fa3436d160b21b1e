use super::*;
use crate::domain::headers::Headers;
use crate::domain::outcome::{Reason, RetryDelay};
use crate::queue::Settlement;
use crate::worker::sample;

fn destination(id: &str) -> Arc<Destination> {
    Arc::new(sample::destination(id, "123456789012"))
}

fn delivered() -> SettlementPlan {
    SettlementPlan::sample(Settlement::Ack, Some(OutcomeKind::Delivered), None)
}

fn failed(reason: Reason) -> SettlementPlan {
    let settlement = Settlement::Retry { delay: RetryDelay::S30, headers: Headers::new() };
    let failure = Some(Failure::new(reason, "no").hint("fix it"));
    SettlementPlan::sample(settlement, Some(OutcomeKind::Retrying), failure)
}

fn end(transfers: &mut EndedTransfers, id: &str, plan: &SettlementPlan) {
    let ended = EndedTransfer { bytes: 10, ..EndedTransfer::rejected(Lane::Scheduled, plan, None, None) };
    transfers.attempt(ended, &destination(id), plan);
}

#[test]
fn failures_outlast_a_stream_of_successes() {
    let mut transfers = EndedTransfers::default();
    end(&mut transfers, "acme", &failed(Reason::SlowDown));
    for _ in 0..MAX_KEPT * 2 {
        end(&mut transfers, "acme", &delivered());
    }
    let recent = transfers.recent();
    assert_eq!((recent.ended.len(), recent.problems.len()), (MAX_KEPT, 1));
    assert!(recent.ended[0].number > recent.ended[1].number, "the newest comes first");
    let failure = recent.problems[0].trouble.as_ref().unwrap();
    assert_eq!((failure.reason, failure.class, failure.hint.as_str()), ("slow_down", "transient", "fix it"));
    let wait = failure.next_try_at.unwrap().duration_since(failure.at).as_secs();
    assert_eq!(wait, 30);
    assert_eq!((transfers.counts.delivered, transfers.counts.repeated), (100, 1));
    for _ in 0..MAX_KEPT * 2 {
        end(&mut transfers, "acme", &failed(Reason::SlowDown));
    }
    assert_eq!(transfers.recent().problems.len(), MAX_KEPT);
}

#[test]
fn consecutive_failures_are_those_of_the_destination_and_end_with_a_delivery() {
    let mut transfers = EndedTransfers::default();
    for reason in [Reason::AccessDenied, Reason::Timeout, Reason::SourceNotFound, Reason::Shutdown] {
        end(&mut transfers, "acme", &failed(reason));
    }
    let id = DestinationIdentity::parse("acme").unwrap();
    assert_eq!(transfers.destinations()[&id].consecutive_failures, 2);
    assert!(transfers.destinations()[&id].last_delivered_at.is_none());
    end(&mut transfers, "acme", &delivered());
    let record = &transfers.destinations()[&id];
    assert_eq!((record.consecutive_failures, record.delivered, record.delivered_bytes), (0, 1, 10));
    assert_eq!(record.last_trouble.as_ref().unwrap().reason, "shutdown");
}

#[test]
fn the_latest_of_many_destinations_are_kept() {
    let mut transfers = EndedTransfers::default();
    for number in 0..MAX_DESTINATIONS * 2 {
        end(&mut transfers, &format!("d{number}"), &delivered());
    }
    let kept = transfers.destinations();
    assert!((MAX_DESTINATIONS / 2..=MAX_DESTINATIONS).contains(&kept.len()), "{}", kept.len());
    assert!(kept.contains_key(&DestinationIdentity::parse(&format!("d{}", MAX_DESTINATIONS * 2 - 1)).unwrap()));
}

#[test]
fn a_rejection_names_what_could_be_read_and_counts_for_no_destination() {
    let mut transfers = EndedTransfers::default();
    let settlement = Settlement::DeadLetter { headers: Headers::new() };
    let plan = SettlementPlan::sample(settlement, Some(OutcomeKind::Failed), failed(Reason::InvalidJob).failure);
    transfers.rejection(
        EndedTransfer::rejected(Lane::Backfill, &plan, None, Some(&DestinationId::parse("acme").unwrap())),
        &plan,
    );
    let shown = serde_json::to_value(transfers.recent()).unwrap();
    let line = &shown["problems"][0];
    assert_eq!(
        (&line["job_id"], &line["destination"], &line["outcome"]),
        (&().into(), &"acme".into(), &"failed".into())
    );
    assert_eq!(line["trouble"]["next_try_at"], serde_json::Value::Null);
    assert!(transfers.destinations().is_empty());
    assert_eq!(transfers.counts.failed, 1);
}

#[test]
fn long_messages_are_cut_between_characters() {
    let cut = shortened(&"ü".repeat(MAX_TEXT_CHARS + 1));
    assert_eq!((cut.chars().count(), cut.chars().last()), (MAX_TEXT_CHARS + 1, Some('…')));
    assert_eq!(shortened(&"ü".repeat(MAX_TEXT_CHARS)), "ü".repeat(MAX_TEXT_CHARS));
}

/// A plan that dead-letters a message.
fn dead_lettered(reason: Reason, kind: Option<OutcomeKind>) -> SettlementPlan {
    let headers = Headers::from([("x-error-reason".to_owned(), reason.as_str().to_owned())]);
    SettlementPlan::sample(Settlement::DeadLetter { headers }, kind, Some(Failure::new(Reason::Timeout, "no")))
}

#[test]
fn dead_letters_are_counted_by_the_reason_that_is_in_their_header() {
    let mut transfers = EndedTransfers::default();
    end(&mut transfers, "acme", &failed(Reason::Timeout));
    for _ in 0..2 {
        end(&mut transfers, "acme", &dead_lettered(Reason::Exhausted, Some(OutcomeKind::Failed)));
    }
    let unreadable = dead_lettered(Reason::InvalidJob, None);
    transfers.rejection(EndedTransfer::rejected(Lane::Scheduled, &unreadable, None, None), &unreadable);
    let counts: Vec<_> = transfers.dead_letters().iter().map(|one| (one.class, one.reason, one.count)).collect();
    assert_eq!(counts, [("transient", "exhausted", 2), ("job", "invalid_job", 1)]);
    assert_eq!(transfers.recent().ended[0].outcome, "failed", "it has no outcome and is dead-lettered");
    assert_eq!((transfers.counts.failed, transfers.counts.repeated), (3, 1));
}
