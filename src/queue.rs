//! What the worker sees of any queue: a [`Delivery`] comes out, one [`Settlement`] goes back in, [`OutcomeEvent`]s are published.
//!
//! Contract of every implementation:
//! * A settlement is performed once, by value, in this order: the events (confirmed), the copy (confirmed), the
//!   acknowledgement. A failure on the way leaves the delivery unacknowledged, so the queue delivers it again.
//! * Dropping a [`Delivery`] unsettled settles nothing: the queue delivers it again when the channel ends.
//! * [`Queue::next`] is cancel safe: no delivery is lost when its future is dropped.
//! * A delivery may be put under a [lease](Queue::lease): then not the channel keeps it but a message of its own, which the queue
//!   renews with what [`LeaseHolder::message`] says, and which comes to another worker (lane `continued`) when this one is gone.

mod dead;
mod depths;
mod kept;
mod outcomes;
pub mod rabbitmq;
mod recalled;
pub mod sqlite;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::config::BrokerConfig;
use crate::domain::destination::DestinationId;
use crate::domain::outcome::RetryDelay;
use crate::metrics::Metrics;

pub use crate::domain::lane::Lane;
pub use dead::{DeadLetter, DeadLetters, LetterId};
pub use depths::{Depths, depths};
pub use kept::{BackfillOutcomes, control_messages, follow_control};
pub use outcomes::{OutcomeMessage, Outcomes};
pub use recalled::{DEFERRED_SINCE, Released};

/// A boxed future, so that a queue can stand behind `dyn`.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What came with the body. Broker bookkeeping (`x-death` and its like) is not in `headers`: copies don't carry it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Properties {
    /// The media type; absent means JSON.
    pub content_type: Option<String>,
    /// Must equal the job's id when set.
    pub message_id: Option<String>,
    /// Where the producer wants a copy of the outcomes.
    pub reply_to: Option<String>,
    /// Ties a reply to its request; echoed there.
    pub correlation_id: Option<String>,
    /// The AMQP `type`; `consign.check.v1` asks for a connection test.
    pub kind: Option<String>,
    /// Text headers (numbers and booleans are given in their decimal and word form). Names are case-sensitive.
    pub headers: BTreeMap<String, String>,
}

/// One message on loan from the queue. Settle it exactly once with [`Queue::settle`].
#[derive(Debug)]
pub struct Delivery {
    /// The lane it came by.
    pub lane: Lane,
    /// The body, untouched.
    pub body: Bytes,
    /// What came with it.
    pub properties: Properties,
    /// The routing key it was published with first (`job.scheduled.acme`).
    pub routing_key: String,
    /// True when the queue says that it handed this message out before.
    pub redelivered: bool,
    /// How often it came back without a settlement (`x-delivery-count`).
    pub delivery_count: u64,
    /// The queue's own handle.
    pub ticket: DeliveryTag,
}

/// The queue's own handle of a delivery: which channel life it belongs to, and its number there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeliveryTag {
    /// Which life of the channel; a settlement of an older life is lost.
    pub generation: u64,
    /// Which lane's channel.
    pub lane: Lane,
    /// The delivery tag.
    pub tag: u64,
}

/// An outcome on its way to `consign.outcomes` (and, best effort, to `reply_to`).
#[derive(Debug, Clone)]
pub struct OutcomeEvent {
    /// `transfer.<outcome>.<dest>`.
    pub routing_key: String,
    /// The CloudEvents id: also the AMQP message id.
    pub id: String,
    /// Structured JSON.
    pub body: Bytes,
    /// The queue named by the job's `reply_to`, with its correlation id.
    pub reply_to: Option<(String, Option<String>)>,
}

/// The answer to a message that asks for one: unlike the copy of an outcome, it is the only result there is.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The queue that the asker named.
    pub to: String,
    /// What ties it to the question.
    pub correlation_id: Option<String>,
    /// The AMQP `type` of the question.
    pub kind: String,
    /// JSON.
    pub body: Bytes,
}

/// What becomes of a delivery. Consumed by value, performed once.
///
/// A copy has the body and the content type that the [`Delivery`] has when it is settled (they may be replaced, to take a
/// checkpoint along or to put the original back); everything else is as it came.
#[derive(Debug)]
pub enum Settlement {
    /// It is done: acknowledge.
    Ack,
    /// A copy waits on `delay` and comes back with these headers set (attempt counters); the attempt was charged.
    Retry {
        /// How long it waits.
        delay: RetryDelay,
        /// Headers to set on the copy.
        headers: BTreeMap<String, String>,
    },
    /// As `Retry`, but no attempt was charged (metric action `defer`).
    Defer {
        /// How long it waits.
        delay: RetryDelay,
        /// Headers to set on the copy.
        headers: BTreeMap<String, String>,
    },
    /// A copy goes to the dead letters with these headers; the body is untouched.
    DeadLetter {
        /// `x-error-reason` and its like.
        headers: BTreeMap<String, String>,
    },
    /// A copy goes to whoever is free next (lane `continued`), with these headers: work that is handed over half done.
    HandOff {
        /// Headers to set on the copy.
        headers: BTreeMap<String, String>,
    },
    /// Untouched back to the queue, for another worker. Under a lease: as `HandOff`, without new headers.
    Requeue,
}

impl Settlement {
    /// The `action` label of `consign_broker_settlements_total`.
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

/// Work under a lease, as the queue sees it: asked whenever the lease is written, and told when it is lost.
pub trait LeaseHolder: Send + Sync + fmt::Debug {
    /// What another worker gets when this one is gone, as of now: body and content type. Called often; must not block.
    fn message(&self) -> LeaseMessage;

    /// Another worker has the job, or the queue has given it to one: the work must end and leave the job alone. Called once at
    /// most, from any thread; must not block.
    fn lost(&self);

    /// A lease of this job came back that is out of date, and ends here: what it says of an unfinished upload may be known to nobody
    /// else. Must not block.
    fn outdated(&self, lease: Bytes);
}

/// The message that keeps a job under a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseMessage {
    /// The lease.
    pub body: Bytes,
    /// Its media type.
    pub content_type: String,
    /// Headers to set beside those that the delivery came with.
    pub headers: BTreeMap<String, String>,
}

/// What comes by the stream of control messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ControlEvent {
    /// A control message, as it was announced.
    Message(Bytes),
    /// What was there when the reading began is read; from here on they come as they are announced.
    CaughtUp,
}

/// A message as a producer publishes it.
#[derive(Debug, Clone)]
pub struct Publication {
    /// `job.scheduled.<dest>` or `job.backfill.<dest>`.
    pub routing_key: String,
    /// The body.
    pub body: Bytes,
    /// The properties; `delivery_mode` 2 is set by the queue.
    pub properties: Properties,
}

/// Why a queue could not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum QueueError {
    /// The channel the delivery came by is gone; the queue delivers it again.
    #[error("the delivery's channel is gone; the queue delivers it again")]
    Lost,
    /// The broker did not take or confirm a message in time.
    #[error("the broker is unavailable: {0}")]
    Unavailable(String),
    /// The broker is there, and does not let us in or at what we need.
    #[error("the broker denies access: {0}")]
    Denied(String),
    /// The broker refused a message (returned or nacked): a queue or binding is missing, or full.
    #[error("the broker refused the message: {0}")]
    Refused(String),
    /// The topology is not as it must be.
    #[error("the topology is not as it must be: {0}")]
    Topology(String),
    /// Another process has what only one may have at a time.
    #[error("{0}")]
    Busy(String),
    /// The queue can't be used as it is configured, and waiting does not help: a person must act.
    #[error("the queue can't be used: {0}")]
    Unusable(String),
}

/// Starts the queue that `broker.url` names: RabbitMQ, or the embedded one for `sqlite:PATH`.
///
/// `worker_id` names the process; `lanes` gives each lane's prefetch. With no lanes it only publishes. A broker that is away (or
/// a file that is locked) is waited for in the background: see [`Queue::wait_connected`] and [`Queue::ready`]. Must be called within
/// a tokio runtime.
///
/// # Errors
/// What waiting does not mend: a URL that can't be used, a file that is not a queue of consign or is damaged.
pub fn start(
    config: &BrokerConfig,
    worker_id: &str,
    lanes: Vec<(Lane, u16)>,
    metrics: Arc<Metrics>,
) -> Result<Arc<dyn Queue>, QueueError> {
    match config.embedded_file() {
        Some(file) => Ok(sqlite::SqliteQueue::start(&file, &config.prefix, worker_id, lanes, metrics)?),
        None => Ok(rabbitmq::RabbitMqQueue::start(config, worker_id, lanes, metrics)?),
    }
}

/// A queue of jobs with its wait ladder, dead letters and outcomes.
pub trait Queue: Send + Sync + fmt::Debug {
    /// Waits until the queue can be worked with, at most `limit`.
    ///
    /// # Errors
    /// `Unavailable` with the reason of the last try; `Unusable` at once, where waiting does not help; `Denied` at once where the
    /// queue was started without lanes. (Who has lanes goes on trying: a worker outlives a change of its password.)
    fn wait_connected(&self, limit: Duration) -> BoxFuture<'_, Result<(), QueueError>>;

    /// The next delivery of a lane; waits while there is none or while the queue is away. `None` after [`Queue::stop_consuming`].
    fn next(&self, lane: Lane) -> BoxFuture<'_, Option<Delivery>>;

    /// Publishes `events` (confirmed), then performs `settlement`. Consumes the delivery.
    ///
    /// With `Err`, the delivery is not settled and comes again; events that were confirmed stay published (they carry stable ids).
    fn settle(
        &self,
        delivery: Delivery,
        settlement: Settlement,
        events: Vec<OutcomeEvent>,
    ) -> BoxFuture<'_, Result<(), QueueError>>;

    /// Puts a delivery under a lease: what `work` says is recorded, and from then on kept up to date by the queue itself until the
    /// delivery is settled. After `Ok` the loss of the channel does not bring the delivery again, no time-out of the broker applies to
    /// it, and [`Queue::settle`] works over reconnections. When this process is gone (or out of touch for minutes), another worker
    /// gets the message in lane `continued`.
    ///
    /// `key` names the run of the job: the same for everybody who works on it, so that a lease that is out of date finds whoever has
    /// the job now, and ends there. A delivery that came as a lease is taken over: its former owner is told as soon as it can be
    /// reached ([`LeaseHolder::lost`]). Leasing a delivery twice renews it.
    ///
    /// # Errors
    /// `Lost` when the delivery's channel is gone: the delivery comes again as ever. Else nothing has changed, and it may be
    /// tried again.
    fn lease<'a>(
        &'a self,
        delivery: &'a Delivery,
        key: &'a str,
        work: Arc<dyn LeaseHolder>,
    ) -> BoxFuture<'a, Result<(), QueueError>>;

    /// Whether a delivery can still be settled, as far as is known by now. Where not, it comes again, or has come already.
    fn can_settle(&self, _delivery: &Delivery) -> bool {
        true
    }

    /// Publishes one job, confirmed.
    fn publish(&self, publication: Publication) -> BoxFuture<'_, Result<(), QueueError>>;

    /// Publishes an answer to the asker's own queue, confirmed. The question is settled by the caller after that, so that a
    /// lost answer is asked for again.
    ///
    /// # Errors
    /// `Refused` when there is no such queue, it may not be written to, or the queue knows no replies: no later try would do better.
    /// `Denied` when the login is not taken; `Unavailable` when nobody knows whether it arrived.
    fn reply(&self, _reply: Reply) -> BoxFuture<'_, Result<(), QueueError>> {
        let refused = "this kind of queue has no reply queues; run `consign check DEST` instead";
        Box::pin(async move { Err(QueueError::Refused(refused.to_owned())) })
    }

    /// Publishes one control message to every worker, confirmed: those that run, and those that start within the next 7 days.
    ///
    /// # Errors
    /// `Refused` or `Topology` when this queue has no control messages (the stream is missing); `Denied` when it may not be
    /// written to; `Unavailable` when nobody knows whether it arrived.
    fn publish_control(&self, _control: Bytes) -> BoxFuture<'_, Result<(), QueueError>> {
        Box::pin(async { Err(QueueError::Refused("this kind of queue has no control messages".to_owned())) })
    }

    /// The next control message: first all of the last 7 days, in the order in which they were announced, then
    /// [`ControlEvent::CaughtUp`], then live. Every queue that was started with lanes reads all of them, whoever else does.
    ///
    /// At least once: after a reconnection some may come again, so whoever acts on them must be able to do so twice. Where they
    /// can't be read, a warning says so, `UpToDate` comes all the same within 5 s of being connected, and the rest comes when they
    /// can be read again: no delivery may depend on them. Cancel safe. `None` once the queue is closed, and at once where it was
    /// started without lanes.
    fn next_control(&self) -> BoxFuture<'_, Option<ControlEvent>> {
        Box::pin(async { None })
    }

    /// Calls back what waits for these destinations to be mended: each copy on the wait ladder whose routing key ends in one of them and
    /// that has a header [`DEFERRED_SINCE`] goes to its lane now, with body, properties, headers and key as they are, in about the order
    /// in which it would have come. Retries, what waits for its turn, and what waits for others come at their own time. (A copy on the
    /// shortest delay may be left to come by itself.)
    ///
    /// At least once: a process that is killed, or loses the broker, in the middle may leave a copy in its lane that also comes when its
    /// wait is over. Bounded in
    /// time and in what is looked through ([`Released::partly`]); several callers at once, in any processes, are served one after the
    /// other. Dropped, it leaves the rest waiting.
    ///
    /// # Errors
    /// `Busy` when others were at it for too long; `Unavailable`, `Denied`, `Refused` or `Topology` when the queue can't do it. What was
    /// not called back by then comes when its wait is over.
    fn release_delayed(&self, _destinations: BTreeSet<DestinationId>) -> BoxFuture<'_, Result<Released, QueueError>> {
        Box::pin(async { Ok(Released::default()) })
    }

    /// Stops taking work: consumers are cancelled, what was fetched but not yet handed out goes back untouched.
    fn stop_consuming(&self) -> BoxFuture<'_, ()>;

    /// Takes nothing for a while: what was fetched but not yet handed out goes back untouched, for other workers. What is handed
    /// out can be settled as ever.
    fn pause(&self) -> BoxFuture<'_, ()>;

    /// Takes work again after [`Queue::pause`].
    fn resume(&self) -> BoxFuture<'_, ()>;

    /// Gives everything up: pending confirms are awaited briefly, connections closed.
    fn close(&self) -> BoxFuture<'_, ()>;

    /// `Ok` while consuming; else why not, for `/readyz`.
    fn ready(&self) -> Result<(), String>;

    /// What traces call it (`messaging.system`).
    fn system(&self) -> &'static str {
        "rabbitmq"
    }
}
