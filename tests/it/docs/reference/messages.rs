//! Jobs and outcomes, from their JSON Schemas.

use consign::domain::job::{Compression, IfExists};

use super::schema::{Schema, default, description};
use crate::docs::generated::table;

/// Defaults that the schema does not hold, because a job with them is written without the field.
fn unwritten(name: &str) -> Option<String> {
    let value = match name {
        "compression" => serde_json::to_value(Compression::default()),
        "if_exists" => serde_json::to_value(IfExists::default()),
        _ => return None,
    };
    Some(format!("`{}`", value.unwrap()))
}

/// The fields of a job. Those of an inline destination are those of a configured one.
pub(super) fn job() -> String {
    let root = consign::domain::job::wire::schema().to_value();
    let schema = Schema(&root);
    let rows = schema.keys(&root, "").into_iter().map(|key| {
        [
            format!("`{}`", key.name),
            schema.kind(key.node),
            unwritten(&key.name).unwrap_or_else(|| default(&key)),
            description(&key),
        ]
    });
    table(["field", "type", "default", "meaning"], rows.collect::<Vec<_>>())
}

/// The fields of an outcome.
pub(super) fn outcome() -> String {
    let root = consign::domain::outcome::outcome_schema().to_value();
    let schema = Schema(&root);
    let rows = schema
        .keys(&root, "")
        .into_iter()
        .map(|key| [format!("`{}`", key.name), schema.kind(key.node), description(&key)]);
    table(["field", "type", "meaning"], rows.collect::<Vec<_>>())
}
