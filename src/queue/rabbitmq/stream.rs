//! Reader of a stream, from an offset on. Several readers do not affect each other.

use std::time::Duration;

use futures_util::StreamExt as _;
use lapin::options::{BasicAckOptions, BasicConsumeOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Acker, Connection, Consumer};
use tokio::time::{Instant, timeout, timeout_at};

use super::channel;
use super::connection::{self, Endpoint, call};
use super::errors;
use super::fields::{short, text_of};
use crate::config::BrokerConfig;
use crate::queue::{BodyReader, QueueError};

/// Messages that the broker sends ahead. A stream requires a limit.
const PREFETCH: u16 = 100;
/// Silence that marks the end of a stream: existing messages arrive at once.
pub(super) const SILENCE: Duration = Duration::from_millis(500);
/// Argument of a consumer, and header of a message: the offset in the stream.
const OFFSET: &str = "x-stream-offset";

/// First message of a reader.
#[derive(Debug, Clone, Copy)]
pub(super) enum StreamStart {
    /// Oldest message that still exists.
    Oldest,
    /// Message at this offset.
    Offset(u64),
    /// First message of the newest chunk.
    NewestChunk,
}

impl StreamStart {
    fn argument(self) -> AMQPValue {
        match self {
            Self::Offset(offset) => AMQPValue::LongLongInt(i64::try_from(offset).unwrap_or(i64::MAX)),
            Self::Oldest => AMQPValue::LongString("first".into()),
            Self::NewestChunk => AMQPValue::LongString("last".into()),
        }
    }
}

/// Reader of one stream.
pub(super) struct StreamReader {
    name: String,
    consumer: Consumer,
}

/// Message and its offset in the stream.
#[derive(Debug)]
pub(super) struct StreamEntry {
    /// `None` when the queue of this name is not a stream.
    pub(super) offset: Option<u64>,
    pub(super) body: Vec<u8>,
    acker: Acker,
}

impl StreamEntry {
    /// Acknowledges the message, which requests more. It stays in the stream.
    pub(super) async fn acknowledge(&self) -> Result<(), QueueError> {
        call("acknowledging", self.acker.ack(BasicAckOptions::default())).await.map(drop)
    }
}

impl StreamReader {
    /// Reads `name` on a channel of its own. A refusal (the stream is missing or down) is reported
    /// as an error of the whole `connection`.
    pub(super) async fn open(connection: &Connection, name: &str, from: StreamStart) -> Result<Self, QueueError> {
        let channel = channel::with_prefetch(connection, PREFETCH).await?;
        let mut arguments = FieldTable::default();
        arguments.insert(OFFSET.into(), from.argument());
        let consumer = channel.basic_consume(short(name)?, "".into(), BasicConsumeOptions::default(), arguments);
        let consumer = call(&format!("reading {name}"), consumer).await;
        let consumer = consumer.map_err(errors::requires(format!("read on the queue `{name}`")))?;
        Ok(Self { name: name.to_owned(), consumer })
    }

    /// Returns the next message. Cancel safe. Without [`StreamEntry::acknowledge`], no more follow
    /// after some messages.
    pub(super) async fn next(&mut self) -> Result<StreamEntry, QueueError> {
        let ended = || QueueError::Unavailable(format!("the broker ended the reading of {}", self.name));
        let delivery = self.consumer.next().await.ok_or_else(ended)?;
        let delivery = delivery.map_err(|error| errors::unavailable(&error))?;
        let offset = text_of(delivery.properties.headers().as_ref(), OFFSET).and_then(|text| text.parse().ok());
        Ok(StreamEntry { offset, body: delivery.data, acker: delivery.acker })
    }
}

/// Passes each message of the stream `name` to `each`, up to its end at the time of the call, and
/// possibly a little further. Returns false when the stream does not exist.
pub(super) async fn read_all(
    config: &BrokerConfig,
    client: &str,
    name: &str,
    each: &mut BodyReader<'_>,
) -> Result<bool, QueueError> {
    let connection = Endpoint::parse(config, client)?.connect("reader").await?;
    // Their channels must outlive the connection, as those of a `ScopedConnection`.
    let mut readers = open_both(&connection, name).await;
    let result = match &mut readers {
        Ok([newest, stream]) => read_to_end(newest, stream, each).await.map(|()| true),
        Err(QueueError::Topology(_)) => Ok(false),
        Err(problem) => Err(problem.clone()),
    };
    connection::close(&connection).await;
    result
}

/// Opens a reader of the newest chunk, and one of all messages.
async fn open_both(connection: &Connection, name: &str) -> Result<[StreamReader; 2], QueueError> {
    let newest = StreamReader::open(connection, name, StreamStart::NewestChunk).await?;
    Ok([newest, StreamReader::open(connection, name, StreamStart::Oldest).await?])
}

/// Reads all messages. The broker does not mark the end of a stream, and a stream under constant
/// writes is never silent. So the end is the newest chunk at the start, plus the messages that
/// arrive within a moment after its first message.
async fn read_to_end(
    newest: &mut StreamReader,
    stream: &mut StreamReader,
    each: &mut BodyReader<'_>,
) -> Result<(), QueueError> {
    let Ok(last) = timeout(SILENCE, newest.next()).await else { return Ok(()) };
    let last = last?.offset;
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
