//! AsyncAPI 3.0 document of the messages of producers and consumers.

use serde_json::{Map, Value, json};

use crate::domain::headers;
use crate::domain::outcome::OutcomeKind;

/// Default of `broker.prefix`. The document explains that another prefix changes all names.
const PREFIX: &str = "consign";

/// Returns the document. As AsyncAPI requires, it is written from consign's side: it receives jobs
/// and sends outcomes.
pub(super) fn document() -> Value {
    let mut schemas = Map::new();
    adopt("job", crate::domain::job::wire::schema().to_value(), &mut schemas);
    adopt("check", crate::domain::job::wire::check_schema().to_value(), &mut schemas);
    adopt("checkAnswer", crate::check::answer_schema().to_value(), &mut schemas);
    adopt("control", crate::domain::control::schema().to_value(), &mut schemas);
    adopt("outcome", crate::domain::outcome::outcome_schema().to_value(), &mut schemas);
    json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "consign",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Delivers files into your customers' own S3 buckets. Names are those of broker.prefix = \"consign\".",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": channels(),
        "operations": operations(),
        "components": {"messages": messages(), "schemas": schemas},
    })
}

fn channels() -> Value {
    let destination = json!({"description": "The id of the destination."});
    let kinds = [
        OutcomeKind::Delivered,
        OutcomeKind::Failed,
        OutcomeKind::Retrying,
        OutcomeKind::Skipped,
        OutcomeKind::Expired,
    ];
    json!({
        "jobs": {
            "address": "job.{lane}.{destination}",
            "description": "Publish persistent, mandatory and with confirms to the exchange.",
            "parameters": {"lane": {"enum": ["scheduled", "backfill"]}, "destination": destination},
            "messages": {"job": reference("messages/job"), "check": reference("messages/check")},
            "bindings": exchange(PREFIX),
        },
        "checkAnswers": {
            "address": null,
            "description": "The queue that the AMQP property reply_to of a connection test names.",
            "messages": {"checkAnswer": reference("messages/checkAnswer")},
        },
        "outcomes": {
            "address": "transfer.{outcome}.{destination}",
            "description": "Bind your own queue; outcomes without a bound queue are retained in consign.outcomes.unrouted for a while.",
            "parameters": {"outcome": {"enum": kinds.map(OutcomeKind::as_str)}, "destination": destination},
            "messages": {"outcome": reference("messages/outcome")},
            "bindings": exchange(&format!("{PREFIX}.outcomes")),
        },
        "control": {
            "address": format!("{PREFIX}.control"),
            "description": "A stream of 7 days, read by every worker from its start. Publish to the default exchange with this routing key.",
            "messages": {"control": reference("messages/control")},
            "bindings": {"amqp": {
                "is": "queue",
                "queue": {"name": format!("{PREFIX}.control"), "durable": true, "exclusive": false, "autoDelete": false},
                "bindingVersion": "0.3.0",
            }},
        },
        "deadLetters": {
            "address": format!("{PREFIX}.dead"),
            "description": "Dead letters: jobs that were not delivered, their bodies unchanged.",
            "messages": {"deadLetter": reference("messages/deadLetter")},
            "bindings": {"amqp": {
                "is": "queue",
                "queue": {"name": format!("{PREFIX}.dead"), "durable": true, "exclusive": false, "autoDelete": false},
                "bindingVersion": "0.3.0",
            }},
        },
    })
}

fn exchange(name: &str) -> Value {
    json!({"amqp": {
        "is": "routingKey",
        "exchange": {"name": name, "type": "topic", "durable": true, "autoDelete": false},
        "bindingVersion": "0.3.0",
    }})
}

fn operations() -> Value {
    let operation = |action: &str, channel: &str, summary: &str| json!({"action": action, "channel": {"$ref": format!("#/channels/{channel}")}, "summary": summary});
    json!({
        "takeJob": operation("receive", "jobs", "Takes a job and delivers its file."),
        "takeCheck": json!({
            "action": "receive",
            "channel": {"$ref": "#/channels/jobs"},
            "messages": [{"$ref": "#/channels/jobs/messages/check"}],
            "summary": "Tests the connection to a destination.",
            "reply": {
                "address": {"location": "$message.header#/reply_to"},
                "channel": {"$ref": "#/channels/checkAnswers"},
                "messages": [{"$ref": "#/channels/checkAnswers/messages/checkAnswer"}],
            },
        }),
        "obey": operation("receive", "control", "Executes the commands of operators to every worker."),
        "reportOutcome": operation("send", "outcomes", "Reports the outcome of a job; also sent to the job's reply_to."),
        "giveUp": operation("send", "deadLetters", "Dead-letters a job, with the reason."),
    })
}

fn messages() -> Value {
    let text = |names: &[&str]| {
        let all: Map<String, Value> =
            names.iter().map(|name| ((*name).to_owned(), json!({"type": "string"}))).collect();
        json!({"type": "object", "properties": all})
    };
    json!({
        "job": {
            "name": "job",
            "summary": "One file to deliver as one object. message_id, if set, equals the job's id.",
            "contentType": "application/json",
            "headers": text(&[headers::TRACEPARENT, headers::TRACESTATE, headers::BACKFILL, headers::BACKFILL_STARTED_AT, headers::BACKFILL_CANCELLATIONS]),
            "payload": reference("schemas/job"),
        },
        "control": {
            "name": "control",
            "summary": "Cancels a backfill, or closes the circuit of a destination.",
            "contentType": "application/json",
            "payload": reference("schemas/control"),
        },
        "check": {
            "name": "check",
            "summary": "Asks for a connection test. The AMQP type is consign.check.v1, reply_to is required, correlation_id is returned.",
            "contentType": "application/json",
            "correlationId": {"location": "$message.header#/correlation_id"},
            "payload": reference("schemas/check"),
        },
        "checkAnswer": {
            "name": "checkAnswer",
            "summary": "What `consign check --json` prints.",
            "contentType": "application/json",
            "correlationId": {"location": "$message.header#/correlation_id"},
            "payload": reference("schemas/checkAnswer"),
        },
        "outcome": {
            "name": "outcome",
            "summary": "A CloudEvent 1.0; copies of a terminal outcome carry the same id.",
            "contentType": "application/cloudevents+json",
            "payload": reference("schemas/outcome"),
        },
        "deadLetter": {
            "name": "deadLetter",
            "summary": "The job as it was published, with the reason in headers.",
            "headers": text(&[
                headers::ERROR_REASON,
                headers::ERROR_CLASS,
                headers::ERROR_MESSAGE,
                headers::ATTEMPTS,
                headers::FIRST_FAILURE_AT,
                headers::LAST_FAILURE_AT,
                headers::ORIGINAL_ROUTING_KEY,
                headers::LEFT_OUT,
            ]),
            "payload": reference("schemas/job"),
        },
    })
}

fn reference(to: &str) -> Value {
    json!({"$ref": format!("#/components/{to}")})
}

/// Moves a schema and its definitions under `components/schemas`, references included.
fn adopt(name: &str, mut schema: Value, schemas: &mut Map<String, Value>) {
    let prefix = format!("{name}.");
    redirect(&mut schema, &prefix);
    if let Some(root) = schema.as_object_mut() {
        root.remove("$schema");
        if let Some(Value::Object(definitions)) = root.remove("$defs") {
            schemas.extend(definitions.into_iter().map(|(inner, definition)| (format!("{prefix}{inner}"), definition)));
        }
    }
    schemas.insert(name.to_owned(), schema);
}

fn redirect(node: &mut Value, prefix: &str) {
    match node {
        Value::Object(object) => {
            let target = object.get("$ref").and_then(Value::as_str);
            if let Some(inner) = target.and_then(|target| target.strip_prefix("#/$defs/")) {
                let target = format!("#/components/schemas/{prefix}{inner}");
                object.insert("$ref".to_owned(), target.into());
            }
            object.values_mut().for_each(|inner| redirect(inner, prefix));
        }
        Value::Array(items) => items.iter_mut().for_each(|inner| redirect(inner, prefix)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn references(node: &Value, found: &mut Vec<String>) {
        match node {
            Value::Object(object) => {
                found.extend(object.get("$ref").and_then(Value::as_str).map(str::to_owned));
                object.values().for_each(|inner| references(inner, found));
            }
            Value::Array(items) => items.iter().for_each(|inner| references(inner, found)),
            _ => {}
        }
    }

    #[test]
    fn every_reference_can_be_resolved() {
        let document = document();
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(found.len() > 8, "{found:?}");
        for reference in found {
            assert!(document.pointer(reference.trim_start_matches('#')).is_some(), "{reference}");
        }
    }

    #[test]
    fn it_names_the_exchanges_and_routing_keys_of_the_contract() {
        let document = document();
        assert_eq!(document["asyncapi"], "3.0.0");
        let exchange = |channel: &str| document["channels"][channel]["bindings"]["amqp"]["exchange"]["name"].clone();
        assert_eq!((exchange("jobs"), exchange("outcomes")), (json!("consign"), json!("consign.outcomes")));
        assert_eq!(document["channels"]["jobs"]["address"], "job.{lane}.{destination}");
        assert_eq!(document["channels"]["outcomes"]["address"], "transfer.{outcome}.{destination}");
        assert!(document["components"]["schemas"]["outcome"]["properties"]["data"].is_object());
    }
}
