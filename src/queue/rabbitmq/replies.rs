//! Replies: copies of outcomes for `reply_to`, and replies to requests.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::context::QueueContext;
use super::direct_reply::{DirectReplies, is_direct};
use super::messages;
use super::sessions::{BrokerSessions, PUBLISH_TIMEOUT};
use crate::queue::{OutcomeEvent, QueueError, Reply};

/// Copies of outcomes in flight at once. Further ones are dropped.
const MAX_COPIES: u32 = 64;
/// Limit for one copy.
const COPY_TIMEOUT: Duration = Duration::from_secs(10);

/// Sender of replies.
pub(super) struct Replies {
    context: Arc<QueueContext>,
    sessions: Arc<BrokerSessions>,
    permits: Arc<Semaphore>,
    direct: Arc<DirectReplies>,
}

impl Replies {
    /// Builds a sender that publishes by the current session.
    pub(super) fn new(context: Arc<QueueContext>, sessions: Arc<BrokerSessions>) -> Self {
        Self { context, sessions, permits: Arc::new(Semaphore::new(MAX_COPIES as usize)), direct: Arc::default() }
    }

    /// Sends a copy of an outcome to its `reply_to`: best effort, and in the background, so that a
    /// settlement does not wait for it.
    pub(super) fn send_copy(&self, event: &OutcomeEvent) {
        let Some(message) = messages::outcome_copy(event) else { return };
        let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else {
            tracing::debug!("too many replies are in flight; one was dropped");
            return;
        };
        let Some(session) = self.sessions.current() else { return };
        let (direct, context) = (Arc::clone(&self.direct), Arc::clone(&self.context));
        tokio::spawn(async move {
            let sending = async {
                if is_direct(&message.routing_key) {
                    direct.publish(&context.endpoint, &message).await
                } else {
                    session.publisher.publish(&message).await
                }
            };
            let sent = tokio::time::timeout(COPY_TIMEOUT, sending).await;
            if !matches!(sent, Ok(Ok(()))) {
                tracing::debug!(reply_to = message.routing_key, "a reply was not delivered");
            }
            drop(permit);
        });
    }

    /// Sends a reply to a request, confirmed.
    pub(super) async fn send(&self, reply: Reply) -> Result<(), QueueError> {
        let message = messages::reply(reply)?;
        let session = self.sessions.wait(std::time::Instant::now() + PUBLISH_TIMEOUT).await?;
        if is_direct(&message.routing_key) {
            return self.direct.publish(&self.context.endpoint, &message).await;
        }
        session.publisher.publish(&message).await.map_err(|problem| match problem {
            // A repetition would not help, as with a queue that does not exist.
            QueueError::Denied(why) => QueueError::Refused(why),
            problem => problem,
        })
    }

    /// Waits for the replies in flight, at most `limit`, and closes the connection of direct
    /// replies.
    pub(super) async fn close(&self, limit: Duration) {
        let _ = tokio::time::timeout(limit, self.permits.acquire_many(MAX_COPIES)).await;
        let _ = tokio::time::timeout(limit, self.direct.close()).await;
    }
}
