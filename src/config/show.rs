//! Every value with its origin, secrets masked: what `consign config show` prints.

use std::fmt;

use serde_json::Value;

use super::keys;
use super::layers::Layers;
use super::problems::Place;

/// What stands in the place of a secret.
const MASK: &str = "***";

/// One value of the merged configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Setting {
    /// The dotted key.
    pub key: String,
    /// The value, masked where it is a secret.
    pub value: Value,
    /// Where it was given.
    pub origin: Place,
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {}  # {}", self.key, self.value, self.origin)
    }
}

/// The leaves of the tree in the order of their keys.
pub(super) fn settings(tree: &Value, layers: &Layers) -> Vec<Setting> {
    let mut found = Vec::new();
    collect(tree, &mut Vec::new(), layers, &mut found);
    found
}

fn collect(node: &Value, path: &mut Vec<String>, layers: &Layers, found: &mut Vec<Setting>) {
    if let Some(table) = node.as_object() {
        for (key, inner) in table {
            path.push(key.clone());
            collect(inner, path, layers, found);
            path.pop();
        }
        return;
    }
    let value = if keys::is_secret(path) { Value::from(masked(path, node)) } else { node.clone() };
    found.push(Setting { key: path.join("."), value, origin: layers.origin(path) });
}

/// A broker's URL without its password and query; `***` for any other secret.
fn masked(path: &[String], secret: &Value) -> String {
    let is_url = path.last().is_some_and(|key| key == "url");
    let Some(text) = secret.as_str().filter(|_| is_url) else { return MASK.to_owned() };
    if text.starts_with("sqlite:") {
        return text.to_owned();
    }
    let Ok(mut url) = url::Url::parse(text) else { return MASK.to_owned() };
    let amqp = matches!(url.scheme(), "amqp" | "amqps");
    if !amqp || (url.password().is_some() && url.set_password(Some(MASK)).is_err()) {
        return MASK.to_owned();
    }
    url.set_query(None);
    url.to_string()
}
