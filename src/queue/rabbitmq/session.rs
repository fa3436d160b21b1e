//! One life of the connection to the broker: two connections, the channels and the consumers. It ends as a whole at the first
//! sign of trouble, and the supervisor builds the next one. The jobs that are being worked on outlive it.

use std::future::Future;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use futures_util::{Stream, StreamExt as _};
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Connection, Consumer, Event};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::connection::{self, Endpoint, Line, call};
use super::consumer::{Fetched, Intake};
use super::declare::{self, short};
use super::lease::{Book, Keeper, Process};
use super::publish::Publisher;
use super::timing::Timing;
use super::topology::{Names, Topology};
use crate::domain::lane::Lane;
use crate::metrics::Metrics;
use crate::queue::QueueError;
use crate::runtime::retry::Retry;

/// A session that lasted this long starts the back-off anew.
const STABLE: Duration = Duration::from_mins(1);
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// How often a connection is looked at, should its end have caused no event.
const WATCHDOG: Duration = Duration::from_secs(5);

/// Whether a session is over, why, and whether the broker blocks it.
#[derive(Debug, Default)]
pub(super) struct Health {
    over: CancellationToken,
    why: OnceLock<String>,
    blocked: Mutex<Option<String>>,
}

impl Health {
    /// Ends the session. The first reason stays.
    pub(super) fn end(&self, why: &str) {
        self.why.get_or_init(|| why.to_owned());
        self.over.cancel();
    }

    /// Resolves when the session is over.
    pub(super) async fn ended(&self) {
        self.over.cancelled().await;
    }

    fn is_over(&self) -> bool {
        self.over.is_cancelled()
    }

    fn why(&self) -> String {
        self.why.get().cloned().unwrap_or_else(|| "the session was closed".to_owned())
    }

    /// The error of whoever was using the session.
    pub(super) fn lost(&self) -> QueueError {
        QueueError::Unavailable(self.why())
    }

    /// The broker's reason for taking nothing at the moment (an alarm for memory or disk).
    pub(super) fn blocked(&self) -> Option<String> {
        self.blocked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_blocked(&self, reason: Option<String>) {
        *self.blocked.lock().unwrap_or_else(PoisonError::into_inner) = reason;
    }
}

/// What every session is built from, and what outlives the sessions.
pub(super) struct Shared {
    pub(super) endpoint: Endpoint,
    pub(super) names: Names,
    pub(super) topology: Topology,
    pub(super) declare: bool,
    pub(super) worker_id: String,
    pub(super) process: Process,
    pub(super) timing: Timing,
    pub(super) lanes: Vec<(Lane, u16)>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) intake: Intake,
    pub(super) leases: Book,
    pub(super) phase: watch::Sender<Phase>,
    pub(super) stop: CancellationToken,
}

/// Where the supervisor stands.
#[derive(Clone)]
pub(super) enum Phase {
    /// Not connected, and why.
    Down(QueueError),
    /// Connected.
    Up(Arc<Session>),
    /// Given up for good.
    Closed,
}

/// One lane's consumer. `stopped` tells its pump that the end of the stream is our own doing.
#[derive(Clone)]
struct Consuming {
    lane: Lane,
    channel: Channel,
    tag: ShortString,
    stopped: CancellationToken,
}

/// Two connections: one consumes and acknowledges, one publishes.
pub(super) struct Session {
    pub(super) publisher: Arc<Publisher>,
    consuming: Option<Connection>,
    consumers: Mutex<Vec<Consuming>>,
    keeper: Option<Arc<Keeper>>,
    generation: u64,
    health: Arc<Health>,
    tasks: Mutex<JoinSet<()>>,
}

impl Session {
    async fn open(shared: &Arc<Shared>, generation: u64) -> Result<Self, QueueError> {
        let health = Arc::new(Health::default());
        let mut tasks = JoinSet::new();
        let publishing = shared.endpoint.connect("publisher").await?;
        watch_over(&mut tasks, &publishing, &health);
        let publisher = Arc::new(Publisher::new(publishing, Arc::clone(&health), Arc::clone(&shared.metrics)));
        let mut session = Self {
            publisher,
            consuming: None,
            consumers: Mutex::default(),
            keeper: None,
            generation,
            health,
            tasks: Mutex::new(tasks),
        };
        if !shared.lanes.is_empty() {
            ensure_topology(shared).await?;
            session.open_consumers(shared).await?;
        }
        Ok(session)
    }

    /// First the leases: what comes by the lanes may be one.
    async fn open_consumers(&mut self, shared: &Arc<Shared>) -> Result<(), QueueError> {
        let connection = shared.endpoint.connect("consumer").await?;
        let tasks = self.tasks.get_mut().unwrap_or_else(PoisonError::into_inner);
        watch_over(tasks, &connection, &self.health);
        let (keeper, consumer) = Keeper::open(shared, &connection, &self.publisher).await?;
        tasks.spawn(Arc::clone(&keeper).run(consumer, Arc::clone(&self.health)));
        for (lane, prefetch) in &shared.lanes {
            let channel = lane_channel(&connection, *prefetch).await?;
            let (consuming, consumer) = consume(shared, channel, *lane).await?;
            let pump = Pump {
                shared: Arc::clone(shared),
                health: Arc::clone(&self.health),
                keeper: Arc::clone(&keeper),
                generation: self.generation,
            };
            tasks.spawn(pump.run(consumer, consuming.clone()));
            self.consumers.get_mut().unwrap_or_else(PoisonError::into_inner).push(consuming);
        }
        (self.keeper, self.consuming) = (Some(keeper), Some(connection));
        Ok(())
    }

    /// Which life it is.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// What keeps leases, where lanes are consumed.
    pub(super) fn keeper(&self) -> Option<Arc<Keeper>> {
        self.keeper.clone()
    }

    /// Why this session can't be worked with, if so.
    pub(super) fn problem(&self) -> Option<String> {
        if self.health.is_over() {
            return Some(self.health.why());
        }
        let lanes = self.consumers().iter().all(|consuming| consuming.channel.status().connected());
        if !lanes || self.keeper.as_ref().is_some_and(|keeper| !keeper.is_connected()) {
            return Some("a consumer's channel is closed".to_owned());
        }
        self.health.blocked().map(|reason| format!("the broker blocks publishers: {reason}"))
    }

    fn consumers(&self) -> Vec<Consuming> {
        self.consumers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes deliveries again after [`Session::cancel_consumers`]. A refusal ends the session, and the next one consumes.
    pub(super) async fn consume_again(&self, shared: &Arc<Shared>) {
        let Some(keeper) = &self.keeper else { return };
        for old in self.consumers() {
            match consume(shared, old.channel, old.lane).await {
                Ok((consuming, consumer)) => {
                    let (shared, health) = (Arc::clone(shared), Arc::clone(&self.health));
                    let pump = Pump { shared, health, keeper: Arc::clone(keeper), generation: self.generation };
                    let pump = pump.run(consumer, consuming.clone());
                    self.tasks.lock().unwrap_or_else(PoisonError::into_inner).spawn(pump);
                    let mut consumers = self.consumers.lock().unwrap_or_else(PoisonError::into_inner);
                    consumers.retain(|other| other.lane != consuming.lane);
                    consumers.push(consuming);
                }
                Err(error) => return self.health.end(&error.to_string()),
            }
        }
    }

    /// Takes no more deliveries; those on loan can still be settled.
    pub(super) async fn cancel_consumers(&self) {
        let cancel = async |Consuming { channel, tag, stopped, .. }: Consuming| {
            stopped.cancel();
            let cancelled = channel.basic_cancel(tag, BasicCancelOptions::default());
            if let Err(error) = call("cancelling a consumer", cancelled).await {
                tracing::debug!(%error, "a consumer was not cancelled; its deliveries are given back");
            }
        };
        join_all(self.consumers().into_iter().map(cancel)).await;
    }

    /// Ends the tasks, then the connections. What is unsettled comes again.
    async fn close(&self) {
        let mut tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        tasks.shutdown().await;
        if let Some(consuming) = &self.consuming {
            connection::close(consuming).await;
        }
        connection::close(self.publisher.connection()).await;
    }
}

/// On a connection of its own: what the broker refuses here closes channels, and lapin reports that as an error of their connection.
async fn ensure_topology(shared: &Shared) -> Result<(), QueueError> {
    let line = Line::connect(&shared.endpoint, "topology").await?;
    let ensured = if shared.declare {
        declare::apply(&line, &shared.topology).await
    } else {
        declare::check(&line, &shared.topology).await
    };
    line.close().await;
    for problem in ensured? {
        tracing::warn!(%problem, "jobs are delivered without it");
    }
    Ok(())
}

pub(super) async fn lane_channel(connection: &Connection, prefetch: u16) -> Result<Channel, QueueError> {
    prefetching(connection::open_channel(connection).await?, prefetch).await
}

/// Sets how many unsettled messages each consumer of a channel may have.
pub(super) async fn prefetching(channel: Channel, prefetch: u16) -> Result<Channel, QueueError> {
    // A prefetch of 0 means "no limit" to the broker.
    call("setting the prefetch", channel.basic_qos(prefetch.max(1), BasicQosOptions::default())).await?;
    Ok(channel)
}

async fn consume(shared: &Shared, channel: Channel, lane: Lane) -> Result<(Consuming, Consumer), QueueError> {
    let queue = shared.names.jobs(lane);
    let tag = short(&format!("{} {}", shared.worker_id, lane.as_str()))?;
    let consumer = channel.basic_consume(short(&queue)?, tag, BasicConsumeOptions::default(), FieldTable::default());
    let consumer = call(&format!("consuming from {queue}"), consumer).await?;
    let tag = consumer.tag();
    Ok((Consuming { lane, channel, tag, stopped: CancellationToken::new() }, consumer))
}

/// From a lane's consumer to its backlog.
struct Pump {
    shared: Arc<Shared>,
    health: Arc<Health>,
    keeper: Arc<Keeper>,
    generation: u64,
}

impl Pump {
    async fn run(self, mut consumer: Consumer, consuming: Consuming) {
        let (lane, names) = (consuming.lane, &self.shared.names);
        while let Some(item) = consumer.next().await {
            match item {
                Ok(delivery) => self.fetched(lane, Fetched::new(self.generation, delivery)).await,
                Err(error) => return self.health.end(&connection::text(&error)),
            }
        }
        if !consuming.stopped.is_cancelled() {
            let queue = names.jobs(lane);
            self.health.end(&format!("the broker ended the consumer of {queue} (was the queue deleted?)"));
        }
    }

    async fn fetched(&self, lane: Lane, fetched: Fetched) {
        let work = if lane == Lane::Continued { self.keeper.screen(fetched).await } else { Some(fetched) };
        if let Some(late) = work.and_then(|work| self.shared.intake.put(lane, work)) {
            late.give_back().await;
        }
    }
}

fn watch_over(tasks: &mut JoinSet<()>, connection: &Connection, health: &Arc<Health>) {
    let status = connection.status().clone();
    tasks.spawn(listen(connection.events_listener(), Arc::clone(health)));
    let health = Arc::clone(health);
    tasks.spawn(async move {
        while status.connected() {
            tokio::time::sleep(WATCHDOG).await;
        }
        health.end("the connection was closed");
    });
}

async fn listen(mut events: impl Stream<Item = Event> + Unpin, health: Arc<Health>) {
    while let Some(event) = events.next().await {
        match event {
            Event::Error(error) => health.end(&connection::text(&error)),
            Event::ConnectionBlocked(reason) => {
                tracing::warn!(%reason, "the broker blocks publishers; settlements wait");
                health.set_blocked(Some(reason));
            }
            Event::ConnectionUnblocked => health.set_blocked(None),
            _ => {}
        }
    }
}

/// Keeps one session alive after another until told to stop.
pub(super) async fn supervise(shared: Arc<Shared>) {
    let mut retry = Retry::endless(FIRST_WAIT, LONGEST_WAIT);
    let mut generation = 0;
    while !shared.stop.is_cancelled() {
        generation += 1;
        let opened = unless_stopped(&shared.stop, Session::open(&shared, generation)).await;
        let problem = match opened {
            Some(Ok(session)) => {
                let since = Instant::now();
                let problem = live(&shared, session, generation).await;
                if since.elapsed() >= STABLE {
                    retry.reset();
                }
                problem
            }
            Some(Err(error)) => {
                // A lane that was consumed already may have fetched something.
                shared.intake.forget();
                error
            }
            None => break,
        };
        if !shared.stop.is_cancelled() {
            let wait = retry.next_wait(None).unwrap_or(LONGEST_WAIT);
            tracing::warn!(reason = %problem, wait_ms = wait.as_millis(), "not connected to the broker; trying again");
            shared.phase.send_replace(Phase::Down(problem));
            unless_stopped(&shared.stop, tokio::time::sleep(wait)).await;
        }
    }
    shared.phase.send_replace(Phase::Closed);
}

/// From connected to lost; answers why it was lost.
async fn live(shared: &Arc<Shared>, session: Session, generation: u64) -> QueueError {
    let session = Arc::new(session);
    tracing::info!(broker = ?shared.endpoint, "connected to the broker");
    shared.metrics.set_broker_connected(true);
    if generation > 1 {
        shared.metrics.broker_reconnected();
    }
    shared.phase.send_replace(Phase::Up(Arc::clone(&session)));
    if !shared.intake.takes() {
        session.cancel_consumers().await;
    }
    unless_stopped(&shared.stop, session.health.ended()).await;
    let problem = session.health.lost();
    shared.phase.send_replace(Phase::Down(problem.clone()));
    shared.metrics.set_broker_connected(false);
    session.health.end(&session.health.why());
    session.close().await;
    shared.intake.forget();
    problem
}

pub(super) async fn unless_stopped<T>(stop: &CancellationToken, future: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        () = stop.cancelled() => None,
        value = future => Some(value),
    }
}
