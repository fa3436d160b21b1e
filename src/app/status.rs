//! What the admin endpoint shows of the running worker.

use std::sync::Arc;

use serde_json::json;
use tokio::sync::watch;

use crate::admin::AdminState;
use crate::config::Config;
use crate::destination::Destinations;
use crate::metrics::Metrics;
use crate::session::Sessions;
use crate::worker::Worker;

pub(super) fn admin_state(
    worker: &Arc<Worker>,
    sessions: &Arc<Sessions>,
    metrics: &Arc<Metrics>,
    config: &Config,
    destinations: watch::Receiver<Arc<Destinations>>,
) -> AdminState {
    let (ready, live, shown, sessions) = (worker.clone(), worker.clone(), worker.clone(), sessions.clone());
    let (id, slots, backfill_slots) = (config.worker.id.clone(), config.worker.slots, config.worker.backfill_slots);
    let prefix = config.broker.prefix.clone();
    AdminState {
        metrics: metrics.clone(),
        ready: Arc::new(move || ready.ready()),
        live: Arc::new(move || live.alive()),
        status: Arc::new(move || {
            let not_ready = shown.ready().err();
            let running = shown.board().list();
            json!({
                "version": env!("CARGO_PKG_VERSION"),
                "worker": id,
                "prefix": prefix,
                "ready": not_ready.is_none(),
                "not_ready_because": not_ready,
                "slots": { "total": slots, "busy": running.len(), "backfill": backfill_slots },
                "sessions": sessions.len(),
                "destinations": destinations.borrow().len(),
                "running": running,
            })
        }),
    }
}
