//! From the merged tree to the serde mirror, noting every misfit instead of stopping at the first.

use serde_json::{Value, json};
use serde_path_to_error::Segment;

use super::keys;
use super::raw::RawConfig;

/// A misfit: the path of keys, the reason and the remedy.
pub(super) type Misfit = (Vec<String>, String);

/// More misfits than anybody reads at once; it also bounds the work on a hostile file.
const MOST: usize = 200;

/// What came of a tree.
pub(super) struct Decoded {
    /// The mirror. With misfits, it holds defaults and placeholders in their places, so that the rest can still be validated;
    /// it must not be used for anything else.
    pub(super) raw: RawConfig,
    /// What did not fit.
    pub(super) misfits: Vec<Misfit>,
    /// Where placeholders and defaults stand for what was given wrongly or not at all.
    pub(super) spoilt: Vec<Vec<String>>,
}

/// Reads the tree. Unless it is `complete` (a file could not be read), a missing key is no misfit.
pub(super) fn decode(mut tree: Value, complete: bool) -> Decoded {
    let (mut misfits, mut missing) = (Vec::new(), Vec::new());
    remove_unknown(&mut tree, &mut Vec::new(), &mut misfits);
    fill_missing(&mut tree, &mut Vec::new(), &mut missing);
    let mut spoilt: Vec<Vec<String>> = missing.iter().chain(&misfits).map(|(path, _)| path.clone()).collect();
    if complete {
        misfits.append(&mut missing);
    }
    let raw = loop {
        let error = match serde_path_to_error::deserialize::<_, RawConfig>(&tree) {
            Ok(raw) => break raw,
            Err(error) => error,
        };
        let path = keys_of(error.path());
        misfits.push((path.clone(), plain(&error.inner().to_string(), keys::is_secret(&path))));
        if misfits.len() > MOST || !repair(&mut tree, &path) {
            break RawConfig::default();
        }
        spoilt.push(path);
    };
    Decoded { raw, misfits, spoilt }
}

fn keys_of(path: &serde_path_to_error::Path) -> Vec<String> {
    let keys = path.iter().map_while(|segment| match segment {
        Segment::Map { key } => Some(key.clone()),
        _ => None,
    });
    keys.collect()
}

/// Serde's words in ours. The value of a secret is left out.
fn plain(message: &str, secret: bool) -> String {
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

fn remove_unknown(node: &mut Value, path: &mut Vec<String>, misfits: &mut Vec<Misfit>) {
    let (Some(schema), Some(table)) = (keys::schema_at(path), node.as_object_mut()) else { return };
    table.retain(|key, _| {
        path.push(key.clone());
        let known = !keys::is_closed(schema) || keys::schema_at(path).is_some();
        if !known {
            misfits.push((path.clone(), format!("unknown key; {}", keys::suggestion(path))));
        }
        path.pop();
        known
    });
    for (key, inner) in table {
        path.push(key.clone());
        remove_unknown(inner, path, misfits);
        path.pop();
    }
}

fn fill_missing(node: &mut Value, path: &mut Vec<String>, misfits: &mut Vec<Misfit>) {
    let (Some(schema), Some(table)) = (keys::schema_at(path), node.as_object_mut()) else { return };
    for key in keys::required(schema).filter(|key| !table.contains_key(*key)).collect::<Vec<_>>() {
        let missing = path.iter().cloned().chain([key.to_owned()]).collect();
        misfits.push((missing, "is required; add it".to_owned()));
        table.insert(key.to_owned(), placeholder(key));
    }
    for (key, inner) in table {
        path.push(key.clone());
        fill_missing(inner, path, misfits);
        path.pop();
    }
}

/// Takes the value at `path` away; one that must be there becomes a placeholder. False when there was none.
fn repair(tree: &mut Value, path: &[String]) -> bool {
    let Some((key, parent)) = path.split_last() else { return false };
    let table = parent.iter().try_fold(tree, |node, key| node.get_mut(key)).and_then(Value::as_object_mut);
    let Some(table) = table else { return false };
    let must = keys::schema_at(parent).is_some_and(|schema| keys::required(schema).any(|name| name == key));
    let old = if must { table.insert(key.clone(), placeholder(key)) } else { table.remove(key) };
    old.is_some_and(|old| !must || old != placeholder(key))
}

fn placeholder(key: &str) -> Value {
    match key {
        "auth" => json!({"method": "iam_role"}),
        "method" => json!("iam_role"),
        _ => json!(""),
    }
}
