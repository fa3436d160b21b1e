//! Declares the topology, or looks whether it is there.

use std::fmt;

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, ExchangeKind};

use super::connection::{self, Line, call};
use super::topology::{Argument, Arguments, Binding, Exchange, Kind, Queue, Topology};
use crate::queue::QueueError;

/// Where permissions are missing. What passes messages on takes more than to be configured: read on it, and write on where they go.
const GRANT: &str =
    "; use a login that may declare (configure, write and read on all of `broker.prefix`), or grant it that";
const DECLARE_QUEUE: QueueDeclareOptions =
    QueueDeclareOptions { passive: false, durable: true, exclusive: false, auto_delete: false, nowait: false };
const DECLARE_EXCHANGE: ExchangeDeclareOptions =
    ExchangeDeclareOptions { passive: false, durable: true, auto_delete: false, internal: false, nowait: false };

/// Declares all of it. What is there already with the same arguments stays as it is; other arguments are an error, and every
/// such error is reported, not only the first. Answers what is wrong with parts that deliveries do without.
pub(super) async fn apply(line: &Line, topology: &Topology) -> Result<Vec<Problem>, QueueError> {
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
pub(super) async fn check(line: &Line, topology: &Topology) -> Result<Vec<Problem>, QueueError> {
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
    let problems = [steps.problems, steps.minor].concat();
    if problems.is_empty() { Ok(()) } else { Err(broken(&problems, "")) }
}

/// What is wrong with one part.
#[derive(Debug, Clone)]
pub(super) struct Problem {
    text: String,
    denied: bool,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// All problems as one. Where one of them is a missing permission, that comes first: who has it can mend the rest.
pub(super) fn broken(problems: &[Problem], remedy: &str) -> QueueError {
    let all: Vec<_> = problems.iter().map(|problem| problem.text.as_str()).collect();
    let all = all.join("; ");
    if problems.iter().any(|problem| problem.denied) {
        return QueueError::Denied(format!("{all}{GRANT}"));
    }
    QueueError::Topology(format!("{all}{remedy}"))
}

/// Missing parts that are named.
const NAMED: usize = 3;

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
    problems: Vec<Problem>,
    /// Problems of what deliveries do without.
    minor: Vec<Problem>,
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
        let problem = self.problem("exchange", &exchange.name, result, "configure on it");
        self.problems.extend(problem);
        Ok(())
    }

    async fn queue(&mut self, queue: &Queue) -> Result<(), QueueError> {
        let options = QueueDeclareOptions { passive: self.mode == Mode::Look, ..DECLARE_QUEUE };
        let (name, arguments) = (short(&queue.name)?, table(&queue.arguments));
        let channel = self.channel().await?;
        let declared = channel.queue_declare(name, options, arguments);
        let result = call("declaring a queue", answered(declared)).await?;
        let problem = self.problem("queue", &queue.name, result.map(drop), "configure on it");
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
        let permission = format!("write on it, and read on `{}`", binding.exchange);
        let problem = self.problem("binding of", &binding.queue, result, &permission);
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

    /// `permission` is what it takes.
    fn problem(&mut self, what: &str, name: &str, result: lapin::Result<()>, permission: &str) -> Option<Problem> {
        let error = result.err()?;
        self.channel = None;
        let denied = connection::is_denied(&error);
        let takes = if denied { format!("; this takes the permission {permission}") } else { String::new() };
        let text = format!("{what} `{name}` {} ({}{takes})", self.verdict, connection::text(&error));
        Some(Problem { text, denied })
    }

    fn finish(self, remedy: &str) -> Result<Vec<Problem>, QueueError> {
        if self.problems.is_empty() {
            return Ok(self.minor);
        }
        let all = [self.problems, self.minor].concat();
        let all = if self.mode == Mode::Look { in_short(all) } else { all };
        Err(broken(&all, remedy))
    }
}

/// The first of them, and how many more there are: where nothing is there, each of some twenty would say the same.
fn in_short(mut problems: Vec<Problem>) -> Vec<Problem> {
    problems.sort_by_key(|problem| !problem.denied);
    let more = problems.len().saturating_sub(NAMED);
    problems.truncate(NAMED);
    if more > 0 {
        problems.push(Problem { text: format!("and {more} more like these"), denied: false });
    }
    problems
}

/// Tells a refusal (404, 405, 406, 403: the channel is gone, the connection is not) from a broken connection.
async fn answered<T>(future: impl Future<Output = lapin::Result<T>>) -> lapin::Result<lapin::Result<T>> {
    match future.await {
        Ok(value) => Ok(Ok(value)),
        Err(error) if error.is_amqp_soft_error() => Ok(Err(error)),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_missing_parts_some_are_named_and_what_is_denied_comes_first() {
        let problem = |n: usize| Problem { text: format!("queue {n} is not there"), denied: n == 5 };
        let told = |count| broken(&in_short((1..=count).map(problem).collect()), "; mend it").to_string();
        assert!(told(3).ends_with("queue 1 is not there; queue 2 is not there; queue 3 is not there; mend it"));
        let all = told(22);
        let named = "queue 5 is not there; queue 1 is not there; queue 2 is not there; and 19 more like these";
        assert!(all.contains(named), "{all}");
    }
}
