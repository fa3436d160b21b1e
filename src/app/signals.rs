//! The reactions to SIGHUP and SIGUSR1 while the worker runs.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::watch;

use super::last_reload::LastReload;
use crate::admin::AdminState;
use crate::config::{Config, Reload};
use crate::domain::destination::{Destination, DestinationId, DestinationIdentity, Destinations};
use crate::metrics::Metrics;
use crate::runtime::shutdown::Shutdown;
use crate::runtime::systemd::ServiceManager;
use crate::session::Sessions;
use crate::telemetry::LogHandle;
use crate::worker::Worker;

/// Settings named in the warning that a restart is needed.
const MAX_NAMED_SETTINGS: usize = 10;

/// The parts that a reload of the configuration changes.
pub(super) struct ReloadHandler<'a> {
    pub(super) destinations: &'a watch::Sender<Arc<Destinations>>,
    pub(super) sessions: &'a Sessions,
    pub(super) metrics: &'a Metrics,
    pub(super) worker: &'a Worker,
    pub(super) service_manager: ServiceManager,
    pub(super) last: LastReload,
}

impl ReloadHandler<'_> {
    /// Reloads the destinations and the log filter on each SIGHUP. An invalid file changes nothing.
    /// Never returns.
    pub(super) async fn follow(self, mut shutdown: Shutdown, reload: Option<(LogHandle, Reload)>) {
        let Some((log, reload)) = reload else { return std::future::pending().await };
        loop {
            shutdown.reload().await;
            self.service_manager.reloading();
            let loaded = reload.load().map_err(|problems| problems.to_string());
            let loaded = loaded.and_then(|loaded| log.set_filter(&loaded.config.log.filter).map(|()| loaded));
            if let Ok(loaded) = &loaded {
                warn_of_unapplied(&reload.running.differing(loaded));
            }
            self.apply(loaded.map(|loaded| loaded.config));
            self.service_manager.ready();
        }
    }

    fn apply(&self, loaded: Result<Config, String>) {
        match loaded {
            Ok(config) => {
                register(self.metrics, &config.destinations);
                let (count, now) = (config.destinations.len(), config.destinations.clone());
                let before = self.destinations.send_replace(config.destinations);
                self.sessions.forget_denials();
                let changed = changed(&before, &now);
                tracing::info!(destinations = count, changed = changed.len(), "configuration reloaded");
                changed.into_iter().for_each(|destination| self.worker.reset_circuit(destination));
                self.metrics.set_reload_successful(true);
                self.last.succeeded();
            }
            Err(problems) => {
                tracing::error!(%problems, "failed to reload the configuration; the previous one stays in effect");
                self.metrics.set_reload_successful(false);
                self.last.failed(&problems, Timestamp::now());
            }
        }
    }
}

/// Warns of settings that differ from the running ones and that a reload does not apply. Only the
/// keys are logged: values may be secret.
fn warn_of_unapplied(keys: &[String]) {
    if keys.is_empty() {
        return;
    }
    let more = keys.len().saturating_sub(MAX_NAMED_SETTINGS);
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    let keys =
        format!("{}{rest}", keys.iter().take(MAX_NAMED_SETTINGS).map(String::as_str).collect::<Vec<_>>().join(", "));
    tracing::warn!(%keys, "these settings changed but a reload does not apply them; restart the worker");
}

/// Returns the destinations whose entries changed. New ones are not included.
fn changed<'a>(before: &Destinations, now: &'a Destinations) -> Vec<&'a DestinationIdentity> {
    let other = |(id, one): &(&DestinationId, &Arc<Destination>)| {
        before.get(*id).is_some_and(|before| !before.is_entered_like(one))
    };
    now.iter().filter(other).map(|(_, destination)| &destination.identity).collect()
}

/// Creates the metric series of all destinations, so that they start at zero.
pub(super) fn register(metrics: &Metrics, destinations: &Destinations) {
    destinations.keys().for_each(|id| metrics.destinations().register(id));
}

/// Writes the content of `/status` to the log on each SIGUSR1. Never returns.
pub(super) async fn log_status_on_request(mut shutdown: Shutdown, state: AdminState) {
    loop {
        shutdown.status_request().await;
        tracing::info!(status = %(state.status)(""), "status on SIGUSR1");
    }
}
