//! The page over a status that a test makes up.

use std::sync::{Arc, Mutex};

use consign::admin::{AdminAccess, AdminState, serve};
use consign::metrics::Metrics;
use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::testbed::listener;

/// An admin endpoint that shows a status of the test's own. Stops on drop.
pub struct Stub {
    pub url: String,
    status: Arc<Mutex<Value>>,
    filters: Arc<Mutex<Vec<String>>>,
    _stop: DropGuard,
}

impl Stub {
    pub async fn start(status: Value) -> Self {
        let (listener, address) = listener().await;
        let (status, filters) = (Arc::new(Mutex::new(status)), Arc::<Mutex<Vec<String>>>::default());
        let (shown, asked) = (status.clone(), filters.clone());
        let state = AdminState {
            metrics: Arc::new(Metrics::new(1)),
            ready: Arc::new(|| Ok(())),
            live: Arc::new(|| true),
            access: AdminAccess::default(),
            status: Arc::new(move |filter| {
                asked.lock().unwrap().push(filter.to_owned());
                shown.lock().unwrap().clone()
            }),
        };
        let stop = CancellationToken::new();
        tokio::spawn(serve(listener, state, stop.clone()));
        Self { url: format!("http://{address}/"), status, filters, _stop: stop.drop_guard() }
    }

    pub fn say(&self, status: Value) {
        *self.status.lock().unwrap() = status;
    }

    /// All filters that were asked for so far.
    pub fn filters(&self) -> Vec<String> {
        self.filters.lock().unwrap().clone()
    }
}

/// A worker that has nothing to do yet.
pub fn idle() -> Value {
    let lane = |name: &str, slots: u32| {
        let ended = json!({"delivered": 0, "failed": 0, "skipped": 0, "expired": 0});
        json!({"lane": name, "running": 0, "slots": slots, "delivered_bytes": 0, "ended": ended})
    };
    json!({
        "version": "0.1.0", "worker": "consign-7d9f", "prefix": "consign",
        "time": "2026-11-23T12:00:00Z", "started_at": "2026-11-23T11:59:30Z", "uptime_seconds": 30,
        "ready": true, "not_ready_because": null, "draining": false,
        "slots": {"total": 16, "busy": 0, "backfill": 8},
        "lanes": [lane("scheduled", 16), lane("backfill", 8), lane("continued", 16)],
        "buffer": {"bytes": 0, "limit_bytes": 268_435_456},
        "broker": {"kind": "rabbitmq", "address": "rabbit.internal:5671", "connected": true, "problem": null, "unconfirmed": 0, "reconnects": 0},
        "sessions": 0, "session_requests": {"hit": 0, "miss": 0, "coalesced": 0, "denied": 0},
        "failures": [], "dead_letters": [], "retries": 0, "deferred": 0,
        "throughput": {"step_seconds": 5, "steps": 180, "forgotten": 0, "bytes": [], "delivered": [], "failed": [], "repeated": []},
        "running": [], "recent": {"ended": [], "problems": []},
        "destinations": 0, "destination_states": {"shown": [], "matching": 0, "filter": ""},
    })
}

pub fn running(number: u64, job_id: &str, bytes: u64, expected: Option<u64>) -> Value {
    json!({
        "number": number, "job_id": job_id, "destination": "acme", "lane": "scheduled", "attempt": 1,
        "started_at": "2026-11-23T12:00:00Z", "seconds": 12.5, "size": 104_857_600, "bytes": bytes,
        "parts": bytes / 8_388_608, "phase": "uploading", "expected_bytes": expected,
    })
}

pub fn problem(number: u64, job_id: &str, reason: &str, message: &str, hint: &str) -> Value {
    let trouble = json!({
        "at": "2026-11-23T12:00:00Z", "class": "destination", "reason": reason, "message": message, "hint": hint,
        "next_try_at": "2026-11-23T12:30:00Z",
    });
    json!({
        "number": number, "at": "2026-11-23T12:00:00Z", "job_id": job_id, "destination": "globex", "lane": "backfill",
        "outcome": "deferred", "attempt": 1, "seconds": 0.4, "bytes": 0, "trouble": trouble,
    })
}

/// An open circuit of this failure.
fn circuit(trouble: &Value) -> Value {
    json!({
        "state": "open", "since": "2026-11-23T11:45:00Z", "next_probe_at": "2026-11-23T12:05:00Z", "probes": 2,
        "reason": trouble["reason"], "message": trouble["message"], "hint": trouble["hint"],
    })
}

pub fn destination(id: &str, trouble: Option<&Value>) -> Value {
    json!({
        "id": id, "bucket": format!("{id}-exports"), "region": "eu-central-1", "auth": "iam_role", "configured": true,
        "session": {"state": "open", "age_seconds": 600, "seconds_left": 3000}, "circuit_open": trouble.is_some(), "circuit": trouble.map(circuit),
        "in_flight": 1, "max_concurrency": 8, "consecutive_failures": u32::from(trouble.is_some()) * 3, "last_failure": trouble,
        "last_delivered_at": null, "delivered": 12, "delivered_bytes": 123_456_789,
    })
}

/// A worker with some of everything, good and bad.
pub fn busy() -> Value {
    let mut status = idle();
    let mib = 1_048_576;
    status["running"] = json!([
        running(1, "acme/google_ads/2026-11-22", 40 * mib, Some(100 * mib)),
        running(2, "acme/orders/2026-11-22", 24 * mib, None),
    ]);
    let hint = "let the bucket's policy allow s3:PutObject for the role";
    let denied = problem(7, "globex/crm/2026-11-21", "access_denied", "PutObject: S3 answered 403 AccessDenied", hint);
    let good = json!({
        "number": 8, "at": "2026-11-23T12:00:01Z", "job_id": "acme/small", "destination": "acme", "lane": "scheduled",
        "outcome": "delivered", "attempt": 1, "seconds": 0.2, "bytes": 12345,
    });
    status["recent"] = json!({"ended": [good, denied], "problems": [denied]});
    status["failures"] = json!([
        {"class": "destination", "reason": "access_denied", "count": 12}, {"class": "transient", "reason": "slow_down", "count": 3},
    ]);
    status["dead_letters"] = json!([
        {"class": "job", "reason": "source_not_found", "count": 4, "last_at": "2026-11-23T11:58:00Z"},
        {"class": "destination", "reason": "kms_denied", "count": 1, "last_at": "2026-11-23T11:40:00Z"},
    ]);
    status["slots"]["busy"] = json!(2);
    status["lanes"][0]["running"] = json!(2);
    status["lanes"][0]["ended"]["failed"] = json!(1);
    let wave = |scale: u64| (0..120u64).map(|step| (step * 7 % 23) * scale).collect::<Vec<_>>();
    status["throughput"]["bytes"] = json!(wave(4 * mib));
    status["throughput"]["delivered"] = json!(wave(1));
    status["throughput"]["failed"] = json!(wave(0).iter().map(|_| 1).collect::<Vec<_>>());
    status["throughput"]["repeated"] = json!(wave(0).iter().map(|_| 1).collect::<Vec<_>>());
    let states = [destination("globex", Some(&denied["trouble"])), destination("acme", None)];
    status["destination_states"] = json!({"shown": states, "matching": 2345, "filter": ""});
    status["destinations"] = json!(2345);
    status
}
