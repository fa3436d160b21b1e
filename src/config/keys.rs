//! Lookups in the schema of the configuration: type of a key, required keys, secrets, and
//! suggestions for typos.

use std::sync::LazyLock;

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};

use super::raw::RawConfig;

/// The schema with all references inlined, so that a path of keys can be followed.
static SCHEMA: LazyLock<Value> = LazyLock::new(|| {
    let settings = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    settings.into_generator().into_root_schema_for::<RawConfig>().to_value()
});

/// Returns the schema of the value at `path`; `None` for an unknown key.
pub(super) fn schema_at(path: &[String]) -> Option<&'static Value> {
    path.iter().try_fold(&*SCHEMA, |node, key| {
        let known = node.get("properties").and_then(|properties| properties.get(key));
        known.or_else(|| node.get("additionalProperties").filter(|any| any.is_object()))
    })
}

/// Returns the required keys of a table.
pub(super) fn required(table: &Value) -> impl Iterator<Item = &str> {
    table.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
}

/// Returns true for a table that allows no other keys than those in its schema.
pub(super) fn is_closed(table: &Value) -> bool {
    table.get("additionalProperties") == Some(&Value::Bool(false))
}

/// Returns true if the value must not be shown.
pub(super) fn is_secret(path: &[String]) -> bool {
    match path.last().map(String::as_str) {
        Some("secret_access_key") => true,
        Some("external_id") => path[0] != "inline",
        Some("url") => path.len() == 2 && path[0] == "broker",
        _ => false,
    }
}

/// Parses the text of a variable or a flag according to the schema. The value of a text key stays
/// text, even if it is all digits. Text that does not parse stays text, too, and is refused later
/// as any other value.
pub(super) fn parse_text(path: &[String], text: &str) -> Value {
    let Some(schema) = schema_at(path) else { return Value::from(text) };
    let is = |kind: &str| match &schema["type"] {
        Value::String(only) => only == kind,
        Value::Array(several) => several.iter().any(|one| one == kind),
        _ => false,
    };
    let toml = |text: &str| {
        let document = toml::from_str::<toml::Table>(&format!("value = {text}")).ok()?;
        serde_json::to_value(document.get("value")?).ok()
    };
    let read = match text.trim() {
        _ if is("string") => None,
        trimmed if is("array") && !trimmed.starts_with('[') => {
            Some(trimmed.split(',').map(str::trim).filter(|item| !item.is_empty()).map(Value::from).collect())
        }
        trimmed if ["boolean", "integer", "array", "object"].iter().any(|kind| is(kind)) => toml(trimmed),
        _ => None,
    };
    read.unwrap_or_else(|| Value::from(text))
}

/// Keys that are no more: path, remedy.
const RENAMED: [(&[&str], &str); 1] = [(
    &["source", "s3_buckets"],
    "was renamed to s3; write s3 = [{ bucket = \"NAME\" }], with a prefix for less than all of it",
)];

/// Describes the unknown key at `path`, with a remedy.
pub(super) fn unknown(path: &[String]) -> String {
    match RENAMED.iter().find(|(renamed, _)| path == *renamed) {
        Some((_, remedy)) => (*remedy).to_owned(),
        None => format!("unknown key; {}", suggestion(path)),
    }
}

/// The dotted key of a problem. A key in quotes may be a value at the wrong place: it is not
/// shown.
pub(super) fn shown(path: &[String]) -> String {
    let bare = |key: &str| !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b));
    path.iter().map(|key| if bare(key) { key } else { "\"...\"" }).collect::<Vec<_>>().join(".")
}

/// Suggests a known key for the unknown one at `path`, as a remedy.
fn suggestion(path: &[String]) -> String {
    let Some((wrong, parent)) = path.split_last() else { return String::new() };
    let empty = Map::new();
    let known = schema_at(parent).and_then(|table| table["properties"].as_object()).unwrap_or(&empty);
    let close = known.keys().map(|key| (strsim::damerau_levenshtein(wrong, key), key));
    if let Some((_, key)) = close.filter(|(distance, key)| *distance <= 1 + key.len() / 4).min() {
        return format!("did you mean \"{key}\"?");
    }
    let mut elsewhere = SCHEMA["properties"].as_object().unwrap_or(&empty).iter();
    match elsewhere.find(|(_, section)| section["properties"].get(wrong).is_some()) {
        Some((section, _)) => format!("did you mean \"{section}.{wrong}\"?"),
        None if known.is_empty() => "remove it".to_owned(),
        None => format!("valid keys: {}", known.keys().map(String::as_str).collect::<Vec<_>>().join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn path(key: &str) -> Vec<String> {
        key.split('.').map(str::to_owned).collect()
    }

    #[test]
    fn text_is_parsed_according_to_the_schema() {
        let read = |key: &str, text: &str| parse_text(&path(key), text);
        assert_eq!(read("worker.slots", "4"), json!(4));
        assert_eq!(read("broker.declare", "true"), json!(true));
        assert_eq!(read("broker.declare", "yes"), json!("yes"));
        assert_eq!(read("destinations.acme.tenant", "0042"), json!("0042"));
        assert_eq!(read("destinations.acme.auth.secret_access_key", "12345"), json!("12345"));
        assert_eq!(read("destinations.acme.max_concurrency", "3"), json!(3));
        assert_eq!(read("source.schemes", "https, s3"), json!(["https", "s3"]));
        assert_eq!(read("source.schemes", "[\"https\"]"), json!(["https"]));
        assert_eq!(read("upload.part_size", "8388608"), json!("8388608"));
        assert_eq!(read("destinations.acme.auth", "{ method = \"iam_role\" }"), json!({"method": "iam_role"}));
        assert_eq!(read("no.such.key", "1"), json!("1"));
    }

    #[test]
    fn a_typo_gets_a_suggestion() {
        assert_eq!(suggestion(&path("worker.slot")), "did you mean \"slots\"?");
        assert_eq!(suggestion(&path("borker")), "did you mean \"broker\"?");
        assert_eq!(suggestion(&path("memory_budget")), "did you mean \"worker.memory_budget\"?");
        assert!(suggestion(&path("admin.colour")).contains("listen"));
    }
}
