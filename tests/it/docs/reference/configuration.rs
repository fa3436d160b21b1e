//! The configuration, from its JSON Schema.

use serde_json::Value;

use super::schema::{Key, Schema, default, description};
use crate::docs::generated::{assert_parts, table};
use crate::docs::since::Since;

/// Units of the numbers. Durations have theirs in the value, and sizes are bytes.
const UNITS: [(&str, &str); 10] = [
    ("worker.slots", "transfers"),
    ("worker.backfill_slots", "transfers"),
    ("worker.max_attempts", "attempts"),
    ("worker.destination_slots", "transfers"),
    ("upload.part_concurrency", "parts"),
    ("upload.min_rate", "bytes per second"),
    ("session.capacity", "sessions"),
    ("metrics.max_destinations", "destinations"),
    ("destinations.ID.max_concurrency", "transfers"),
    ("destinations.ID.max_bytes_per_second", "bytes per second"),
];

/// Defaults that the schema does not hold.
const DEFAULTS: [(&str, &str); 1] = [("worker.id", "host name and process id")];

fn of<'a>(name: &str, table: &[(&str, &'a str)]) -> Option<&'a str> {
    table.iter().find(|(key, _)| *key == name).map(|(_, value)| *value)
}

fn row(schema: &Schema<'_>, section: &str, key: &Key<'_>, since: &Since) -> [String; 6] {
    let full = format!("{section}.{}", key.name);
    let kind = schema.kind(key.node);
    let unit = match of(&full, &UNITS) {
        Some(unit) => unit,
        None if kind.starts_with("integer") => panic!("UNITS has no row for {full}"),
        None if kind == "size" => "bytes",
        None if kind == "duration" => "s, m, h",
        None => "",
    };
    let default = of(&full, &DEFAULTS).map_or_else(|| default(key), str::to_owned);
    [format!("`{}`", key.name), kind, default, unit.to_owned(), description(key), since.of(&full)]
}

fn section(schema: &Schema<'_>, name: &str, node: &Value, since: &Since) -> String {
    let rows = schema.keys(node, "").iter().map(|key| row(schema, name, key, since)).collect::<Vec<_>>();
    table(["key", "type", "default", "unit", "meaning", "since"], rows)
}

#[test]
fn the_configuration_page_has_every_key() {
    let root = consign::config::schema().to_value();
    let (schema, since) = (Schema(&root), Since::read("configuration"));
    let sections = root["properties"].as_object().unwrap();
    let order =
        ["broker", "worker", "upload", "session", "aws", "source", "inline", "admin", "metrics", "check", "log"];
    let mut parts: Vec<_> = order.map(|name| (name, section(&schema, name, &sections[name], &since))).into();
    // A place of source.s3 is a table of its own.
    let place = &schema.resolved(&sections["source"])["properties"]["s3"]["items"];
    parts.insert(6, ("source.s3", section(&schema, "source.s3", place, &since)));
    let destination = &sections["destinations"]["additionalProperties"];
    parts.push(("destinations.ID", section(&schema, "destinations.ID", destination, &since)));
    assert_eq!(order.len() + 1, sections.len(), "a section is missing here");
    since.assert_complete();
    assert_parts("deploy/docs/reference/configuration.md", &parts);
}
