//! The layers of a configuration (files, environment, flags), with the origin of each value.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::Path;

use figment::Figment;
use figment::providers::Serialized;
use serde_json::{Map, Value};
use toml::de::{DeTable, DeValue};

use super::keys;
use super::problems::{ConfigProblem, ValueOrigin};

/// Prefix of environment variables. Two underscores separate the keys after it.
const ENVIRONMENT_PREFIX: &str = "CONSIGN__";

/// Schemes of URLs that may contain a password.
const AMQP_SCHEMES: [&str; 2] = ["amqp:", "amqps:"];
const SECRET_ON_COMMAND_LINE: &str =
    "a secret may not be given on the command line; use the environment or the key with _file";
/// Text for a URL with an unknown scheme: most likely a mistyped `sqlite:`.
const NOT_A_BROKER_URL: &str = "is not a broker URL; it begins with sqlite:, amqps: or amqp:, and only one with sqlite: may be given on the command \
     line (the others may hold a password: use the environment or broker.url_file)";

/// One source of values.
#[derive(Debug)]
struct Layer {
    tree: Value,
    origin: ValueOrigin,
    lines: HashMap<Vec<String>, usize>,
}

impl Layer {
    fn origin_of(&self, path: &[String]) -> Option<ValueOrigin> {
        path.iter().try_fold(&self.tree, |node, key| node.get(key))?;
        Some(match &self.origin {
            ValueOrigin::File { file, .. } => {
                ValueOrigin::File { file: file.clone(), line: self.lines.get(path).copied() }
            }
            other => other.clone(),
        })
    }
}

/// All layers, lowest first.
#[derive(Debug, Default)]
pub(super) struct Layers {
    layers: Vec<Layer>,
    /// Files and variables that could not be read. Unless this is empty, a missing key is not a
    /// problem.
    pub(super) problems: Vec<ConfigProblem>,
}

impl Layers {
    /// Adds a TOML file.
    pub(super) fn file(&mut self, file: &Path) {
        match std::fs::read_to_string(file) {
            Ok(text) => self.text(file, &text),
            Err(problem) => self.refuse(
                ValueOrigin::File { file: file.to_owned(), line: None },
                "",
                format!("cannot be read ({problem}); give the path of a readable TOML file"),
            ),
        }
    }

    /// Adds the TOML text of `file`.
    pub(super) fn text(&mut self, file: &Path, text: &str) {
        let offsets = LineIndex::of(text);
        let (table, errors) = DeTable::parse_recoverable(text);
        for error in &errors {
            let line = error.span().map(|span| offsets.at(span.start));
            let origin = ValueOrigin::File { file: file.to_owned(), line };
            // Only the message: the error's Display quotes the line, which may contain a secret.
            self.refuse(origin, "", format!("not valid TOML ({}); correct the syntax", error.message()));
        }
        if !errors.is_empty() {
            return;
        }
        let tree = toml::from_str::<toml::Table>(text).ok().and_then(|table| serde_json::to_value(table).ok());
        let mut lines = HashMap::new();
        offsets.note(table.get_ref(), &mut Vec::new(), &mut lines);
        let origin = ValueOrigin::File { file: file.to_owned(), line: None };
        self.layers.push(Layer { tree: tree.unwrap_or_default(), origin, lines });
    }

    /// Adds every variable that begins with `CONSIGN__`, in the order of their names.
    pub(super) fn environment(&mut self, variables: impl IntoIterator<Item = (OsString, OsString)>) {
        let mut variables: Vec<(String, OsString)> = variables
            .into_iter()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
            .filter(|(name, _)| name.starts_with(ENVIRONMENT_PREFIX))
            .collect();
        variables.sort();
        for (name, value) in variables {
            let key = name.trim_start_matches(ENVIRONMENT_PREFIX).to_lowercase();
            let path: Vec<String> = key.split("__").map(str::to_owned).collect();
            let origin = ValueOrigin::Environment { variable: name };
            match value.into_string() {
                Ok(text) => self.scalar(origin, &path, &text),
                Err(_) => self.refuse(origin, &path.join("."), "is not UTF-8; give plain text".to_owned()),
            }
        }
    }

    /// Adds a flag: a dotted key and its value.
    pub(super) fn flag(&mut self, key: &str, value: &str) {
        let origin = ValueOrigin::Flag { flag: format!("--set {key}") };
        let path: Vec<String> = key.split('.').map(str::to_owned).collect();
        // Every user of the machine can see a command line.
        if keys::is_secret(&path) && !value.starts_with("sqlite:") {
            let mistyped = key == "broker.url" && !AMQP_SCHEMES.iter().any(|scheme| value.starts_with(scheme));
            let text = if mistyped { NOT_A_BROKER_URL } else { SECRET_ON_COMMAND_LINE };
            return self.refuse(origin, key, text.to_owned());
        }
        self.scalar(origin, &path, value);
    }

    fn scalar(&mut self, origin: ValueOrigin, path: &[String], text: &str) {
        let value = keys::parse_text(path, text);
        let nest = |inner, key: &String| Value::Object(Map::from_iter([(key.clone(), inner)]));
        let tree = path.iter().rev().fold(value, nest);
        self.layers.push(Layer { tree, origin, lines: HashMap::new() });
    }

    fn refuse(&mut self, origin: ValueOrigin, key: &str, text: String) {
        self.problems.push(ConfigProblem { origin, key: key.to_owned(), text });
    }

    /// Merges all layers into one tree. Later layers override earlier ones.
    pub(super) fn merged(&self, defaults: &Value) -> Value {
        let base = Figment::from(Serialized::defaults(defaults));
        let all = self.layers.iter().fold(base, |all, layer| all.merge(Serialized::defaults(&layer.tree)));
        all.extract().unwrap_or_default()
    }

    /// Returns the origin of the value at `path`; `Default` if no layer sets it.
    pub(super) fn origin(&self, path: &[String]) -> ValueOrigin {
        self.layers.iter().rev().find_map(|layer| layer.origin_of(path)).unwrap_or(ValueOrigin::Default)
    }

    /// Returns the origin of the value at `path`, or of the nearest table around a missing value.
    pub(super) fn nearest(&self, path: &[String]) -> ValueOrigin {
        let origins = (1..=path.len()).rev().map(|length| self.origin(&path[..length]));
        origins.into_iter().find(|origin| *origin != ValueOrigin::Default).unwrap_or(ValueOrigin::Default)
    }
}

/// Line numbers by offset. A scan for each key would be quadratic in a file with ten thousand
/// destinations.
struct LineIndex(Vec<usize>);

impl LineIndex {
    fn of(text: &str) -> Self {
        Self(text.match_indices('\n').map(|(offset, _)| offset).collect())
    }

    fn at(&self, offset: usize) -> usize {
        self.0.partition_point(|newline| *newline < offset) + 1
    }

    fn note(&self, table: &DeTable<'_>, path: &mut Vec<String>, found: &mut HashMap<Vec<String>, usize>) {
        for (key, value) in table {
            path.push(key.get_ref().to_string());
            found.insert(path.clone(), self.at(key.span().start));
            if let DeValue::Table(inner) = value.get_ref() {
                self.note(inner, path, found);
            }
            path.pop();
        }
    }
}
