//! The outcomes of a backfill, in a stream of its own; and what is in the stream of control messages.

use std::time::Duration;

use bytes::Bytes;
use lapin::Connection;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::connection::{self, Endpoint, Line};
use super::declare;
use super::stream::{From, Stream};
use super::topology::{Names, Queue};
use crate::config::BrokerConfig;
use crate::queue::QueueError;

/// What is there comes at once: a silence of this length is the end.
const SILENCE: Duration = Duration::from_millis(500);

/// Declares the stream by this name.
pub(in crate::queue) async fn prepare(config: &BrokerConfig, client: &str, name: &str) -> Result<(), QueueError> {
    let line = Line::connect(&Endpoint::parse(config, client)?, "outcomes").await?;
    let declared = declare::one(&line, &Queue::kept(name)).await;
    line.close().await;
    declared
}

/// Reads the stream to where it ended when this began, and perhaps a little further; false where there is none.
pub(in crate::queue) async fn read(
    config: &BrokerConfig,
    client: &str,
    name: &str,
    each: &mut (dyn FnMut(&[u8]) + Send),
) -> Result<bool, QueueError> {
    let connection = Endpoint::parse(config, client)?.connect("reader").await?;
    // Its channel must outlive the connection, as those of a `Line`.
    let mut newest = Stream::open(&connection, name, From::Last).await;
    let result = match &mut newest {
        Ok(newest) => to_the_end(&connection, (name, newest), each).await.map(|()| true),
        Err(QueueError::Topology(_)) => Ok(false),
        Err(problem) => Err(problem.clone()),
    };
    connection::close(&connection).await;
    result
}

/// The broker does not say where a stream ends, and one that is written to all the time is never silent. So the end is what is newest
/// now, and what comes within a moment after that: of the newest lot only the first is known.
async fn to_the_end(
    connection: &Connection,
    (name, newest): (&str, &mut Stream),
    each: &mut (dyn FnMut(&[u8]) + Send),
) -> Result<(), QueueError> {
    let Ok(last) = timeout(SILENCE, newest.next()).await else { return Ok(()) };
    let last = last?.offset;
    let mut stream = Stream::open(connection, name, From::Start).await?;
    let mut until = None;
    loop {
        let soon = Instant::now() + SILENCE;
        let Ok(entry) = timeout_at(until.unwrap_or(soon), stream.next()).await else { return Ok(()) };
        let entry = entry?;
        each(&entry.body);
        entry.done().await?;
        if until.is_none() && entry.offset >= last {
            until = Some(soon);
        }
    }
}

/// Reads the stream of control messages from its start, and on, until `stop`.
pub(in crate::queue) async fn follow_control(
    config: &BrokerConfig,
    client: &str,
    each: &mut (dyn FnMut(&[u8]) + Send),
    stop: &CancellationToken,
) -> Result<(), QueueError> {
    let endpoint = Endpoint::parse(config, client)?;
    let connection = tokio::select! {
        biased;
        () = stop.cancelled() => return Ok(()),
        connected = endpoint.connect("control") => connected?,
    };
    // Its channel must outlive the connection, as those of a `Line`.
    let mut stream = Stream::open(&connection, &Names::new(&config.prefix).control(), From::Start).await;
    let result = match &mut stream {
        Ok(stream) => tokio::select! {
            biased;
            () = stop.cancelled() => Ok(()),
            problem = on_and_on(stream, each) => Err(problem),
        },
        Err(problem) => Err(problem.clone()),
    };
    connection::close(&connection).await;
    result
}

async fn on_and_on(stream: &mut Stream, each: &mut (dyn FnMut(&[u8]) + Send)) -> QueueError {
    loop {
        let told = async {
            let entry = stream.next().await?;
            // First: whoever is told may stop this at once, and an acknowledgement that is cut short is an error of lapin's.
            entry.done().await?;
            each(&entry.body);
            Ok(())
        };
        if let Err(problem) = told.await {
            return problem;
        }
    }
}

/// What is in the stream of control messages.
pub(in crate::queue) async fn control_messages(config: &BrokerConfig, client: &str) -> Result<Vec<Bytes>, QueueError> {
    let mut all = Vec::new();
    let name = Names::new(&config.prefix).control();
    read(config, client, &name, &mut |body| all.push(Bytes::copy_from_slice(body))).await?;
    Ok(all)
}
