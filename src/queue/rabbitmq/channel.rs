//! Operations on one channel: prefetch, acknowledgements, message counts and locks.

use std::time::Duration;

use lapin::options::{BasicAckOptions, BasicNackOptions, BasicQosOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Acker, Channel, Connection, Queue};

use super::connection::{call, open_channel};
use super::errors;
use super::fields::short;
use crate::queue::QueueError;

const REQUEUE: BasicNackOptions = BasicNackOptions { multiple: false, requeue: true };
const REJECT: BasicNackOptions = BasicNackOptions { multiple: false, requeue: false };
/// Limit for one acknowledgement.
const ACK_TIMEOUT: Duration = Duration::from_secs(30);

/// Opens a channel whose consumers hold at most `prefetch` unacknowledged messages each.
pub(super) async fn with_prefetch(connection: &Connection, prefetch: u16) -> Result<Channel, QueueError> {
    set_prefetch(open_channel(connection).await?, prefetch).await
}

/// Sets the number of unacknowledged messages of each consumer.
pub(super) async fn set_prefetch(channel: Channel, prefetch: u16) -> Result<Channel, QueueError> {
    // A prefetch of 0 means "no limit" to the broker.
    call("setting the prefetch", channel.basic_qos(prefetch.max(1), BasicQosOptions::default())).await?;
    Ok(channel)
}

/// Switches confirms on.
pub(super) async fn with_confirms(channel: Channel) -> Result<Channel, QueueError> {
    call("enabling publisher confirms", channel.confirm_select(ConfirmSelectOptions::default())).await?;
    Ok(channel)
}

/// Closes a channel. One that can't be closed in time is closed with its connection.
pub(super) async fn close(channel: &Channel) {
    if let Err(error) = call("closing a channel", channel.close(200, "OK".into())).await {
        tracing::debug!(
            event = "channel_not_closed",
            %error,
            "a channel was not closed; its messages are requeued with its connection"
        );
    }
}

/// Acknowledges a delivery. `Lost` when its channel is closed.
pub(super) async fn acknowledge(acker: &Acker) -> Result<(), QueueError> {
    answered(acker.ack(BasicAckOptions::default())).await
}

/// Requeues a delivery (`basic.nack`). `Lost` when its channel is closed.
pub(super) async fn requeue(acker: &Acker) -> Result<(), QueueError> {
    answered(acker.nack(REQUEUE)).await
}

/// Passes a delivery to the dead-letter exchange of its queue. `Lost` when its channel is closed.
pub(super) async fn reject(acker: &Acker) -> Result<(), QueueError> {
    answered(acker.nack(REJECT)).await
}

/// Requeues a delivery; a closed channel has requeued it anyway.
pub(super) async fn requeue_or_lose(acker: &Acker) {
    if requeue(acker).await.is_err() {
        tracing::debug!(event = "requeue_failed", "a delivery was not requeued; its channel is closed");
    }
}

/// Acknowledges a delivery whose job something else keeps. A closed channel redelivers it, which is
/// handled as any duplicate.
pub(super) async fn acknowledge_or_lose(acker: &Acker) {
    if acknowledge(acker).await.is_err() {
        tracing::debug!(
            event = "acknowledge_failed",
            next = "the broker redelivers it",
            "a delivery can't be acknowledged on its closed channel"
        );
    }
}

/// Waits for a limited time: if the connection ends meanwhile, lapin may never resolve the call.
async fn answered(sending: impl Future<Output = lapin::Result<bool>>) -> Result<(), QueueError> {
    match tokio::time::timeout(ACK_TIMEOUT, sending).await {
        Ok(Ok(true)) => Ok(()),
        // `Ok(false)` is lapin's result for a closed channel.
        Ok(Ok(false) | Err(_)) | Err(_) => Err(QueueError::Lost),
    }
}

/// Returns the number of messages in a queue that are not delivered.
pub(super) async fn depth(channel: &Channel, queue: &str) -> Result<u64, QueueError> {
    Ok(inspect(channel, queue).await?.message_count().into())
}

/// Returns the number of consumers of a queue. `Topology` when it does not exist; the broker then
/// closes the channel.
pub(super) async fn consumers(channel: &Channel, queue: &str) -> Result<u32, QueueError> {
    Ok(inspect(channel, queue).await?.consumer_count())
}

async fn inspect(channel: &Channel, queue: &str) -> Result<Queue, QueueError> {
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let declared = channel.queue_declare(short(queue)?, passive, FieldTable::default());
    call("counting a queue", declared).await
}

/// Takes a lock that lasts until the connection ends: an exclusive queue of this name. While
/// another connection holds it, fails as `Busy` with the text `busy`, and the broker closes the
/// channel.
pub(super) async fn lock(channel: &Channel, queue: &str, busy: &str) -> Result<(), QueueError> {
    let own = QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
    let declared = channel.queue_declare(short(queue)?, own, FieldTable::default());
    call(&format!("reserving {queue}"), async {
        match declared.await {
            Ok(_) => Ok(Ok(())),
            Err(error) if errors::is(&error, errors::RESOURCE_LOCKED) => Ok(Err(QueueError::Busy(busy.to_owned()))),
            Err(error) => Err(error),
        }
    })
    .await
    .map_err(errors::requires(format!("configure on `{queue}`")))?
}
