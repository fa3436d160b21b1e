use std::sync::Arc;

use super::*;
use crate::config::{AwsConfig, SessionConfig};
use crate::domain::destination::raw::{RawAuth, RawDestination};
use crate::domain::destination::{DestinationId, Region};
use crate::metrics::Metrics;
use crate::session::WorkerIdentity;

fn destination(id: &str) -> (DestinationIdentity, Arc<Destination>) {
    let auth = RawAuth {
        role_arn: Some("arn:aws:iam::123456789012:role/r".into()),
        external_id: Some("marked-secret-external-id".into()),
        ..RawAuth::default()
    };
    let raw =
        RawDestination { bucket: "exports".into(), region: "eu-central-1".into(), auth, ..RawDestination::default() };
    let destination = raw.validate(DestinationId::parse(id).unwrap()).unwrap();
    (destination.identity.clone(), Arc::new(destination))
}

fn record(id: &str, failures: u32, last_active: u64) -> (DestinationIdentity, DestinationRecord) {
    let (id, destination) = destination(id);
    let record = DestinationRecord {
        destination,
        consecutive_failures: failures,
        last_trouble: None,
        last_delivered_at: None,
        delivered: 0,
        delivered_bytes: 0,
        last_active,
    };
    (id, record)
}

async fn sessions(metrics: &Arc<Metrics>) -> Sessions {
    let aws = AwsConfig { region: Some(Region::parse("eu-central-1").unwrap()), ..AwsConfig::default() };
    let config = SessionConfig {
        refresh_before: Duration::from_secs(300),
        capacity: 10,
        denied_for: Duration::from_secs(60),
        role_auth: false,
        policy: crate::domain::destination::SessionPolicyMode::Full,
    };
    let identity = WorkerIdentity::load(&aws).await;
    Sessions::new(config, aws, identity, metrics.clone())
}

struct StatusFixture {
    configured: Destinations,
    worked_for: BTreeMap<DestinationIdentity, DestinationRecord>,
    running: Vec<RunningTransfer>,
    admission: AdmissionView,
    sessions: Sessions,
}

impl StatusFixture {
    async fn new(configured: impl Iterator<Item = String>) -> Self {
        Self {
            configured: configured.map(|id| (DestinationId::parse(&id).unwrap(), destination(&id).1)).collect(),
            worked_for: BTreeMap::new(),
            running: Vec::new(),
            sessions: sessions(&Arc::new(Metrics::new(5))).await,
            admission: AdmissionView::default(),
        }
    }

    fn states(&self, filter: &str) -> DestinationStates {
        states(&DestinationInputs {
            configured: &self.configured,
            worked_for: self.worked_for.clone(),
            running: &self.running,
            sessions: &self.sessions,
            admission: &self.admission,
            filter,
        })
    }

    fn ids(&self, filter: &str) -> Vec<String> {
        self.states(filter).shown.into_iter().map(|state| state.id).collect()
    }
}

fn running(destination: &str) -> RunningTransfer {
    RunningTransfer {
        number: 1,
        job_id: "a".to_owned(),
        destination: destination.to_owned(),
        identity: DestinationIdentity::parse(destination).unwrap(),
        lane: "scheduled",
        attempt: 1,
        started_at: Timestamp::UNIX_EPOCH,
        seconds: 1.0,
        size: None,
        bytes: 0,
        parts: 0,
        phase: "opening",
        expected_bytes: None,
    }
}

#[tokio::test]
async fn failing_ones_come_first_then_the_busiest_then_the_latest() {
    let mut fixture =
        StatusFixture::new(["idle", "late", "early", "busy", "closed"].into_iter().map(str::to_owned)).await;
    fixture.worked_for.extend([record("late", 0, 9), record("early", 0, 3), record("inline-failing", 2, 1)]);
    fixture.running = vec![running("busy"), running("busy"), running("early")];
    let circuit = CircuitView {
        state: "open",
        since: Timestamp::UNIX_EPOCH,
        next_probe_at: None,
        probes: 2,
        reason: "kms_denied",
        message: String::new(),
        hint: String::new(),
    };
    fixture.admission.circuits.insert(DestinationIdentity::parse("closed").unwrap(), circuit);
    fixture
        .admission
        .waiting
        .insert(DestinationIdentity::parse("busy").unwrap(), WaitingJobs { queued: 3, deferred: 40 });
    fixture.admission.awaiting_recovery.insert(DestinationIdentity::parse("closed").unwrap(), 7);
    assert_eq!(fixture.ids(""), ["closed", "inline-failing", "busy", "early", "late", "idle"]);
    let shown = serde_json::to_value(fixture.states("")).unwrap();
    assert_eq!(shown["shown"][0]["circuit_open"], true);
    assert_eq!(shown["shown"][0]["circuit"]["reason"], "kms_denied");
    assert_eq!(shown["shown"][1]["circuit"], serde_json::Value::Null);
    assert_eq!((&shown["shown"][2]["waiting"], &shown["shown"][2]["deferred"]), (&3.into(), &40.into()));
    assert_eq!((&shown["shown"][0]["awaiting_repair"], &shown["shown"][2]["awaiting_repair"]), (&7.into(), &0.into()));
    assert_eq!(shown["shown"][1]["configured"], false);
    assert_eq!(shown["shown"][2]["in_flight"], 2);
    assert!(!shown.to_string().contains("marked-secret"), "{shown}");
}

#[tokio::test]
async fn a_recovered_destination_ranks_as_healthy_until_it_fails_again() {
    let mut fixture = StatusFixture::new(["acme".to_owned(), "busy".to_owned()].into_iter()).await;
    let at = |second: i64| Timestamp::from_second(second).unwrap();
    let trouble = |at| FailureDetail {
        at,
        class: "destination",
        reason: "kms_denied",
        message: String::new(),
        hint: String::new(),
        next_try_at: None,
    };
    let (id, failing) = record("acme", 3, 1);
    let failed_at = |second| DestinationRecord { last_trouble: Some(Arc::new(trouble(at(second)))), ..failing.clone() };
    fixture.worked_for.insert(id.clone(), failed_at(10));
    fixture.admission.recovered_at.insert(id.clone(), at(9));
    fixture.running = vec![running("busy")];
    let shown = |fixture: &StatusFixture| serde_json::to_value(fixture.states("")).unwrap()["shown"].clone();
    assert_eq!((fixture.ids(""), &shown(&fixture)[0]["mended_at"]), (vec!["acme".into(), "busy".into()], &().into()));
    fixture.admission.recovered_at.insert(id.clone(), at(11));
    assert_eq!(fixture.ids(""), ["busy", "acme"]);
    assert_eq!(shown(&fixture)[1]["mended_at"], "1970-01-01T00:00:11Z");
    fixture.worked_for.insert(id, failed_at(12));
    assert_eq!(fixture.ids(""), ["acme", "busy"]);
}

#[tokio::test]
async fn the_list_is_bounded_and_every_destination_can_be_found() {
    let fixture = StatusFixture::new((0..3000).map(|number| format!("customer-{number}"))).await;
    let all = fixture.states("");
    assert_eq!((all.shown.len(), all.matching), (MAX_SHOWN, 3000));
    assert_eq!(fixture.ids("customer-2999"), ["customer-2999"]);
    let some = fixture.states("-299");
    assert_eq!((some.shown.len(), some.matching), (11, 11));
    assert!(fixture.ids("nobody").is_empty());
    let size = serde_json::to_vec(&all).unwrap().len();
    assert!(size < 100_000, "{size}");
}

#[tokio::test]
async fn a_refused_session_shows_reason_and_seconds_left() {
    let fixture = StatusFixture::new(["acme".to_owned()].into_iter()).await;
    let state = || serde_json::to_value(fixture.states("")).unwrap()["shown"][0]["session"].clone();
    assert_eq!(state(), serde_json::json!({"state": "none"}));
    // Without an identity the worker refuses the role itself; no request is made.
    fixture.sessions.get(&fixture.configured.values().next().unwrap().clone()).await.unwrap_err();
    assert_eq!(state()["state"], "refused");
    assert_eq!(state()["reason"], "role_auth_off");
    assert!(state()["seconds_left"].as_u64().unwrap() <= 60);
}
