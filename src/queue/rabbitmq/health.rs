//! Health of one session: its end, the reason, and the broker's block of publishers.

use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use futures_util::{Stream, StreamExt as _};
use lapin::{Connection, Event};
use tokio::sync::watch;
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
    block: watch::Sender<PublisherBlock>,
}

/// The broker's block of publishers.
#[derive(Debug, Default)]
struct PublisherBlock {
    /// The broker's reason, and the time of the beginning; `None` while publishers are not blocked.
    current: Option<(String, Instant)>,
    /// Duration of the earlier blocks of this session.
    earlier: Duration,
}

impl PublisherBlock {
    fn time(&self) -> Duration {
        self.earlier + self.current.as_ref().map_or(Duration::ZERO, |(_, since)| since.elapsed())
    }
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
        self.block.borrow().current.as_ref().map(|(reason, _)| reason.clone())
    }

    /// Returns the time for which the broker has blocked publishers in this session.
    pub(super) fn blocked_time(&self) -> Duration {
        self.block.borrow().time()
    }

    /// Resolves when the broker does not block publishers.
    pub(super) async fn unblocked(&self) {
        // Its sender is here, so it can't be closed.
        let _ = self.block.subscribe().wait_for(|block| block.current.is_none()).await;
    }

    /// Runs a future for at most `limit`, without the time for which the broker blocks publishers.
    /// Returns `None` when the time is over.
    pub(super) async fn within<T>(&self, limit: Duration, future: impl Future<Output = T>) -> Option<T> {
        let mut future = pin!(future);
        let (start, blocked_before) = (Instant::now(), self.blocked_time());
        loop {
            tokio::select! {
                biased;
                value = &mut future => return Some(value),
                () = self.unblocked() => {}
            }
            let blocked = self.blocked_time().saturating_sub(blocked_before);
            let left = limit.saturating_sub(start.elapsed().saturating_sub(blocked));
            if left.is_zero() {
                return None;
            }
            if let Ok(value) = tokio::time::timeout(left, &mut future).await {
                return Some(value);
            }
        }
    }

    fn set_blocked(&self, reason: Option<String>) {
        self.block.send_modify(|block| {
            block.earlier = block.time();
            block.current = reason.map(|reason| (reason, Instant::now()));
        });
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
                tracing::warn!(
                    event = "broker_blocked",
                    %reason,
                    next = "settlements wait until the broker unblocks the connection",
                    remedy = "free memory or disk space on the broker",
                    "the broker blocks publishers"
                );
                health.set_blocked(Some(reason));
            }
            Event::ConnectionUnblocked => health.set_blocked(None),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_millis(200);

    #[tokio::test]
    async fn a_limit_excludes_the_time_for_which_the_broker_blocks_publishers() {
        let health = SessionHealth::default();
        assert_eq!(health.within(LIMIT, std::future::pending::<()>()).await, None);
        health.set_blocked(Some("memory".to_owned()));
        let slow = tokio::time::sleep(3 * LIMIT);
        let ends = async {
            tokio::time::sleep(2 * LIMIT).await;
            health.set_blocked(None);
        };
        let (slow, ()) = tokio::join!(health.within(2 * LIMIT, slow), ends);
        assert_eq!(slow, Some(()), "it took longer than the limit, but not while publishers were allowed");
        assert!(health.blocked_time() >= 2 * LIMIT);
        health.set_blocked(Some("disk".to_owned()));
        assert_eq!(health.within(LIMIT, std::future::ready(7)).await, Some(7), "a result needs no unblocking");
        assert_eq!(health.blocked().as_deref(), Some("disk"));
    }
}
