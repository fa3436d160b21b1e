//! Leases of this process in the broker, for the time of one session: their keys are bound, and
//! they are published, renewed and forwarded, and former owners are notified.
//!
//! What can't be published is tried again with the returned message kept: requeued, it would count
//! as a delivery, and expire to another worker, which would upload the same object beside this one.

use std::sync::Arc;
use std::time::Duration;

use lapin::message::Delivery as Message;
use lapin::{Acker, BasicProperties};

use super::context::LeaseContext;
use super::decision::{LeaseMark, LeaseState};
use super::entry::LeaseRequest;
use super::owner_queue::OwnerQueue;
use crate::domain::headers::{Headers, LEASE_EPOCH, LEASE_OWNER, LEASE_SEQ};
use crate::queue::rabbitmq::channel::{acknowledge_or_lose, reject, requeue_or_lose};
use crate::queue::rabbitmq::copies::{self, JobCopy};
use crate::queue::rabbitmq::fields::unread;
use crate::queue::rabbitmq::messages;
use crate::queue::rabbitmq::publisher::Publisher;
use crate::queue::{Delivery, LeaseHolder, QueueError};
use crate::runtime::failpoints;
use crate::runtime::retry::Retry;

/// Bounds of the delay before a lease that could not be renewed or forwarded is tried again.
const MIN_RETRY_PAUSE: Duration = Duration::from_millis(500);
const MAX_RETRY_PAUSE: Duration = Duration::from_secs(15);
/// Time for which a returned message is kept while it can't be renewed or forwarded. Below the
/// broker's acknowledgement timeout, which would end the session.
const HOLD_TIMEOUT: Duration = Duration::from_mins(20);
/// Limit for one notice: a queue that does not confirm must not end this session.
const NOTICE_TIMEOUT: Duration = Duration::from_secs(10);
/// Limit for discarding settled leases on close.
const RETIRE_TIMEOUT: Duration = Duration::from_secs(2);

/// Leases of this process in one session.
pub(in crate::queue::rabbitmq) struct LeaseSession {
    pub(super) context: Arc<LeaseContext>,
    pub(super) queue: OwnerQueue,
    pub(super) publisher: Arc<Publisher>,
}

impl LeaseSession {
    /// Acquires a lease: binds the key, publishes the first lease (confirmed), acknowledges the
    /// delivery, and notifies a former owner. After an error the delivery still keeps the job.
    pub(in crate::queue::rabbitmq) async fn acquire(
        &self,
        delivery: &Delivery,
        properties: BasicProperties,
        key: &str,
        holder: Arc<dyn LeaseHolder>,
    ) -> Result<(), QueueError> {
        let (tag, context) = (delivery.ticket, &self.context);
        let request =
            LeaseRequest { ticket: tag, key, properties, job_key: &delivery.routing_key, holder: Arc::clone(&holder) };
        if let Some(previous) = context.table.insert(context.owner.name(), request)? {
            // Its lease returns outdated, possibly when no transfer is running that could be notified.
            holder.outdated(previous.message().body);
            previous.lost();
        }
        // Binds before it publishes, so that the lease can't miss its owner.
        let bound = self.queue.bind(key).await;
        let published = if bound.is_ok() { self.renew_now(key).await } else { bound };
        if let Err(error) = published {
            context.table.finish(tag, LeaseState::Unconfirmed);
            self.unbind_unwanted(key).await;
            return Err(if context.deliveries.is_unacked(tag) { error } else { QueueError::Lost });
        }
        failpoints::hit("lease_written");
        context.acknowledge_leased(delivery).await;
        context.metrics.settled("lease");
        self.notify_former_owner(key).await;
        Ok(())
    }

    /// Publishes the next lease at once.
    pub(in crate::queue::rabbitmq) async fn renew_now(&self, key: &str) -> Result<(), QueueError> {
        // False when the queue was closed meanwhile, or another delivery replaced this one: nothing was published.
        if self.publish_renewal(key).await? { Ok(()) } else { Err(QueueError::Lost) }
    }

    /// Publishes the next lease, then acknowledges the returned one.
    pub(super) async fn renew(&self, key: String, returned: Acker) {
        let renewed = self.persist(|| self.publish_renewal(&key), "a lease could not be renewed").await;
        if renewed == Some(true) {
            acknowledge_or_lose(&returned).await;
        } else {
            // No transfer is running any more, or not in time: decide about the message again.
            requeue_or_lose(&returned).await;
        }
        self.notify_former_owner(&key).await;
        self.unbind_unwanted(&key).await;
    }

    /// Repeats a publish with growing pauses until it succeeds; `None` after [`HOLD_TIMEOUT`].
    async fn persist<T, F>(&self, publish: impl Fn() -> F, failed: &str) -> Option<T>
    where
        F: Future<Output = Result<T, QueueError>>,
    {
        let persisting = async {
            let mut retry = Retry::endless(MIN_RETRY_PAUSE, MAX_RETRY_PAUSE);
            loop {
                match publish().await {
                    Ok(done) => return done,
                    Err(error) => tracing::warn!(
                        event = "lease_not_published",
                        %error,
                        what = failed,
                        next = "publishing is tried again",
                        remedy = "check the broker if this repeats",
                        "a lease could not be published"
                    ),
                }
                tokio::time::sleep(retry.next_wait(None).unwrap_or(MAX_RETRY_PAUSE)).await;
            }
        };
        tokio::time::timeout(HOLD_TIMEOUT, persisting).await.ok()
    }

    /// Publishes the next lease of a key, confirmed. False when no transfer is running.
    async fn publish_renewal(&self, key: &str) -> Result<bool, QueueError> {
        // First: a lease that waits for its turn would carry an old checkpoint.
        let permit = self.publisher.lease_permit().await?;
        let Some(renewal) = self.context.table.next_renewal(key) else { return Ok(false) };
        let message = renewal.holder.message();
        let mut headers = message.headers;
        headers.insert(LEASE_EPOCH.to_owned(), renewal.epoch.to_string());
        headers.insert(LEASE_OWNER.to_owned(), self.queue.address.clone());
        headers.insert(LEASE_SEQ.to_owned(), renewal.seq.to_string());
        let copy = JobCopy {
            routing_key: &renewal.job_key,
            body: &message.body,
            content_type: Some(&message.content_type),
            original: &renewal.properties,
            headers,
        };
        self.publisher.publish_with(permit, &copies::lease(&self.context.names, key, copy)?).await?;
        self.context.table.confirmed(key, renewal.epoch, renewal.seq);
        Ok(true)
    }

    /// Forwards a message to other workers. `known` is its lease.
    pub(super) async fn forward(&self, message: &Message, known: Option<(&str, &LeaseMark)>) {
        if unread(&message.properties).is_some() {
            // The broker has the body.
            if reject(&message.acker).await.is_err() {
                tracing::debug!(event = "reject_failed", "a message will be redelivered; its channel is closed");
            }
            return;
        }
        let publish = async || {
            let copy = copies::forwarded(&self.context.names, message)?;
            self.publisher.publish_lease(&copy).await
        };
        if self.persist(publish, "a job could not be forwarded to other workers").await.is_none() {
            return requeue_or_lose(&message.acker).await;
        }
        if let Some((key, mark)) = known {
            self.context.table.forwarded(key, mark);
        }
        acknowledge_or_lose(&message.acker).await;
    }

    /// Notifies the former owner of a take-over, and unbinds its queues. The next renewal repeats a
    /// notice that failed.
    async fn notify_former_owner(&self, key: &str) {
        let Some((epoch, former)) = self.context.table.former_owner(key) else { return };
        match tokio::time::timeout(NOTICE_TIMEOUT, self.publish_notice(key, epoch, &former)).await {
            Ok(Ok(())) => self.context.table.former_owner_notified(key, epoch),
            Ok(Err(error)) => tracing::debug!(
                event = "lease_notice_failed",
                %error,
                key,
                former,
                "the former owner is not notified yet"
            ),
            Err(_) => tracing::debug!(
                event = "lease_notice_failed",
                key,
                former,
                "the former owner's queue does not respond; it is not notified yet"
            ),
        }
    }

    /// The notice comes first: it reaches a living owner by its address, not by the key.
    async fn publish_notice(&self, key: &str, epoch: u32, former: &str) -> Result<(), QueueError> {
        let headers = Headers::from([
            (LEASE_EPOCH.to_owned(), epoch.to_string()),
            (LEASE_OWNER.to_owned(), self.queue.address.clone()),
        ]);
        self.publisher.publish(&messages::notice(&self.context.names, former, key, headers)?).await?;
        self.queue.unbind_former(former, key).await
    }

    /// Unbinds a key whose leases need not return here any more. The next session repeats a
    /// failure.
    pub(super) async fn unbind_unwanted(&self, key: &str) {
        if self.context.table.is_wanted(key) {
            return;
        }
        match self.queue.unbind(key).await {
            Ok(()) => self.context.table.unbound(key),
            Err(error) => tracing::debug!(
                event = "lease_not_unbound",
                %error,
                key,
                "the key of a lease is still bound"
            ),
        }
    }

    /// Unbinds the keys of jobs that ended long ago.
    pub(super) async fn prune(&self) {
        for key in self.context.table.prune() {
            let _ = self.queue.unbind(&key).await;
        }
    }

    /// After a change of address, leases in the previous queue may be lost.
    pub(super) async fn readdress(&self, key: String) {
        if let Err(error) = self.publish_renewal(&key).await {
            tracing::warn!(
                event = "lease_not_renewed",
                %error,
                key,
                next = "the job may be taken over by another worker",
                remedy = "check the broker if this repeats",
                "a lease could not be renewed at its new address"
            );
        }
    }
}

impl LeaseContext {
    /// Ends all leases: none is renewed any more, and running transfers are notified. Then retires
    /// the owner's queue, if connected.
    pub(in crate::queue::rabbitmq) async fn close(&self, session: Option<&LeaseSession>) {
        let closed = self.table.close();
        for holder in closed.holders {
            holder.lost();
        }
        let Some(session) = session else { return };
        let retired = tokio::time::timeout(RETIRE_TIMEOUT, session.queue.retire(&closed.ended, closed.unfinished));
        if !matches!(retired.await, Ok(Ok(()))) {
            tracing::debug!(event = "leases_not_retired", "leases of settled jobs may be redelivered to other workers");
        }
    }
}
