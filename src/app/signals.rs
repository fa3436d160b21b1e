//! The reactions to SIGHUP, SIGUSR1 and changed files while the worker runs.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::watch;

use super::last_reload::LastReload;
use crate::admin::AdminState;
use crate::config::{ConfigProblems, Reload, Reloaded, RunningSettings, WATCH_INTERVAL};
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
    /// Reloads the destinations and the log filter on each SIGHUP, and when files have changed.
    /// What is broken keeps its last valid content. Never returns.
    pub(super) async fn follow(self, mut shutdown: Shutdown, reload: Option<(LogHandle, Reload)>) {
        let Some((log, mut reload)) = reload else { return std::future::pending().await };
        loop {
            let requested = tokio::select! {
                () = shutdown.reload() => true,
                () = tokio::time::sleep(WATCH_INTERVAL) => false,
            };
            // Files may be many, or on a slow disk. One call at a time: this is the only caller.
            let look = tokio::task::spawn_blocking(move || {
                let reloaded = reload.look(requested);
                (reload, reloaded)
            });
            let (back, reloaded) = match look.await {
                Ok(looked) => looked,
                // Only at the end of the program: a look catches the panics of a reload.
                Err(error) => {
                    tracing::error!(
                        event = "config_reload_stopped",
                        %error,
                        next = "the worker keeps the last configuration, and ignores SIGHUP and changed files",
                        remedy = "restart the worker, and report a defect",
                        "configuration reloads stopped"
                    );
                    return std::future::pending().await;
                }
            };
            reload = back;
            if let Some(reloaded) = reloaded {
                self.service_manager.reloading();
                self.apply(reloaded, &reload.running, &log);
                self.service_manager.ready();
            }
        }
    }

    fn apply(&self, reloaded: Result<Reloaded, ConfigProblems>, running: &RunningSettings, log: &LogHandle) {
        match reloaded {
            Err(problems) => {
                let problems = problems.to_string();
                tracing::error!(
                    event = "config_reload_failed",
                    %problems,
                    next = "the previous configuration stays in effect",
                    remedy = "fix the problems, and check the files with `consign config validate`",
                    "failed to reload the configuration"
                );
                self.refused(&problems);
            }
            Ok(Reloaded { loaded, refused }) => {
                warn_of_unapplied(&running.differing(&loaded));
                self.take_over(&loaded.config.destinations);
                let filter =
                    log.set_filter(&loaded.config.log.filter).err().map(|problem| format!("log.filter: {problem}"));
                if let Some(problems) = refused.map(|problems| problems.to_string()).or(filter) {
                    tracing::error!(
                        event = "config_reload_failed",
                        %problems,
                        next = "the last valid content of the affected files stays in effect",
                        remedy = "fix the problems, and check the files with `consign config validate`",
                        "failed to reload a part of the configuration"
                    );
                    self.refused(&problems);
                } else {
                    self.metrics.set_reload_successful(true);
                    self.last.succeeded();
                }
            }
        }
    }

    /// Replaces the destinations. Those that have not changed keep their sessions, circuit
    /// breakers and cached denials.
    fn take_over(&self, now: &Arc<Destinations>) {
        register(self.metrics, now);
        let before = self.destinations.send_replace(now.clone());
        let changed = changed(&before, now);
        let added = now.keys().filter(|id| !before.contains_key(*id)).count();
        let removed = before.keys().filter(|id| !now.contains_key(*id)).count();
        tracing::info!(
            event = "config_reloaded",
            destinations = now.len(),
            changed = changed.len(),
            added,
            removed,
            "configuration reloaded"
        );
        for id in changed {
            now.get(id.id()).into_iter().for_each(|destination| self.sessions.forget_denial(destination));
            self.worker.reset_circuit(id);
        }
    }

    fn refused(&self, problems: &str) {
        self.metrics.set_reload_successful(false);
        self.last.failed(problems, Timestamp::now());
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
    tracing::warn!(
        event = "config_restart_needed",
        %keys,
        next = "the worker keeps their previous values",
        remedy = "restart the worker",
        "changed settings are not applied by a reload"
    );
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
        tracing::info!(event = "status_dumped", status = %(state.status)(""), "status on SIGUSR1");
    }
}
