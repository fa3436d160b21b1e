//! Every value with its origin and with secrets masked, for `consign config show`.

use serde::Serialize;
use serde_json::Value;

use super::keys;
use super::layers::Layers;
use super::problems::ValueOrigin;
use super::tree::TreeNode;

/// Text shown instead of a secret.
const MASK: &str = "***";

/// One value of the merged configuration.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EffectiveSetting {
    /// The dotted key.
    #[serde(skip)]
    pub key: String,
    /// The value; masked if it is a secret.
    pub value: Value,
    /// Origin of the value.
    #[serde(flatten)]
    pub origin: ValueOrigin,
}

/// Returns the leaves of the merged tree in the order of their keys, without one section.
pub(super) fn effective_settings(layers: &Layers, left_out: Option<&str>) -> Vec<EffectiveSetting> {
    let mut found = Vec::new();
    let sections = layers.root.entries().into_iter().flatten();
    for (key, section) in sections.filter(|(key, _)| Some(key.as_str()) != left_out) {
        collect(section, &mut vec![key.clone()], layers, &mut found);
    }
    found
}

fn collect(node: &TreeNode, path: &mut Vec<String>, layers: &Layers, found: &mut Vec<EffectiveSetting>) {
    for (key, inner) in node.entries().into_iter().flatten() {
        path.push(key.clone());
        collect(inner, path, layers, found);
        path.pop();
    }
    if node.entries().is_some() {
        return;
    }
    let value = node.value();
    let value = if keys::is_secret(path) { Value::from(masked(path, &value)) } else { value };
    found.push(EffectiveSetting { key: path.join("."), value, origin: layers.origin_of(node) });
}

/// Masks the password of a broker URL and removes its query. Returns `***` for any other secret.
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
