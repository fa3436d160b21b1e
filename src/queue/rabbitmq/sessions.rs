//! Supervision of the sessions: each is built as a whole, and after its end the next one is built
//! after a back-off with full jitter, without end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::context::QueueContext;
use super::lease::LeaseRenewer;
use super::publisher::OutgoingMessage;
use super::session::BrokerSession;
use crate::queue::QueueError;
use crate::runtime::retry::Retry;

/// Duration of a session after which the back-off starts again.
const STABLE_SESSION: Duration = Duration::from_mins(1);
const MIN_BACKOFF: Duration = Duration::from_millis(500);
const MAX_BACKOFF: Duration = Duration::from_secs(5);
/// Pause before a publish is repeated.
const PUBLISH_RETRY_PAUSE: Duration = Duration::from_millis(500);
/// Limit of a publish over reconnects, unless its caller has another one.
pub(super) const PUBLISH_TIMEOUT: Duration = Duration::from_secs(30);
/// Limit for the end of the supervisor: it closes two connections.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);

/// State of the supervisor.
#[derive(Clone)]
enum SupervisorState {
    /// Not connected, with the reason.
    Down(QueueError),
    /// Connected.
    Up(Arc<BrokerSession>),
    /// Closed for good.
    Closed,
}

/// Current session, and the supervisor that replaces it.
pub(super) struct BrokerSessions {
    context: Arc<QueueContext>,
    state: watch::Sender<SupervisorState>,
    supervisor: Mutex<Option<JoinHandle<()>>>,
}

impl BrokerSessions {
    /// Starts the supervisor. Must be called within a tokio runtime.
    pub(super) fn start(context: Arc<QueueContext>) -> Arc<Self> {
        let connecting = QueueError::Unavailable("connecting".to_owned());
        let state = watch::Sender::new(SupervisorState::Down(connecting));
        let sessions = Arc::new(Self { context, state, supervisor: Mutex::default() });
        let supervisor = tokio::spawn(supervise(Arc::clone(&sessions)));
        *sessions.supervisor.lock() = Some(supervisor);
        sessions
    }

    /// Returns the session, at the latest at the deadline.
    ///
    /// # Errors
    /// `Unavailable` with the reason of the last attempt; `Denied` in a command.
    pub(super) async fn wait(&self, deadline: Instant) -> Result<Arc<BrokerSession>, QueueError> {
        let mut states = self.state.subscribe();
        // The user of a command can fix a denial; a worker waits until somebody has fixed it.
        let fails_on_denial = self.context.lanes.is_empty();
        let decided = states.wait_for(|state| match state {
            SupervisorState::Down(QueueError::Denied(_)) => fails_on_denial,
            SupervisorState::Down(_) => false,
            SupervisorState::Up(_) | SupervisorState::Closed => true,
        });
        let state = match tokio::time::timeout_at(deadline.into(), decided).await {
            Ok(Ok(state)) => state.clone(),
            Ok(Err(_)) => SupervisorState::Closed,
            Err(_) => self.state.borrow().clone(),
        };
        match state {
            SupervisorState::Up(session) => Ok(session),
            SupervisorState::Down(problem @ QueueError::Unavailable(_)) => Err(problem),
            SupervisorState::Down(problem @ QueueError::Denied(_)) if fails_on_denial => Err(problem),
            // It may be resolved while the worker retries.
            SupervisorState::Down(problem) => Err(QueueError::Unavailable(problem.to_string())),
            SupervisorState::Closed => Err(QueueError::closed()),
        }
    }

    /// Waits until a session is up; false once the queue is closed for good.
    pub(super) async fn connected(&self) -> bool {
        self.state.subscribe().wait_for(|state| matches!(state, SupervisorState::Up(_))).await.is_ok()
    }

    /// Returns the session, if connected.
    pub(super) fn current(&self) -> Option<Arc<BrokerSession>> {
        match &*self.state.borrow() {
            SupervisorState::Up(session) => Some(Arc::clone(session)),
            SupervisorState::Down(_) | SupervisorState::Closed => None,
        }
    }

    /// Returns the lease renewer of a generation.
    ///
    /// # Errors
    /// `Lost` when the session of that generation has ended.
    pub(super) async fn renewer_of(&self, generation: u64) -> Result<Arc<LeaseRenewer>, QueueError> {
        let session = self.wait(Instant::now() + PUBLISH_TIMEOUT).await?;
        if session.generation != generation {
            return Err(QueueError::Lost);
        }
        session.renewer.clone().ok_or(QueueError::Lost)
    }

    /// Returns `Ok` while consuming, else the reason.
    pub(super) fn ready(&self) -> Result<(), String> {
        match &*self.state.borrow() {
            SupervisorState::Down(problem) => Err(problem.to_string()),
            SupervisorState::Closed => Err("the queue is closed".to_owned()),
            SupervisorState::Up(session) => match session.problem() {
                Some(problem) => Err(problem),
                None if self.context.deliveries.prefetched.is_closed() => {
                    Err("the queue has stopped consuming".to_owned())
                }
                None => Ok(()),
            },
        }
    }

    /// Publishes once: reports a refusal at once, and an unreachable broker after
    /// [`PUBLISH_TIMEOUT`].
    pub(super) async fn publish_once(&self, message: &OutgoingMessage) -> Result<(), QueueError> {
        let user = self.context.endpoint.login.user();
        let session = self.wait(Instant::now() + PUBLISH_TIMEOUT).await?;
        match session.publisher.publish(message).await {
            // The broker has named the login; the next session publishes under it.
            Err(_) if self.context.endpoint.login.user() != user => self.publish(message, PUBLISH_TIMEOUT).await,
            published => published,
        }
    }

    /// Publishes and awaits the confirm. Repeats it, over reconnects, up to the limit. The time for
    /// which the broker blocks publishers does not count.
    pub(super) async fn publish(&self, message: &OutgoingMessage, limit: Duration) -> Result<(), QueueError> {
        let mut deadline = Instant::now() + limit;
        loop {
            let session = self.wait(deadline).await?;
            let blocked_before = session.health.blocked_time();
            let problem = match session.publisher.publish(message).await {
                Ok(()) => return Ok(()),
                Err(problem) => problem,
            };
            deadline += session.health.blocked_time().saturating_sub(blocked_before);
            if Instant::now() + PUBLISH_RETRY_PAUSE >= deadline {
                return Err(problem);
            }
            tracing::debug!(
                event = "publish_retried",
                %problem,
                exchange = message.exchange,
                "a message was not accepted; trying again"
            );
            tokio::time::sleep(PUBLISH_RETRY_PAUSE).await;
        }
    }

    /// Closes the session and ends the supervisor.
    pub(super) async fn stop(&self) {
        self.context.stop.cancel();
        let supervisor = self.supervisor.lock().take();
        if let Some(supervisor) = supervisor {
            let _ = tokio::time::timeout(STOP_TIMEOUT, supervisor).await;
        }
    }

    /// Runs a session from connected to lost; returns the reason of its end.
    async fn run(&self, session: BrokerSession) -> QueueError {
        let context = &self.context;
        let session = Arc::new(session);
        tracing::info!(event = "broker_connected", broker = ?context.endpoint, "connected to the broker");
        context.metrics.set_broker_connected(true);
        if session.generation > 1 {
            context.metrics.broker_reconnected();
        }
        self.state.send_replace(SupervisorState::Up(Arc::clone(&session)));
        session.follow().await;
        context.unless_stopped(session.health.ended()).await;
        let problem = session.health.error();
        self.state.send_replace(SupervisorState::Down(problem.clone()));
        context.metrics.set_broker_connected(false);
        session.health.end(&session.health.reason());
        session.close().await;
        context.deliveries.clear();
        problem
    }
}

/// Logs a failed connection. Of several failures in a row with the same cause, only the first is a
/// warning: attempts follow each other within seconds.
fn report(problem: &QueueError, wait: Duration, warned: &mut String) {
    let (cause, wait_ms) = (problem.to_string(), wait.as_millis());
    if *warned == cause {
        tracing::debug!(event = "broker_disconnected", reason = cause, wait_ms, "still not connected to the broker");
        return;
    }
    tracing::warn!(
        event = "broker_disconnected",
        reason = cause,
        wait_ms,
        next = "it connects again after `wait_ms`, until it succeeds",
        remedy = "check the broker, the network and broker.url",
        "not connected to the broker"
    );
    *warned = cause;
}

/// Runs one session after another until the queue closes.
async fn supervise(sessions: Arc<BrokerSessions>) {
    let context = &sessions.context;
    let mut retry = Retry::endless(MIN_BACKOFF, MAX_BACKOFF);
    let mut generation = 0;
    let mut warned = String::new();
    while !context.stop.is_cancelled() {
        generation += 1;
        let problem = match context.unless_stopped(BrokerSession::open(context, generation)).await {
            Some(Ok(session)) => {
                let since = Instant::now();
                let problem = sessions.run(session).await;
                warned.clear();
                if since.elapsed() >= STABLE_SESSION {
                    retry.reset();
                }
                problem
            }
            Some(Err(error)) => {
                // A lane that was consumed already may have prefetched deliveries.
                context.deliveries.clear();
                error
            }
            None => break,
        };
        if !context.stop.is_cancelled() {
            let wait = retry.next_wait(None).unwrap_or(MAX_BACKOFF);
            report(&problem, wait, &mut warned);
            sessions.state.send_replace(SupervisorState::Down(problem));
            context.unless_stopped(tokio::time::sleep(wait)).await;
        }
    }
    sessions.state.send_replace(SupervisorState::Closed);
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Seek as _};

    use super::*;

    /// Levels of the log lines about failures to connect, one after another.
    fn levels(causes: &[&str]) -> Vec<String> {
        let file = Arc::new(tempfile::tempfile().unwrap());
        let subscriber = tracing_subscriber::fmt().json().with_max_level(tracing::Level::DEBUG);
        let mut warned = String::new();
        tracing::subscriber::with_default(subscriber.with_writer(Arc::clone(&file)).finish(), || {
            for cause in causes {
                report(&QueueError::Unavailable((*cause).to_owned()), Duration::from_secs(1), &mut warned);
            }
        });
        let (mut text, mut file) = (String::new(), &*file);
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        let level = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["level"].to_string();
        text.lines().map(level).collect()
    }

    #[test]
    fn only_the_first_failure_of_a_cause_is_a_warning() {
        let (warning, debug) = ("\"WARN\"", "\"DEBUG\"");
        assert_eq!(levels(&["refused", "refused", "no route", "no route"]), [warning, debug, warning, debug]);
    }
}
