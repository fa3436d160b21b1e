//! Exchanges, queues and bindings as `consign topology apply` declares them, and the tables of the
//! embedded queue.

use consign::queue::rabbitmq::{Timing, Topology};
use consign::queue::sqlite;
use serde_json::Value;

use crate::docs::generated::{code, table};

/// Purpose of each exchange and queue; a name that ends with a dot stands for all that begin so.
const PURPOSES: [(&str, &str); 17] = [
    ("consign", "Schedulers publish jobs here."),
    ("consign.wait", "Retries and deferrals; the header `consign-wait` selects the delay."),
    ("consign.lease", "Workers publish and renew leases here, each under a key of its own."),
    ("consign.orphans", "Leases without an owner, and hand-offs."),
    ("consign.owners", "Leases that were not renewed, by their key to the queue of their owner."),
    ("consign.dlx", "Dead letters."),
    ("consign.outcomes.unrouted", "Outcomes that no queue is bound for."),
    ("consign.outcomes", "Outcomes, by routing key `transfer.<outcome>.<destination>`."),
    ("consign.jobs.scheduled", "Scheduled jobs."),
    ("consign.jobs.backfill", "Jobs of backfills."),
    ("consign.jobs.continued", "Transfers that another worker began. They run first."),
    ("consign.wait.", "Copies that wait for this delay, then return to their lane."),
    ("consign.dead", "Dead letters. They stay until an operator requeues or discards them."),
    (
        "consign.control",
        "Control messages: cancellations, circuit breakers, generations, workers. Every worker reads them.",
    ),
    ("consign.owner.PROCESS", "The leases of one worker. Declared by the worker."),
    ("consign.owner.PROCESS.ended", "Settled leases of a worker that has stopped. Declared by the worker."),
    ("consign.backfill.ID", "Outcomes of one backfill. Declared by `consign backfill`."),
];

fn purpose(name: &str) -> String {
    let exact = PURPOSES.iter().find(|(known, _)| *known == name);
    let group = || PURPOSES.iter().find(|(known, _)| known.ends_with('.') && name.starts_with(known));
    exact.or_else(group).unwrap_or_else(|| panic!("PURPOSES has no row for {name}")).1.to_owned()
}

fn arguments(part: &Value) -> String {
    code(part["arguments"].as_object().unwrap().iter().map(|(name, value)| match value {
        Value::String(text) => format!("{name} = {text}"),
        other => format!("{name} = {other}"),
    }))
}

fn named<'a>(part: &'a Value, key: &str) -> &'a str {
    part[key].as_str().unwrap()
}

fn rows<const N: usize>(topology: &Value, kind: &str, row: impl Fn(&Value) -> [String; N]) -> Vec<[String; N]> {
    topology[kind].as_array().unwrap().iter().map(row).collect()
}

fn queue(part: &Value) -> [String; 3] {
    let name = named(part, "name");
    [format!("`{name}`"), arguments(part), purpose(name)]
}

/// The generated parts of the page.
pub(super) fn parts() -> Vec<(&'static str, String)> {
    let topology = Topology::new("consign").definitions("/");
    let on_demand = Topology::on_demand("consign", "PROCESS", Timing::default().owner_ttl, "ID").definitions("/");
    let exchange = |part: &Value| {
        let name = named(part, "name");
        [format!("`{name}`"), named(part, "type").to_owned(), arguments(part), purpose(name)]
    };
    let binding = |part: &Value| {
        let key = named(part, "routing_key");
        let key = if key.is_empty() { arguments(part) } else { format!("`{key}`") };
        [format!("`{}`", named(part, "source")), format!("`{}`", named(part, "destination")), key]
    };
    let head = ["queue", "arguments", "purpose"];
    let tables = sqlite::TABLES.map(|(name, holds)| [format!("`{name}`"), holds.to_owned()]);
    vec![
        ("exchanges", table(["exchange", "type", "arguments", "purpose"], rows(&topology, "exchanges", exchange))),
        ("queues", table(head, rows(&topology, "queues", queue))),
        ("on demand", table(head, rows(&on_demand, "queues", queue))),
        ("bindings", table(["exchange", "queue", "routing key, or header"], rows(&topology, "bindings", binding))),
        ("tables", table(["table", "content"], tables)),
    ]
}
