//! Decoding of the merged tree into the serde types. Collects every error instead of stopping at
//! the first.

use std::collections::HashSet;

use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use serde_path_to_error::Segment;

use super::keys;
use super::raw::RawConfig;
use super::tree::TreeNode;

/// A value with the wrong shape, an unknown key or a missing key.
#[derive(Debug)]
pub(super) struct DecodeError {
    /// The path of keys.
    pub(super) path: Vec<String>,
    /// The reason and the remedy.
    pub(super) text: String,
}

/// Errors of one table after which its decoding stops. Bounds the work on a hostile file.
const MAX_ERRORS: usize = 200;

/// The result of decoding a tree.
#[derive(Default)]
pub(super) struct Decoded {
    /// The decoded configuration. If there are errors, it contains defaults and placeholders in
    /// their places, so that the rest can still be validated. It must not be used for anything
    /// else.
    pub(super) raw: RawConfig,
    /// The errors found.
    pub(super) errors: Vec<DecodeError>,
    /// Paths at which a default or a placeholder replaces a wrong or missing value.
    pub(super) replaced: HashSet<Vec<String>>,
}

/// Decodes the tree, each destination by itself: a wrong one costs the others no second pass.
/// Unless the tree is `complete` (that is, if a file could not be read), a missing key is not an
/// error.
pub(super) fn decode(root: &TreeNode, complete: bool) -> Decoded {
    let mut decoded = Decoded::default();
    let is_table = |node: &TreeNode| node.entries().is_some();
    let destinations = root.at(&["destinations".to_owned()]).filter(|node| is_table(node));
    let left_out = destinations.map(|_| "destinations");
    decoded.raw = decoded.decode_table(root.value_without(left_out), &[], complete).unwrap_or_default();
    for (id, node) in destinations.and_then(TreeNode::entries).into_iter().flatten() {
        let path = ["destinations".to_owned(), id.clone()];
        if let Some(destination) = decoded.decode_table(node.value(), &path, complete) {
            decoded.raw.destinations.insert(id.clone(), destination);
        }
    }
    decoded
}

impl Decoded {
    /// Decodes the table at `path`. Returns `None` if nothing of it can be used.
    fn decode_table<T: DeserializeOwned>(&mut self, mut table: Value, path: &[String], complete: bool) -> Option<T> {
        // Most tables are right. Unknown and missing keys are errors of serde, too.
        if let Ok(whole) = T::deserialize(&table) {
            return Some(whole);
        }
        let (mut errors, mut missing) = (Vec::new(), Vec::new());
        remove_unknown(&mut table, &mut path.to_vec(), &mut errors);
        fill_missing(&mut table, &mut path.to_vec(), &mut missing);
        self.replaced.extend(missing.iter().chain(&errors).map(|error| error.path.clone()));
        if complete {
            errors.append(&mut missing);
        }
        let decoded = loop {
            let error = match serde_path_to_error::deserialize::<_, T>(&table) {
                Ok(whole) => break Some(whole),
                Err(error) => error,
            };
            let inner = keys_of(error.path());
            let at = [path, &inner].concat();
            errors.push(DecodeError { path: at.clone(), text: plain_text(&error.inner().to_string()) });
            if errors.len() > MAX_ERRORS || !repair(&mut table, path, &inner) {
                break None;
            }
            self.replaced.insert(at);
        };
        self.errors.append(&mut errors);
        decoded
    }
}

fn keys_of(path: &serde_path_to_error::Path) -> Vec<String> {
    let keys = path.iter().map_while(|segment| match segment {
        Segment::Map { key } => Some(key.clone()),
        _ => None,
    });
    keys.collect()
}

/// Translates a message of serde into plain text. Only its constant parts are kept: the value that
/// it quotes may be a secret at the wrong place.
fn plain_text(message: &str) -> String {
    let (found, expected) = message.split_once(", expected ").unwrap_or((message, ""));
    if let Some(found) = found.strip_prefix("invalid type: ") {
        let wanted = wanted(expected);
        let negative = found.starts_with("integer `-") && !wanted.starts_with("text");
        return format!("is {}; give {wanted}", if negative { "negative" } else { kind(found) });
    }
    if let Some(found) = found.strip_prefix("invalid value: ") {
        let what = if found.starts_with("integer") { "out of range" } else { "not valid" };
        return format!("is {what}; give {}", wanted(expected));
    }
    if found.starts_with("unknown variant ") {
        return format!("is not a valid value; give {}", expected.trim_start_matches("one of ").replace('`', "\""));
    }
    if found.starts_with("unknown field ") {
        return format!("has an unknown key; valid keys: {}", expected.trim_start_matches("one of ").replace('`', ""));
    }
    match message.strip_prefix("missing field ") {
        Some(field) => format!("the required key {} is missing; add it", field.replace('`', "")),
        None => "is not valid; `consign schema config` describes it".to_owned(),
    }
}

/// The kind of a value, from the words of serde.
fn kind(found: &str) -> &'static str {
    const KINDS: [(&str, &str); 7] = [
        ("string", "text"),
        ("integer", "a whole number"),
        ("floating point", "a number with a fraction"),
        ("boolean", "true or false"),
        ("sequence", "a list"),
        ("map", "a table"),
        ("null", "nothing"),
    ];
    KINDS.iter().find(|(word, _)| found.starts_with(word)).map_or("of another type", |(_, kind)| kind)
}

fn wanted(expected: &str) -> &str {
    match expected {
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number of at least 0",
        "a nonzero u32" | "a nonzero u64" => "a whole number of at least 1",
        "path string" | "a string" | "a borrowed string" | "string or map" => "text in quotes",
        "a boolean" => "true or false",
        "a sequence" => "a list",
        "a map" | "an object" | "an object of strings" => "a table",
        other if other.starts_with("struct ") => "a table",
        other => other,
    }
}

fn remove_unknown(node: &mut Value, path: &mut Vec<String>, errors: &mut Vec<DecodeError>) {
    let (Some(schema), Some(table)) = (keys::schema_at(path), node.as_object_mut()) else { return };
    table.retain(|key, _| {
        path.push(key.clone());
        let known = !keys::is_closed(schema) || keys::schema_at(path).is_some();
        if !known {
            errors.push(DecodeError { path: path.clone(), text: keys::unknown(path) });
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

/// Removes the value at `inner` in the table at `path`, or replaces a required one by a
/// placeholder. Returns false if there was nothing to remove or replace.
fn repair(table: &mut Value, path: &[String], inner: &[String]) -> bool {
    let Some((key, parent)) = inner.split_last() else { return false };
    let table = parent.iter().try_fold(table, |node, key| node.get_mut(key)).and_then(Value::as_object_mut);
    let Some(table) = table else { return false };
    let required =
        keys::schema_at(&[path, parent].concat()).is_some_and(|schema| keys::required(schema).any(|name| name == key));
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
