//! The queue on RabbitMQ (3.10 and 4.x). The only place that imports lapin.
//!
//! A supervisor task owns the sessions (see `session`): each is built as a whole, and when it ends, the next is built after a
//! back-off with full jitter, without end. Deliveries carry the generation of their session. When a session ends,
//! * what was fetched and not handed out is forgotten: the broker delivers it again;
//! * what is being worked on goes on. Its settlement still publishes its events (they carry stable ids), publishes no copy, and
//!   ends in [`QueueError::Lost`]: the redelivery does the rest;
//! * what is under a lease (see `lease`) is not touched: the lease is a message of its own, which the next session keeps, and the
//!   settlement works there as well.
//!
//! Control messages are followed beside the sessions, on a connection of their own (see `control`).
//!
//! Everything published by a settlement is confirmed and mandatory. While the broker blocks publishers (an alarm), settlements
//! wait; otherwise they try for 30 s (10 min under a lease). A delivery whose settlement failed on a living channel goes back to its
//! queue; one under a lease goes to others with what the lease last said.

mod connection;
mod consumer;
mod control;
mod dead;
mod declare;
mod depths;
mod direct;
mod headers;
pub(in crate::queue) mod kept;
mod lease;
mod outcomes;
mod publish;
mod recall;
mod session;
mod settle;
mod stream;
mod timing;
mod tls;
mod topology;
mod wire;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use lapin::Acker;
use lapin::options::BasicAckOptions;
use tokio::sync::{Mutex as AsyncMutex, Semaphore, mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub use dead::DeadLetters;
pub use depths::depths;
pub use outcomes::Outcomes;
#[doc(hidden)]
pub use timing::Timing;
pub use topology::{Names, Topology};

use crate::config::BrokerConfig;
use crate::domain::destination::DestinationId;
use crate::domain::lane::Lane;
use crate::metrics::Metrics;
use crate::queue::{
    BoxFuture, ControlEvent, Delivery, LeaseHolder, OutcomeEvent, Publication, Queue, QueueError, Released, Reply,
    Settlement,
};
use crate::runtime::failpoints;
use connection::{Endpoint, Line};
use consumer::{Fetched, Intake, REQUEUE};
use declare::Problem;
use direct::{Direct, is_direct};
use lease::{Book, Process};
use publish::Message;
use session::{Phase, Session, Shared};
use settle::Content;

/// How long a settlement tries to publish before the delivery goes back.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(500);
const ACK_TIMEOUT: Duration = Duration::from_secs(30);
/// How long closing waits for confirms, for replies, and for the connections.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Best-effort replies under way at once; beyond, they are dropped.
const REPLIES: u32 = 64;
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);

/// The queue on RabbitMQ.
pub struct RabbitMqQueue {
    shared: Arc<Shared>,
    replies: Arc<Semaphore>,
    direct: Arc<Direct>,
    supervisor: Mutex<Option<JoinHandle<()>>>,
    control: AsyncMutex<mpsc::Receiver<ControlEvent>>,
    follower: Mutex<Option<JoinHandle<()>>>,
}

impl fmt::Debug for RabbitMqQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RabbitMqQueue").field("broker", &self.shared.endpoint).finish_non_exhaustive()
    }
}

impl RabbitMqQueue {
    /// Starts to connect, in the background: a broker that is away is waited for, and [`Queue::ready`] says why.
    ///
    /// `worker_id` names the connections; `consume` gives each lane's prefetch. With no lanes it only publishes, and does not
    /// look at the topology. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// A URL that can't be used, at once.
    pub fn start(
        config: &BrokerConfig,
        worker_id: &str,
        consume: Vec<(Lane, u16)>,
        metrics: Arc<Metrics>,
    ) -> Result<Arc<Self>, QueueError> {
        Self::start_with(Timing::default(), config, worker_id, consume, metrics)
    }

    /// As [`RabbitMqQueue::start`], with other times: for tests.
    #[doc(hidden)]
    pub fn start_with(
        timing: Timing,
        config: &BrokerConfig,
        worker_id: &str,
        consume: Vec<(Lane, u16)>,
        metrics: Arc<Metrics>,
    ) -> Result<Arc<Self>, QueueError> {
        let shared = Arc::new(Shared {
            endpoint: Endpoint::parse(config, worker_id)?,
            names: Names::new(&config.prefix),
            topology: Topology::new(&config.prefix),
            declare: config.declare,
            worker_id: worker_id.to_owned(),
            process: Process::new(worker_id),
            timing,
            lanes: consume,
            metrics,
            intake: Intake::default(),
            leases: Book::default(),
            phase: watch::Sender::new(Phase::Down(QueueError::Unavailable("connecting".to_owned()))),
            stop: CancellationToken::new(),
        });
        let supervisor = Mutex::new(Some(tokio::spawn(session::supervise(Arc::clone(&shared)))));
        let (control, follower) = control::start(&shared);
        let replies = Arc::new(Semaphore::new(REPLIES as usize));
        Ok(Arc::new(Self {
            shared,
            replies,
            direct: Arc::default(),
            supervisor,
            control: AsyncMutex::new(control),
            follower: Mutex::new(follower),
        }))
    }

    async fn session(&self, deadline: Instant) -> Result<Arc<Session>, QueueError> {
        let mut phases = self.shared.phase.subscribe();
        // A command has somebody before it who can mend that; a worker waits until somebody does.
        let gives_up = self.shared.lanes.is_empty();
        let settled = phases.wait_for(|phase| match phase {
            Phase::Down(QueueError::Denied(_)) => gives_up,
            Phase::Down(_) => false,
            Phase::Up(_) | Phase::Closed => true,
        });
        let phase = match tokio::time::timeout_at(deadline.into(), settled).await {
            Ok(Ok(phase)) => phase.clone(),
            Ok(Err(_)) => Phase::Closed,
            Err(_) => self.shared.phase.borrow().clone(),
        };
        match phase {
            Phase::Up(session) => Ok(session),
            Phase::Down(problem @ (QueueError::Unavailable(_) | QueueError::Denied(_))) => Err(problem),
            // It may be mended while the worker tries again.
            Phase::Down(problem) => Err(QueueError::Unavailable(problem.to_string())),
            Phase::Closed => Err(QueueError::Unavailable("the queue is closed".to_owned())),
        }
    }

    fn current(&self) -> Option<Arc<Session>> {
        match &*self.shared.phase.borrow() {
            Phase::Up(session) => Some(Arc::clone(session)),
            Phase::Down(_) | Phase::Closed => None,
        }
    }

    /// Publishes and awaits the confirm, over reconnects, for so long.
    async fn insist(&self, message: &Message, patience: Duration) -> Result<(), QueueError> {
        let deadline = Instant::now() + patience;
        loop {
            let problem = match self.session(deadline).await?.publisher.publish(message).await {
                Ok(()) => return Ok(()),
                Err(problem) => problem,
            };
            if Instant::now() + PAUSE >= deadline {
                return Err(problem);
            }
            tracing::debug!(%problem, exchange = message.exchange, "a message was not taken; trying again");
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn perform(
        &self,
        delivery: Delivery,
        settlement: Settlement,
        events: Vec<OutcomeEvent>,
    ) -> Result<(), QueueError> {
        let (ticket, action, acknowledges) =
            (delivery.ticket, settlement.action(), !matches!(settlement, Settlement::Requeue));
        if let Some(leased) = self.shared.leases.leased(ticket) {
            return self.settle_leased(delivery, settlement, &events, leased).await;
        }
        // A lease that was broken off may be in the broker all the same, and must not be renewed.
        self.shared.leases.not_begun(ticket);
        let published = self.publish_all(&delivery, settlement, &events).await;
        let loan = self.shared.intake.take(ticket).ok_or(QueueError::Lost)?;
        if let Err(problem) = published {
            give_back(&loan.acker).await;
            return Err(problem);
        }
        acknowledge(&loan.acker, acknowledges).await?;
        self.shared.metrics.settled(action);
        Ok(())
    }

    async fn publish_all(
        &self,
        delivery: &Delivery,
        settlement: Settlement,
        events: &[OutcomeEvent],
    ) -> Result<(), QueueError> {
        self.publish_events(events, PATIENCE).await?;
        match self.copy(delivery, settlement)? {
            Some(copy) => {
                self.insist(&copy, PATIENCE).await?;
                failpoints::hit("copy");
                Ok(())
            }
            None => Ok(()),
        }
    }

    async fn publish_events(&self, events: &[OutcomeEvent], patience: Duration) -> Result<(), QueueError> {
        for event in events {
            self.insist(&settle::outcome(&self.shared.names, event)?, patience).await?;
            self.reply(event);
            failpoints::hit("outcome");
        }
        Ok(())
    }

    fn copy(&self, delivery: &Delivery, settlement: Settlement) -> Result<Option<Message>, QueueError> {
        let (names, key, content) = (&self.shared.names, &delivery.routing_key, Content::of(delivery));
        let original = || self.shared.intake.properties(delivery.ticket).ok_or(QueueError::Lost);
        match settlement {
            Settlement::Ack | Settlement::Requeue => Ok(None),
            Settlement::Retry { delay, headers } | Settlement::Defer { delay, headers } => {
                settle::waiting(names, delay, key, content, &original()?, headers).map(Some)
            }
            Settlement::HandOff { headers } => {
                settle::handed_over(names, key, content, &original()?, headers).map(Some)
            }
            Settlement::DeadLetter { headers } => settle::dead(names, key, content, &original()?, headers).map(Some),
        }
    }

    /// The copy of an outcome for `reply_to`: best effort, off the settlement's path.
    fn reply(&self, event: &OutcomeEvent) {
        let Some(message) = settle::reply(event) else { return };
        let Ok(permit) = Arc::clone(&self.replies).try_acquire_owned() else {
            tracing::debug!("too many replies are under way; one was dropped");
            return;
        };
        let Some(session) = self.current() else { return };
        let (direct, shared) = (Arc::clone(&self.direct), Arc::clone(&self.shared));
        tokio::spawn(async move {
            let sending = async {
                if is_direct(&message.routing_key) {
                    direct.publish(&shared.endpoint, &message).await
                } else {
                    session.publisher.publish(&message).await
                }
            };
            let sent = tokio::time::timeout(REPLY_TIMEOUT, sending).await;
            if !matches!(sent, Ok(Ok(()))) {
                tracing::debug!(reply_to = message.routing_key, "a reply was not delivered");
            }
            drop(permit);
        });
    }

    async fn stop(&self) {
        let left = self.shared.intake.close();
        self.give_back(left).await;
    }

    /// First no more comes, then what is left goes: otherwise the broker would send it here again.
    async fn give_back(&self, left: Vec<Fetched>) {
        if let Some(session) = self.current() {
            session.cancel_consumers().await;
        }
        for fetched in left {
            fetched.give_back().await;
        }
    }

    async fn shut_down(&self) {
        self.stop().await;
        self.end_leases(self.current().as_deref()).await;
        let replied = self.replies.acquire_many(REPLIES);
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, replied).await;
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, self.direct.close()).await;
        if let Some(session) = self.current() {
            let _ = tokio::time::timeout(CLOSE_TIMEOUT, session.publisher.quiet()).await;
        }
        self.shared.stop.cancel();
        let taken = |task: &Mutex<Option<JoinHandle<()>>>| task.lock().unwrap_or_else(PoisonError::into_inner).take();
        for task in [taken(&self.supervisor), taken(&self.follower)].into_iter().flatten() {
            let _ = tokio::time::timeout(3 * CLOSE_TIMEOUT, task).await;
        }
    }
}

async fn acknowledge(acker: &Acker, acknowledges: bool) -> Result<(), QueueError> {
    let settled =
        async { if acknowledges { acker.ack(BasicAckOptions::default()).await } else { acker.nack(REQUEUE).await } };
    match tokio::time::timeout(ACK_TIMEOUT, settled).await {
        Ok(Ok(true)) => Ok(()),
        // `Ok(false)` is how lapin says that the channel is gone.
        Ok(Ok(false) | Err(_)) | Err(_) => Err(QueueError::Lost),
    }
}

async fn give_back(acker: &Acker) {
    if acknowledge(acker, false).await.is_err() {
        tracing::debug!("a delivery could not be given back; its channel is gone");
    }
}

impl Queue for RabbitMqQueue {
    fn wait_connected(&self, limit: Duration) -> BoxFuture<'_, Result<(), QueueError>> {
        Box::pin(async move { self.session(Instant::now() + limit).await.map(drop) })
    }

    fn next(&self, lane: Lane) -> BoxFuture<'_, Option<Delivery>> {
        Box::pin(self.shared.intake.next(lane))
    }

    fn settle(
        &self,
        delivery: Delivery,
        settlement: Settlement,
        events: Vec<OutcomeEvent>,
    ) -> BoxFuture<'_, Result<(), QueueError>> {
        Box::pin(self.perform(delivery, settlement, events))
    }

    fn lease<'a>(
        &'a self,
        delivery: &'a Delivery,
        key: &'a str,
        work: Arc<dyn LeaseHolder>,
    ) -> BoxFuture<'a, Result<(), QueueError>> {
        Box::pin(self.take_lease(delivery, key, work))
    }

    fn can_settle(&self, delivery: &Delivery) -> bool {
        self.shared.intake.lends(delivery.ticket) || self.shared.leases.leased(delivery.ticket).is_some()
    }

    /// Publishes one job; a refusal (returned, nacked) is reported at once, an absent broker after 30 s.
    fn publish(&self, publication: Publication) -> BoxFuture<'_, Result<(), QueueError>> {
        Box::pin(async move {
            let message = settle::job(&self.shared.names, publication)?;
            let session = self.session(Instant::now() + PATIENCE).await?;
            session.publisher.publish(&message).await
        })
    }

    fn reply(&self, reply: Reply) -> BoxFuture<'_, Result<(), QueueError>> {
        Box::pin(async move {
            let message = settle::answer(reply)?;
            let session = self.session(Instant::now() + PATIENCE).await?;
            if is_direct(&message.routing_key) {
                return self.direct.publish(&self.shared.endpoint, &message).await;
            }
            session.publisher.publish(&message).await.map_err(|problem| match problem {
                // No later try would do better, as with a queue that is not there.
                QueueError::Denied(why) => QueueError::Refused(why),
                problem => problem,
            })
        })
    }

    fn publish_control(&self, control: Bytes) -> BoxFuture<'_, Result<(), QueueError>> {
        Box::pin(async move {
            let message = settle::control(&self.shared.names, control);
            let session = self.session(Instant::now() + PATIENCE).await?;
            session.publisher.publish(&message).await.map_err(|problem| match problem {
                QueueError::Refused(why) => QueueError::Topology(format!(
                    "the stream `{}` takes no control message ({why}); run `consign topology apply`",
                    message.routing_key
                )),
                problem => problem,
            })
        })
    }

    fn next_control(&self) -> BoxFuture<'_, Option<ControlEvent>> {
        Box::pin(async { self.control.lock().await.recv().await })
    }

    fn release_delayed(&self, destinations: BTreeSet<DestinationId>) -> BoxFuture<'_, Result<Released, QueueError>> {
        Box::pin(async move {
            let session = self.session(Instant::now() + PATIENCE).await?;
            recall::release_delayed(&self.shared, &session.publisher, destinations).await
        })
    }

    fn stop_consuming(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.stop())
    }

    fn pause(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            let left = self.shared.intake.pause();
            self.give_back(left).await;
        })
    }

    fn resume(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.shared.intake.resume();
            if let Some(session) = self.current() {
                session.consume_again(&self.shared).await;
            }
        })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.shut_down())
    }

    fn ready(&self) -> Result<(), String> {
        match &*self.shared.phase.borrow() {
            Phase::Down(problem) => Err(problem.to_string()),
            Phase::Closed => Err("the queue is closed".to_owned()),
            Phase::Up(session) => match session.problem() {
                Some(problem) => Err(problem),
                None if self.shared.intake.is_closed() => Err("no more work is taken".to_owned()),
                None => Ok(()),
            },
        }
    }
}

/// Declares the whole topology of `[broker] prefix`. Safe to repeat.
///
/// # Errors
/// `Topology` names every part that is there with other arguments; `Denied` those that the login may not declare; `Unavailable` when the
/// broker can't be reached.
pub async fn apply_topology(config: &BrokerConfig, name: &str) -> Result<(), QueueError> {
    let line = Line::connect(&Endpoint::parse(config, name)?, "topology").await?;
    let applied = declare::apply(&line, &Topology::new(&config.prefix)).await;
    line.close().await;
    whole(&applied?)
}

/// A session does without some parts; whoever asks for the topology wants all of it.
fn whole(missing: &[Problem]) -> Result<(), QueueError> {
    if missing.is_empty() { Ok(()) } else { Err(declare::broken(missing, "")) }
}

/// Looks whether the broker can be reached and has every exchange and queue of `[broker] prefix`; changes nothing.
///
/// # Errors
/// `Unavailable` when it can't be reached or refuses the login; `Topology` names every part that is missing.
pub async fn look(config: &BrokerConfig, name: &str) -> Result<(), QueueError> {
    let line = Line::connect(&Endpoint::parse(config, name)?, "check").await?;
    let found = declare::check(&line, &Topology::new(&config.prefix)).await;
    line.close().await;
    whole(&found?)
}

/// The virtual host that `broker.url` names.
///
/// # Errors
/// A URL that can't be used.
pub fn vhost(config: &BrokerConfig) -> Result<String, QueueError> {
    Ok(Endpoint::parse(config, "")?.vhost().to_owned())
}
