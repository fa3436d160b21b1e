//! Exchanges, queues and bindings of consign on RabbitMQ: one model for `topology print`, `topology
//! apply` and the check at start.
//!
//! Two kinds of queues are declared by their users when they need them, beside this topology: the
//! lease queue of each worker ([`QueueDeclaration::owner`]), and a stream of outcomes for each
//! backfill ([`QueueDeclaration::backfill_outcomes`]).

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use super::names::Names;
use crate::domain::control::KEPT_DAYS;
use crate::domain::headers::WAIT;
use crate::domain::lane::Lane;
use crate::domain::outcome::RetryDelay;
use crate::domain::routing_key;

/// Deliveries of a job before the broker dead-letters it; far above the number that a worker
/// permits.
const JOB_DELIVERY_LIMIT: i64 = 1000;
/// Delivery limit of every other queue. RabbitMQ 4 defaults to 20 and drops the message where there
/// is no dead-letter exchange; -1 loses messages on 3.10.
const DELIVERY_LIMIT: i64 = 1_000_000;
/// Time until an unrenewed lease expires.
const LEASE_TTL_MS: i64 = 120_000;
/// Time without use after which an owner's queue is deleted. The broker deletes it with its
/// messages, and an outage counts as time without use (seen on 3.10). So the queue of a dead worker
/// must outlive every outage during which it may contain leases.
const OWNER_EXPIRES_MS: i64 = 24 * 3600 * 1000;
/// Message TTL of the queue that discards settled leases.
const DISCARD_TTL_MS: i64 = 1000;
/// Lifetime of that queue: longer than a lease, and far shorter than an owner's queue.
const DISCARD_EXPIRES_MS: i64 = 5 * 60 * 1000;
/// Length limit of the queue of unrouted outcomes.
const UNROUTED_MAX: i64 = 100_000;
/// Size limit of the outcome stream of one backfill.
const BACKFILL_STREAM_BYTES: i64 = 4 << 30;
/// Segment size of that stream.
const BACKFILL_SEGMENT_BYTES: i64 = 32 << 20;

/// Arguments of a declaration: texts and whole numbers.
pub(super) type Arguments = BTreeMap<&'static str, Value>;

/// Durable exchange.
#[derive(Debug, Clone)]
pub(super) struct ExchangeDeclaration {
    pub(super) name: String,
    /// Exchange type, as AMQP names it.
    pub(super) kind: &'static str,
    pub(super) arguments: Arguments,
}

/// Durable queue.
#[derive(Debug, Clone)]
pub(super) struct QueueDeclaration {
    pub(super) name: String,
    pub(super) arguments: Arguments,
}

impl QueueDeclaration {
    /// Lease queue of one owner. A lease that the owner does not take within `ttl` goes to other
    /// workers.
    pub(super) fn owner(names: &Names, process: &str, ttl: Duration) -> Self {
        let mut arguments = dead_lettered(names.orphans_exchange());
        arguments.insert("x-message-ttl", millis(ttl).into());
        arguments.insert("x-expires", OWNER_EXPIRES_MS.into());
        Self::quorum(names.owner(process), DELIVERY_LIMIT, arguments)
    }

    /// Queue that discards the settled leases of an owner that has closed. The broker deletes it
    /// once all of them have expired.
    ///
    /// A classic queue, because it is new when leases are bound to it: a quorum queue that was
    /// declared seconds before its broker is killed never gets a leader again (seen on 3.10). The
    /// broker would keep these leases, and one of them held up those of all workers for a minute
    /// out of four (measured on 3.10). A classic queue may do so only if its node goes down within
    /// [`DISCARD_EXPIRES_MS`] of the close, and until that returns.
    pub(super) fn discarded_leases(names: &Names, process: &str) -> Self {
        let arguments = Arguments::from([
            ("x-queue-type", "classic".into()),
            ("x-message-ttl", DISCARD_TTL_MS.into()),
            ("x-expires", DISCARD_EXPIRES_MS.into()),
        ]);
        Self { name: names.discarded_leases(process), arguments }
    }

    /// Outcome stream of one backfill. The broker deletes old messages by the segment, so a segment
    /// is small compared with the stream.
    pub(super) fn backfill_outcomes(name: &str) -> Self {
        let arguments = Arguments::from([
            ("x-queue-type", "stream".into()),
            ("x-max-age", "30D".into()),
            ("x-max-length-bytes", BACKFILL_STREAM_BYTES.into()),
            ("x-stream-max-segment-size-bytes", BACKFILL_SEGMENT_BYTES.into()),
        ]);
        Self { name: name.to_owned(), arguments }
    }

    fn quorum(name: String, limit: i64, mut arguments: Arguments) -> Self {
        arguments.insert("x-queue-type", "quorum".into());
        arguments.insert("x-delivery-limit", limit.into());
        Self { name, arguments }
    }

    /// Returns true when jobs pass through the queue. The control stream only speeds up commands of
    /// operators, and a stream may stay down after its node was killed (seen on 3.10), which must
    /// not stop a delivery.
    pub(super) fn is_needed_to_deliver(&self) -> bool {
        self.arguments.get("x-queue-type") != Some(&"stream".into())
    }
}

/// Binding of a queue to an exchange.
#[derive(Debug, Clone)]
pub(super) struct Binding {
    pub(super) exchange: String,
    pub(super) queue: String,
    pub(super) key: String,
    pub(super) arguments: Arguments,
}

/// Topology of one prefix. Declaring it twice changes nothing.
#[derive(Debug, Clone)]
pub struct Topology {
    pub(super) exchanges: Vec<ExchangeDeclaration>,
    pub(super) queues: Vec<QueueDeclaration>,
    pub(super) bindings: Vec<Binding>,
}

impl Topology {
    /// Topology of `prefix` as in the contract.
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

    /// Queues that their users declare when they need them: those of the worker `process`, and the
    /// outcome stream of `backfill`. For the reference page; nothing declares them from here.
    #[doc(hidden)]
    pub fn on_demand(prefix: &str, process: &str, owner_ttl: Duration, backfill: &str) -> Self {
        let names = Names::new(prefix);
        let queues = vec![
            QueueDeclaration::owner(&names, process, owner_ttl),
            QueueDeclaration::discarded_leases(&names, process),
            QueueDeclaration::backfill_outcomes(&names.named(&format!("backfill.{backfill}"))),
        ];
        Self { exchanges: Vec::new(), queues, bindings: Vec::new() }
    }

    fn jobs(&mut self, names: &Names) {
        self.exchange(names.jobs_exchange(), "topic");
        for lane in Lane::ALL {
            let dead = dead_lettered(names.dead_exchange());
            self.quorum(names.jobs(lane), JOB_DELIVERY_LIMIT, dead);
        }
        for lane in [Lane::Scheduled, Lane::Backfill] {
            let key = routing_key::job_pattern(lane);
            self.bind(names.jobs_exchange(), names.jobs(lane), &key, Arguments::new());
        }
    }

    /// Wait queues have no `x-dead-letter-routing-key`: a copy keeps the job's own key and so
    /// returns to its lane.
    fn waits(&mut self, names: &Names) {
        self.exchange(names.wait_exchange(), "headers");
        for delay in RetryDelay::ALL {
            let mut arguments = dead_lettered(names.jobs_exchange());
            arguments.insert("x-message-ttl", millis(delay.duration()).into());
            self.quorum(names.wait(delay), DELIVERY_LIMIT, arguments);
            let on = Arguments::from([("x-match", "all".into()), (WAIT, delay.as_str().into())]);
            self.bind(names.wait_exchange(), names.wait(delay), "", on);
        }
    }

    fn leases(&mut self, names: &Names) {
        let (lease, owners, orphans) = (names.lease_exchange(), names.owners_exchange(), names.orphans_exchange());
        self.exchange(lease.clone(), "fanout");
        self.exchange(orphans.clone(), "fanout");
        let alternate = Arguments::from([("alternate-exchange", orphans.clone().into())]);
        self.exchange_with(owners.clone(), "direct", alternate);
        let mut arguments = dead_lettered(owners);
        arguments.insert("x-message-ttl", LEASE_TTL_MS.into());
        self.quorum(lease.clone(), DELIVERY_LIMIT, arguments);
        self.bind(lease.clone(), lease, "", Arguments::new());
        self.bind(orphans, names.jobs(Lane::Continued), "", Arguments::new());
    }

    fn dead_letters(&mut self, names: &Names) {
        self.exchange(names.dead_exchange(), "fanout");
        self.quorum(names.dead(), DELIVERY_LIMIT, Arguments::new());
        self.bind(names.dead_exchange(), names.dead(), "", Arguments::new());
    }

    fn outcomes(&mut self, names: &Names) {
        let unrouted = names.named("outcomes.unrouted");
        self.exchange(unrouted.clone(), "fanout");
        let alternate = Arguments::from([("alternate-exchange", unrouted.clone().into())]);
        self.exchange_with(names.outcomes_exchange(), "topic", alternate);
        let bounded = Arguments::from([("x-max-length", UNROUTED_MAX.into()), ("x-overflow", "drop-head".into())]);
        self.quorum(unrouted.clone(), DELIVERY_LIMIT, bounded);
        self.bind(unrouted.clone(), unrouted, "", Arguments::new());
    }

    fn control(&mut self, names: &Names) {
        let arguments =
            Arguments::from([("x-queue-type", "stream".into()), ("x-max-age", format!("{KEPT_DAYS}D").into())]);
        self.queues.push(QueueDeclaration { name: names.control(), arguments });
    }

    fn exchange(&mut self, name: String, kind: &'static str) {
        self.exchange_with(name, kind, Arguments::new());
    }

    fn exchange_with(&mut self, name: String, kind: &'static str, arguments: Arguments) {
        self.exchanges.push(ExchangeDeclaration { name, kind, arguments });
    }

    fn quorum(&mut self, name: String, limit: i64, arguments: Arguments) {
        self.queues.push(QueueDeclaration::quorum(name, limit, arguments));
    }

    fn bind(&mut self, exchange: String, queue: String, key: &str, arguments: Arguments) {
        self.bindings.push(Binding { exchange, queue, key: key.to_owned(), arguments });
    }
}

/// Arguments of at-least-once dead-lettering. It requires `reject-publish`, because a dropped head
/// would be lost.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn queue<'a>(topology: &'a Topology, name: &str) -> &'a QueueDeclaration {
        topology.queues.iter().find(|q| q.name == name).unwrap_or_else(|| panic!("no queue {name}"))
    }

    #[test]
    fn every_quorum_queue_has_a_delivery_limit_of_the_contract() {
        let topology = Topology::new("consign");
        for queue in &topology.queues {
            if queue.arguments["x-queue-type"] == "stream" {
                continue;
            }
            let expected = if queue.name.starts_with("consign.jobs.") { 1000 } else { 1_000_000 };
            assert_eq!(queue.arguments["x-delivery-limit"], expected, "{}", queue.name);
        }
    }

    #[test]
    fn at_least_once_dead_lettering_comes_with_reject_publish() {
        for queue in Topology::new("p").queues.iter().filter(|q| q.arguments.contains_key("x-dead-letter-exchange")) {
            assert_eq!(queue.arguments["x-dead-letter-strategy"], "at-least-once", "{}", queue.name);
            assert_eq!(queue.arguments["x-overflow"], "reject-publish", "{}", queue.name);
            assert!(!queue.arguments.contains_key("x-dead-letter-routing-key"), "{}", queue.name);
        }
    }

    #[test]
    fn each_wait_queue_returns_to_the_jobs_exchange_after_its_delay() {
        let topology = Topology::new("p");
        for (delay, ttl) in RetryDelay::ALL.into_iter().zip([5, 30, 120, 600, 1800, 7200, 43200]) {
            let wait = queue(&topology, &format!("p.wait.{}", delay.as_str()));
            assert_eq!(wait.arguments["x-message-ttl"], ttl * 1000);
            assert_eq!(wait.arguments["x-dead-letter-exchange"], "p");
            let binding = topology.bindings.iter().find(|b| b.queue == wait.name).unwrap();
            assert_eq!(binding.exchange, "p.wait");
            assert_eq!(binding.arguments["consign-wait"], delay.as_str());
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
    fn an_owners_queue_hands_leases_to_others_and_outlives_any_of_them() {
        let names = Names::new("p");
        let owner = QueueDeclaration::owner(&names, "w", Duration::from_secs(60));
        assert_eq!((owner.name.as_str(), &owner.arguments["x-message-ttl"]), ("p.owner.w", &Value::from(60_000)));
        for (name, value) in [
            ("x-dead-letter-exchange", "p.orphans"),
            ("x-dead-letter-strategy", "at-least-once"),
            ("x-overflow", "reject-publish"),
            ("x-queue-type", "quorum"),
        ] {
            assert_eq!(owner.arguments[name], value, "{name}");
        }
        let number = |queue: &QueueDeclaration, name| queue.arguments[name].as_i64().unwrap_or(0);
        let discard = QueueDeclaration::discarded_leases(&names, "w");
        assert!(!discard.arguments.contains_key("x-dead-letter-exchange"), "its messages are settled");
        // The queue that discards must be deleted long before the one that hands over.
        let (discard_expires, lease) = (number(&discard, "x-expires"), LEASE_TTL_MS);
        assert!(lease < discard_expires && 10 * discard_expires < number(&owner, "x-expires"));
    }
}
