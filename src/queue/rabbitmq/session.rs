//! One session with the broker: two connections, the channels and the consumers. It ends as a whole
//! at the first error, and the supervisor builds the next one. Running transfers outlive it.

use std::sync::Arc;

use futures_util::future::join_all;
use lapin::Connection;
use parking_lot::Mutex;
use tokio::task::JoinSet;

use super::channel;
use super::connection::{self, ScopedConnection};
use super::consumer::{LaneConsumer, PrefetchTask};
use super::context::QueueContext;
use super::declare::declare_all;
use super::health::{self, SessionHealth};
use super::lease::LeaseRenewer;
use super::login_check::check_login;
use super::publisher::Publisher;
use crate::domain::lane::Lane;
use crate::queue::QueueError;

/// Session with two connections: one consumes and acknowledges, one publishes.
pub(super) struct BrokerSession {
    pub(super) publisher: Arc<Publisher>,
    pub(super) health: Arc<SessionHealth>,
    context: Arc<QueueContext>,
    consuming: Option<Connection>,
    consumers: Mutex<Vec<LaneConsumer>>,
    /// Lease renewer; `None` for a queue without lanes.
    pub(super) renewer: Option<Arc<LeaseRenewer>>,
    /// Generation, which its deliveries carry.
    pub(super) generation: u64,
    tasks: Mutex<JoinSet<()>>,
}

impl BrokerSession {
    /// Connects, ensures the topology, and starts the consumers.
    pub(super) async fn open(context: &Arc<QueueContext>, generation: u64) -> Result<Self, QueueError> {
        let health = Arc::new(SessionHealth::default());
        let mut tasks = JoinSet::new();
        let publishing = context.endpoint.connect("publisher").await?;
        health::watch(&mut tasks, &publishing, &health);
        let publisher = Arc::new(Publisher::new(
            publishing,
            &context.endpoint.login,
            Arc::clone(&health),
            Arc::clone(&context.metrics),
        ));
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
        let tasks = self.tasks.get_mut();
        health::watch(tasks, &connection, &self.health);
        let (renewer, consumer) = LeaseRenewer::open(&context.leases, &connection, &self.publisher).await?;
        tasks.spawn(Arc::clone(&renewer).run(consumer, Arc::clone(&self.health)));
        self.renewer = Some(renewer);
        for (lane, prefetch) in &context.lanes {
            let lane = LaneConsumer::new(&context, channel::with_prefetch(&connection, *prefetch).await?, *lane, 1)?;
            self.open_lane(lane, *prefetch).await?;
        }
        self.consuming = Some(connection);
        Ok(())
    }

    /// Starts the first consumer of a lane, unless the lane is paused.
    async fn open_lane(&self, lane: LaneConsumer, prefetch: u16) -> Result<(), QueueError> {
        match self.context.deliveries.prefetched.room(lane.lane, prefetch) {
            Some(room) => {
                let consumer = lane.start(&self.context, room).await?;
                self.spawn(|task| task.run(consumer, lane.clone()));
            }
            None => lane.skip(),
        }
        self.consumers.lock().push(lane);
        Ok(())
    }

    /// Spawns the task of a consumer.
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, run: impl FnOnce(PrefetchTask) -> F) {
        let Some(renewer) = &self.renewer else { return };
        let task = PrefetchTask {
            context: Arc::clone(&self.context),
            health: Arc::clone(&self.health),
            renewer: Arc::clone(renewer),
            publisher: Arc::clone(&self.publisher),
            generation: self.generation,
        };
        let mut tasks = self.tasks.lock();
        // Consumers are replaced often.
        while tasks.try_join_next().is_some() {}
        tasks.spawn(run(task));
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
        self.consumers.lock().clone()
    }

    fn consumer(&self, lane: Lane) -> Option<LaneConsumer> {
        self.consumers().into_iter().find(|consumer| consumer.lane == lane)
    }

    /// Replaces the consumer of a lane by one with the lane's limit of now.
    pub(super) async fn consume(&self, lane: Lane) {
        let Some(before) = self.consumer(lane) else { return };
        before.cancel().await;
        let configured = self.context.lanes.iter().find(|(other, _)| *other == lane).map_or(1, |(_, count)| *count);
        let Some(room) = self.context.deliveries.prefetched.room(lane, configured) else { return };
        let consumer = match before.successor(&self.context) {
            Ok(consumer) => consumer,
            Err(error) => return self.health.end(&error.to_string()),
        };
        let mut consumers = self.consumers.lock();
        consumers.retain(|other| other.lane != lane);
        consumers.push(consumer.clone());
        drop(consumers);
        self.spawn(|task| task.start(consumer, room));
    }

    /// Stops the deliveries of a lane. Unacknowledged ones can still be settled.
    pub(super) async fn cancel(&self, lane: Lane) {
        if let Some(consumer) = self.consumer(lane) {
            consumer.cancel().await;
        }
    }

    /// Follows what was paused and resumed while the session was opened.
    pub(super) async fn follow(&self) {
        for consumer in self.consumers() {
            let accepted = self.context.deliveries.prefetched.room(consumer.lane, 1).is_some();
            match (accepted, consumer.is_cancelled()) {
                (false, false) => consumer.cancel().await,
                (true, true) => self.consume(consumer.lane).await,
                _ => {}
            }
        }
    }

    /// Stops the deliveries of all lanes. Unacknowledged ones can still be settled.
    pub(super) async fn cancel_consumers(&self) {
        join_all(self.consumers().iter().map(LaneConsumer::cancel)).await;
    }

    /// Ends the tasks, then the connections. The broker redelivers unsettled deliveries.
    pub(super) async fn close(&self) {
        let mut tasks = std::mem::take(&mut *self.tasks.lock());
        tasks.shutdown().await;
        if let Some(consuming) = &self.consuming {
            connection::close(consuming).await;
        }
        connection::close(&self.publisher.connection).await;
    }
}

/// Uses a connection of its own: a refusal closes the channel, and lapin reports that as an error
/// of the connection.
async fn ensure_topology(context: &QueueContext) -> Result<(), QueueError> {
    let connection = ScopedConnection::connect(&context.endpoint, "topology").await?;
    let ensured = declare_all(&connection, &context.topology, !context.declare).await;
    let login = check_login(&connection, &context.endpoint.login).await;
    connection.close().await;
    for problem in ensured? {
        tracing::warn!(
            event = "topology_incomplete",
            problem = %problem.text,
            next = "jobs are delivered without it",
            remedy = "declare it with `consign topology apply`",
            "part of the topology is missing"
        );
    }
    login
}
