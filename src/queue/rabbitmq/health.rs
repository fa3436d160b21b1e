//! Health of one session: its end, the reason, and the broker's block of publishers.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use futures_util::{Stream, StreamExt as _};
use lapin::{Connection, Event};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::errors;
use crate::queue::QueueError;

/// Interval of the check for a closed connection that caused no event.
const WATCHDOG_INTERVAL: Duration = Duration::from_secs(5);

/// State that all users of one session share.
#[derive(Debug, Default)]
pub(super) struct SessionHealth {
    ended: CancellationToken,
    reason: OnceLock<String>,
    blocked: Mutex<Option<String>>,
}

impl SessionHealth {
    /// Ends the session. The first reason is kept.
    pub(super) fn end(&self, reason: &str) {
        self.reason.get_or_init(|| reason.to_owned());
        self.ended.cancel();
    }

    /// Resolves when the session has ended.
    pub(super) async fn ended(&self) {
        self.ended.cancelled().await;
    }

    /// Returns true once the session has ended.
    pub(super) fn is_ended(&self) -> bool {
        self.ended.is_cancelled()
    }

    /// Returns the reason of the end.
    pub(super) fn reason(&self) -> String {
        self.reason.get().cloned().unwrap_or_else(|| "the session was closed".to_owned())
    }

    /// Returns the error for operations that the end interrupted.
    pub(super) fn error(&self) -> QueueError {
        QueueError::Unavailable(self.reason())
    }

    /// Returns the broker's reason for blocking publishers (a memory or disk alarm).
    pub(super) fn blocked(&self) -> Option<String> {
        self.blocked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_blocked(&self, reason: Option<String>) {
        *self.blocked.lock().unwrap_or_else(PoisonError::into_inner) = reason;
    }
}

/// Spawns the tasks that report the end of a connection, and its blocks, to `health`.
pub(super) fn watch(tasks: &mut JoinSet<()>, connection: &Connection, health: &Arc<SessionHealth>) {
    let status = connection.status().clone();
    tasks.spawn(listen(connection.events_listener(), Arc::clone(health)));
    let health = Arc::clone(health);
    tasks.spawn(async move {
        while status.connected() {
            tokio::time::sleep(WATCHDOG_INTERVAL).await;
        }
        health.end("the connection was closed");
    });
}

async fn listen(mut events: impl Stream<Item = Event> + Unpin, health: Arc<SessionHealth>) {
    while let Some(event) = events.next().await {
        match event {
            Event::Error(error) => health.end(&errors::text(&error)),
            Event::ConnectionBlocked(reason) => {
                tracing::warn!(%reason, "the broker blocks publishers; settlements wait");
                health.set_blocked(Some(reason));
            }
            Event::ConnectionUnblocked => health.set_blocked(None),
            _ => {}
        }
    }
}
