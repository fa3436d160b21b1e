//! Replies to requesters without a queue of their own (RabbitMQ's direct reply-to). The broker
//! treats an invented name as an error of the whole connection that carries the reply, so these
//! replies have a connection of their own: such an error must not end the session.

use std::time::Duration;

use lapin::Channel;
use tokio::sync::Mutex;

use super::channel::with_confirms;
use super::connection::{Endpoint, ScopedConnection};
use super::errors;
use super::publisher::{self, OutgoingMessage};
use crate::queue::QueueError;

/// Prefix of the names of such requesters. The broker delivers a mandatory reply to one and yet
/// returns it as unroutable (<https://www.rabbitmq.com/docs/direct-reply-to>).
const DIRECT_REPLY_PREFIX: &str = "amq.rabbitmq.reply-to.";
/// Limit for one confirm.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(30);

/// Returns true for the address of a requester without a queue.
pub(super) fn is_direct(to: &str) -> bool {
    to.starts_with(DIRECT_REPLY_PREFIX)
}

/// Connection for direct replies, opened by the first one. Replies are sent one at a time, so that
/// it is known which of them ended the connection.
#[derive(Default)]
pub(super) struct DirectReplies(Mutex<Option<(ScopedConnection, Channel)>>);

impl DirectReplies {
    /// Publishes and awaits the confirm.
    ///
    /// # Errors
    /// `Refused` when the broker rejects the name, `Unavailable` when it is unreachable.
    pub(super) async fn publish(&self, endpoint: &Endpoint, message: &OutgoingMessage) -> Result<(), QueueError> {
        let mut held = self.0.lock().await;
        let open = held.take().filter(|(_, channel)| channel.status().connected());
        let (connection, channel) = if let Some(open) = open {
            open
        } else {
            let connection = ScopedConnection::connect(endpoint, "replies").await?;
            let channel = with_confirms(connection.open_channel().await?).await?;
            (connection, channel)
        };
        let problem = match tokio::time::timeout(CONFIRM_TIMEOUT, publisher::send(&channel, message)).await {
            Ok(Ok(Ok(confirmation))) => {
                *held = Some((connection, channel));
                return publisher::confirmed(confirmation);
            }
            Ok(Ok(Err(error))) if errors::is_rejection(&error) => QueueError::Refused(errors::text(&error)),
            Ok(Ok(Err(error))) => errors::unavailable(&error),
            Ok(Err(problem)) => problem,
            Err(_) => QueueError::Unavailable(format!("no confirm within {} s", CONFIRM_TIMEOUT.as_secs())),
        };
        connection.close().await;
        Err(problem)
    }

    /// Closes the connection.
    pub(super) async fn close(&self) {
        if let Some((connection, _)) = self.0.lock().await.take() {
            connection.close().await;
        }
    }
}
