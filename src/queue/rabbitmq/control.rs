//! Reader of the control stream. It has a connection of its own, because a refusal (the stream is
//! missing, or down after its node was killed) is an error of the whole connection, and must not
//! end the session that delivers jobs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use lapin::Connection;
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::task::JoinHandle;

use super::connection;
use super::context::QueueContext;
use super::sessions::BrokerSessions;
use super::stream::{StreamReader, StreamStart};
use crate::queue::{ControlEvent, QueueError};
use crate::runtime::retry::Retry;

const MIN_BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_secs(30);
/// Duration of a connection after which the back-off starts again.
const STABLE_CONNECTION: Duration = Duration::from_mins(1);
/// Silence that marks the end of the backlog: the broker does not mark it, and existing messages
/// arrive at once.
const SILENCE: Duration = Duration::from_millis(500);
/// Time after which the reader reports `CaughtUp`, whatever still arrives.
const CAUGHT_UP_TIMEOUT: Duration = Duration::from_secs(5);
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
        caught_up: false,
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
    caught_up: bool,
    /// Last reported problem: it is not repeated.
    last_problem: String,
}

/// The receiver is gone.
struct NoReceiver;

/// The stream is not the one that was read before.
struct StreamReplaced;

impl ControlReader {
    async fn run(mut self) {
        let mut retry = Retry::endless(MIN_BACKOFF, MAX_BACKOFF);
        let context = Arc::clone(&self.context);
        loop {
            let since = Instant::now();
            let Some(Ok(())) = self.connect_and_read().await else { return };
            if since.elapsed() >= STABLE_CONNECTION {
                retry.reset();
            }
            let wait = retry.next_wait(None).unwrap_or(MAX_BACKOFF);
            if context.unless_stopped(tokio::time::sleep(wait)).await.is_none() {
                return;
            }
        }
    }

    /// Reads until an error; `None` when the queue is closed.
    async fn connect_and_read(&mut self) -> Option<Result<(), NoReceiver>> {
        let (context, sessions) = (Arc::clone(&self.context), Arc::clone(&self.sessions));
        // The session reports an unreachable broker, and declares the stream if it may.
        context.unless_stopped(sessions.connected()).await.filter(|up| *up)?;
        let connection = match context.unless_stopped(context.endpoint.connect("control")).await? {
            Ok(connection) => connection,
            Err(problem) => {
                tracing::debug!(%problem, "not connected for control messages");
                return Some(Ok(()));
            }
        };
        let ended = context.unless_stopped(self.read(&connection)).await;
        connection::close(&connection).await;
        ended
    }

    async fn read(&mut self, connection: &Connection) -> Result<(), NoReceiver> {
        let problem = loop {
            match self.resume(connection).await? {
                // Another stream of that name: all its messages are new.
                Err(StreamReplaced) => self.last = None,
                Ok(problem) => break problem.to_string(),
            }
        };
        self.report_caught_up().await?;
        if problem == self.last_problem {
            tracing::debug!(problem, "control messages still can't be read");
        } else {
            tracing::warn!(problem, "control messages can't be read; jobs are delivered, cancelled or not");
            self.last_problem = problem;
        }
        Ok(())
    }

    /// Reads from the last message on. It must still be at its offset; otherwise the stream was
    /// replaced, and its offsets are meaningless.
    async fn resume(&mut self, connection: &Connection) -> Result<Result<QueueError, StreamReplaced>, NoReceiver> {
        let (name, last) = (self.context.names.control(), self.last.clone());
        let start = last.as_ref().map_or(StreamStart::Oldest, |(offset, _)| StreamStart::Offset(*offset));
        let mut stream = match StreamReader::open(connection, &name, start).await {
            Ok(stream) => stream,
            Err(problem) => return Ok(Ok(problem)),
        };
        if let Some((offset, body)) = last {
            match tokio::time::timeout(SILENCE, stream.next()).await {
                Ok(Ok(entry)) if entry.offset == Some(offset) && entry.body[..] == body[..] => {
                    if let Err(problem) = entry.acknowledge().await {
                        return Ok(Ok(problem));
                    }
                }
                Ok(Err(problem)) => return Ok(Ok(problem)),
                Ok(Ok(_)) | Err(_) => return Ok(Err(StreamReplaced)),
            }
        }
        self.forward(&mut stream).await.map(Ok)
    }

    async fn forward(&mut self, stream: &mut StreamReader) -> Result<QueueError, NoReceiver> {
        let latest = Instant::now() + CAUGHT_UP_TIMEOUT;
        loop {
            let silence = SILENCE.min(latest.saturating_duration_since(Instant::now()));
            let entry = if self.caught_up {
                stream.next().await
            } else if !silence.is_zero()
                && let Ok(entry) = tokio::time::timeout(silence, stream.next()).await
            {
                entry
            } else {
                self.report_caught_up().await?;
                continue;
            };
            let entry = match entry {
                Ok(entry) => entry,
                Err(problem) => return Ok(problem),
            };
            if let Err(problem) = entry.acknowledge().await {
                return Ok(problem);
            }
            let (offset, body) = (entry.offset, Bytes::from(entry.body));
            self.send(ControlEvent::Message(body.clone())).await?;
            self.last = offset.map(|offset| (offset, body));
        }
    }

    /// Reports it once: after a reconnection the backlog is known.
    async fn report_caught_up(&mut self) -> Result<(), NoReceiver> {
        if std::mem::replace(&mut self.caught_up, true) { Ok(()) } else { self.send(ControlEvent::CaughtUp).await }
    }

    async fn send(&self, event: ControlEvent) -> Result<(), NoReceiver> {
        self.events.send(event).await.map_err(|_| NoReceiver)
    }
}
