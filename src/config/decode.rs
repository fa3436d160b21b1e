//! Decoding of the merged tree into the serde types. Collects every error instead of stopping at
//! the first.

use serde_json::{Value, json};
use serde_path_to_error::Segment;

use super::keys;
use super::raw::RawConfig;

/// A value with the wrong shape, an unknown key or a missing key.
#[derive(Debug)]
pub(super) struct DecodeError {
    /// The path of keys.
    pub(super) path: Vec<String>,
    /// The reason and the remedy.
    pub(super) text: String,
}

/// Errors after which decoding stops. Bounds the work on a hostile file.
const MAX_ERRORS: usize = 200;

/// The result of decoding a tree.
pub(super) struct Decoded {
    /// The decoded configuration. If there are errors, it contains defaults and placeholders in
    /// their places, so that the rest can still be validated. It must not be used for anything
    /// else.
    pub(super) raw: RawConfig,
    /// The errors found.
    pub(super) errors: Vec<DecodeError>,
    /// Paths at which a default or a placeholder replaces a wrong or missing value.
    pub(super) replaced: Vec<Vec<String>>,
}

/// Decodes the tree. Unless it is `complete` (that is, if a file could not be read), a missing key
/// is not an error.
pub(super) fn decode(mut tree: Value, complete: bool) -> Decoded {
    let (mut errors, mut missing) = (Vec::new(), Vec::new());
    remove_unknown(&mut tree, &mut Vec::new(), &mut errors);
    fill_missing(&mut tree, &mut Vec::new(), &mut missing);
    let mut replaced: Vec<_> = missing.iter().chain(&errors).map(|error| error.path.clone()).collect();
    if complete {
        errors.append(&mut missing);
    }
    let raw = loop {
        let error = match serde_path_to_error::deserialize::<_, RawConfig>(&tree) {
            Ok(raw) => break raw,
            Err(error) => error,
        };
        let path = keys_of(error.path());
        let text = plain_text(&error.inner().to_string(), keys::is_secret(&path));
        errors.push(DecodeError { path: path.clone(), text });
        if errors.len() > MAX_ERRORS || !repair(&mut tree, &path) {
            break RawConfig::default();
        }
        replaced.push(path);
    };
    Decoded { raw, errors, replaced }
}

fn keys_of(path: &serde_path_to_error::Path) -> Vec<String> {
    let keys = path.iter().map_while(|segment| match segment {
        Segment::Map { key } => Some(key.clone()),
        _ => None,
    });
    keys.collect()
}

/// Translates a message of serde into plain text. Leaves out the value of a secret.
fn plain_text(message: &str, secret: bool) -> String {
    let rest = message.strip_prefix("invalid type: ").or_else(|| message.strip_prefix("invalid value: "));
    let Some((found, wanted)) = rest.and_then(|rest| rest.split_once(", expected ")) else {
        return if secret { "does not fit; give text in quotes".to_owned() } else { message.to_owned() };
    };
    let wanted = match wanted {
        "u32" | "u64" | "usize" => "a whole number",
        "a nonzero u32" | "a nonzero u64" => "a whole number of at least 1",
        "path string" | "a string" => "text in quotes",
        "a boolean" => "true or false",
        "a sequence" => "a list",
        other if other.starts_with("struct ") || other == "a map" => "a table",
        other => other,
    };
    if secret { format!("does not fit; give {wanted}") } else { format!("{found} does not fit; give {wanted}") }
}

fn remove_unknown(node: &mut Value, path: &mut Vec<String>, errors: &mut Vec<DecodeError>) {
    let (Some(schema), Some(table)) = (keys::schema_at(path), node.as_object_mut()) else { return };
    table.retain(|key, _| {
        path.push(key.clone());
        let known = !keys::is_closed(schema) || keys::schema_at(path).is_some();
        if !known {
            let text = format!("unknown key; {}", keys::suggestion(path));
            errors.push(DecodeError { path: path.clone(), text });
        }
        path.pop();
        known
    });
    for (key, inner) in table {
        path.push(key.clone());
        remove_unknown(inner, path, errors);
        path.pop();
    }
}

fn fill_missing(node: &mut Value, path: &mut Vec<String>, errors: &mut Vec<DecodeError>) {
    let (Some(schema), Some(table)) = (keys::schema_at(path), node.as_object_mut()) else { return };
    for key in keys::required(schema).filter(|key| !table.contains_key(*key)).collect::<Vec<_>>() {
        let path = path.iter().cloned().chain([key.to_owned()]).collect();
        errors.push(DecodeError { path, text: "is required; add it".to_owned() });
        table.insert(key.to_owned(), placeholder(key));
    }
    for (key, inner) in table {
        path.push(key.clone());
        fill_missing(inner, path, errors);
        path.pop();
    }
}

/// Removes the value at `path`, or replaces a required one by a placeholder. Returns false if there
/// was nothing to remove or replace.
fn repair(tree: &mut Value, path: &[String]) -> bool {
    let Some((key, parent)) = path.split_last() else { return false };
    let table = parent.iter().try_fold(tree, |node, key| node.get_mut(key)).and_then(Value::as_object_mut);
    let Some(table) = table else { return false };
    let required = keys::schema_at(parent).is_some_and(|schema| keys::required(schema).any(|name| name == key));
    let old = if required { table.insert(key.clone(), placeholder(key)) } else { table.remove(key) };
    old.is_some_and(|old| !required || old != placeholder(key))
}

fn placeholder(key: &str) -> Value {
    match key {
        "auth" => json!({"method": "iam_role"}),
        "method" => json!("iam_role"),
        _ => json!(""),
    }
}
