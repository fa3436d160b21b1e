//! AsyncAPI 3.0 document of the messages of producers and consumers.

use serde_json::{Map, Value};

/// Everything but the schemas. Written for the default of `broker.prefix`, as it explains itself.
const OUTLINE: &str = include_str!("asyncapi.json");

/// Returns the document. As AsyncAPI requires, it is written from consign's side: it receives jobs
/// and sends outcomes.
pub(super) fn document() -> Value {
    let mut schemas = Map::new();
    adopt("job", crate::domain::job::wire::schema().to_value(), &mut schemas);
    adopt("check", crate::domain::job::wire::check_schema().to_value(), &mut schemas);
    adopt("checkAnswer", crate::check::answer_schema().to_value(), &mut schemas);
    adopt("control", crate::domain::control::schema().to_value(), &mut schemas);
    adopt("outcome", crate::domain::outcome::outcome_schema().to_value(), &mut schemas);
    // A constant of this program, read by a test.
    let mut document: Value = serde_json::from_str(OUTLINE).unwrap_or_default();
    document["info"]["version"] = env!("CARGO_PKG_VERSION").into();
    document["components"]["schemas"] = schemas.into();
    document
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
    use serde_json::json;

    use super::*;
    use crate::domain::headers;
    use crate::domain::outcome::OutcomeKind;

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
    #[test]
    fn it_names_every_outcome_and_header_as_the_program_does() {
        use OutcomeKind::{Delivered, Expired, Failed, Retrying, Skipped};
        let document = document();
        let kinds = [Delivered, Failed, Retrying, Skipped, Expired].map(OutcomeKind::as_str);
        assert_eq!(document["channels"]["outcomes"]["parameters"]["outcome"]["enum"], json!(kinds));
        let headers = |message: &str, expected: &[&str]| {
            let named = document["components"]["messages"][message]["headers"]["properties"].as_object().unwrap();
            let expected: std::collections::BTreeSet<_> = expected.iter().copied().collect();
            assert_eq!(named.keys().map(String::as_str).collect::<std::collections::BTreeSet<_>>(), expected);
        };
        let of_trace = [headers::TRACEPARENT, headers::TRACESTATE];
        headers(
            "job",
            &[&of_trace[..], &[headers::BACKFILL, headers::BACKFILL_STARTED_AT, headers::BACKFILL_CANCELLATIONS]]
                .concat(),
        );
        let failures = [headers::ERROR_REASON, headers::ERROR_CLASS, headers::ERROR_MESSAGE, headers::ATTEMPTS];
        let times = [headers::FIRST_FAILURE_AT, headers::LAST_FAILURE_AT];
        headers("deadLetter", &[&failures[..], &times, &[headers::ORIGINAL_ROUTING_KEY, headers::LEFT_OUT]].concat());
    }
}
