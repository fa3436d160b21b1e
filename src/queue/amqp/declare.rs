//! Declares the topology, or looks whether it is there.

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, ExchangeKind};

use super::connection::{self, Line, call};
use super::topology::{Argument, Arguments, Binding, Exchange, Kind, Queue, Topology};
use crate::queue::QueueError;

const DECLARE_QUEUE: QueueDeclareOptions =
    QueueDeclareOptions { passive: false, durable: true, exclusive: false, auto_delete: false, nowait: false };
const DECLARE_EXCHANGE: ExchangeDeclareOptions =
    ExchangeDeclareOptions { passive: false, durable: true, auto_delete: false, internal: false, nowait: false };

/// Declares all of it. What is there already with the same arguments stays as it is; other arguments are an error, and every
/// such error is reported, not only the first. Answers what is wrong with parts that deliveries do without.
pub(super) async fn apply(line: &Line, topology: &Topology) -> Result<Vec<String>, QueueError> {
    let mut steps = Steps::new(line, "can't be declared", Mode::Declare);
    for exchange in &topology.exchanges {
        steps.exchange(exchange).await?;
    }
    for queue in &topology.queues {
        steps.queue(queue).await?;
    }
    for binding in &topology.bindings {
        steps.bind(binding).await?;
    }
    steps.finish(
        "; where the arguments differ, delete what is left of an older topology (when it is empty) or use another \
         broker.prefix; what the broker calls down or inaccessible is its own to mend",
    )
}

/// Looks whether every exchange and queue is there, without changing anything. Bindings can't be looked up by AMQP; a missing
/// one shows as a returned message. Answers what is wrong with parts that deliveries do without.
pub(super) async fn check(line: &Line, topology: &Topology) -> Result<Vec<String>, QueueError> {
    let mut steps = Steps::new(line, "is not there", Mode::Look);
    for exchange in &topology.exchanges {
        steps.exchange(exchange).await?;
    }
    for queue in &topology.queues {
        steps.queue(queue).await?;
    }
    steps.finish("; run `consign topology apply`, or set broker.declare = true")
}

/// Declares one queue. What is there already with the same arguments stays as it is.
pub(super) async fn one(line: &Line, queue: &Queue) -> Result<(), QueueError> {
    let mut steps = Steps::new(line, "can't be declared", Mode::Declare);
    steps.queue(queue).await?;
    match steps.problems.into_iter().chain(steps.minor).next() {
        Some(problem) => Err(QueueError::Topology(problem)),
        None => Ok(()),
    }
}

/// Problems that are told in full.
const TOLD: usize = 3;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Declare,
    Look,
}

/// A row of declarations. A refused one costs its channel, so the next gets a new one.
struct Steps<'a> {
    line: &'a Line,
    channel: Option<Channel>,
    verdict: &'static str,
    mode: Mode,
    problems: Vec<String>,
    /// Problems of what deliveries do without.
    minor: Vec<String>,
}

impl<'a> Steps<'a> {
    fn new(line: &'a Line, verdict: &'static str, mode: Mode) -> Self {
        Self { line, channel: None, verdict, mode, problems: Vec::new(), minor: Vec::new() }
    }

    async fn exchange(&mut self, exchange: &Exchange) -> Result<(), QueueError> {
        let options = ExchangeDeclareOptions { passive: self.mode == Mode::Look, ..DECLARE_EXCHANGE };
        let (name, arguments) = (short(&exchange.name)?, table(&exchange.arguments));
        let channel = self.channel().await?;
        let declared = channel.exchange_declare(name, exchange_kind(exchange.kind), options, arguments);
        let result = call("declaring an exchange", answered(declared)).await?;
        let problem = self.problem("exchange", &exchange.name, result);
        self.problems.extend(problem);
        Ok(())
    }

    async fn queue(&mut self, queue: &Queue) -> Result<(), QueueError> {
        let options = QueueDeclareOptions { passive: self.mode == Mode::Look, ..DECLARE_QUEUE };
        let (name, arguments) = (short(&queue.name)?, table(&queue.arguments));
        let channel = self.channel().await?;
        let declared = channel.queue_declare(name, options, arguments);
        let result = call("declaring a queue", answered(declared)).await?;
        let problem = self.problem("queue", &queue.name, result.map(drop));
        let found = if queue.is_needed_to_deliver() { &mut self.problems } else { &mut self.minor };
        found.extend(problem);
        Ok(())
    }

    async fn bind(&mut self, binding: &Binding) -> Result<(), QueueError> {
        let (queue, exchange, key) = (short(&binding.queue)?, short(&binding.exchange)?, short(&binding.key)?);
        let (options, arguments) = (QueueBindOptions::default(), table(&binding.arguments));
        let channel = self.channel().await?;
        let bound = channel.queue_bind(queue, exchange, key, options, arguments);
        let result = call("binding a queue", answered(bound)).await?;
        let problem = self.problem("binding of", &binding.queue, result);
        self.problems.extend(problem);
        Ok(())
    }

    async fn channel(&mut self) -> Result<Channel, QueueError> {
        if let Some(channel) = &self.channel {
            return Ok(channel.clone());
        }
        let channel = self.line.open_channel().await?;
        self.channel = Some(channel.clone());
        Ok(channel)
    }

    fn problem(&mut self, what: &str, name: &str, result: Result<(), String>) -> Option<String> {
        let answer = result.err()?;
        self.channel = None;
        Some(format!("{what} `{name}` {} ({answer})", self.verdict))
    }

    fn finish(self, remedy: &str) -> Result<Vec<String>, QueueError> {
        if self.problems.is_empty() {
            return Ok(self.minor);
        }
        let all = [self.problems, self.minor].concat();
        Err(QueueError::Topology(format!("{}{remedy}", in_short(&all))))
    }
}

/// The first of them, and how many more there are: where nothing is there, each of some twenty would say the same.
fn in_short(problems: &[String]) -> String {
    let told = problems.iter().take(TOLD).cloned().collect::<Vec<_>>().join("; ");
    match problems.len().saturating_sub(TOLD) {
        0 => told,
        more => format!("{told}; and {more} more like these"),
    }
}

/// Tells a refusal (404, 405, 406, 403: the channel is gone, the connection is not) from a broken connection.
async fn answered<T>(future: impl Future<Output = lapin::Result<T>>) -> lapin::Result<Result<T, String>> {
    match future.await {
        Ok(value) => Ok(Ok(value)),
        Err(error) if error.is_amqp_soft_error() => Ok(Err(connection::text(&error))),
        Err(error) => Err(error),
    }
}

fn exchange_kind(kind: Kind) -> ExchangeKind {
    match kind {
        Kind::Direct => ExchangeKind::Direct,
        Kind::Fanout => ExchangeKind::Fanout,
        Kind::Headers => ExchangeKind::Headers,
        Kind::Topic => ExchangeKind::Topic,
    }
}

pub(super) fn table(arguments: &Arguments) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in arguments {
        let value = match value {
            Argument::Text(text) => AMQPValue::LongString(text.as_str().into()),
            Argument::Number(number) => AMQPValue::LongLongInt(*number),
        };
        table.insert((*name).into(), value);
    }
    table
}

/// AMQP's short strings hold at most 255 bytes; lapin's own conversion panics beyond.
pub(super) fn short(text: &str) -> Result<ShortString, QueueError> {
    ShortString::try_new(text)
        .map_err(|_| QueueError::Refused(format!("a name of {} bytes; AMQP takes 255", text.len())))
}
