//! Renewal of the leases of this process, for the time of one session: returned messages are
//! renewed, forwarded or acknowledged.
//!
//! All of them at once: a message that waits here unacknowledged does not expire, and one that is
//! slow does not delay the others. So the prefetch has room for all leases of the process, and
//! leases have channels that nothing else uses. What can't be published is tried again with the
//! message kept: requeued, it would count as a delivery, and expire to another worker, which would
//! upload the same object beside this one.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use lapin::message::Delivery as Message;
use lapin::{Acker, Connection, Consumer};
use tokio::sync::mpsc;

use super::context::LeaseContext;
use super::decision::{LeaseDecision, LeaseMark};
use super::owner_queue::OwnerQueue;
use crate::domain::headers::{Headers, LEASE_EPOCH, LEASE_OWNER, LEASE_SEQ};
use crate::queue::QueueError;
use crate::queue::rabbitmq::channel::{acknowledge, reject, requeue_or_lose, with_prefetch};
use crate::queue::rabbitmq::deliveries::PrefetchedDelivery;
use crate::queue::rabbitmq::errors;
use crate::queue::rabbitmq::fields::unread;
use crate::queue::rabbitmq::health::SessionHealth;
use crate::queue::rabbitmq::messages::{self, JobCopy};
use crate::queue::rabbitmq::origin;
use crate::queue::rabbitmq::publisher::Publisher;
use crate::runtime::retry::Retry;

/// Notices and leases of other processes that may be here beside the own leases.
const EXTRA_PREFETCH: u16 = 8;
/// Interval of the removal of jobs that ended long ago.
const PRUNE_INTERVAL: Duration = Duration::from_mins(1);
/// Bounds of the delay before a lease that could not be renewed or forwarded is tried again.
const MIN_RETRY_PAUSE: Duration = Duration::from_millis(500);
const MAX_RETRY_PAUSE: Duration = Duration::from_secs(15);
/// Time for which a returned message is kept while it can't be renewed or forwarded. Below the
/// broker's acknowledgement timeout, which would end the session.
const HOLD_TIMEOUT: Duration = Duration::from_mins(20);
/// Limit for one notice: a queue that does not confirm must not end this session.
const NOTICE_TIMEOUT: Duration = Duration::from_secs(10);
/// Limit for the broker to bring the owner's queue up. A queue that was declared moments before its
/// broker was killed can stay without a leader for ever (seen on 3.10). The process then changes
/// its address.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(5);
/// Addresses tried in one session.
const MAX_ADDRESSES: usize = 2;

/// Renewer of the leases of one session.
pub(in crate::queue::rabbitmq) struct LeaseRenewer {
    pub(super) context: Arc<LeaseContext>,
    pub(super) queue: OwnerQueue,
    publisher: Arc<Publisher>,
    /// Leases that reached lane `continued` and are to be renewed here.
    strays: mpsc::UnboundedSender<StrayLease>,
    received_strays: Mutex<Option<mpsc::UnboundedReceiver<StrayLease>>>,
}

/// Lease of a running transfer that was delivered by lane `continued`.
struct StrayLease {
    key: String,
    acker: Acker,
}

/// Handling of one returned message.
type Handling<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

impl LeaseRenewer {
    /// Opens the owner's queue. It is declared whatever `broker.declare` says, because it belongs
    /// to this process.
    pub(in crate::queue::rabbitmq) async fn open(
        context: &Arc<LeaseContext>,
        connection: &Connection,
        publisher: &Arc<Publisher>,
    ) -> Result<(Arc<Self>, Consumer), QueueError> {
        for _ in 0..MAX_ADDRESSES {
            // A channel with an unanswered call is not usable any more.
            let prefetch = context.max_leases.saturating_add(EXTRA_PREFETCH);
            let queue = OwnerQueue::new(context, with_prefetch(connection, prefetch).await?);
            if let Ok(consumer) = tokio::time::timeout(QUEUE_TIMEOUT, queue.consume()).await {
                let (context, publisher) = (Arc::clone(context), Arc::clone(publisher));
                let (strays, received) = mpsc::unbounded_channel();
                let received_strays = Mutex::new(Some(received));
                return Ok((Arc::new(Self { context, queue, publisher, strays, received_strays }), consumer?));
            }
            tracing::warn!(
                event = "lease_queue_unresponsive",
                queue = queue.name(),
                next = "another queue is used",
                remedy = "check the broker if this repeats",
                "the queue for leases does not respond"
            );
            context.owner.change_address();
        }
        Err(QueueError::Unavailable("no queue for leases answers".to_owned()))
    }

    /// Returns true while the channel of the owner's queue is open.
    pub(in crate::queue::rabbitmq) fn is_connected(&self) -> bool {
        self.queue.is_connected()
    }

    /// Handles returned messages until the session ends.
    pub(in crate::queue::rabbitmq) async fn run(self: Arc<Self>, mut consumer: Consumer, health: Arc<SessionHealth>) {
        let strays = self.received_strays.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut strays) = strays else { return };
        let mut handled: FuturesUnordered<Handling<'_>> = FuturesUnordered::new();
        if self.context.owner.previous_address().is_some() {
            self.context.table.active_keys().into_iter().for_each(|key| handled.push(Box::pin(self.readdress(key))));
        }
        let mut prune = tokio::time::interval(PRUNE_INTERVAL);
        loop {
            tokio::select! {
                item = consumer.next() => match item {
                    Some(Ok(mut message)) => {
                        let properties = std::mem::take(&mut message.properties);
                        message.properties = origin::trusted(properties, self.publisher.user().as_ref());
                        handled.push(Box::pin(self.returned(message)));
                    }
                    Some(Err(error)) => return health.end(&errors::text(&error)),
                    None => break,
                },
                Some(stray) = strays.recv() => handled.push(Box::pin(self.renew(stray.key, stray.acker))),
                Some(()) = handled.next() => {}
                _ = prune.tick() => handled.push(Box::pin(self.prune())),
            }
        }
        if !self.queue.is_cancelled() {
            let queue = self.queue.name();
            return health.end(&format!("the broker ended the consumer of {queue} (was the queue deleted?)"));
        }
        // Until the session ends.
        while handled.next().await.is_some() {}
    }

    async fn prune(&self) {
        for key in self.context.table.prune() {
            let _ = self.queue.unbind(&key).await;
        }
    }

    /// After a change of address, leases in the previous queue may be lost.
    async fn readdress(&self, key: String) {
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

    /// Handles a message of the owner's queue.
    async fn returned(&self, message: Message) {
        if unread(&message.properties).is_some() {
            return self.forward(&message, None).await;
        }
        let mark = LeaseMark::read(message.properties.headers().as_ref());
        let routing_key = message.routing_key.to_string();
        let Some((mark, key)) = mark.as_ref().and_then(|mark| Some((mark, mark.key(&routing_key)?))) else {
            return self.forward(&message, None).await;
        };
        match self.decide(key, mark) {
            LeaseDecision::Renew => {
                let (key, acker) = (key.to_owned(), message.acker.clone());
                // The next lease has a newer body.
                drop(message);
                return self.renew(key, acker).await;
            }
            LeaseDecision::HandOff | LeaseDecision::Unknown if !mark.is_notice() => {
                self.forward(&message, Some((key, mark))).await;
            }
            decision => {
                if decision == LeaseDecision::Outdated && !mark.is_notice() {
                    self.notify_outdated(key, &message);
                }
                acknowledge_or_lose(&message.acker).await;
            }
        }
        self.unbind_unwanted(key).await;
    }

    /// Examines a delivery of lane `continued`. Leases of running transfers, outdated leases and
    /// notices end here. Returns everything that is a job for the worker.
    pub(in crate::queue::rabbitmq) async fn filter(&self, delivery: PrefetchedDelivery) -> Option<PrefetchedDelivery> {
        let message = delivery.message();
        if unread(&message.properties).is_some() {
            return Some(delivery);
        }
        let mark = LeaseMark::read(message.properties.headers().as_ref());
        let routing_key = message.routing_key.to_string();
        let Some((mark, key)) = mark.as_ref().and_then(|mark| Some((mark, mark.key(&routing_key)?))) else {
            return Some(delivery);
        };
        let decision = self.decide(key, mark);
        let is_job = match decision {
            _ if mark.is_notice() => false,
            // Without a running transfer to notify, the worker examines it.
            LeaseDecision::Outdated => !self.notify_outdated(key, message),
            LeaseDecision::Renew | LeaseDecision::Settled => false,
            LeaseDecision::Superseded | LeaseDecision::TakenOver | LeaseDecision::HandOff | LeaseDecision::Unknown => {
                true
            }
        };
        if decision == LeaseDecision::Renew {
            // The lane must not wait for it. The renewer receives it while the session lasts.
            let _ = self.strays.send(StrayLease { key: key.to_owned(), acker: message.acker.clone() });
            return None;
        }
        if !is_job {
            acknowledge_or_lose(&message.acker).await;
        }
        if decision != LeaseDecision::Unknown {
            self.unbind_unwanted(key).await;
        }
        is_job.then_some(delivery)
    }

    /// Passes an outdated lease to the running transfer; false without one.
    fn notify_outdated(&self, key: &str, message: &Message) -> bool {
        let holder = self.context.table.holder(key);
        if let Some(holder) = &holder {
            holder.outdated(Bytes::copy_from_slice(&message.data));
        }
        holder.is_some()
    }

    fn decide(&self, key: &str, mark: &LeaseMark) -> LeaseDecision {
        let (decision, lost) = self.context.table.decide(self.context.owner.name(), key, mark);
        tracing::debug!(event = "lease_returned", key, ?mark, ?decision, "a lease returned");
        if let Some(holder) = lost {
            tracing::warn!(
                event = "lease_lost",
                key,
                owner = mark.owner,
                next = "the transfer stops here and continues there",
                remedy = "check this worker's load and its connection to the broker if this repeats",
                "another worker has taken over a leased job"
            );
            holder.lost();
        }
        decision
    }

    /// Publishes the next lease, then acknowledges the returned one.
    async fn renew(&self, key: String, returned: Acker) {
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
    pub(super) async fn publish_renewal(&self, key: &str) -> Result<bool, QueueError> {
        // First: a lease that waits for its turn would carry an old checkpoint.
        let permit = self.publisher.lease_permit().await?;
        let Some(renewal) = self.context.table.next_renewal(key) else { return Ok(false) };
        let message = renewal.holder.message();
        let mut headers = message.headers;
        headers.insert(LEASE_EPOCH.to_owned(), renewal.epoch.to_string());
        headers.insert(LEASE_OWNER.to_owned(), self.queue.address().to_owned());
        headers.insert(LEASE_SEQ.to_owned(), renewal.seq.to_string());
        let copy = JobCopy {
            routing_key: &renewal.job_key,
            body: &message.body,
            content_type: Some(&message.content_type),
            original: &renewal.properties,
            headers,
        };
        self.publisher.publish_with(permit, &messages::lease(&self.context.names, key, copy)?).await?;
        self.context.table.confirmed(key, renewal.epoch, renewal.seq);
        Ok(true)
    }

    /// Forwards a message to other workers. `known` is its lease.
    async fn forward(&self, message: &Message, known: Option<(&str, &LeaseMark)>) {
        if unread(&message.properties).is_some() {
            // The broker has the body.
            return reject_or_lose(&message.acker).await;
        }
        let publish = async || {
            let copy = messages::forwarded(&self.context.names, message)?;
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
    pub(super) async fn notify_former_owner(&self, key: &str) {
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
            (LEASE_OWNER.to_owned(), self.queue.address().to_owned()),
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
}

async fn reject_or_lose(acker: &Acker) {
    if reject(acker).await.is_err() {
        tracing::debug!(event = "reject_failed", "a message will be redelivered; its channel is closed");
    }
}

async fn acknowledge_or_lose(acker: &Acker) {
    if acknowledge(acker).await.is_err() {
        tracing::debug!(event = "acknowledge_failed", "a finished lease will be redelivered; its channel is closed");
    }
}
