//! Declaration of the topology, and the check that it exists.

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, ExchangeKind};

use super::connection::{Endpoint, ScopedConnection, call};
use super::errors;
use super::fields::short;
use super::topology::{Arguments, Binding, ExchangeDeclaration, QueueDeclaration, Topology};
use crate::config::BrokerConfig;
use crate::queue::QueueError;

/// Remedy for missing permissions. An exchange or queue that routes messages on requires read on
/// it, and write on its target.
const GRANT: &str =
    "; use a login that may declare (configure, write and read on all of `broker.prefix`), or grant it that";
const DECLARE_QUEUE: QueueDeclareOptions =
    QueueDeclareOptions { passive: false, durable: true, exclusive: false, auto_delete: false, nowait: false };
const DECLARE_EXCHANGE: ExchangeDeclareOptions =
    ExchangeDeclareOptions { passive: false, durable: true, auto_delete: false, internal: false, nowait: false };

/// Declares the whole topology of `[broker] prefix`. Idempotent.
///
/// # Errors
/// `Topology` names every part that exists with other arguments; `Denied` those that the login may
/// not declare; `Unavailable` when the broker is unreachable.
pub(super) async fn apply_topology(config: &BrokerConfig, name: &str) -> Result<(), QueueError> {
    let connection = ScopedConnection::connect(&Endpoint::parse(config, name)?, "topology").await?;
    let applied = declare_all(&connection, &Topology::new(&config.prefix), false).await;
    connection.close().await;
    complete(&applied?)
}

/// Checks that the broker is reachable and has every exchange and queue of `[broker] prefix`;
/// changes nothing.
///
/// # Errors
/// `Unavailable` when it is unreachable or refuses the login; `Topology` names every missing part.
pub async fn check_topology(config: &BrokerConfig, name: &str) -> Result<(), QueueError> {
    let connection = ScopedConnection::connect(&Endpoint::parse(config, name)?, "check").await?;
    let found = declare_all(&connection, &Topology::new(&config.prefix), true).await;
    connection.close().await;
    complete(&found?)
}

/// A session runs without some parts; these commands require all of them.
fn complete(missing: &[TopologyProblem]) -> Result<(), QueueError> {
    if missing.is_empty() { Ok(()) } else { Err(combined(missing, "")) }
}

/// Declares everything; if `passive`, checks that every exchange and queue exists, without changing
/// anything. Returns the problems of parts that deliveries do not need.
///
/// An existing part with the same arguments is unchanged; other arguments are an error, and every
/// such error is reported, not only the first. AMQP can't look up bindings; a missing one shows as
/// a returned message.
pub(super) async fn declare_all(
    connection: &ScopedConnection,
    topology: &Topology,
    passive: bool,
) -> Result<Vec<TopologyProblem>, QueueError> {
    let mut declarations = Declarations::new(connection, passive);
    for exchange in &topology.exchanges {
        declarations.exchange(exchange).await?;
    }
    for queue in &topology.queues {
        declarations.queue(queue).await?;
    }
    for binding in topology.bindings.iter().filter(|_| !passive) {
        declarations.bind(binding).await?;
    }
    declarations.finish()
}

/// Declares one queue. An existing one with the same arguments is unchanged.
pub(super) async fn declare_queue(connection: &ScopedConnection, queue: &QueueDeclaration) -> Result<(), QueueError> {
    let mut declarations = Declarations::new(connection, false);
    declarations.queue(queue).await?;
    complete(&[declarations.problems, declarations.minor].concat())
}

/// Problem of one part.
#[derive(Debug, Clone)]
pub(super) struct TopologyProblem {
    pub(super) text: String,
    denied: bool,
}

/// Combines all problems into one error. It is `Denied` when any of them is: the permission is
/// required to fix the others.
fn combined(problems: &[TopologyProblem], remedy: &str) -> QueueError {
    let all: Vec<_> = problems.iter().map(|problem| problem.text.as_str()).collect();
    let all = all.join("; ");
    if problems.iter().any(|problem| problem.denied) {
        return QueueError::Denied(format!("{all}{GRANT}"));
    }
    QueueError::Topology(format!("{all}{remedy}"))
}

/// Number of missing parts that the error names.
const NAMED_PARTS: usize = 3;

/// Sequence of declarations. The broker closes the channel of a refused one, so the next opens a
/// new channel.
struct Declarations<'a> {
    connection: &'a ScopedConnection,
    channel: Option<Channel>,
    /// True to check only, and change nothing.
    passive: bool,
    problems: Vec<TopologyProblem>,
    /// Problems of parts that deliveries do not need.
    minor: Vec<TopologyProblem>,
}

impl<'a> Declarations<'a> {
    fn new(connection: &'a ScopedConnection, passive: bool) -> Self {
        Self { connection, channel: None, passive, problems: Vec::new(), minor: Vec::new() }
    }

    async fn exchange(&mut self, exchange: &ExchangeDeclaration) -> Result<(), QueueError> {
        let options = ExchangeDeclareOptions { passive: self.passive, ..DECLARE_EXCHANGE };
        let (name, arguments) = (short(&exchange.name)?, table(&exchange.arguments));
        let channel = self.channel().await?;
        let kind = ExchangeKind::Custom(exchange.kind.to_owned());
        let declared = channel.exchange_declare(name, kind, options, arguments);
        let result = call("declaring an exchange", soft_error(declared)).await?;
        let problem = self.problem("exchange", &exchange.name, result, "configure on it");
        self.problems.extend(problem);
        Ok(())
    }

    async fn queue(&mut self, queue: &QueueDeclaration) -> Result<(), QueueError> {
        let options = QueueDeclareOptions { passive: self.passive, ..DECLARE_QUEUE };
        let (name, arguments) = (short(&queue.name)?, table(&queue.arguments));
        let channel = self.channel().await?;
        let declared = channel.queue_declare(name, options, arguments);
        let result = call("declaring a queue", soft_error(declared)).await?;
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
        let result = call("binding a queue", soft_error(bound)).await?;
        let permission = format!("write on it, and read on `{}`", binding.exchange);
        let problem = self.problem("binding of", &binding.queue, result, &permission);
        self.problems.extend(problem);
        Ok(())
    }

    async fn channel(&mut self) -> Result<Channel, QueueError> {
        if let Some(channel) = &self.channel {
            return Ok(channel.clone());
        }
        let channel = self.connection.open_channel().await?;
        self.channel = Some(channel.clone());
        Ok(channel)
    }

    /// Records a failed declaration; `permission` is the one it requires.
    fn problem(
        &mut self,
        what: &str,
        name: &str,
        result: lapin::Result<()>,
        permission: &str,
    ) -> Option<TopologyProblem> {
        let error = result.err()?;
        self.channel = None;
        let denied = errors::is(&error, errors::ACCESS_REFUSED);
        let takes = if denied { format!("; this takes the permission {permission}") } else { String::new() };
        let failure = if self.passive { "is not there" } else { "can't be declared" };
        let text = format!("{what} `{name}` {failure} ({}{takes})", errors::text(&error));
        Some(TopologyProblem { text, denied })
    }

    fn finish(self) -> Result<Vec<TopologyProblem>, QueueError> {
        if self.problems.is_empty() {
            return Ok(self.minor);
        }
        let all = [self.problems, self.minor].concat();
        Err(if self.passive {
            combined(&abbreviated(all), "; run `consign topology apply`, or set broker.declare = true")
        } else {
            let remedy = "; where the arguments differ, delete what is left of an older topology (when it is empty) or \
                          use another broker.prefix; repair a part that the broker calls down or inaccessible on the \
                          broker";
            combined(&all, remedy)
        })
    }
}

/// Returns the first problems and the number of the others: without any topology, some twenty parts
/// would report the same.
fn abbreviated(mut problems: Vec<TopologyProblem>) -> Vec<TopologyProblem> {
    problems.sort_by_key(|problem| !problem.denied);
    let more = problems.len().saturating_sub(NAMED_PARTS);
    problems.truncate(NAMED_PARTS);
    if more > 0 {
        problems.push(TopologyProblem { text: format!("and {more} more like these"), denied: false });
    }
    problems
}

/// Separates a refusal (404, 405, 406, 403: only the channel is closed) from a broken connection.
async fn soft_error<T>(future: impl Future<Output = lapin::Result<T>>) -> lapin::Result<lapin::Result<T>> {
    match future.await {
        Ok(value) => Ok(Ok(value)),
        Err(error) if error.is_amqp_soft_error() => Ok(Err(error)),
        Err(error) => Err(error),
    }
}

/// Returns the arguments as an AMQP table.
pub(super) fn table(arguments: &Arguments) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in arguments {
        let value = match value.as_i64() {
            Some(number) => AMQPValue::LongLongInt(number),
            None => AMQPValue::LongString(value.as_str().unwrap_or_default().into()),
        };
        table.insert((*name).into(), value);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_of_many_missing_parts_are_named_and_denied_ones_come_first() {
        let problem = |n: usize| TopologyProblem { text: format!("queue {n} is not there"), denied: n == 5 };
        let error = |count| combined(&abbreviated((1..=count).map(problem).collect()), "; fix it").to_string();
        assert!(error(3).ends_with("queue 1 is not there; queue 2 is not there; queue 3 is not there; fix it"));
        let all = error(22);
        let named = "queue 5 is not there; queue 1 is not there; queue 2 is not there; and 19 more like these";
        assert!(all.contains(named), "{all}");
    }
}
