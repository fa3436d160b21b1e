//! Following the stream of control messages. It has a connection of its own, because a refusal (the stream is missing, or down after
//! its node was killed) is an error of the whole connection, and must not end the session by which jobs come.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use lapin::Connection;
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::task::JoinHandle;

use super::connection;
use super::session::{Phase, Shared, unless_stopped};
use super::stream::{From, Stream};
use crate::queue::{ControlEvent, QueueError};
use crate::runtime::retry::Retry;

const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// A reader that lasted this long starts the back-off anew.
const STABLE: Duration = Duration::from_mins(1);
/// The broker does not say where a stream ends. What is there comes at once, so a silence of this length is its end.
const SILENCE: Duration = Duration::from_millis(500);
/// The reading counts as up to date by now, whatever still comes.
const LATEST: Duration = Duration::from_secs(5);
/// Control messages that the worker has not taken yet.
const AHEAD: usize = 256;

/// Starts the follower, where lanes are consumed. It ends with the queue, or with whoever receives.
pub(super) fn start(shared: &Arc<Shared>) -> (Receiver<ControlEvent>, Option<JoinHandle<()>>) {
    let (inbox, received) = mpsc::channel(AHEAD);
    if shared.lanes.is_empty() {
        return (received, None);
    }
    let follower = Follower { shared: Arc::clone(shared), inbox, last: None, up_to_date: false, known: String::new() };
    (received, Some(tokio::spawn(follower.run())))
}

struct Follower {
    shared: Arc<Shared>,
    inbox: Sender<ControlEvent>,
    /// The last message and its offset.
    last: Option<(u64, Bytes)>,
    up_to_date: bool,
    /// The last complaint: it is not repeated.
    known: String,
}

/// Nobody listens any more.
struct Unheard;

/// The stream is not the one that was read before.
struct Replaced;

impl Follower {
    async fn run(mut self) {
        let mut retry = Retry::endless(FIRST_WAIT, LONGEST_WAIT);
        let shared = Arc::clone(&self.shared);
        loop {
            let since = Instant::now();
            let Some(Ok(())) = self.read().await else { return };
            if since.elapsed() >= STABLE {
                retry.reset();
            }
            let wait = retry.next_wait(None).unwrap_or(LONGEST_WAIT);
            if unless_stopped(&shared.stop, tokio::time::sleep(wait)).await.is_none() {
                return;
            }
        }
    }

    /// Reads until it can't; `None` when the queue is closed.
    async fn read(&mut self) -> Option<Result<(), Unheard>> {
        let shared = Arc::clone(&self.shared);
        // The session says why the broker can't be reached, and declares the stream where it may.
        let mut phases = shared.phase.subscribe();
        let up = async { phases.wait_for(|phase| matches!(phase, Phase::Up(_))).await.is_ok() };
        unless_stopped(&shared.stop, up).await.filter(|up| *up)?;
        let connection = match unless_stopped(&shared.stop, shared.endpoint.connect("control")).await? {
            Ok(connection) => connection,
            Err(problem) => {
                tracing::debug!(%problem, "not connected for control messages");
                return Some(Ok(()));
            }
        };
        let ended = unless_stopped(&shared.stop, self.follow(&connection)).await;
        connection::close(&connection).await;
        ended
    }

    async fn follow(&mut self, connection: &Connection) -> Result<(), Unheard> {
        let problem = loop {
            match self.go_on(connection).await? {
                // Another stream by that name: everything in it is new.
                Err(Replaced) => self.last = None,
                Ok(problem) => break problem.to_string(),
            }
        };
        self.caught_up().await?;
        if problem == self.known {
            tracing::debug!(problem, "control messages still can't be read");
        } else {
            tracing::warn!(problem, "control messages can't be read; jobs are delivered, cancelled or not");
            self.known = problem;
        }
        Ok(())
    }

    /// Reads from the last message on: it must be there again, or the stream is another one by now, whose offsets say nothing.
    async fn go_on(&mut self, connection: &Connection) -> Result<Result<QueueError, Replaced>, Unheard> {
        let (name, last) = (self.shared.names.control(), self.last.clone());
        let mut stream =
            match Stream::open(connection, &name, last.as_ref().map_or(From::Start, |last| From::Offset(last.0))).await
            {
                Ok(stream) => stream,
                Err(problem) => return Ok(Ok(problem)),
            };
        if let Some((offset, body)) = last {
            match tokio::time::timeout(SILENCE, stream.next()).await {
                Ok(Ok(entry)) if entry.offset == Some(offset) && entry.body[..] == body[..] => {
                    if let Err(problem) = entry.done().await {
                        return Ok(Ok(problem));
                    }
                }
                Ok(Err(problem)) => return Ok(Ok(problem)),
                Ok(Ok(_)) | Err(_) => return Ok(Err(Replaced)),
            }
        }
        self.pass_on(&mut stream).await.map(Ok)
    }

    async fn pass_on(&mut self, stream: &mut Stream) -> Result<QueueError, Unheard> {
        let latest = Instant::now() + LATEST;
        loop {
            let silence = SILENCE.min(latest.saturating_duration_since(Instant::now()));
            let entry = if self.up_to_date {
                stream.next().await
            } else if !silence.is_zero()
                && let Ok(entry) = tokio::time::timeout(silence, stream.next()).await
            {
                entry
            } else {
                self.caught_up().await?;
                continue;
            };
            let entry = match entry {
                Ok(entry) => entry,
                Err(problem) => return Ok(problem),
            };
            if let Err(problem) = entry.done().await {
                return Ok(problem);
            }
            let (offset, body) = (entry.offset, Bytes::from(entry.body));
            self.tell(ControlEvent::Message(body.clone())).await?;
            self.last = offset.map(|offset| (offset, body));
        }
    }

    /// Once: after a reconnection, what was there before is known.
    async fn caught_up(&mut self) -> Result<(), Unheard> {
        if std::mem::replace(&mut self.up_to_date, true) { Ok(()) } else { self.tell(ControlEvent::CaughtUp).await }
    }

    async fn tell(&self, what: ControlEvent) -> Result<(), Unheard> {
        self.inbox.send(what).await.map_err(|_| Unheard)
    }
}
