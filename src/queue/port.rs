//! Traits of a queue: [`Queue`] is everything that a worker needs, [`JobPublisher`] adds the
//! publish that commands need.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::Instant;

use super::message::{
    ControlEvent, Delivery, DeliveryTag, LeaseMessage, OutcomeEvent, Publication, QueueError, Released, Reply,
    Settlement,
};
use crate::domain::destination::DestinationIdentity;
use crate::domain::lane::Lane;

/// Running transfer under a lease. The queue reads its state for every renewal and notifies it of a
/// lost lease.
pub trait LeaseHolder: Send + Sync + fmt::Debug {
    /// Returns the message that another worker receives if this one disappears now: body and
    /// content type. Called often; must not block.
    fn message(&self) -> LeaseMessage;

    /// Notifies the transfer that another worker owns the job, or that the queue offers it to one.
    /// The transfer must stop and leave the job alone. Called at most once, from any thread; must
    /// not block.
    fn lost(&self);

    /// Notifies the transfer of an outdated lease of its job, which ends here. Nobody else may know
    /// the unfinished upload that it names. Must not block.
    fn outdated(&self, lease: Bytes);
}

/// Queue of jobs with its wait queues, dead letters and outcomes, as a worker uses it.
#[async_trait]
pub trait Queue: Send + Sync + fmt::Debug {
    /// Waits until the queue is usable, at most `limit`.
    ///
    /// # Errors
    /// `Unavailable` with the reason of the last attempt; `Unusable` at once, where waiting does
    /// not help; `Denied` at once for a queue that was started without lanes. A queue with lanes
    /// keeps trying: a worker survives a change of its password.
    async fn wait_connected(&self, limit: Duration) -> Result<(), QueueError>;

    /// Returns the next delivery of a lane. Waits while there is none or the queue is disconnected.
    /// `None` after [`Queue::stop_consuming`]. Cancel safe.
    async fn next(&self, lane: Lane) -> Option<Delivery>;

    /// Publishes `events` (confirmed), then performs `settlement`. Consumes the delivery.
    ///
    /// After `Err` the delivery is not settled and will be redelivered. Confirmed events stay
    /// published; they carry stable ids.
    async fn settle(
        &self,
        delivery: Delivery,
        settlement: Settlement,
        events: Vec<OutcomeEvent>,
    ) -> Result<(), QueueError>;

    /// Puts a delivery under a lease: records the holder's message and renews it until the delivery
    /// is settled. After `Ok`, a closed channel does not redeliver the message, no broker timeout
    /// applies to it, and [`Queue::settle`] works across reconnections. When this process
    /// disappears or is disconnected for minutes, another worker receives the message in lane
    /// `continued`.
    ///
    /// `key` names the run of the job and is the same for every worker that processes it, so that
    /// an outdated lease reaches the current owner and ends there. A delivery that is a lease
    /// itself is taken over: its former owner is notified as soon as it is reachable
    /// ([`LeaseHolder::lost`]). Leasing a delivery twice renews the lease.
    ///
    /// # Errors
    /// `Lost` when the channel of the delivery is closed: the message is redelivered. For any other
    /// error nothing has changed, and the call may be repeated.
    async fn lease(&self, delivery: &Delivery, key: &str, work: Arc<dyn LeaseHolder>) -> Result<(), QueueError>;

    /// Returns false when the delivery is known to be lost: it will be redelivered, or has been.
    fn can_settle(&self, _ticket: DeliveryTag) -> bool {
        true
    }

    /// Publishes a reply to the requester's own queue, confirmed, within a bounded time. The caller
    /// settles the request afterwards.
    ///
    /// # Errors
    /// `Refused` when there is no such queue, it is not writable, the configuration does not permit
    /// it, or the broker has no replies: a repetition would not help. `Unavailable` when the queue
    /// is full, or the result is unknown.
    async fn reply(&self, _reply: Reply) -> Result<(), QueueError> {
        let refused = "this kind of queue has no reply queues; run `consign check DEST` instead";
        Err(QueueError::Refused(refused.to_owned()))
    }

    /// Publishes one control message to every worker, confirmed: to those that run, and to those
    /// that start within the next 7 days.
    ///
    /// # Errors
    /// `Refused` or `Topology` when this queue has no control messages (the stream is missing);
    /// `Denied` when it is not writable; `Unavailable` when the result is unknown.
    async fn publish_control(&self, _control: Bytes) -> Result<(), QueueError> {
        Err(QueueError::Refused("this kind of queue has no control messages".to_owned()))
    }

    /// Returns the next control message: first all of the last 7 days, oldest first, then
    /// [`ControlEvent::CaughtUp`], then live ones. Every queue with lanes reads all of them.
    ///
    /// At least once: a reconnection may repeat some, so acting on one must be idempotent. When
    /// they can't be read, a warning is logged, `CaughtUp` follows within 5 s of being connected,
    /// and the rest follows once they are readable again: no delivery may depend on them. As long
    /// as they arrive, `CaughtUp` follows the last of them; a queue that can't tell the last one
    /// waits for a pause, for a minute at most. A lost connection is reported as
    /// [`ControlEvent::Interrupted`], and `CaughtUp` follows again when the missed messages were
    /// read. Cancel safe. `None` once the queue is closed, and at once for a queue without lanes.
    async fn next_control(&self) -> Option<ControlEvent> {
        None
    }

    /// Returns copies that wait for the recovery of these destinations to their lanes: each copy in
    /// a wait queue whose routing key names one of them and that has a header
    /// [`DEFERRED_SINCE`](crate::domain::headers::DEFERRED_SINCE). Body, properties, headers and
    /// key are unchanged, and the order is about that in which the copies would have returned.
    /// Retries, jobs that wait for a permit, and jobs of other destinations keep waiting. A copy
    /// with the shortest delay may be left to return by itself.
    ///
    /// At least once: a process that is killed, or loses the broker, in the middle may leave a copy
    /// in its lane that also returns when its delay is over. Bounded in time and in the number of
    /// messages examined ([`Released::partly`]). Several callers at once, in any processes, are
    /// served one after the other. Dropping the future leaves the rest waiting.
    ///
    /// # Errors
    /// `Busy` when others held the lock for too long; `Unavailable`, `Denied`, `Refused` or
    /// `Topology` when the queue can't do it. The remaining copies return when their delay is over.
    async fn release_delayed(&self, _destinations: BTreeSet<DestinationIdentity>) -> Result<Released, QueueError> {
        Ok(Released::default())
    }

    /// Stops consuming for good: cancels the consumers and requeues prefetched deliveries
    /// unchanged.
    async fn stop_consuming(&self);

    /// Stops consuming a lane for a while: cancels its consumer and requeues its prefetched
    /// deliveries unchanged, for other workers. Deliveries that were handed out can be settled as
    /// usual.
    async fn pause(&self, lane: Lane);

    /// Consumes a lane again, or with another limit: up to `room` deliveries beside those that are
    /// unsettled now, at least one, and never more than the configured prefetch.
    async fn resume(&self, lane: Lane, room: u16);

    /// Returns the lane whose oldest prefetched delivery waits longest, and the time of its arrival
    /// here.
    fn oldest_prefetched(&self) -> Option<(Lane, Instant)>;

    /// Closes the queue: waits briefly for pending confirms, then closes the connections.
    async fn close(&self);

    /// Returns `Ok` while consuming, else the reason for `/readyz`.
    fn ready(&self) -> Result<(), String>;

    /// Returns the name for traces (`messaging.system`).
    fn system(&self) -> &'static str {
        "rabbitmq"
    }
}

/// Queue that also accepts new jobs, as commands use it.
#[async_trait]
pub trait JobPublisher: Queue {
    /// Publishes one job, confirmed.
    ///
    /// # Errors
    /// `Refused` for a routing key or property that no queue accepts; `Unavailable` when the result
    /// is unknown.
    async fn publish(&self, publication: Publication) -> Result<(), QueueError>;
}
