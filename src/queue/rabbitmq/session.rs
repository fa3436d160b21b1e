//! One session with the broker: two connections, the channels and the consumers. It ends as a whole
//! at the first error, and the supervisor builds the next one. Running transfers outlive it.

use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::join_all;
use lapin::{Connection, Consumer};
use tokio::task::JoinSet;

use super::channel;
use super::connection::{self, ScopedConnection};
use super::consumer::{LaneConsumer, PrefetchTask};
use super::context::QueueContext;
use super::declare;
use super::health::{self, SessionHealth};
use super::lease::LeaseRenewer;
use super::publisher::Publisher;
use crate::queue::QueueError;

/// Session with two connections: one consumes and acknowledges, one publishes.
pub(super) struct BrokerSession {
    pub(super) publisher: Arc<Publisher>,
    pub(super) health: Arc<SessionHealth>,
    context: Arc<QueueContext>,
    consuming: Option<Connection>,
    consumers: Mutex<Vec<LaneConsumer>>,
    renewer: Option<Arc<LeaseRenewer>>,
    generation: u64,
    tasks: Mutex<JoinSet<()>>,
}

impl BrokerSession {
    /// Connects, ensures the topology, and starts the consumers.
    pub(super) async fn open(context: &Arc<QueueContext>, generation: u64) -> Result<Self, QueueError> {
        let health = Arc::new(SessionHealth::default());
        let mut tasks = JoinSet::new();
        let publishing = context.endpoint.connect("publisher").await?;
        health::watch(&mut tasks, &publishing, &health);
        let publisher = Arc::new(Publisher::new(publishing, Arc::clone(&health), Arc::clone(&context.metrics)));
        let mut session = Self {
            publisher,
            health,
            context: Arc::clone(context),
            consuming: None,
            consumers: Mutex::default(),
            renewer: None,
            generation,
            tasks: Mutex::new(tasks),
        };
        if !context.lanes.is_empty() {
            ensure_topology(context).await?;
            session.open_consumers().await?;
        }
        Ok(session)
    }

    /// Opens the leases first: deliveries of the lanes may be leases.
    async fn open_consumers(&mut self) -> Result<(), QueueError> {
        let context = Arc::clone(&self.context);
        let connection = context.endpoint.connect("consumer").await?;
        let tasks = self.tasks.get_mut().unwrap_or_else(PoisonError::into_inner);
        health::watch(tasks, &connection, &self.health);
        let (renewer, consumer) = LeaseRenewer::open(&context.leases, &connection, &self.publisher).await?;
        tasks.spawn(Arc::clone(&renewer).run(consumer, Arc::clone(&self.health)));
        for (lane, prefetch) in &context.lanes {
            let channel = channel::with_prefetch(&connection, *prefetch).await?;
            let (lane, consumer) = LaneConsumer::start(&context, channel, *lane).await?;
            self.prefetch(&renewer, lane, consumer);
        }
        (self.renewer, self.consuming) = (Some(renewer), Some(connection));
        Ok(())
    }

    /// Spawns the task of a consumer, which replaces an earlier consumer of the lane.
    fn prefetch(&self, renewer: &Arc<LeaseRenewer>, lane: LaneConsumer, consumer: Consumer) {
        let task = PrefetchTask {
            context: Arc::clone(&self.context),
            health: Arc::clone(&self.health),
            renewer: Arc::clone(renewer),
            generation: self.generation,
        };
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).spawn(task.run(consumer, lane.clone()));
        let mut consumers = self.consumers.lock().unwrap_or_else(PoisonError::into_inner);
        consumers.retain(|other| other.lane != lane.lane);
        consumers.push(lane);
    }

    /// Returns the generation, which its deliveries carry.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// Returns the lease renewer; `None` for a queue without lanes.
    pub(super) fn renewer(&self) -> Option<Arc<LeaseRenewer>> {
        self.renewer.clone()
    }

    /// Returns the reason why this session is not usable, if any.
    pub(super) fn problem(&self) -> Option<String> {
        if self.health.is_ended() {
            return Some(self.health.reason());
        }
        let lanes = self.consumers().iter().all(LaneConsumer::is_connected);
        if !lanes || self.renewer.as_ref().is_some_and(|renewer| !renewer.is_connected()) {
            return Some("a consumer's channel is closed".to_owned());
        }
        self.health.blocked().map(|reason| format!("the broker blocks publishers: {reason}"))
    }

    fn consumers(&self) -> Vec<LaneConsumer> {
        self.consumers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Consumes again after [`BrokerSession::cancel_consumers`]. A refusal ends the session, and
    /// the next one consumes.
    pub(super) async fn restart_consumers(&self) {
        let Some(renewer) = &self.renewer else { return };
        for old in self.consumers() {
            match LaneConsumer::start(&self.context, old.channel, old.lane).await {
                Ok((lane, consumer)) => self.prefetch(renewer, lane, consumer),
                Err(error) => return self.health.end(&error.to_string()),
            }
        }
    }

    /// Stops the deliveries. Unacknowledged ones can still be settled.
    pub(super) async fn cancel_consumers(&self) {
        join_all(self.consumers().into_iter().map(LaneConsumer::cancel)).await;
    }

    /// Ends the tasks, then the connections. The broker redelivers unsettled deliveries.
    pub(super) async fn close(&self) {
        let mut tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        tasks.shutdown().await;
        if let Some(consuming) = &self.consuming {
            connection::close(consuming).await;
        }
        connection::close(self.publisher.connection()).await;
    }
}

/// Uses a connection of its own: a refusal closes the channel, and lapin reports that as an error
/// of the connection.
async fn ensure_topology(context: &QueueContext) -> Result<(), QueueError> {
    let connection = ScopedConnection::connect(&context.endpoint, "topology").await?;
    let ensured = if context.declare {
        declare::apply(&connection, &context.topology).await
    } else {
        declare::check(&connection, &context.topology).await
    };
    connection.close().await;
    for problem in ensured? {
        tracing::warn!(%problem, "part of the topology is missing; jobs are delivered without it");
    }
    Ok(())
}
