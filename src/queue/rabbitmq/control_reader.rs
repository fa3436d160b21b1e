//! Reader of the control stream. It has a connection of its own, because a refusal (the stream is
//! missing, or down after its node was killed) is an error of the whole connection, and must not
//! end the session that delivers jobs.
//!
//! The broker does not mark the end of a stream. So the reader publishes a message of its own, by
//! which this worker joins the [`roster`](super::roster) of the fleet: when it is read, everything
//! before it is.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use lapin::Connection;
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};

use super::connection;
use super::context::QueueContext;
use super::messages;
use super::publisher::{NOT_ACCEPTED, OutgoingMessage, control_problem};
use super::roster::Roster;
use super::sessions::BrokerSessions;
use super::stream::{SILENCE, StreamEntry, StreamReader, StreamStart};
use crate::domain::control::{Control, ControlCommand};
use crate::domain::fleet::FleetShare;
use crate::queue::{ControlEvent, QueueError};
use crate::runtime::retry::Retry;

const MIN_BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_secs(30);
/// Duration of a connection after which the back-off starts again.
const STABLE_CONNECTION: Duration = Duration::from_mins(1);
/// Silence after which the reader reports `CaughtUp` although its own message did not arrive.
const CAUGHT_UP_TIMEOUT: Duration = Duration::from_secs(5);
/// Time after which it does so, whatever arrives, where it could not publish one.
const UNMARKED_TIMEOUT: Duration = Duration::from_mins(1);
/// Limit of an announcement while messages wait to be read. The next check repeats it.
const REANNOUNCE_TIMEOUT: Duration = Duration::from_secs(5);
/// Repetitions of an announcement that is nacked: the stream has no leader for a moment. They delay
/// the reading, which others await for ten seconds; the next check repeats the announcement.
const MAX_NACKS: u32 = 4;
const NACK_RETRY_INTERVAL: Duration = Duration::from_millis(500);
/// Limit of the announcement that this worker stops.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(2);
/// Control messages that the worker has not taken yet.
const MAX_BUFFERED: usize = 256;

/// Starts the reader, if lanes are consumed. It ends with the queue, or with the receiver.
pub(super) fn start(
    context: &Arc<QueueContext>,
    sessions: &Arc<BrokerSessions>,
) -> (Receiver<ControlEvent>, Option<JoinHandle<()>>) {
    let (events, received) = mpsc::channel(MAX_BUFFERED);
    if context.lanes.is_empty() {
        return (received, None);
    }
    let reader = ControlReader {
        context: Arc::clone(context),
        sessions: Arc::clone(sessions),
        events,
        last: None,
        announced: String::new(),
        marker: None,
        reading: None,
        caught_up: false,
        interrupted: false,
        roster: Roster::default(),
        share: None,
        last_problem: String::new(),
    };
    (received, Some(tokio::spawn(reader.run())))
}

struct ControlReader {
    context: Arc<QueueContext>,
    sessions: Arc<BrokerSessions>,
    events: Sender<ControlEvent>,
    /// Last message and its offset.
    last: Option<(u64, Bytes)>,
    /// Address of this worker's last announcement.
    announced: String,
    /// That announcement, where it was published: the end of the backlog.
    marker: Option<Bytes>,
    /// Part of the stream that is read; `None` while it can't be read.
    reading: Option<StreamPart>,
    caught_up: bool,
    /// True once the stream was read, and the connection was lost.
    interrupted: bool,
    roster: Roster,
    /// Last reported share of the fleet.
    share: Option<FleetShare>,
    /// Last reported problem: it is not repeated.
    last_problem: String,
}

/// Part of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StreamPart {
    /// Messages that may be from before this connection.
    Backlog,
    New,
}

/// End of the reading of a stream.
enum ReadEnd {
    /// The stream can't be read (any more).
    Unreadable(QueueError),
    /// The stream is not the one that was read before.
    StreamReplaced,
    /// The receiver is gone.
    NoReceiver,
}

impl From<QueueError> for ReadEnd {
    fn from(problem: QueueError) -> Self {
        Self::Unreadable(problem)
    }
}

impl ControlReader {
    async fn run(mut self) {
        let mut retry = Retry::endless(MIN_BACKOFF, MAX_BACKOFF);
        let context = Arc::clone(&self.context);
        loop {
            let since = Instant::now();
            let Some(()) = self.connect_and_read().await else { return };
            if since.elapsed() >= STABLE_CONNECTION {
                retry.reset();
            }
            let wait = retry.next_wait(None).unwrap_or(MAX_BACKOFF);
            if context.unless_stopped(tokio::time::sleep(wait)).await.is_none() {
                return;
            }
        }
    }

    /// Reads until an error; `None` when the queue is closed, or the receiver is gone.
    async fn connect_and_read(&mut self) -> Option<()> {
        let (context, sessions) = (Arc::clone(&self.context), Arc::clone(&self.sessions));
        // The session reports an unreachable broker, and declares the stream if it may.
        context.unless_stopped(sessions.connected()).await.filter(|up| *up)?;
        let connection = match context.unless_stopped(context.endpoint.connect("control")).await? {
            Ok(connection) => connection,
            Err(problem) => {
                tracing::debug!(event = "control_disconnected", %problem, "not connected for control messages");
                return Some(());
            }
        };
        let ended = context.unless_stopped(self.read(&connection)).await;
        connection::close(&connection).await;
        ended.flatten()
    }

    async fn read(&mut self, connection: &Connection) -> Option<()> {
        let problem = loop {
            let end = connection::while_connected(connection, self.resume(connection)).await;
            match end.unwrap_or_else(|ended| Err(ended.into())) {
                Err(ReadEnd::NoReceiver) => return None,
                // Another stream of that name: all its messages are new.
                Err(ReadEnd::StreamReplaced) => self.last = None,
                Err(ReadEnd::Unreadable(problem)) => break problem,
            }
        };
        self.report_end(&problem).await.ok()?;
        let problem = problem.to_string();
        if problem == self.last_problem {
            tracing::debug!(event = "control_unreadable", problem, "control messages still can't be read");
        } else {
            tracing::warn!(
                event = "control_unreadable",
                problem,
                next = "jobs are delivered, even if they were cancelled; reading is tried again",
                remedy = "allow reading from the stream `<prefix>.control`, or create it with `consign topology apply`",
                "control messages can't be read"
            );
            self.last_problem = problem;
        }
        Some(())
    }

    /// Reads from the last message on. It must still be at its offset; otherwise the stream was
    /// replaced, and its offsets are meaningless.
    async fn resume(&mut self, connection: &Connection) -> Result<Infallible, ReadEnd> {
        let (name, last) = (self.context.names.control(), self.last.clone());
        let start = last.as_ref().map_or(StreamStart::Oldest, |(offset, _)| StreamStart::Offset(*offset));
        let mut stream = StreamReader::open(connection, &name, start).await?;
        if let Some((offset, body)) = last {
            let Ok(entry) = timeout(SILENCE, stream.next()).await else { return Err(ReadEnd::StreamReplaced) };
            let entry = entry?;
            if entry.offset != Some(offset) || entry.body[..] != body[..] {
                return Err(ReadEnd::StreamReplaced);
            }
            entry.acknowledge().await?;
        }
        // From here on, a lost connection is reported as an interruption, not as a stream that can't be read.
        self.reading = Some(StreamPart::Backlog);
        self.announce().await;
        self.forward(&mut stream, connection).await
    }

    /// Joins the fleet. There is no marker where this worker may not write to the stream.
    async fn announce(&mut self) {
        let address = self.context.leases.owner.address();
        let command = ControlCommand::WorkerStarted(address.clone());
        let marker = Bytes::from(Control::new(command, Timestamp::now()).render());
        let message = messages::control(&self.context.names, &marker);
        let published = self.publish(&message).await;
        // The next check repeats one that is not there.
        let lost = matches!(published, Err(QueueError::Unavailable(_) | QueueError::Lost));
        self.announced = if lost { String::new() } else { address };
        if let Err(problem) = &published {
            tracing::debug!(
                event = "fleet_not_joined",
                %problem,
                "this worker could not announce itself to the other workers"
            );
        }
        self.marker = published.is_ok().then_some(marker);
    }

    /// Publishes an announcement, and repeats it for a limited time while it is nacked. Without it,
    /// the end of the backlog is only guessed, and the others do not count this worker.
    async fn publish(&self, message: &OutgoingMessage) -> Result<(), QueueError> {
        let mut repetitions = MAX_NACKS;
        loop {
            match self.sessions.publish_once(message).await {
                Err(QueueError::Refused(why)) if why == NOT_ACCEPTED && repetitions > 0 => {
                    repetitions -= 1;
                    tokio::time::sleep(NACK_RETRY_INTERVAL).await;
                }
                published => return published.map_err(|problem| control_problem(problem, &message.routing_key)),
            }
        }
    }

    async fn forward(&mut self, stream: &mut StreamReader, connection: &Connection) -> Result<Infallible, ReadEnd> {
        let latest = Instant::now() + UNMARKED_TIMEOUT;
        while self.reading == Some(StreamPart::Backlog) {
            // A worker that took a long backlog for read would replace objects without knowing what is pending.
            let now = Instant::now();
            let limit = if self.marker.is_some() { now + CAUGHT_UP_TIMEOUT } else { latest.min(now + SILENCE) };
            match timeout_at(limit, stream.next()).await {
                Ok(entry) => self.observe(entry?).await?,
                Err(_) => self.leave_backlog().await?,
            }
        }
        loop {
            // Checked first: only this shows which workers from the backlog are alive.
            self.roster.check(connection, &self.context.names).await?;
            if self.announced != self.context.leases.owner.address() {
                drop(timeout(REANNOUNCE_TIMEOUT, self.announce()).await);
            }
            self.report_share().await?;
            let next_check = Instant::now() + self.roster.check_interval();
            // A stream that is never silent does not delay the check.
            while Instant::now() < next_check {
                let Ok(entry) = timeout_at(next_check, stream.next()).await else { break };
                self.observe(entry?).await?;
                self.report_share().await?;
            }
        }
    }

    /// Passes a message on, unless it concerns the roster alone.
    async fn observe(&mut self, entry: StreamEntry) -> Result<(), ReadEnd> {
        entry.acknowledge().await?;
        let (offset, body) = (entry.offset, Bytes::from(entry.body));
        if !self.roster.observe(&body, self.reading == Some(StreamPart::Backlog)) {
            self.send(ControlEvent::Message(body.clone())).await?;
        }
        if self.marker.as_ref() == Some(&body) {
            self.leave_backlog().await?;
        }
        self.last = offset.map(|offset| (offset, body));
        Ok(())
    }

    /// Reports this worker's share once it is known: the others are known from what was read.
    async fn report_share(&mut self) -> Result<(), ReadEnd> {
        if self.last.is_none() {
            return Ok(());
        }
        let share = self.roster.share(&self.context.leases.owner.address());
        if self.share != Some(share) {
            self.send(ControlEvent::Fleet(share)).await?;
            self.share = Some(share);
        }
        Ok(())
    }

    /// Reports that reading was interrupted, or, where the broker refuses it, that the worker must
    /// do without the messages. A connection that was lost before anything was read is not
    /// reported: the next one reads, and the worker has a time limit of its own.
    async fn report_end(&mut self, problem: &QueueError) -> Result<(), ReadEnd> {
        if is_refusal(problem) {
            // Reported again once it can be read.
            self.share = None;
            self.send(ControlEvent::Unreadable).await?;
        }
        if self.reading.take().is_some() {
            (self.interrupted, self.caught_up) = (true, false);
            self.send(ControlEvent::Interrupted).await
        } else if self.interrupted || !is_refusal(problem) {
            Ok(())
        } else {
            self.report_caught_up().await
        }
    }

    async fn leave_backlog(&mut self) -> Result<(), ReadEnd> {
        self.reading = Some(StreamPart::New);
        self.report_caught_up().await
    }

    /// Reports it once after each interruption.
    async fn report_caught_up(&mut self) -> Result<(), ReadEnd> {
        if std::mem::replace(&mut self.caught_up, true) { Ok(()) } else { self.send(ControlEvent::CaughtUp).await }
    }

    async fn send(&self, event: ControlEvent) -> Result<(), ReadEnd> {
        self.events.send(event).await.map_err(|_| ReadEnd::NoReceiver)
    }
}

/// Returns true where the stream is missing, or may not be read.
fn is_refusal(problem: &QueueError) -> bool {
    matches!(problem, QueueError::Topology(_) | QueueError::Denied(_))
}

/// Announces that this worker stops, so that the others need not find out.
pub(super) async fn leave_fleet(context: &QueueContext, sessions: &BrokerSessions) {
    let Some(session) = sessions.current().filter(|_| !context.lanes.is_empty()) else { return };
    let command = ControlCommand::WorkerStopped(context.leases.owner.address());
    let message = messages::control(&context.names, &Control::new(command, Timestamp::now()).render().into());
    let _ = timeout(FAREWELL_TIMEOUT, session.publisher.publish(&message)).await;
}
