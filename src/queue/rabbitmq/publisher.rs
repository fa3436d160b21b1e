//! Publisher with confirms: a message counts as published when the broker has acknowledged it and
//! has not returned it.
//!
//! With several mandatory publishes in flight on one channel, lapin can attach a return to the
//! wrong confirm. So a channel carries one at a time, and a small pool of channels carries many.
//! Leases have channels that no other message may use.
//!
//! While the broker blocks publishers (an alarm) nothing is sent, no channel is opened, and no time
//! limit runs.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lapin::options::BasicPublishOptions;
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, Confirmation, Connection};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::channel::with_confirms;
use super::connection::open_channel;
use super::errors;
use super::fields::short;
use super::health::SessionHealth;
use super::login::Login;
use crate::metrics::Metrics;
use crate::queue::QueueError;

/// Publishes in flight at once, without leases.
const MAX_CHANNELS: usize = 16;
/// Leases in flight at once.
const MAX_LEASE_CHANNELS: usize = 16;
/// Limit for one confirm, unless the broker blocks publishers.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(30);
/// Wait for the confirm of a message whose session has ended.
const LATE_CONFIRM_TIMEOUT: Duration = Duration::from_millis(500);

/// AMQP `delivery_mode` of a message that survives a restart of the broker.
pub(super) const PERSISTENT: u8 = 2;

/// Message to publish to an exchange.
#[derive(Debug, Clone)]
pub(super) struct OutgoingMessage {
    pub(super) exchange: String,
    pub(super) routing_key: String,
    pub(super) body: Bytes,
    pub(super) properties: BasicProperties,
    /// True when the broker must return an unroutable message.
    pub(super) mandatory: bool,
}

impl OutgoingMessage {
    /// Message that the broker must return when it is unroutable.
    pub(super) fn mandatory(exchange: String, routing_key: &str, body: &Bytes, properties: BasicProperties) -> Self {
        Self { exchange, routing_key: routing_key.to_owned(), body: body.clone(), properties, mandatory: true }
    }
}

/// Publishing connection of one session, and its channels.
pub(super) struct Publisher {
    /// Connection, to close it.
    pub(super) connection: Connection,
    free: Mutex<Vec<Channel>>,
    permits: Semaphore,
    lease_permits: Semaphore,
    channels: usize,
    /// Health of its session.
    pub(super) health: Arc<SessionHealth>,
    /// Login that its messages name as their `user_id`, if they name one.
    login: Option<Arc<Login>>,
    /// Counts unconfirmed messages, if they are to be counted.
    metrics: Option<Arc<Metrics>>,
}

impl Publisher {
    /// Builds a publisher on a connection of its own.
    pub(super) fn new(
        connection: Connection,
        login: &Arc<Login>,
        health: Arc<SessionHealth>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let publisher = Self::with_channels(MAX_CHANNELS, connection, health);
        Self { login: Some(Arc::clone(login)), metrics: Some(metrics), ..publisher }
    }

    /// Builds a publisher with at most `channels` publishes in flight, leases not counted. No
    /// metric counts them, and they name no user.
    pub(super) fn with_channels(channels: usize, connection: Connection, health: Arc<SessionHealth>) -> Self {
        let (permits, lease_permits) = (Semaphore::new(channels), Semaphore::new(MAX_LEASE_CHANNELS));
        Self {
            connection,
            free: Mutex::default(),
            permits,
            lease_permits,
            channels,
            health,
            login: None,
            metrics: None,
        }
    }

    /// Returns the login that its messages name.
    pub(super) fn user(&self) -> Option<ShortString> {
        self.login.as_ref()?.user()
    }

    /// Returns true while messages can be published.
    pub(super) fn is_usable(&self) -> bool {
        self.connection.status().connected() && !self.health.is_ended()
    }

    /// Publishes and awaits the confirm. While the broker blocks publishers (an alarm), this waits
    /// without a limit.
    ///
    /// # Errors
    /// `Refused`: returned or nacked. `Denied`: the login may not write there. `Topology`: the
    /// exchange does not exist. `Unavailable`: the result is unknown.
    pub(super) async fn publish(&self, message: &OutgoingMessage) -> Result<(), QueueError> {
        let permit = self.permit(&self.permits).await?;
        self.publish_with(permit, message).await
    }

    /// Publishes as [`Publisher::publish`], by a channel for leases.
    pub(super) async fn publish_lease(&self, message: &OutgoingMessage) -> Result<(), QueueError> {
        let permit = self.lease_permit().await?;
        self.publish_with(permit, message).await
    }

    /// Waits until a lease can be published.
    pub(super) async fn lease_permit(&self) -> Result<SemaphorePermit<'_>, QueueError> {
        self.permit(&self.lease_permits).await
    }

    async fn permit<'a>(&self, permits: &'a Semaphore) -> Result<SemaphorePermit<'a>, QueueError> {
        let permit =
            permits.acquire().await.map_err(|_| QueueError::Unavailable("the publisher is closed".to_owned()))?;
        tokio::select! {
            biased;
            () = self.health.ended() => Err(self.health.error()),
            () = self.health.unblocked() => Ok(permit),
        }
    }

    /// Publishes with a permit that was acquired before, as [`Publisher::publish`].
    pub(super) async fn publish_with(
        &self,
        _permit: SemaphorePermit<'_>,
        message: &OutgoingMessage,
    ) -> Result<(), QueueError> {
        let channel = self.channel().await?;
        let _unconfirmed = self.metrics.as_deref().map(Metrics::unconfirmed);
        match self.while_healthy(self.send(&channel, message)).await?? {
            Ok(confirmation) => {
                // Only after a confirm: a channel with an interrupted publish may still receive its return.
                self.free.lock().push(channel);
                confirmed(confirmation)
            }
            Err(error) if errors::is(&error, errors::NOT_FOUND) => Err(errors::missing(&error)),
            Err(error) if errors::is(&error, errors::ACCESS_REFUSED) => Err(denied(message, &error)),
            // The next session publishes it under the name that was learnt.
            Err(error) if self.login.as_ref().is_some_and(|login| login.learn(&error)) => {
                self.health.end(&errors::text(&error));
                Err(errors::unavailable(&error))
            }
            Err(error) if error.is_amqp_soft_error() => Err(QueueError::Refused(errors::text(&error))),
            Err(error) => {
                if !self.connection.status().connected() {
                    self.health.end(&errors::text(&error));
                }
                Err(errors::unavailable(&error))
            }
        }
    }

    /// Resolves when no publish is in flight.
    pub(super) async fn drained(&self) {
        for (permits, count) in [(&self.permits, self.channels), (&self.lease_permits, MAX_LEASE_CHANNELS)] {
            drop(permits.acquire_many(u32::try_from(count).unwrap_or(u32::MAX)).await);
        }
    }

    async fn channel(&self) -> Result<Channel, QueueError> {
        loop {
            let free = self.free.lock().pop();
            match free {
                Some(channel) if channel.status().connected() => return Ok(channel),
                Some(_) => {}
                None => break,
            }
        }
        with_confirms(open_channel(&self.connection).await?).await
    }

    async fn send(&self, channel: &Channel, message: &OutgoingMessage) -> Sent {
        let Some(user) = self.user() else { return send(channel, message).await };
        let properties = message.properties.clone().with_user_id(user);
        send(channel, &OutgoingMessage { properties, ..message.clone() }).await
    }

    async fn while_healthy<T>(&self, future: impl Future<Output = T>) -> Result<T, QueueError> {
        let mut future = pin!(future);
        let answer = tokio::select! {
            answer = self.health.within(CONFIRM_TIMEOUT, &mut future) => answer,
            // A refusal of this very message ends the session as well, and may be reported there first.
            () = self.health.ended() => {
                let answer = tokio::time::timeout(LATE_CONFIRM_TIMEOUT, &mut future).await;
                return answer.map_err(|_| self.health.error());
            }
        };
        answer.ok_or_else(|| {
            let why = format!("no confirm within {} s", CONFIRM_TIMEOUT.as_secs());
            self.health.end(&why);
            QueueError::Unavailable(why)
        })
    }
}

/// Result of one publish: the broker's answer, or the error of a name that is too long for AMQP.
pub(super) type Sent = Result<lapin::Result<Confirmation>, QueueError>;

/// Publishes on a channel that carries no other publish meanwhile.
pub(super) async fn send(channel: &Channel, message: &OutgoingMessage) -> Sent {
    let (exchange, key) = (short(&message.exchange)?, short(&message.routing_key)?);
    let options = BasicPublishOptions { mandatory: message.mandatory, immediate: false };
    let confirm = channel.basic_publish(exchange, key, options, &message.body, message.properties.clone());
    Ok(async { confirm.await?.await }.await)
}

fn denied(message: &OutgoingMessage, error: &lapin::Error) -> QueueError {
    // The name of the default exchange in the broker's permissions.
    let exchange = if message.exchange.is_empty() { "amq.default" } else { &message.exchange };
    errors::requires(format!("write on the exchange `{exchange}`"))(QueueError::Denied(errors::text(error)))
}

/// Refusal by a nack, which may be of short duration.
pub(super) const NOT_ACCEPTED: &str = "not accepted: a queue is full or has no leader";

/// Interprets the broker's confirm.
pub(super) fn confirmed(confirmation: Confirmation) -> Result<(), QueueError> {
    match confirmation {
        Confirmation::Ack(None) => Ok(()),
        Confirmation::Ack(Some(returned)) | Confirmation::Nack(Some(returned)) => Err(QueueError::Refused(format!(
            "{} (exchange `{}`, routing key `{}`)",
            returned.reply_text, returned.delivery.exchange, returned.delivery.routing_key
        ))),
        Confirmation::Nack(None) => Err(QueueError::Refused(NOT_ACCEPTED.to_owned())),
        Confirmation::NotRequested => Err(QueueError::Unavailable("confirms are off".to_owned())),
    }
}

/// Explains why the control stream took no message. A nack may be of short duration: a new leader
/// is being elected.
pub(super) fn control_problem(problem: QueueError, stream: &str) -> QueueError {
    match problem {
        QueueError::Refused(why) if why == NOT_ACCEPTED => QueueError::Unavailable(format!("`{stream}`: {why}")),
        QueueError::Refused(why) => QueueError::Topology(format!(
            "the stream `{stream}` takes no control message ({why}); run `consign topology apply`"
        )),
        problem => problem,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_control_message_that_is_nacked_is_published_again_and_one_without_a_stream_is_not() {
        let nacked = control_problem(QueueError::Refused(NOT_ACCEPTED.to_owned()), "p.control");
        assert!(matches!(nacked, QueueError::Unavailable(_)), "{nacked}");
        let unroutable = control_problem(QueueError::Refused("NO_ROUTE".to_owned()), "p.control");
        assert!(matches!(unroutable, QueueError::Topology(_)), "{unroutable}");
    }
}
