use super::*;
use crate::domain::outcome::{Reason, RetryDelay};
use crate::worker::sample;

fn destination(id: &str) -> Arc<Destination> {
    Arc::new(sample::destination(id, "123456789012"))
}

fn delivered() -> Verdict {
    Verdict { settlement: Settlement::Ack, event: None, kind: Some(OutcomeKind::Delivered), failure: None }
}

fn failed(reason: Reason) -> Verdict {
    let settlement = Settlement::Retry { delay: RetryDelay::S30, headers: history::Headers::new() };
    let failure = Some(Failure::new(reason, "no").hint("mend it"));
    Verdict { settlement, event: None, kind: Some(OutcomeKind::Retrying), failure }
}

fn end(past: &mut Past, id: &str, verdict: &Verdict) {
    let ended = EndedTransfer { bytes: 10, ..EndedTransfer::refused(Lane::Scheduled, verdict, None, None) };
    past.attempt(ended, &destination(id), verdict);
}

#[test]
fn problems_outlast_a_stream_of_good_ends() {
    let mut past = Past::default();
    end(&mut past, "acme", &failed(Reason::SlowDown));
    for _ in 0..KEPT * 2 {
        end(&mut past, "acme", &delivered());
    }
    let recent = past.recent();
    assert_eq!((recent.ended.len(), recent.problems.len()), (KEPT, 1));
    assert!(recent.ended[0].number > recent.ended[1].number, "the newest comes first");
    let trouble = recent.problems[0].trouble.as_ref().unwrap();
    assert_eq!((trouble.reason, trouble.class, trouble.hint.as_str()), ("slow_down", "transient", "mend it"));
    let waits = trouble.next_try_at.unwrap().duration_since(trouble.at).as_secs();
    assert_eq!(waits, 30);
    assert_eq!((past.counts().delivered, past.counts().repeated), (100, 1));
    for _ in 0..KEPT * 2 {
        end(&mut past, "acme", &failed(Reason::SlowDown));
    }
    assert_eq!(past.recent().problems.len(), KEPT);
}

#[test]
fn failures_in_a_row_are_those_of_the_destination_and_end_with_a_delivery() {
    let mut past = Past::default();
    for reason in [Reason::AccessDenied, Reason::Timeout, Reason::SourceNotFound, Reason::Shutdown] {
        end(&mut past, "acme", &failed(reason));
    }
    let id = DestinationId::parse("acme").unwrap();
    assert_eq!(past.destinations()[&id].consecutive_failures, 2);
    assert!(past.destinations()[&id].last_delivered_at.is_none());
    end(&mut past, "acme", &delivered());
    let record = &past.destinations()[&id];
    assert_eq!((record.consecutive_failures, record.delivered, record.delivered_bytes), (0, 1, 10));
    assert_eq!(record.last_trouble.as_ref().unwrap().reason, "shutdown");
}

#[test]
fn destinations_without_end_leave_the_latest() {
    let mut past = Past::default();
    for number in 0..DESTINATIONS * 2 {
        end(&mut past, &format!("d{number}"), &delivered());
    }
    let kept = past.destinations();
    assert!((DESTINATIONS / 2..=DESTINATIONS).contains(&kept.len()), "{}", kept.len());
    assert!(kept.contains_key(&DestinationId::parse(&format!("d{}", DESTINATIONS * 2 - 1)).unwrap()));
}

#[test]
fn a_refusal_names_what_could_be_read_and_counts_for_no_destination() {
    let mut past = Past::default();
    let verdict = Verdict {
        settlement: Settlement::DeadLetter { headers: history::Headers::new() },
        kind: Some(OutcomeKind::Failed),
        ..failed(Reason::InvalidJob)
    };
    past.refusal(EndedTransfer::refused(Lane::Backfill, &verdict, None, Some(&DestinationId::parse("acme").unwrap())));
    let shown = serde_json::to_value(past.recent()).unwrap();
    let line = &shown["problems"][0];
    assert_eq!(
        (&line["job_id"], &line["destination"], &line["outcome"]),
        (&().into(), &"acme".into(), &"failed".into())
    );
    assert_eq!(line["trouble"]["next_try_at"], serde_json::Value::Null);
    assert!(past.destinations().is_empty());
    assert_eq!(past.counts().failed, 1);
}

#[test]
fn long_messages_are_cut_between_characters() {
    let cut = shortened(&"ü".repeat(TEXT + 1));
    assert_eq!((cut.chars().count(), cut.chars().last()), (TEXT + 1, Some('…')));
    assert_eq!(shortened(&"ü".repeat(TEXT)), "ü".repeat(TEXT));
}
