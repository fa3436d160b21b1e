//! Renewal of the leases of this process, for the time of one session: returned messages are
//! renewed, forwarded or acknowledged.
//!
//! All of them at once: a message that waits here unacknowledged does not expire, and one that is
//! slow does not delay the others. So the prefetch has room for all leases of the process, and
//! leases have channels that nothing else uses.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use lapin::message::Delivery as Message;
use lapin::{Acker, Connection, Consumer};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::context::LeaseContext;
use super::decision::{LeaseDecision, LeaseMark};
use super::owner_queue::OwnerQueue;
use super::session::LeaseSession;
use crate::queue::QueueError;
use crate::queue::rabbitmq::channel::{acknowledge_or_lose, with_prefetch};
use crate::queue::rabbitmq::deliveries::PrefetchedDelivery;
use crate::queue::rabbitmq::errors;
use crate::queue::rabbitmq::fields::unread;
use crate::queue::rabbitmq::health::SessionHealth;
use crate::queue::rabbitmq::origin;
use crate::queue::rabbitmq::publisher::Publisher;

/// Notices and leases of other processes that may be here beside the own leases.
const EXTRA_PREFETCH: u16 = 8;
/// Interval of the removal of jobs that ended long ago.
const PRUNE_INTERVAL: Duration = Duration::from_mins(1);
/// Limit for the broker to bring the owner's queue up. A queue that was declared moments before its
/// broker was killed can stay without a leader for ever (seen on 3.10). The process then changes
/// its address.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(5);
/// Addresses tried in one session.
const MAX_ADDRESSES: usize = 2;

/// Renewer of the leases of one session.
pub(in crate::queue::rabbitmq) struct LeaseRenewer {
    /// Leases of this session.
    pub(in crate::queue::rabbitmq) leases: LeaseSession,
    /// Leases that reached lane `continued` and are to be renewed here.
    strays: mpsc::UnboundedSender<(String, Acker)>,
    received_strays: Mutex<Option<mpsc::UnboundedReceiver<(String, Acker)>>>,
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
                let leases = LeaseSession { context, queue, publisher };
                return Ok((Arc::new(Self { leases, strays, received_strays }), consumer?));
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
        self.leases.queue.is_connected()
    }

    /// Handles returned messages until the session ends.
    pub(in crate::queue::rabbitmq) async fn run(self: Arc<Self>, mut consumer: Consumer, health: Arc<SessionHealth>) {
        let strays = self.received_strays.lock().take();
        let Some(mut strays) = strays else { return };
        let mut handled: FuturesUnordered<Handling<'_>> = FuturesUnordered::new();
        if self.leases.context.owner.previous_address().is_some() {
            self.leases
                .context
                .table
                .active_keys()
                .into_iter()
                .for_each(|key| handled.push(Box::pin(self.leases.readdress(key))));
        }
        let mut prune = tokio::time::interval(PRUNE_INTERVAL);
        loop {
            tokio::select! {
                item = consumer.next() => match item {
                    Some(Ok(mut message)) => {
                        let properties = std::mem::take(&mut message.properties);
                        message.properties = origin::trusted(properties, self.leases.publisher.user().as_ref());
                        handled.push(Box::pin(self.returned(message)));
                    }
                    Some(Err(error)) => return health.end(&errors::text(&error)),
                    None => break,
                },
                Some((key, acker)) = strays.recv() => handled.push(Box::pin(self.leases.renew(key, acker))),
                Some(()) = handled.next() => {}
                _ = prune.tick() => handled.push(Box::pin(self.leases.prune())),
            }
        }
        if !self.leases.queue.is_cancelled() {
            let queue = self.leases.queue.name();
            return health.end(&format!("the broker ended the consumer of {queue} (was the queue deleted?)"));
        }
        // Until the session ends.
        while handled.next().await.is_some() {}
    }

    /// Handles a message of the owner's queue.
    async fn returned(&self, message: Message) {
        let Some((mark, key)) = lease_of(&message) else { return self.leases.forward(&message, None).await };
        match self.decide(&key, &mark) {
            LeaseDecision::Renew => {
                let acker = message.acker.clone();
                // The next lease has a newer body.
                drop(message);
                return self.leases.renew(key, acker).await;
            }
            LeaseDecision::HandOff | LeaseDecision::Unknown if !mark.is_notice() => {
                self.leases.forward(&message, Some((&key, &mark))).await;
            }
            decision => {
                if decision == LeaseDecision::Outdated && !mark.is_notice() {
                    self.notify_outdated(&key, &message);
                }
                acknowledge_or_lose(&message.acker).await;
            }
        }
        self.leases.unbind_unwanted(&key).await;
    }

    /// Examines a delivery of lane `continued`. Leases of running transfers, outdated leases and
    /// notices end here. Returns everything that is a job for the worker.
    pub(in crate::queue::rabbitmq) async fn filter(&self, delivery: PrefetchedDelivery) -> Option<PrefetchedDelivery> {
        let message = &delivery.inner;
        let Some((mark, key)) = lease_of(message) else { return Some(delivery) };
        let decision = self.decide(&key, &mark);
        let is_job = match decision {
            _ if mark.is_notice() => false,
            // Without a running transfer to notify, the worker examines it.
            LeaseDecision::Outdated => !self.notify_outdated(&key, message),
            LeaseDecision::Renew | LeaseDecision::Settled => false,
            LeaseDecision::Superseded | LeaseDecision::TakenOver | LeaseDecision::HandOff | LeaseDecision::Unknown => {
                true
            }
        };
        if decision == LeaseDecision::Renew {
            // The lane must not wait for it. The renewer receives it while the session lasts.
            let _ = self.strays.send((key, message.acker.clone()));
            return None;
        }
        if !is_job {
            acknowledge_or_lose(&message.acker).await;
        }
        if decision != LeaseDecision::Unknown {
            self.leases.unbind_unwanted(&key).await;
        }
        is_job.then_some(delivery)
    }

    /// Passes an outdated lease to the running transfer; false without one.
    fn notify_outdated(&self, key: &str, message: &Message) -> bool {
        let holder = self.leases.context.table.holder(key);
        if let Some(holder) = &holder {
            holder.outdated(Bytes::copy_from_slice(&message.data));
        }
        holder.is_some()
    }

    fn decide(&self, key: &str, mark: &LeaseMark) -> LeaseDecision {
        let (decision, lost) = self.leases.context.table.decide(self.leases.context.owner.name(), key, mark);
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
}

/// Returns the mark and the key of a lease, or of a notice. A message that was not read has none.
fn lease_of(message: &Message) -> Option<(LeaseMark, String)> {
    if unread(&message.properties).is_some() {
        return None;
    }
    let mark = LeaseMark::read(message.properties.headers().as_ref())?;
    let key = mark.key(message.routing_key.as_str())?.to_owned();
    Some((mark, key))
}
