//! What SIGHUP and SIGUSR1 lead to while the worker runs.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::watch;

use super::refused::LastReload;
use crate::admin::AdminState;
use crate::config::{Config, Reload};
use crate::domain::destination::{Destination, DestinationId, Destinations};
use crate::metrics::Metrics;
use crate::runtime::shutdown::Shutdown;
use crate::runtime::systemd::Supervisor;
use crate::session::Sessions;
use crate::telemetry::Log;
use crate::worker::Worker;

/// So many settings are named that need a restart.
const NAMED: usize = 10;

/// What a reload changes, and whom it tells.
pub(super) struct Reloading<'a> {
    pub(super) destinations: &'a watch::Sender<Arc<Destinations>>,
    pub(super) sessions: &'a Sessions,
    pub(super) metrics: &'a Metrics,
    pub(super) worker: &'a Worker,
    pub(super) supervisor: Supervisor,
    pub(super) last: LastReload,
}

impl Reloading<'_> {
    /// SIGHUP reloads destinations and log filter; a bad file keeps what runs. Never ends.
    pub(super) async fn follow(self, mut shutdown: Shutdown, reload: Option<(Log, Reload)>) {
        let Some((log, reload)) = reload else { return std::future::pending().await };
        loop {
            shutdown.reload().await;
            self.supervisor.reloading();
            let loaded = reload.load().map_err(|problems| problems.to_string());
            let loaded = loaded.and_then(|loaded| log.set_filter(&loaded.config.log.filter).map(|()| loaded));
            if let Ok(loaded) = &loaded {
                say_what_stays(&reload.running.differing(loaded));
            }
            self.apply(loaded.map(|loaded| loaded.config));
            self.supervisor.ready();
        }
    }

    fn apply(&self, loaded: Result<Config, String>) {
        match loaded {
            Ok(config) => {
                announce(self.metrics, &config.destinations);
                let (count, now) = (config.destinations.len(), config.destinations.clone());
                let before = self.destinations.send_replace(config.destinations);
                self.sessions.forget_denials();
                let changed = changed(&before, &now);
                tracing::info!(destinations = count, changed = changed.len(), "the configuration was reloaded");
                changed.into_iter().for_each(|id| self.worker.reset_circuit(id));
                self.metrics.set_reload_successful(true);
                self.last.succeeded();
            }
            Err(problems) => {
                tracing::error!(%problems, "the new configuration is not used; the running one stays");
                self.metrics.set_reload_successful(false);
                self.last.refused(&problems, Timestamp::now());
            }
        }
    }
}

/// Names the settings that are written otherwise than they run; their values may be secret.
fn say_what_stays(keys: &[String]) {
    if keys.is_empty() {
        return;
    }
    let more = keys.len().saturating_sub(NAMED);
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    let keys = format!("{}{rest}", keys.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", "));
    tracing::warn!(%keys, "these settings are written otherwise than they run; a reload does not take them, restart the worker");
}

/// Those that are entered otherwise than before. New ones are not among them.
fn changed<'a>(before: &Destinations, now: &'a Destinations) -> Vec<&'a DestinationId> {
    let other = |(id, one): &(&DestinationId, &Arc<Destination>)| {
        before.get(*id).is_some_and(|before| !before.is_entered_like(one))
    };
    now.iter().filter(other).map(|(id, _)| id).collect()
}

/// Destinations have their series from the start on.
pub(super) fn announce(metrics: &Metrics, destinations: &Destinations) {
    destinations.keys().for_each(|id| metrics.destinations().publish_control(id));
}

/// SIGUSR1 writes what `/status` says into the log. Never ends.
pub(super) async fn answer_questions(mut shutdown: Shutdown, state: AdminState) {
    loop {
        shutdown.question().await;
        tracing::info!(status = %(state.status)(""), "the status, as SIGUSR1 asks");
    }
}
