//! Control messages for commands, from the stream to which every worker publishes.

use std::convert::Infallible;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::connection::{self, Endpoint};
use super::names::Names;
use super::stream::{self, StreamReader, StreamStart};
use crate::config::BrokerConfig;
use crate::queue::{BodyReader, QueueError};

/// Returns the messages of the control stream.
pub(super) async fn messages(config: &BrokerConfig, client: &str) -> Result<Vec<Bytes>, QueueError> {
    let mut all = Vec::new();
    let name = Names::new(&config.prefix).control();
    stream::read_all(config, client, &name, &mut |body| all.push(Bytes::copy_from_slice(body))).await?;
    Ok(all)
}

/// Reads the control stream from its start, then follows it until `stop`.
pub(super) async fn follow(
    config: &BrokerConfig,
    client: &str,
    each: &mut BodyReader<'_>,
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
            ended = connection::while_connected(&connection, pass_on(stream, each)) => {
                ended.and_then(|ended| ended.map(|never| match never {}))
            }
        },
        Err(problem) => Err(problem.clone()),
    };
    connection::close(&connection).await;
    result
}

async fn pass_on(stream: &mut StreamReader, each: &mut BodyReader<'_>) -> Result<Infallible, QueueError> {
    loop {
        let entry = stream.next().await?;
        // First: `each` may stop this at once, and lapin reports an interrupted acknowledgement as an error.
        entry.acknowledge().await?;
        each(&entry.body);
    }
}
