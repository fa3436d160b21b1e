//! Publishing with confirms: a message counts as published when the broker has acknowledged it and has not returned it.
//!
//! With several mandatory publishes in flight on one channel, lapin can attach a return to the wrong confirm. So a channel
//! carries one at a time, and a small pool of channels carries many.

use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Channel, Confirmation, Connection};
use tokio::sync::Semaphore;

use super::connection::{self, call};
use super::declare::short;
use super::session::Health;
use crate::metrics::Metrics;
use crate::queue::QueueError;

/// Publishes in flight at once.
const CHANNELS: usize = 16;
/// A broker that is not blocked confirms well within this time, or it is sick.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a message's own answer is waited for when its session is over.
const OWN_ANSWER: Duration = Duration::from_millis(500);

/// A message on its way to an exchange.
#[derive(Debug, Clone)]
pub(super) struct Message {
    pub(super) exchange: String,
    pub(super) routing_key: String,
    pub(super) body: Bytes,
    pub(super) properties: BasicProperties,
    /// Whether the broker must find a queue for it.
    pub(super) mandatory: bool,
}

/// The publishing connection of one session, and its channels.
pub(super) struct Publisher {
    connection: Connection,
    free: Mutex<Vec<Channel>>,
    permits: Semaphore,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
}

impl Publisher {
    pub(super) fn new(connection: Connection, health: Arc<Health>, metrics: Arc<Metrics>) -> Self {
        Self { connection, free: Mutex::default(), permits: Semaphore::new(CHANNELS), health, metrics }
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Publishes and awaits the confirm. While the broker blocks publishers (an alarm), this waits without a time-out.
    ///
    /// `Refused`: returned or nacked. `Denied`: the login may not write there. `Topology`: the exchange is not there. `Unavailable`: it may
    /// or may not have arrived.
    pub(super) async fn publish(&self, message: &Message) -> Result<(), QueueError> {
        let _permit = self.permits.acquire().await.map_err(|_| closed())?;
        let channel = self.channel().await?;
        let _unconfirmed = self.metrics.unconfirmed();
        match self.unless_stuck(send(&channel, message)).await? {
            Ok(confirmation) => {
                // Only after a confirm: a channel whose publish was broken off may still get its return.
                self.free.lock().unwrap_or_else(PoisonError::into_inner).push(channel);
                verdict(confirmation)
            }
            Err(Problem::Name(error)) => Err(error),
            Err(Problem::Broker(error)) if connection::is_missing(&error) => Err(connection::missing(&error)),
            Err(Problem::Broker(error)) if connection::is_denied(&error) => Err(denied(message, &error)),
            Err(Problem::Broker(error)) if error.is_amqp_soft_error() => {
                Err(QueueError::Refused(connection::text(&error)))
            }
            Err(Problem::Broker(error)) => {
                if !self.connection.status().connected() {
                    self.health.end(&connection::text(&error));
                }
                Err(connection::unavailable(&error))
            }
        }
    }

    /// Resolves when nothing is in flight.
    pub(super) async fn quiet(&self) {
        let all = u32::try_from(CHANNELS).unwrap_or(u32::MAX);
        drop(self.permits.acquire_many(all).await);
    }

    async fn channel(&self) -> Result<Channel, QueueError> {
        loop {
            let free = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
            match free {
                Some(channel) if channel.status().connected() => return Ok(channel),
                Some(_) => {}
                None => break,
            }
        }
        let channel = connection::open_channel(&self.connection).await?;
        call("switching confirms on", channel.confirm_select(ConfirmSelectOptions::default())).await?;
        Ok(channel)
    }

    async fn unless_stuck<T>(&self, future: impl Future<Output = T>) -> Result<T, QueueError> {
        let mut future = pin!(future);
        loop {
            let limited = tokio::time::timeout(CONFIRM_TIMEOUT, &mut future);
            let answer = tokio::select! {
                answer = limited => answer,
                // A refusal of this very message ends the session as well, and may be heard of there first.
                () = self.health.ended() => {
                    let answer = tokio::time::timeout(OWN_ANSWER, &mut future).await;
                    return answer.map_err(|_| self.health.lost());
                }
            };
            if let Ok(value) = answer {
                return Ok(value);
            }
            if self.health.blocked().is_none() {
                let why = format!("no confirm within {} s", CONFIRM_TIMEOUT.as_secs());
                self.health.end(&why);
                return Err(QueueError::Unavailable(why));
            }
        }
    }
}

/// Why a message was not published.
pub(super) enum Problem {
    /// A name in it is too long for AMQP.
    Name(QueueError),
    /// The broker, or the way to it.
    Broker(lapin::Error),
}

impl From<lapin::Error> for Problem {
    fn from(error: lapin::Error) -> Self {
        Self::Broker(error)
    }
}

/// Publishes on a channel that carries nothing else meanwhile.
pub(super) async fn send(channel: &Channel, message: &Message) -> Result<Confirmation, Problem> {
    let exchange = short(&message.exchange).map_err(Problem::Name)?;
    let key = short(&message.routing_key).map_err(Problem::Name)?;
    let options = BasicPublishOptions { mandatory: message.mandatory, immediate: false };
    let confirm = channel.basic_publish(exchange, key, options, &message.body, message.properties.clone()).await?;
    Ok(confirm.await?)
}

fn denied(message: &Message, error: &lapin::Error) -> QueueError {
    // The exchange without a name, as the broker's permissions call it.
    let exchange = if message.exchange.is_empty() { "amq.default" } else { &message.exchange };
    connection::takes(format!("write on the exchange `{exchange}`"))(QueueError::Denied(connection::text(error)))
}

/// What the broker's answer means.
pub(super) fn verdict(confirmation: Confirmation) -> Result<(), QueueError> {
    match confirmation {
        Confirmation::Ack(None) => Ok(()),
        Confirmation::Ack(Some(returned)) | Confirmation::Nack(Some(returned)) => Err(QueueError::Refused(format!(
            "{} (exchange `{}`, routing key `{}`)",
            returned.reply_text, returned.delivery.exchange, returned.delivery.routing_key
        ))),
        Confirmation::Nack(None) => {
            Err(QueueError::Refused("not accepted: a queue is full or has no leader".to_owned()))
        }
        Confirmation::NotRequested => Err(QueueError::Unavailable("confirms are off".to_owned())),
    }
}

fn closed() -> QueueError {
    QueueError::Unavailable("the publisher is closed".to_owned())
}
