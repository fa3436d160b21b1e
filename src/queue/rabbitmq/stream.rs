//! Reading a stream: from an offset on, whoever else reads it.

use futures_util::StreamExt as _;
use lapin::options::{BasicAckOptions, BasicConsumeOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Acker, Connection, Consumer};

use super::connection::{self, call};
use super::consumer::as_text;
use super::declare::short;
use super::session::lane_channel;
use crate::queue::QueueError;

/// What the broker sends ahead. A stream takes no reader without a bound.
const PREFETCH: u16 = 100;
const OFFSET: &str = "x-stream-offset";

/// Where a reader begins.
#[derive(Debug, Clone, Copy)]
pub(super) enum From {
    /// With the oldest that is still there.
    Start,
    /// With this one.
    Offset(u64),
    /// With the last lot that was written: some of the newest.
    Last,
}

impl From {
    fn argument(self) -> AMQPValue {
        match self {
            Self::Offset(offset) => AMQPValue::LongLongInt(i64::try_from(offset).unwrap_or(i64::MAX)),
            Self::Start => AMQPValue::LongString("first".into()),
            Self::Last => AMQPValue::LongString("last".into()),
        }
    }
}

/// A reader of one stream.
pub(super) struct Stream {
    name: String,
    consumer: Consumer,
}

/// A message and its place in the stream.
#[derive(Debug)]
pub(super) struct Entry {
    /// None: this is no stream, but some other queue by its name.
    pub(super) offset: Option<u64>,
    pub(super) body: Vec<u8>,
    acker: Acker,
}

impl Entry {
    /// Asks for more; what was read stays in the stream.
    pub(super) async fn done(&self) -> Result<(), QueueError> {
        self.acker.ack(BasicAckOptions::default()).await.map(drop).map_err(|error| connection::unavailable(&error))
    }
}

impl Stream {
    /// Reads `name` on a channel of its own. A refusal (there is no such stream, it is down)
    /// shows up as an error of the whole `connection`.
    pub(super) async fn open(connection: &Connection, name: &str, from: From) -> Result<Self, QueueError> {
        let channel = lane_channel(connection, PREFETCH).await?;
        let mut arguments = FieldTable::default();
        arguments.insert(OFFSET.into(), from.argument());
        let consumer = channel.basic_consume(short(name)?, "".into(), BasicConsumeOptions::default(), arguments);
        let consumer = call(&format!("reading {name}"), consumer).await;
        let consumer = consumer.map_err(connection::takes(format!("read on the queue `{name}`")))?;
        Ok(Self { name: name.to_owned(), consumer })
    }

    /// The next message; cancel safe. After some that are not [`Entry::done`], no more come.
    pub(super) async fn next(&mut self) -> Result<Entry, QueueError> {
        let ended = || QueueError::Unavailable(format!("the broker ended the reading of {}", self.name));
        let delivery = self.consumer.next().await.ok_or_else(ended)?;
        let delivery = delivery.map_err(|error| connection::unavailable(&error))?;
        let headers = delivery.properties.headers().as_ref();
        let offset = headers.and_then(|table| table.inner().get(OFFSET)).and_then(as_text);
        let offset = offset.and_then(|text| text.parse().ok());
        Ok(Entry { offset, body: delivery.data, acker: delivery.acker })
    }
}
