//! Rows for the keys of a JSON Schema: name, type, default, description.

use serde_json::Value;

/// A key of an object.
pub(super) struct Key<'a> {
    /// Dotted name.
    pub(super) name: String,
    /// Its schema, references not resolved.
    pub(super) node: &'a Value,
    pub(super) required: bool,
}

/// A schema with its definitions.
pub(super) struct Schema<'a>(pub(super) &'a Value);

impl<'a> Schema<'a> {
    /// The definition that a node refers to, or itself. An optional one counts as the one.
    pub(super) fn resolved(&self, node: &'a Value) -> &'a Value {
        if let Some(path) = node["$ref"].as_str() {
            return self.0.pointer(path.trim_start_matches('#')).unwrap();
        }
        match node["anyOf"].as_array().map(Vec::as_slice) {
            Some([one, null]) if null["type"] == "null" => self.resolved(one),
            _ => node,
        }
    }

    /// The keys of an object, in the order of the names. An object that is not a map of anything is
    /// followed by its own keys.
    pub(super) fn keys(&self, object: &'a Value, prefix: &str) -> Vec<Key<'a>> {
        let object = self.resolved(object);
        let required = object["required"].as_array();
        let mut keys = Vec::new();
        for (name, node) in object["properties"].as_object().unwrap() {
            let required = required.is_some_and(|names| names.iter().any(|one| one == name));
            let key = Key { name: format!("{prefix}{name}"), node, required };
            let inner = self.resolved(node);
            let below = inner["properties"].is_object().then(|| self.keys(inner, &format!("{}.", key.name)));
            keys.push(key);
            keys.extend(below.into_iter().flatten());
        }
        keys
    }

    /// Type of a node, in words.
    pub(super) fn kind(&self, node: &'a Value) -> String {
        let name = node["$ref"].as_str().or_else(|| node["anyOf"][0]["$ref"].as_str()).unwrap_or_default();
        if let Some(unit) = ["size", "duration"].into_iter().find(|unit| name.ends_with(&format!("/{unit}"))) {
            return unit.to_owned();
        }
        let node = self.resolved(node);
        if let Some(values) = choices(node) {
            return values;
        }
        match plain_type(node) {
            "integer" => integer(node),
            "array" => format!("list of {}s", self.kind(&node["items"])),
            "object" if node["additionalProperties"]["type"] == "string" => "table of strings".to_owned(),
            "object" => "table".to_owned(),
            "" => "string or table".to_owned(),
            other => other.to_owned(),
        }
    }
}

/// The type beside null; empty if there are several.
fn plain_type(node: &Value) -> &str {
    let several = || node["type"].as_array()?.iter().filter_map(Value::as_str).find(|kind| *kind != "null");
    node["type"].as_str().or_else(several).unwrap_or_default()
}

/// The values of a closed set.
fn choices(node: &Value) -> Option<String> {
    let consts = || node["oneOf"].as_array()?.iter().map(|one| one.get("const")).collect::<Option<Vec<_>>>();
    let values = node["enum"].as_array().map(|values| values.iter().filter(|value| !value.is_null()).collect());
    let values: Vec<_> = values.or_else(consts)?;
    Some(values.into_iter().map(|value| format!("`{value}`")).collect::<Vec<_>>().join(" or "))
}

fn integer(node: &Value) -> String {
    match (node["const"].as_u64(), node["minimum"].as_u64().unwrap_or_default()) {
        (Some(one), _) => format!("`{one}`"),
        (None, 0) => "integer".to_owned(),
        (None, least) => format!("integer, at least {least}"),
    }
}

/// The default of a key, as it is written in TOML or JSON.
pub(super) fn default(key: &Key<'_>) -> String {
    match &key.node["default"] {
        _ if key.required => "required".to_owned(),
        Value::Null if key.node["type"] == "boolean" => "`false`".to_owned(),
        Value::Null | Value::Object(_) => String::new(),
        value => format!("`{value}`"),
    }
}

/// The description of a key in one line.
pub(super) fn description(key: &Key<'_>) -> String {
    let text = key.node["description"].as_str().unwrap_or_else(|| panic!("{} has no description", key.name));
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
