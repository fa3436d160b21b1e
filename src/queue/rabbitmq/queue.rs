//! The queue on RabbitMQ: each operation is passed on to the part that owns its state.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Mutex as AsyncMutex, mpsc};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::connection::Endpoint;
use super::context::QueueContext;
use super::control_reader;
use super::deliveries::{Deliveries, PrefetchedDelivery};
use super::lease::{LeaseContext, LeaseTable, OwnerIdentity};
use super::messages;
use super::names::Names;
use super::publisher::control_problem;
use super::release;
use super::replies::Replies;
use super::reply_addresses::ReplyAddresses;
use super::sessions::{BrokerSessions, PUBLISH_TIMEOUT};
use super::settle::Settler;
use super::timing::Timing;
use super::topology::Topology;
use crate::config::BrokerConfig;
use crate::domain::destination::DestinationIdentity;
use crate::domain::lane::Lane;
use crate::metrics::Metrics;
use crate::queue::{
    ControlEvent, Delivery, DeliveryTag, JobPublisher, LeaseHolder, OutcomeEvent, Publication, Queue, QueueError,
    Released, Reply, Settlement,
};

/// Limit for each step of closing: confirms, connections.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Limit for the replies in flight. A reply queue that does not confirm must not use up the time.
const REPLY_CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// The queue on RabbitMQ.
pub struct RabbitMqQueue {
    context: Arc<QueueContext>,
    sessions: Arc<BrokerSessions>,
    settler: Settler,
    control: AsyncMutex<mpsc::Receiver<ControlEvent>>,
    control_reader: Mutex<Option<JoinHandle<()>>>,
}

impl fmt::Debug for RabbitMqQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RabbitMqQueue").field("broker", &self.context.endpoint).finish_non_exhaustive()
    }
}

impl RabbitMqQueue {
    /// Starts to connect in the background. An unreachable broker is retried, and [`Queue::ready`]
    /// returns the reason.
    ///
    /// `worker_id` names the connections; `consume` gives each lane's prefetch. Without lanes the
    /// queue only publishes, and does not check the topology. Must be called within a tokio
    /// runtime.
    ///
    /// # Errors
    /// An invalid URL, at once.
    pub fn start(
        config: &BrokerConfig,
        worker_id: &str,
        consume: Vec<(Lane, u16)>,
        metrics: Arc<Metrics>,
    ) -> Result<Arc<Self>, QueueError> {
        Self::start_with(Timing::default(), config, worker_id, consume, metrics)
    }

    /// Starts as [`RabbitMqQueue::start`], with other times: for tests.
    #[doc(hidden)]
    pub fn start_with(
        timing: Timing,
        config: &BrokerConfig,
        worker_id: &str,
        consume: Vec<(Lane, u16)>,
        metrics: Arc<Metrics>,
    ) -> Result<Arc<Self>, QueueError> {
        let deliveries = Arc::new(Deliveries::default());
        let leases = LeaseContext {
            names: Names::new(&config.prefix),
            owner: OwnerIdentity::new(worker_id),
            owner_ttl: timing.owner_ttl,
            max_leases: consume.iter().fold(0, |sum, (_, prefetch)| u16::saturating_add(sum, *prefetch)),
            table: LeaseTable::default(),
            deliveries: Arc::clone(&deliveries),
            metrics: Arc::clone(&metrics),
        };
        let context = Arc::new(QueueContext {
            endpoint: Endpoint::parse(config, worker_id)?,
            names: Names::new(&config.prefix),
            topology: Topology::new(&config.prefix),
            declare: config.declare,
            worker_id: worker_id.to_owned(),
            lanes: consume,
            metrics,
            deliveries,
            leases: Arc::new(leases),
            max_release_consumers: timing.max_release_consumers,
            stop: CancellationToken::new(),
        });
        let sessions = BrokerSessions::start(Arc::clone(&context));
        let (control, reader) = control_reader::start(&context, &sessions);
        let replies = Replies::new(Arc::clone(&context), ReplyAddresses::new(config));
        let settler = Settler { context: Arc::clone(&context), sessions: Arc::clone(&sessions), replies };
        let (control, control_reader) = (AsyncMutex::new(control), Mutex::new(reader));
        Ok(Arc::new(Self { context, sessions, settler, control, control_reader }))
    }
}

async fn requeue(prefetched: Vec<PrefetchedDelivery>) {
    for delivery in prefetched {
        delivery.requeue().await;
    }
}

#[async_trait]
impl Queue for RabbitMqQueue {
    async fn wait_connected(&self, limit: Duration) -> Result<(), QueueError> {
        self.sessions.wait(Instant::now() + limit).await.map(drop)
    }

    async fn next(&self, lane: Lane) -> Option<Delivery> {
        self.context.deliveries.next(lane).await
    }

    async fn settle(
        &self,
        delivery: Delivery,
        settlement: Settlement,
        events: Vec<OutcomeEvent>,
    ) -> Result<(), QueueError> {
        self.settler.settle(delivery, settlement, &events).await
    }

    async fn lease(&self, delivery: &Delivery, key: &str, work: Arc<dyn LeaseHolder>) -> Result<(), QueueError> {
        let (tag, table) = (delivery.ticket, &self.context.leases.table);
        if let Some(leased) = table.leased(tag) {
            if leased.lost {
                return Err(QueueError::Lost);
            }
            table.replace_holder(tag, work);
            let renewer = self.sessions.current().and_then(|session| session.renewer.clone());
            let renewer = renewer.ok_or_else(|| QueueError::Unavailable("not connected to the broker".to_owned()))?;
            return renewer.leases.renew_now(&leased.key).await;
        }
        let properties = self.context.deliveries.properties(tag).ok_or(QueueError::Lost)?;
        let renewer = self.sessions.renewer_of(tag.generation).await?;
        renewer.leases.acquire(delivery, properties, key, work).await
    }

    fn can_settle(&self, tag: DeliveryTag) -> bool {
        self.context.deliveries.is_unacked(tag) || self.context.leases.table.leased(tag).is_some()
    }

    async fn reply(&self, reply: Reply) -> Result<(), QueueError> {
        self.settler.replies.send(reply).await
    }

    async fn publish_control(&self, control: Bytes) -> Result<(), QueueError> {
        let message = messages::control(&self.context.names, &control);
        let published = self.sessions.publish_once(&message).await;
        published.map_err(|problem| control_problem(problem, &message.routing_key))
    }

    async fn next_control(&self) -> Option<ControlEvent> {
        self.control.lock().await.recv().await
    }

    async fn release_delayed(&self, destinations: BTreeSet<DestinationIdentity>) -> Result<Released, QueueError> {
        let session = self.sessions.wait(Instant::now() + PUBLISH_TIMEOUT).await?;
        release::release_delayed(&self.context, &session.publisher, destinations).await
    }

    async fn stop_consuming(&self) {
        let prefetched = self.context.deliveries.prefetched.close();
        // Consumers first: otherwise the broker would deliver the same messages here again.
        if let Some(session) = self.sessions.current() {
            session.cancel_consumers().await;
        }
        requeue(prefetched).await;
    }

    async fn pause(&self, lane: Lane) {
        let prefetched = self.context.deliveries.prefetched.pause(lane);
        if let Some(session) = self.sessions.current() {
            session.cancel(lane).await;
        }
        requeue(prefetched).await;
    }

    async fn resume(&self, lane: Lane, room: u16) {
        self.context.deliveries.prefetched.resume(lane, room);
        if let Some(session) = self.sessions.current() {
            session.consume(lane).await;
        }
    }

    fn oldest_prefetched(&self) -> Option<(Lane, tokio::time::Instant)> {
        self.context.deliveries.prefetched.oldest()
    }

    async fn close(&self) {
        self.stop_consuming().await;
        control_reader::leave_fleet(&self.context, &self.sessions).await;
        let renewer = self.sessions.current().and_then(|session| session.renewer.clone());
        self.context.leases.close(renewer.as_deref().map(|renewer| &renewer.leases)).await;
        self.settler.replies.close(REPLY_CLOSE_TIMEOUT).await;
        if let Some(session) = self.sessions.current() {
            let _ = tokio::time::timeout(CLOSE_TIMEOUT, session.publisher.drained()).await;
        }
        self.sessions.stop().await;
        let reader = self.control_reader.lock().take();
        if let Some(reader) = reader {
            let _ = tokio::time::timeout(3 * CLOSE_TIMEOUT, reader).await;
        }
    }

    fn ready(&self) -> Result<(), String> {
        self.sessions.ready()
    }
}

#[async_trait]
impl JobPublisher for RabbitMqQueue {
    async fn publish(&self, publication: Publication) -> Result<(), QueueError> {
        let message = messages::job(&self.context.names, publication)?;
        self.sessions.publish_once(&message).await
    }
}
