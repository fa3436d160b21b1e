//! Retained outcomes of a backfill, in a stream of its own; and the stream of control messages.

use std::time::Duration;

use bytes::Bytes;
use lapin::Connection;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::connection::{self, Endpoint, ScopedConnection};
use super::declare::declare_queue;
use super::stream::{StreamReader, StreamStart};
use super::topology::{Names, QueueDeclaration};
use crate::config::BrokerConfig;
use crate::queue::QueueError;

/// Silence that marks the end of a stream: existing messages arrive at once.
const SILENCE: Duration = Duration::from_millis(500);

/// Declares the stream of this name.
pub(in crate::queue) async fn declare_outcomes(
    config: &BrokerConfig,
    client: &str,
    name: &str,
) -> Result<(), QueueError> {
    let connection = ScopedConnection::connect(&Endpoint::parse(config, client)?, "outcomes").await?;
    let declared = declare_queue(&connection, &QueueDeclaration::backfill_outcomes(name)).await;
    connection.close().await;
    declared
}

/// Reads the stream up to its end at the time of the call, and possibly a little further. Returns
/// false when the stream does not exist.
pub(in crate::queue) async fn read_outcomes(
    config: &BrokerConfig,
    client: &str,
    name: &str,
    each: &mut (dyn FnMut(&[u8]) + Send),
) -> Result<bool, QueueError> {
    let connection = Endpoint::parse(config, client)?.connect("reader").await?;
    // Its channel must outlive the connection, as those of a `ScopedConnection`.
    let mut newest = StreamReader::open(&connection, name, StreamStart::NewestChunk).await;
    let result = match &mut newest {
        Ok(newest) => read_to_end(&connection, name, newest, each).await.map(|()| true),
        Err(QueueError::Topology(_)) => Ok(false),
        Err(problem) => Err(problem.clone()),
    };
    connection::close(&connection).await;
    result
}

/// Reads all messages. The broker does not mark the end of a stream, and a stream under constant
/// writes is never silent. So the end is the newest chunk at the start, plus the messages that
/// arrive within a moment after its first message.
async fn read_to_end(
    connection: &Connection,
    name: &str,
    newest: &mut StreamReader,
    each: &mut (dyn FnMut(&[u8]) + Send),
) -> Result<(), QueueError> {
    let Ok(last) = timeout(SILENCE, newest.next()).await else { return Ok(()) };
    let last = last?.offset;
    let mut stream = StreamReader::open(connection, name, StreamStart::Oldest).await?;
    let mut until = None;
    loop {
        let soon = Instant::now() + SILENCE;
        let Ok(entry) = timeout_at(until.unwrap_or(soon), stream.next()).await else { return Ok(()) };
        let entry = entry?;
        each(&entry.body);
        entry.acknowledge().await?;
        if until.is_none() && entry.offset >= last {
            until = Some(soon);
        }
    }
}

/// Reads the control stream from its start, then follows it until `stop`.
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
    // Its channel must outlive the connection, as those of a `ScopedConnection`.
    let mut stream = StreamReader::open(&connection, &Names::new(&config.prefix).control(), StreamStart::Oldest).await;
    let result = match &mut stream {
        Ok(stream) => tokio::select! {
            biased;
            () = stop.cancelled() => Ok(()),
            problem = follow(stream, each) => Err(problem),
        },
        Err(problem) => Err(problem.clone()),
    };
    connection::close(&connection).await;
    result
}

async fn follow(stream: &mut StreamReader, each: &mut (dyn FnMut(&[u8]) + Send)) -> QueueError {
    loop {
        let passed = async {
            let entry = stream.next().await?;
            // First: `each` may stop this at once, and lapin reports an interrupted acknowledgement as an error.
            entry.acknowledge().await?;
            each(&entry.body);
            Ok(())
        };
        if let Err(problem) = passed.await {
            return problem;
        }
    }
}

/// Returns the messages of the control stream.
pub(in crate::queue) async fn control_messages(config: &BrokerConfig, client: &str) -> Result<Vec<Bytes>, QueueError> {
    let mut all = Vec::new();
    let name = Names::new(&config.prefix).control();
    read_outcomes(config, client, &name, &mut |body| all.push(Bytes::copy_from_slice(body))).await?;
    Ok(all)
}
