//! The topology as text: RabbitMQ's definitions format, and lines for people.

use serde_json::{Value, json};

use super::topology::{Arguments, Binding, ExchangeDeclaration, QueueDeclaration, Topology};

impl Topology {
    /// Returns RabbitMQ's definitions format, for `rabbitmqctl import_definitions` and
    /// `load_definitions`.
    pub fn definitions(&self, vhost: &str) -> Value {
        let exchanges: Vec<_> = self.exchanges.iter().map(|e| exchange_definition(e, vhost)).collect();
        let queues: Vec<_> = self.queues.iter().map(|q| queue_definition(q, vhost)).collect();
        let bindings: Vec<_> = self.bindings.iter().map(|b| binding_definition(b, vhost)).collect();
        json!({ "exchanges": exchanges, "queues": queues, "bindings": bindings })
    }

    /// Returns one readable line per declaration.
    pub fn lines(&self) -> Vec<String> {
        let exchanges =
            self.exchanges.iter().map(|e| format!("exchange  {}  {}{}", e.name, e.kind, listed(&e.arguments)));
        let queues = self.queues.iter().map(|q| format!("queue     {}{}", q.name, listed(&q.arguments)));
        let bindings = self.bindings.iter().map(|b| {
            let key = if b.key.is_empty() { String::new() } else { format!("  {}", b.key) };
            format!("binding   {} -> {}{key}{}", b.exchange, b.queue, listed(&b.arguments))
        });
        exchanges.chain(queues).chain(bindings).collect()
    }
}

fn exchange_definition(exchange: &ExchangeDeclaration, vhost: &str) -> Value {
    json!({
        "name": exchange.name, "vhost": vhost, "type": exchange.kind, "durable": true, "auto_delete": false,
        "internal": false, "arguments": exchange.arguments,
    })
}

fn queue_definition(queue: &QueueDeclaration, vhost: &str) -> Value {
    json!({
        "name": queue.name, "vhost": vhost, "durable": true, "auto_delete": false, "arguments": queue.arguments,
    })
}

fn binding_definition(binding: &Binding, vhost: &str) -> Value {
    json!({
        "source": binding.exchange, "vhost": vhost, "destination": binding.queue, "destination_type": "queue",
        "routing_key": binding.key, "arguments": binding.arguments,
    })
}

fn listed(arguments: &Arguments) -> String {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let pairs: Vec<_> = arguments.iter().map(|(name, value)| format!("{name}={}", text(value))).collect();
    if pairs.is_empty() { String::new() } else { format!("  {}", pairs.join(" ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

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
