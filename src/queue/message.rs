//! Messages that enter and leave a queue, the settlements of a delivery, and the errors.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::domain::fleet::FleetShare;
use crate::domain::lane::Lane;
use crate::domain::outcome::RetryDelay;

/// Message properties, also as exported dead letters hold them. Broker bookkeeping such as
/// `x-death` is not in `headers`, and copies do not carry it.
#[serde_with::skip_serializing_none]
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Properties {
    /// Media type; absent means JSON.
    pub content_type: Option<String>,
    /// Must equal the job's id when set.
    pub message_id: Option<String>,
    /// Queue to which the producer wants a copy of the outcomes.
    pub reply_to: Option<String>,
    /// Identifier that correlates a reply with its request; returned in the reply.
    pub correlation_id: Option<String>,
    /// AMQP `type`; `consign.check.v1` requests a connection test.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// Time of the publish in seconds since 1970, as the producer gives it.
    pub timestamp: Option<u64>,
    /// Text headers. Numbers and booleans are given as text. Names are case-sensitive.
    pub headers: BTreeMap<String, String>,
    /// Size in bytes of a body that was too large to be read. The body is empty then, and only the
    /// queue has the original one.
    #[serde(skip)]
    pub unread: Option<u64>,
}

/// One unacknowledged message. Settle it exactly once with [`Queue::settle`](super::Queue::settle).
#[derive(Debug)]
pub struct Delivery {
    /// Lane that delivered it.
    pub lane: Lane,
    /// Body, unchanged.
    pub body: Bytes,
    /// Message properties.
    pub properties: Properties,
    /// Publisher of this very message.
    pub origin: DeliveryOrigin,
    /// User of the broker that published the job first, verified; empty where it is not known.
    pub publisher: String,
    /// Routing key of the first publish (`job.scheduled.acme`).
    pub routing_key: String,
    /// True when the queue has delivered this message before.
    pub redelivered: bool,
    /// Number of earlier deliveries without a settlement (`x-delivery-count`).
    pub delivery_count: u64,
    /// Handle of the delivery in the queue.
    pub ticket: DeliveryTag,
}

/// Publisher of a message, as far as the queue can verify it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeliveryOrigin {
    /// A worker: the message is a copy of a job that was accepted, or the queue has no producers
    /// that could forge one.
    Worker,
    /// A producer.
    Producer,
    /// Not known.
    Unknown,
}

/// Handle of a delivery in the queue: the channel's generation, and the tag within it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeliveryTag {
    /// Generation of the channel. A settlement for an older generation is lost.
    pub generation: u64,
    /// Lane of the channel.
    pub lane: Lane,
    /// Delivery tag.
    pub tag: u64,
}

/// Outcome to publish to `consign.outcomes` and, best effort, to `reply_to`.
#[derive(Debug, Clone)]
pub struct OutcomeEvent {
    /// `transfer.<outcome>.<dest>`.
    pub routing_key: String,
    /// CloudEvents id, which is also the AMQP message id.
    pub id: String,
    /// Structured JSON.
    pub body: Bytes,
    /// Queue that the job's `reply_to` names, with its correlation id.
    pub reply_to: Option<(String, Option<String>)>,
}

/// Reply to a request. Unlike the copy of an outcome, it is the only result.
#[derive(Debug, Clone)]
pub struct Reply {
    /// Queue that the request names.
    pub to: String,
    /// Correlation id of the request.
    pub correlation_id: Option<String>,
    /// AMQP `type` of the request.
    pub kind: String,
    /// JSON.
    pub body: Bytes,
}

/// Settlement of a delivery. Consumed by value, performed once.
///
/// A copy has the body and the content type that the [`Delivery`] has when it is settled. The
/// caller may have replaced them, to carry a checkpoint or to restore the original. Everything else
/// is copied unchanged.
#[derive(Debug)]
pub enum Settlement {
    /// Acknowledges the delivery.
    Ack,
    /// Publishes a copy that waits for `delay` and then returns to its lane. The attempt was
    /// charged.
    Retry {
        /// Delay.
        delay: RetryDelay,
        /// Headers to set on the copy, such as the attempt counters.
        headers: BTreeMap<String, String>,
    },
    /// As `Retry`, for an attempt that was not charged (metric action `defer`).
    Defer {
        /// Delay.
        delay: RetryDelay,
        /// Headers to set on the copy.
        headers: BTreeMap<String, String>,
    },
    /// Publishes a copy to the dead letters. The body is unchanged.
    DeadLetter {
        /// Headers to set on the copy: `x-error-reason` and related ones.
        headers: BTreeMap<String, String>,
    },
    /// Publishes a copy to lane `continued`, so that the next free worker resumes the job.
    HandOff {
        /// Headers to set on the copy.
        headers: BTreeMap<String, String>,
    },
    /// Requeues the delivery unchanged for another worker. Under a lease: as `HandOff`, without new
    /// headers.
    Requeue,
}

impl Settlement {
    /// Returns the `action` label of `consign_broker_settlements_total`.
    pub fn action(&self) -> &'static str {
        match self {
            Self::Ack => "ack",
            Self::Retry { .. } => "retry",
            Self::Defer { .. } => "defer",
            Self::DeadLetter { .. } => "dead",
            Self::HandOff { .. } => "lease",
            Self::Requeue => "return",
        }
    }
}

/// Message that keeps a job under a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseMessage {
    /// Encoded lease.
    pub body: Bytes,
    /// Media type of the lease.
    pub content_type: String,
    /// Headers to set in addition to those of the delivery.
    pub headers: BTreeMap<String, String>,
}

/// Item of the control stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ControlEvent {
    /// Control message as it was published.
    Message(Bytes),
    /// End of the backlog: all messages that existed at the start of reading have been returned.
    /// Later ones follow as they are published.
    CaughtUp,
    /// The connection was lost: messages may exist that were not read. They follow, and then
    /// [`ControlEvent::CaughtUp`] once more.
    Interrupted,
    /// The broker refuses that the stream is read, or has no such stream. Reading is tried again.
    Unreadable,
    /// Number of live workers, and this one's place among them, whenever either changes.
    Fleet(FleetShare),
}

/// Message as a producer publishes it.
#[derive(Debug, Clone)]
pub struct Publication {
    /// `job.scheduled.<dest>` or `job.backfill.<dest>`.
    pub routing_key: String,
    /// Body.
    pub body: Bytes,
    /// Properties. The queue sets `delivery_mode` 2.
    pub properties: Properties,
}

/// Result of [`Queue::release_delayed`](super::Queue::release_delayed).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Released {
    /// Number of copies that returned to their lanes.
    pub count: u64,
    /// True when not all waiting messages were examined. The rest return when their delay is over.
    pub partly: bool,
}

/// Error of a queue operation.
#[derive(Debug, Clone, thiserror::Error)]
pub enum QueueError {
    /// The channel of the delivery is closed; the queue delivers the message again.
    #[error("the channel of the delivery is closed; the queue redelivers it")]
    Lost,
    /// The broker did not accept or confirm a message in time.
    #[error("the broker is unavailable: {0}")]
    Unavailable(String),
    /// The broker refuses the login or a permission.
    #[error("the broker denies access: {0}")]
    Denied(String),
    /// The broker refused a message (returned or nacked): a queue or binding is missing, or full.
    #[error("the broker refused the message: {0}")]
    Refused(String),
    /// The topology differs from the expected one.
    #[error("the topology does not match: {0}")]
    Topology(String),
    /// Another process holds a resource that only one may hold at a time.
    #[error("{0}")]
    Busy(String),
    /// The queue can't be used as configured, and waiting does not help: an operator must act.
    #[error("the queue can't be used: {0}")]
    Unusable(String),
}

impl QueueError {
    /// Returns true if this error rather than `known` is the cause of a series of failed publishes:
    /// a refusal may have closed the connection of the others.
    pub fn is_cause_of(&self, known: &Self) -> bool {
        let is_loss = |error: &Self| matches!(error, Self::Unavailable(_) | Self::Lost);
        is_loss(known) && !is_loss(self)
    }

    /// Error of an operation after the close.
    pub(in crate::queue) fn closed() -> Self {
        Self::Unavailable("the queue is closed".to_owned())
    }
}
