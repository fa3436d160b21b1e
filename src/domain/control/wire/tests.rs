use std::sync::Arc;

use super::*;

const CANCEL: &str = r#"{"version":1,"id":"0f0c5d3e-8f7a-4d0e-9a39-1d1f0c3c2b1a","at":"2026-11-22T10:00:00Z","kind":"cancel_backfill","backfill":"b-1"}"#;

fn circuit(change: CircuitChange) -> ControlCommand {
    ControlCommand::Circuit(DestinationIdentity::parse("acme").unwrap(), change)
}

fn failure() -> Failure {
    Failure::new(Reason::AccessDenied, "denied").hint("allow it")
}

#[test]
fn a_long_failure_is_shortened_and_still_read() {
    let failure = Box::new(Failure::new(Reason::AccessDenied, "ä".repeat(5000)).hint("ä".repeat(5000)));
    let denied = circuit(CircuitChange::Denied { failure, key: "ä".repeat(1000) });
    let read = Control::parse(&Control::new(denied, Timestamp::UNIX_EPOCH).render()).unwrap();
    let ControlCommand::Circuit(_, CircuitChange::Denied { failure, .. }) = read.command else { panic!("{read:?}") };
    assert_eq!(failure.message.chars().count(), MAX_TEXT_CHARS);
}

fn generation(change: GenerationChange) -> ControlCommand {
    let object = ObjectDigest::parse("0f0c5d3e-8f7a-4d0e-9a39-1d1f0c3c2b1a").unwrap();
    ControlCommand::Generation(object, change)
}

#[test]
fn what_is_written_is_read() {
    let job: Arc<str> = "acme/2026-11-22".into();
    let commands = [
        ControlCommand::CancelBackfill(BackfillId::parse("nightly.2026_11-22").unwrap()),
        ControlCommand::ResetCircuit(DestinationIdentity::parse("acme").unwrap()),
        ControlCommand::WorkerStarted("host-1.0f".to_owned()),
        ControlCommand::WorkerStopped("host-1.0f".to_owned()),
        ControlCommand::JobDelivered(Uuid::from_u128(7)),
        circuit(CircuitChange::Denied { failure: Box::new(failure()), key: "a/b.csv".to_owned() }),
        circuit(CircuitChange::Opened {
            failure: Box::new(failure()),
            probes: 2,
            next_probe: Duration::from_secs(120),
        }),
        circuit(CircuitChange::Probing),
        circuit(CircuitChange::Closed),
        generation(GenerationChange::Pending { generation: 0 }),
        generation(GenerationChange::Writing {
            generation: u64::MAX,
            run: Uuid::from_u128(7),
            write: Uuid::from_u128(8),
        }),
        generation(GenerationChange::Ended { write: Uuid::from_u128(8) }),
        generation(GenerationChange::Delivered { generation: 1, job: job.clone(), write: None }),
        generation(GenerationChange::Delivered { generation: 1, job, write: Some(Uuid::from_u128(8)) }),
    ];
    for command in commands {
        let control = Control::new(command, Timestamp::from_second(1_800_000_000).unwrap());
        assert_eq!(Control::parse(&control.render()).unwrap(), control);
    }
}

#[test]
fn the_written_form_never_changes() {
    let control = Control::parse(CANCEL.as_bytes()).unwrap();
    assert_eq!(String::from_utf8(control.render()).unwrap(), CANCEL);
}

#[test]
fn a_malformed_message_is_rejected_by_field() {
    for (from, to, field) in [
        ("\"version\":1", "\"version\":2", "version"),
        ("cancel_backfill", "cancel_everything", "kind"),
        ("\"backfill\":\"b-1\"", "\"destination\":\"acme\"", "kind"),
        ("\"backfill\":\"b-1\"", "\"backfill\":\"b-1\",\"destination\":\"acme\"", "kind"),
        (",\"backfill\":\"b-1\"", "", "kind"),
        ("\"b-1\"", "\"a/b\"", "backfill"),
        ("\"b-1\"", "\"b-1\",\"more\":1", "body"),
        ("\"b-1\"", "\"b-1\",\"backfill\":\"b-2\"", "body"),
        ("2026-11-22T10:00:00Z", "yesterday", "body"),
        ("0f0c5d3e", "xxxxxxxx", "id"),
        ("\"b-1\"}", "\"b-1\"} {}", "body"),
    ] {
        let changed = CANCEL.replace(from, to);
        assert_ne!(changed, CANCEL);
        assert_eq!(Control::parse(changed.as_bytes()).unwrap_err().field, field, "{changed}");
    }
    let by_position = br#"[1,"0f0c5d3e-8f7a-4d0e-9a39-1d1f0c3c2b1a","2026-11-22T10:00:00Z","cancel_backfill","b-1"]"#;
    assert_eq!(Control::parse(by_position).unwrap_err().field, "body");
    assert_eq!(Control::parse(&[b' '; MAX_BYTES + 1]).unwrap_err().field, "body");
}
