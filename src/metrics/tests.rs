use std::collections::BTreeSet;

use super::labels::OUTCOMES;
use super::*;

const LANE: &[&str] = &["scheduled", "backfill", "continued"];
const OUTCOME: &[&str] = &["delivered", "failed", "skipped", "expired"];
/// The failure table of the contract, copied on purpose: the code must agree with it.
const FAILURES: &[(&str, &[&str])] = &[
    (
        "transient",
        &[
            "s3_unavailable",
            "slow_down",
            "throttled",
            "connection",
            "timeout",
            "sts_unavailable",
            "source_unavailable",
            "source_slow",
            "exhausted",
        ],
    ),
    ("session", &["session_expired"]),
    (
        "destination",
        &[
            "assume_role_denied",
            "access_denied",
            "bucket_not_found",
            "wrong_owner",
            "wrong_region",
            "kms_denied",
            "kms_unavailable",
            "access_key_invalid",
            "encryption_mismatch",
            "role_auth_off",
        ],
    ),
    (
        "job",
        &[
            "invalid_job",
            "schema_version",
            "destination_forbidden",
            "unknown_destination",
            "invalid_key",
            "source_not_found",
            "source_denied",
            "source_forbidden",
            "source_mismatch",
            "source_changed",
            "too_large",
            "object_exists",
            "unclassified",
        ],
    ),
    ("interrupted", &["shutdown", "broker_lost", "lease_lost"]),
    ("defect", &["panic", "checksum_mismatch", "crash_loop"]),
    ("worker", &["identity_denied", "clock_skew", "disk_full", "outage"]),
];
const PLAIN: &[&str] = &[
    "consign_object_size_bytes_count",
    "consign_oldest_in_flight_seconds",
    "consign_part_duration_seconds_count",
    "consign_multipart_aborted_total",
    "consign_multipart_abort_denied_total",
    "consign_multipart_resumed_total",
    "consign_multipart_orphaned_total",
    "consign_multipart_open",
    "consign_buffer_bytes",
    "consign_buffer_limit_bytes",
    "consign_sessions",
    "consign_sts_assume_role_duration_seconds_count",
    "consign_broker_connected",
    "consign_broker_reconnects_total",
    "consign_broker_unconfirmed",
    "consign_config_last_reload_successful",
    "consign_draining",
    "consign_fleet_workers",
    "consign_superseded_total",
];

/// Every series of the contract, with sorted labels.
fn promised() -> BTreeSet<String> {
    let mut all: BTreeSet<String> = PLAIN.iter().map(ToString::to_string).collect();
    let mut one = |name: &str, label: &str, values: &[&str]| {
        all.extend(values.iter().map(|value| format!("{name}{{{label}=\"{value}\"}}")));
    };
    for name in [
        "consign_queue_wait_seconds_count",
        "consign_delivered_bytes_total",
        "consign_transfers_in_flight",
        "consign_slots",
        "consign_consuming",
    ] {
        one(name, "lane", LANE);
    }
    for name in [
        "consign_destination_delivered_bytes_total",
        "consign_destination_consecutive_failures",
        "consign_destination_circuit_open",
    ] {
        one(name, "destination", &["_other", "acme"]);
    }
    for (_, reasons) in FAILURES {
        one("consign_transfer_retries_total", "reason", reasons);
    }
    one("consign_source_read_bytes_total", "scheme", &["https", "http", "file", "s3"]);
    one("consign_deferred_total", "cause", &["circuit", "concurrency", "rate"]);
    one("consign_generations_lost_total", "cause", &["evicted", "unreported", "unordered"]);
    one("consign_parts_total", "result", &["ok", "failed", "retried"]);
    one("consign_session_requests_total", "result", &["hit", "miss", "coalesced", "denied"]);
    one("consign_sts_assume_role_total", "result", &["ok", "denied", "error"]);
    one("consign_broker_settlements_total", "action", &["ack", "retry", "defer", "dead", "lease", "return"]);
    one("consign_replies_total", "result", &["sent", "refused", "failed"]);
    let refusals = [
        "invalid_job",
        "schema_version",
        "invalid_key",
        "source_forbidden",
        "destination_forbidden",
        "unknown_destination",
    ];
    one("consign_decode_failures_total", "reason", &refusals);
    one("consign_build_info", "version", &[env!("CARGO_PKG_VERSION")]);
    for outcome in OUTCOME {
        for lane in LANE {
            let labels = format!("{{lane=\"{lane}\",outcome=\"{outcome}\"}}");
            all.insert(format!("consign_transfers_total{labels}"));
            all.insert(format!("consign_transfer_duration_seconds_count{labels}"));
        }
        for id in ["_other", "acme"] {
            all.insert(format!("consign_destination_transfers_total{{destination=\"{id}\",outcome=\"{outcome}\"}}"));
        }
    }
    for (class, reasons) in FAILURES {
        all.extend(
            reasons.iter().map(|r| format!("consign_transfer_failures_total{{class=\"{class}\",reason=\"{r}\"}}")),
        );
    }
    for operation in
        ["PutObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload", "AbortMultipartUpload"]
    {
        for status in ["2xx", "3xx", "4xx", "5xx", "timeout", "connection"] {
            let labels = format!("{{operation=\"{operation}\",status=\"{status}\"}}");
            all.insert(format!("consign_s3_requests_total{labels}"));
        }
    }
    all
}

#[test]
fn all_series_are_present() {
    let metrics = Metrics::new(5);
    metrics.destinations().register(&DestinationId::parse("acme").unwrap());
    let (content_type, text) = metrics.render();
    assert_eq!(content_type, "text/plain; version=0.0.4");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let shown: BTreeSet<String> = lines.filter_map(|line| Some(line.rsplit_once(' ')?.0.to_owned())).collect();
    let missing: Vec<_> = promised().into_iter().filter(|series| !shown.contains(series)).collect();
    assert!(missing.is_empty(), "missing: {missing:#?}");
    #[cfg(target_os = "linux")]
    for name in [
        "process_cpu_seconds_total",
        "process_resident_memory_bytes",
        "process_virtual_memory_bytes",
        "process_open_fds",
        "process_max_fds",
        "process_start_time_seconds",
        "process_threads",
    ] {
        assert!(shown.contains(name), "{name} is missing");
    }
}

#[test]
fn no_label_value_is_outside_the_closed_sets() {
    let reasons: BTreeSet<(String, String)> =
        Reason::ALL.iter().map(|r| (r.class().as_str().to_owned(), r.as_str().to_owned())).collect();
    let promised: BTreeSet<(String, String)> =
        FAILURES.iter().flat_map(|(class, all)| all.iter().map(|r| ((*class).to_owned(), (*r).to_owned()))).collect();
    assert_eq!(reasons, promised);
    assert_eq!(OUTCOMES.map(OutcomeKind::as_str), OUTCOME);
    assert!(Lane::ALL.iter().all(|lane| LANE.contains(&lane.as_str())));
}

#[test]
fn every_metric_has_a_help_text_and_starts_at_zero() {
    let (_, text) = Metrics::new(5).render();
    for line in text.lines().filter(|line| line.starts_with("# TYPE ")) {
        let name = line.split(' ').nth(2).unwrap();
        assert!(text.contains(&format!("# HELP {name} ")), "{name}");
    }
    let ours = text.lines().filter(|line| line.starts_with("consign_"));
    for line in ours.filter(|line| !line.contains("build_info") && !line.contains("last_reload_successful")) {
        assert!(line.ends_with(" 0"), "{line}");
    }
}

#[test]
fn a_guard_lowers_its_gauge_on_drop() {
    let metrics = Metrics::new(5);
    let shown = || metrics.render().1.contains("consign_buffer_bytes 42\n");
    let guard = metrics.buffer(42);
    assert!(shown());
    drop(guard);
    assert!(!shown());
}
