//! Every exchange, queue and binding that consign uses on RabbitMQ: one model for `topology print`, `topology apply`, the check
//! at start, and the names that the adapter publishes to and consumes from.
//!
//! Beside it there are queues that their users declare when they need them: a worker's own ([`Queue::owner`]), and for each backfill a
//! stream of its outcomes ([`Queue::kept`]).

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use crate::domain::control::KEPT_DAYS;
use crate::domain::lane::Lane;
use crate::domain::outcome::RetryDelay;

/// Deliveries of a job before the broker itself gives it up; far above what a worker lets happen.
const JOB_DELIVERY_LIMIT: i64 = 1000;
/// For every other queue: RabbitMQ 4 defaults to 20 and drops where there is no dead-letter exchange; -1 loses messages on 3.10.
const DELIVERY_LIMIT: i64 = 1_000_000;
const LEASE_TTL_MS: i64 = 120_000;
/// The broker deletes an unused queue together with what is in it, and an outage counts as time without use (seen on 3.10). So
/// a dead worker's queue must outlive any outage in which its leases might be caught.
const OWNER_EXPIRES_MS: i64 = 24 * 3600 * 1000;
const ENDED_TTL_MS: i64 = 1000;
/// Longer than a lease, and far shorter than any owner's queue.
const ENDED_EXPIRES_MS: i64 = 5 * 60 * 1000;
const UNROUTED_MAX: i64 = 100_000;
const KEPT_BYTES: i64 = 4 << 30;
const KEPT_SEGMENT: i64 = 32 << 20;

/// The names of one installation, all made of its prefix.
#[derive(Debug, Clone)]
pub struct Names {
    prefix: String,
}

impl Names {
    /// The names under `broker.prefix`.
    pub fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    /// The exchange that producers publish to.
    pub fn jobs_exchange(&self) -> String {
        self.prefix.clone()
    }

    /// The queue of a lane.
    pub fn jobs(&self, lane: Lane) -> String {
        format!("{}.jobs.{}", self.prefix, lane.as_str())
    }

    /// The headers exchange before the wait ladder.
    pub fn wait_exchange(&self) -> String {
        self.named("wait")
    }

    /// One delay of the wait ladder.
    pub fn wait(&self, step: RetryDelay) -> String {
        format!("{}.wait.{}", self.prefix, step.as_str())
    }

    /// The exchange before the dead letters.
    pub fn dead_exchange(&self) -> String {
        self.named("dlx")
    }

    /// The dead letters.
    pub fn dead(&self) -> String {
        self.named("dead")
    }

    /// What keeps two passes over the dead letters apart: an exclusive queue for as long as one lasts.
    pub fn dead_lock(&self) -> String {
        self.named("dead.lock")
    }

    /// The exchange that outcomes are published to.
    pub fn outcomes_exchange(&self) -> String {
        self.named("outcomes")
    }

    /// The stream of control messages.
    pub fn control(&self) -> String {
        self.named("control")
    }

    /// The exchange before the leases.
    pub fn lease_exchange(&self) -> String {
        self.named("lease")
    }

    /// The exchange that a lease comes to when its time is over: it leads to the owner by the lease's key.
    pub fn owners_exchange(&self) -> String {
        self.named("owners")
    }

    /// The exchange of work that nobody owns.
    pub fn orphans_exchange(&self) -> String {
        self.named("orphans")
    }

    /// The queue of one process, to which its leases come back.
    pub fn owner(&self, process: &str) -> String {
        format!("{}.owner.{process}", self.prefix)
    }

    /// Where the last leases of a process go that has ended: to nothing.
    pub fn ended(&self, process: &str) -> String {
        format!("{}.owner.{process}.ended", self.prefix)
    }

    fn named(&self, last: &str) -> String {
        format!("{}.{last}", self.prefix)
    }
}

/// An argument of a declaration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Argument {
    Text(String),
    Number(i64),
}

impl From<&str> for Argument {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Argument {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<i64> for Argument {
    fn from(number: i64) -> Self {
        Self::Number(number)
    }
}

pub(super) type Arguments = BTreeMap<&'static str, Argument>;

/// The routing algorithm of an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Direct,
    Fanout,
    Headers,
    Topic,
}

impl Kind {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Fanout => "fanout",
            Self::Headers => "headers",
            Self::Topic => "topic",
        }
    }
}

/// A durable exchange.
#[derive(Debug, Clone)]
pub(super) struct Exchange {
    pub(super) name: String,
    pub(super) kind: Kind,
    pub(super) arguments: Arguments,
}

/// A durable queue.
#[derive(Debug, Clone)]
pub(super) struct Queue {
    pub(super) name: String,
    pub(super) arguments: Arguments,
}

impl Queue {
    /// The queue to which the leases of one process come back. What is not taken there within `ttl` is for others.
    pub(super) fn owner(names: &Names, process: &str, ttl: Duration) -> Self {
        let mut arguments = dead_lettered(names.orphans_exchange());
        arguments.insert("x-message-ttl", millis(ttl).into());
        arguments.insert("x-expires", OWNER_EXPIRES_MS.into());
        Self::quorum(names.owner(process), DELIVERY_LIMIT, arguments)
    }

    /// The queue in which the last leases of a process that has ended vanish. It vanishes itself once they are over.
    pub(super) fn ended(names: &Names, process: &str) -> Self {
        let arguments =
            Arguments::from([("x-message-ttl", ENDED_TTL_MS.into()), ("x-expires", ENDED_EXPIRES_MS.into())]);
        Self::quorum(names.ended(process), DELIVERY_LIMIT, arguments)
    }

    /// The stream of the outcomes of one backfill. Old ones go by the segment, so a segment is small beside the whole.
    pub(super) fn kept(name: &str) -> Self {
        let arguments = Arguments::from([
            ("x-queue-type", "stream".into()),
            ("x-max-age", "30D".into()),
            ("x-max-length-bytes", KEPT_BYTES.into()),
            ("x-stream-max-segment-size-bytes", KEPT_SEGMENT.into()),
        ]);
        Self { name: name.to_owned(), arguments }
    }

    fn quorum(name: String, limit: i64, mut arguments: Arguments) -> Self {
        arguments.insert("x-queue-type", "quorum".into());
        arguments.insert("x-delivery-limit", limit.into());
        Self { name, arguments }
    }

    /// Whether jobs pass through it. The stream of control messages only speeds operators' wishes up, and a stream may stay down
    /// after its node was killed (seen on 3.10): that must not stop a single delivery.
    pub(super) fn is_needed_to_deliver(&self) -> bool {
        self.arguments.get("x-queue-type") != Some(&"stream".into())
    }
}

/// From an exchange to a queue.
#[derive(Debug, Clone)]
pub(super) struct Binding {
    pub(super) exchange: String,
    pub(super) queue: String,
    pub(super) key: String,
    pub(super) arguments: Arguments,
}

/// The whole topology of one prefix. Declaring it twice changes nothing.
#[derive(Debug, Clone)]
pub struct Topology {
    pub(super) exchanges: Vec<Exchange>,
    pub(super) queues: Vec<Queue>,
    pub(super) bindings: Vec<Binding>,
}

impl Topology {
    /// The topology of `prefix`, as the contract has it.
    pub fn new(prefix: &str) -> Self {
        let names = Names::new(prefix);
        let mut topology = Self { exchanges: Vec::new(), queues: Vec::new(), bindings: Vec::new() };
        topology.jobs(&names);
        topology.waits(&names);
        topology.leases(&names);
        topology.dead_letters(&names);
        topology.outcomes(&names);
        topology.control(&names);
        topology
    }

    fn jobs(&mut self, names: &Names) {
        self.exchange(names.jobs_exchange(), Kind::Topic);
        for lane in Lane::ALL {
            let dead = dead_lettered(names.dead_exchange());
            self.quorum(names.jobs(lane), JOB_DELIVERY_LIMIT, dead);
        }
        for lane in [Lane::Scheduled, Lane::Backfill] {
            let key = format!("job.{}.*", lane.as_str());
            self.bind(names.jobs_exchange(), names.jobs(lane), &key, Arguments::new());
        }
    }

    /// A delay has no `x-dead-letter-routing-key`: a copy keeps the job's own key and so comes back to its lane.
    fn waits(&mut self, names: &Names) {
        self.exchange(names.wait_exchange(), Kind::Headers);
        for step in RetryDelay::ALL {
            let mut arguments = dead_lettered(names.jobs_exchange());
            arguments.insert("x-message-ttl", millis(step.duration()).into());
            self.quorum(names.wait(step), DELIVERY_LIMIT, arguments);
            let on = Arguments::from([("x-match", "all".into()), ("consign-wait", step.as_str().into())]);
            self.bind(names.wait_exchange(), names.wait(step), "", on);
        }
    }

    fn leases(&mut self, names: &Names) {
        let (lease, owners, orphans) = (names.lease_exchange(), names.owners_exchange(), names.orphans_exchange());
        self.exchange(lease.clone(), Kind::Fanout);
        self.exchange(orphans.clone(), Kind::Fanout);
        self.exchange_with(
            owners.clone(),
            Kind::Direct,
            Arguments::from([("alternate-exchange", orphans.clone().into())]),
        );
        let mut arguments = dead_lettered(owners);
        arguments.insert("x-message-ttl", LEASE_TTL_MS.into());
        self.quorum(lease.clone(), DELIVERY_LIMIT, arguments);
        self.bind(lease.clone(), lease, "", Arguments::new());
        self.bind(orphans, names.jobs(Lane::Continued), "", Arguments::new());
    }

    fn dead_letters(&mut self, names: &Names) {
        self.exchange(names.dead_exchange(), Kind::Fanout);
        self.quorum(names.dead(), DELIVERY_LIMIT, Arguments::new());
        self.bind(names.dead_exchange(), names.dead(), "", Arguments::new());
    }

    fn outcomes(&mut self, names: &Names) {
        let unrouted = names.named("outcomes.unrouted");
        self.exchange(unrouted.clone(), Kind::Fanout);
        let alternate = Arguments::from([("alternate-exchange", unrouted.clone().into())]);
        self.exchange_with(names.outcomes_exchange(), Kind::Topic, alternate);
        let bounded = Arguments::from([("x-max-length", UNROUTED_MAX.into()), ("x-overflow", "drop-head".into())]);
        self.quorum(unrouted.clone(), DELIVERY_LIMIT, bounded);
        self.bind(unrouted.clone(), unrouted, "", Arguments::new());
    }

    fn control(&mut self, names: &Names) {
        let arguments =
            Arguments::from([("x-queue-type", "stream".into()), ("x-max-age", format!("{KEPT_DAYS}D").into())]);
        self.queues.push(Queue { name: names.control(), arguments });
    }

    fn exchange(&mut self, name: String, kind: Kind) {
        self.exchange_with(name, kind, Arguments::new());
    }

    fn exchange_with(&mut self, name: String, kind: Kind, arguments: Arguments) {
        self.exchanges.push(Exchange { name, kind, arguments });
    }

    fn quorum(&mut self, name: String, limit: i64, arguments: Arguments) {
        self.queues.push(Queue::quorum(name, limit, arguments));
    }

    fn bind(&mut self, exchange: String, queue: String, key: &str, arguments: Arguments) {
        self.bindings.push(Binding { exchange, queue, key: key.to_owned(), arguments });
    }

    /// RabbitMQ's definitions format, for `rabbitmqctl import_definitions` and `load_definitions`.
    pub fn definitions(&self, vhost: &str) -> Value {
        let exchanges: Vec<_> = self.exchanges.iter().map(|e| exchange_definition(e, vhost)).collect();
        let queues: Vec<_> = self.queues.iter().map(|q| queue_definition(q, vhost)).collect();
        let bindings: Vec<_> = self.bindings.iter().map(|b| binding_definition(b, vhost)).collect();
        json!({ "exchanges": exchanges, "queues": queues, "bindings": bindings })
    }

    /// One line for each part, for people.
    pub fn lines(&self) -> Vec<String> {
        let exchanges =
            self.exchanges.iter().map(|e| format!("exchange  {}  {}{}", e.name, e.kind.as_str(), listed(&e.arguments)));
        let queues = self.queues.iter().map(|q| format!("queue     {}{}", q.name, listed(&q.arguments)));
        let bindings = self.bindings.iter().map(|b| {
            let key = if b.key.is_empty() { String::new() } else { format!("  {}", b.key) };
            format!("binding   {} -> {}{key}{}", b.exchange, b.queue, listed(&b.arguments))
        });
        exchanges.chain(queues).chain(bindings).collect()
    }
}

/// At-least-once dead-lettering; it needs `reject-publish`, because a dropped head would be lost.
fn dead_lettered(exchange: String) -> Arguments {
    Arguments::from([
        ("x-dead-letter-exchange", exchange.into()),
        ("x-dead-letter-strategy", "at-least-once".into()),
        ("x-overflow", "reject-publish".into()),
    ])
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn exchange_definition(exchange: &Exchange, vhost: &str) -> Value {
    json!({
        "name": exchange.name, "vhost": vhost, "type": exchange.kind.as_str(), "durable": true, "auto_delete": false,
        "internal": false, "arguments": object(&exchange.arguments),
    })
}

fn queue_definition(queue: &Queue, vhost: &str) -> Value {
    json!({
        "name": queue.name, "vhost": vhost, "durable": true, "auto_delete": false, "arguments": object(&queue.arguments),
    })
}

fn binding_definition(binding: &Binding, vhost: &str) -> Value {
    json!({
        "source": binding.exchange, "vhost": vhost, "destination": binding.queue, "destination_type": "queue",
        "routing_key": binding.key, "arguments": object(&binding.arguments),
    })
}

fn object(arguments: &Arguments) -> Value {
    let pairs = arguments.iter().map(|(name, value)| {
        let value = match value {
            Argument::Text(text) => json!(text),
            Argument::Number(number) => json!(number),
        };
        ((*name).to_owned(), value)
    });
    Value::Object(pairs.collect())
}

fn listed(arguments: &Arguments) -> String {
    let pairs: Vec<_> = arguments
        .iter()
        .map(|(name, value)| match value {
            Argument::Text(text) => format!("{name}={text}"),
            Argument::Number(number) => format!("{name}={number}"),
        })
        .collect();
    if pairs.is_empty() { String::new() } else { format!("  {}", pairs.join(" ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue<'a>(topology: &'a Topology, name: &str) -> &'a Queue {
        topology.queues.iter().find(|q| q.name == name).unwrap_or_else(|| panic!("no queue {name}"))
    }

    #[test]
    fn every_quorum_queue_limits_deliveries_and_none_drops_at_the_first_return() {
        let topology = Topology::new("consign");
        for queue in &topology.queues {
            if queue.arguments["x-queue-type"] == Argument::from("stream") {
                continue;
            }
            let expected = if queue.name.starts_with("consign.jobs.") { 1000 } else { 1_000_000 };
            assert_eq!(queue.arguments["x-delivery-limit"], Argument::Number(expected), "{}", queue.name);
        }
    }

    #[test]
    fn at_least_once_dead_lettering_comes_with_reject_publish() {
        for queue in Topology::new("p").queues.iter().filter(|q| q.arguments.contains_key("x-dead-letter-exchange")) {
            assert_eq!(queue.arguments["x-dead-letter-strategy"], "at-least-once".into(), "{}", queue.name);
            assert_eq!(queue.arguments["x-overflow"], "reject-publish".into(), "{}", queue.name);
            assert!(!queue.arguments.contains_key("x-dead-letter-routing-key"), "{}", queue.name);
        }
    }

    #[test]
    fn each_rung_returns_to_the_jobs_exchange_after_its_time() {
        let topology = Topology::new("p");
        for (step, ttl) in RetryDelay::ALL.into_iter().zip([5, 30, 120, 600, 1800, 7200, 43200]) {
            let delay = queue(&topology, &format!("p.wait.{}", step.as_str()));
            assert_eq!(delay.arguments["x-message-ttl"], Argument::Number(ttl * 1000));
            assert_eq!(delay.arguments["x-dead-letter-exchange"], "p".into());
            let binding = topology.bindings.iter().find(|b| b.queue == delay.name).unwrap();
            assert_eq!(binding.exchange, "p.wait");
            assert_eq!(binding.arguments["consign-wait"], step.as_str().into());
        }
    }

    #[test]
    fn bindings_join_parts_that_exist() {
        let topology = Topology::new("p");
        for binding in &topology.bindings {
            assert!(topology.exchanges.iter().any(|e| e.name == binding.exchange), "{binding:?}");
            assert!(topology.queues.iter().any(|q| q.name == binding.queue), "{binding:?}");
        }
        let continued: Vec<_> = topology.bindings.iter().filter(|b| b.queue == "p.jobs.continued").collect();
        assert_eq!(continued.len(), 1);
        assert_eq!(continued[0].exchange, "p.orphans");
    }

    #[test]
    fn an_owners_queue_gives_to_others_and_outlives_any_lease_in_it() {
        let names = Names::new("p");
        let owner = Queue::owner(&names, "w", Duration::from_secs(60));
        assert_eq!((owner.name.as_str(), &owner.arguments["x-message-ttl"]), ("p.owner.w", &60_000.into()));
        for (name, value) in [
            ("x-dead-letter-exchange", "p.orphans"),
            ("x-dead-letter-strategy", "at-least-once"),
            ("x-overflow", "reject-publish"),
            ("x-queue-type", "quorum"),
        ] {
            assert_eq!(owner.arguments[name], value.into(), "{name}");
        }
        let number = |queue: &Queue, name| match queue.arguments[name] {
            Argument::Number(number) => number,
            Argument::Text(_) => 0,
        };
        let ended = Queue::ended(&names, "w");
        assert!(!ended.arguments.contains_key("x-dead-letter-exchange"), "what comes to it is over");
        // The queue that swallows must be gone long before the one that gives to others.
        let (swallows, lease) = (number(&ended, "x-expires"), LEASE_TTL_MS);
        assert!(lease < swallows && 10 * swallows < number(&owner, "x-expires"));
    }

    #[test]
    fn the_definitions_in_deploy_are_these() {
        let deployed: Value = serde_json::from_str(include_str!("../../../deploy/rabbitmq/definitions.json")).unwrap();
        let ours = Topology::new("consign").definitions("/");
        for section in ["exchanges", "queues", "bindings"] {
            let sorted = |from: &Value| {
                let mut parts: Vec<_> = from[section].as_array().unwrap().iter().map(Value::to_string).collect();
                parts.sort();
                parts
            };
            assert_eq!(sorted(&deployed), sorted(&ours), "{section}");
        }
    }

    #[test]
    fn definitions_name_the_vhost_everywhere() {
        let definitions = Topology::new("p").definitions("/v");
        for section in ["exchanges", "queues", "bindings"] {
            let parts = definitions[section].as_array().unwrap();
            assert!(!parts.is_empty() && parts.iter().all(|part| part["vhost"] == "/v"), "{section}");
        }
    }
}
