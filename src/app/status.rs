//! The content of `/status`, which the page at `/` shows.
//!
//! `/status` is one JSON object. Keys are added, never changed. Sizes are bytes, times RFC 3339. It
//! holds no secret, no external id and no query of a URL. `?destination=TEXT` limits
//! `destination_states` to ids that contain the text.
//!
//! | key | content |
//! |---|---|
//! | `version`, `worker`, `prefix` | version of the program, id of this process, prefix of its queues |
//! | `time`, `started_at`, `uptime_seconds` | by the worker's clock |
//! | `ready`, `not_ready_because`, `draining` | readiness for jobs, and the reason if not ready |
//! | `reload_refused` | `at` and `problem` (at most 11 lines) of the last reload if it, or the file that is named, was refused and the last valid settings stay in effect; absent otherwise |
//! | `slots` | `total`, `busy`, `backfill` (the maximum for backfills) |
//! | `lanes[]` | `lane`, `running`, `slots`, `delivered_bytes`, `ended` by outcome since the start |
//! | `buffer` | `bytes` in part buffers, `limit_bytes` |
//! | `broker` | `kind` (`rabbitmq`, `embedded`), `address` (no credentials), `connected`, `problem`, `unconfirmed`, `reconnects` |
//! | `sessions`, `session_requests` | sessions in the cache; requests by result |
//! | `failures[]` | `class`, `reason`, `count` of failed attempts since the start, the most frequent first |
//! | `dead_letters[]` | [`crate::worker::DeadLetterCount`]: `class`, `reason`, `count`, `last_at` of the jobs that this worker dead-lettered since the start, the most frequent first |
//! | `retries`, `deferred` | charged attempts that are repeated; jobs deferred without charge |
//! | `throughput` | 15 minutes in steps, see [`crate::worker::Throughput`] |
//! | `running[]` | [`crate::worker::RunningTransfer`], the oldest first, at most 500 |
//! | `recent` | the last ended transfers, newest first: `ended[]` and `problems[]` of [`crate::worker::EndedTransfer`], 50 each |
//! | `destinations` | number of configured destinations |
//! | `destination_states` | `shown[]` (at most 100: failing ones first, then the busiest), `matching`, `filter`; see [`destinations`] |

mod destinations;

use std::sync::Arc;

use jiff::Timestamp;
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::last_reload::LastReload;
use crate::admin::{AdminAccess, AdminState};
use crate::config::{AdminConfig, BrokerConfig, WorkerConfig};
use crate::domain::destination::Destinations;
use crate::metrics::Metrics;
use crate::session::Sessions;
use crate::worker::Worker;

const MAX_RUNNING: usize = 500;

/// Everything that the status is read from.
pub(super) struct StatusSource {
    pub(super) worker: Arc<Worker>,
    pub(super) sessions: Arc<Sessions>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) destinations: watch::Receiver<Arc<Destinations>>,
    pub(super) last_reload: LastReload,
    pub(super) settings: WorkerConfig,
    pub(super) broker: BrokerConfig,
    pub(super) admin: AdminConfig,
    pub(super) started: Timestamp,
}

/// Returns the callbacks of the admin endpoint.
pub(super) fn admin_state(source: StatusSource) -> AdminState {
    let (ready, live) = (source.worker.clone(), source.worker.clone());
    AdminState {
        metrics: source.metrics.clone(),
        ready: Arc::new(move || ready.ready()),
        live: Arc::new(move || live.alive()),
        access: AdminAccess::new(&source.admin),
        status: Arc::new(move |filter| source.status(filter)),
    }
}

/// Kind of the queue, and its host and port without credentials; the embedded queue has none.
fn broker_name(url: &str) -> (&'static str, Option<String>) {
    if url.starts_with("sqlite:") {
        return ("embedded", None);
    }
    let parsed = url::Url::parse(url).ok();
    let address = parsed.as_ref().and_then(|url| Some((url.host_str()?, url.port()))).map(|(host, port)| match port {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    });
    ("rabbitmq", address)
}

impl StatusSource {
    fn status(&self, filter: &str) -> Value {
        let not_ready = self.worker.ready().err();
        let counts = self.metrics.snapshot();
        let mut running = self.worker.activity().list();
        let admission = self.worker.admission();
        let states = destinations::states(&destinations::DestinationInputs {
            configured: &self.destinations.borrow().clone(),
            worked_for: self.worker.activity().destinations(),
            running: &running,
            sessions: &self.sessions,
            admission: &admission,
            filter,
        });
        let now = Timestamp::now();
        let busy = running.len();
        running.truncate(MAX_RUNNING);
        let mut status = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "worker": self.settings.id,
            "prefix": self.broker.prefix,
            "time": now,
            "started_at": self.started,
            "uptime_seconds": now.duration_since(self.started).as_secs().max(0),
            "ready": not_ready.is_none(),
            "not_ready_because": not_ready,
            "draining": counts.draining,
            "slots": { "total": self.settings.slots, "busy": busy, "backfill": self.settings.backfill_slots },
            "lanes": counts.lanes,
            "buffer": { "bytes": counts.buffer_bytes, "limit_bytes": counts.buffer_limit_bytes },
            "broker": self.broker(counts.broker_connected, counts.broker_unconfirmed, counts.broker_reconnects),
            "sessions": self.sessions.cached(),
            "session_requests": counts.session_requests,
            "failures": counts.failures,
            "dead_letters": self.worker.activity().dead_letters(),
            "retries": counts.retries,
            "deferred": counts.deferred,
            "throughput": self.worker.activity().throughput(),
            "running": running,
            "recent": self.worker.activity().recent(),
            "destinations": self.destinations.borrow().len(),
            "destination_states": states,
        });
        if let Some(failure) = self.last_reload.failure() {
            status["reload_refused"] = json!(failure);
        }
        status
    }

    fn broker(&self, connected: bool, unconfirmed: u64, reconnects: u64) -> Value {
        let problem = self.worker.queue_ready().err();
        let (kind, address) = broker_name(self.broker.url.as_ref().map_or("", |url| url.expose_secret()));
        json!({
            "kind": kind,
            "address": address,
            "connected": connected || problem.is_none(),
            "problem": problem,
            "unconfirmed": unconfirmed,
            "reconnects": reconnects,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_broker_is_named_without_credentials() {
        let named = |url| {
            let (kind, address) = broker_name(url);
            (kind, address.unwrap_or_default())
        };
        assert_eq!(
            named("amqps://user:marked-secret@rabbit.example:5671/%2f"),
            ("rabbitmq", "rabbit.example:5671".into())
        );
        assert_eq!(named("amqp://user:marked-secret@[::1]/x"), ("rabbitmq", "[::1]".into()));
        assert_eq!(named("sqlite:/var/lib/consign/queue.db"), ("embedded", String::new()));
        assert_eq!(named("not a url"), ("rabbitmq", String::new()));
    }
}
