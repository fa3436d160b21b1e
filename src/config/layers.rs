//! The layers a configuration is made of: files, environment, flags; each knows where its values were written.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::Path;

use figment::Figment;
use figment::providers::Serialized;
use serde_json::{Map, Value};
use toml::de::{DeTable, DeValue};

use super::keys;
use super::problems::{Place, Problem};

/// The prefix of environment variables; the words after it are divided by two underscores.
const ENVIRONMENT: &str = "CONSIGN__";

/// Schemes of URLs that hold a password, or may.
const BROKERS: [&str; 2] = ["amqp:", "amqps:"];
const SECRET: &str = "a secret may not be given on the command line; use the environment or the key with _file";
/// Here `sqlite:` was mistyped, most likely.
const NO_BROKER: &str = "is no broker URL; it begins with sqlite:, amqps: or amqp:, and only one with sqlite: may be given on the command \
     line (the others may hold a password: use the environment or broker.url_file)";

/// One source of values.
#[derive(Debug)]
struct Layer {
    tree: Value,
    place: Place,
    lines: HashMap<Vec<String>, usize>,
}

impl Layer {
    fn place_of(&self, path: &[String]) -> Option<Place> {
        path.iter().try_fold(&self.tree, |node, key| node.get(key))?;
        Some(match &self.place {
            Place::File(file, _) => Place::File(file.clone(), self.lines.get(path).copied()),
            other => other.clone(),
        })
    }
}

/// All layers, lowest first.
#[derive(Debug, Default)]
pub(super) struct Layers {
    layers: Vec<Layer>,
    /// What could not even be read. Unless it is empty, a missing key means nothing.
    pub(super) problems: Vec<Problem>,
}

impl Layers {
    /// Adds a TOML file.
    pub(super) fn file(&mut self, file: &Path) {
        match std::fs::read_to_string(file) {
            Ok(text) => self.text(file, &text),
            Err(problem) => self.refuse(
                Place::File(file.to_owned(), None),
                "",
                format!("cannot be read ({problem}); give the path of a readable TOML file"),
            ),
        }
    }

    /// Adds TOML text that stands in `file`.
    pub(super) fn text(&mut self, file: &Path, text: &str) {
        let offsets = Lines::of(text);
        let (table, errors) = DeTable::parse_recoverable(text);
        for error in &errors {
            let line = error.span().map(|span| offsets.at(span.start));
            let place = Place::File(file.to_owned(), line);
            // The message alone: the error's Display quotes the line, which may hold a secret.
            self.refuse(place, "", format!("not valid TOML ({}); correct the syntax", error.message()));
        }
        if !errors.is_empty() {
            return;
        }
        let tree = toml::from_str::<toml::Table>(text).ok().and_then(|table| serde_json::to_value(table).ok());
        let mut lines = HashMap::new();
        offsets.note(table.get_ref(), &mut Vec::new(), &mut lines);
        let place = Place::File(file.to_owned(), None);
        self.layers.push(Layer { tree: tree.unwrap_or_default(), place, lines });
    }

    /// Adds every variable that begins with `CONSIGN__`, in the order of their names.
    pub(super) fn environment(&mut self, variables: impl IntoIterator<Item = (OsString, OsString)>) {
        let mut ours: Vec<(String, OsString)> = variables
            .into_iter()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
            .filter(|(name, _)| name.starts_with(ENVIRONMENT))
            .collect();
        ours.sort();
        for (name, value) in ours {
            let key = name.trim_start_matches(ENVIRONMENT).to_lowercase();
            let path: Vec<String> = key.split("__").map(str::to_owned).collect();
            let place = Place::Environment(name);
            match value.into_string() {
                Ok(text) => self.scalar(place, &path, &text),
                Err(_) => self.refuse(place, &path.join("."), "is not UTF-8; give plain text".to_owned()),
            }
        }
    }

    /// Adds a flag: a dotted key and its value.
    pub(super) fn flag(&mut self, key: &str, value: &str) {
        let place = Place::Flag(format!("--set {key}"));
        let path: Vec<String> = key.split('.').map(str::to_owned).collect();
        // What stands on a command line is seen by everybody on the machine.
        if keys::is_secret(&path) && !value.starts_with("sqlite:") {
            let mistyped = key == "broker.url" && !BROKERS.iter().any(|scheme| value.starts_with(scheme));
            let text = if mistyped { NO_BROKER } else { SECRET };
            return self.refuse(place, key, text.to_owned());
        }
        self.scalar(place, &path, value);
    }

    fn scalar(&mut self, place: Place, path: &[String], text: &str) {
        let value = keys::read_text(path, text);
        let nest = |inner, key: &String| Value::Object(Map::from_iter([(key.clone(), inner)]));
        let tree = path.iter().rev().fold(value, nest);
        self.layers.push(Layer { tree, place, lines: HashMap::new() });
    }

    fn refuse(&mut self, place: Place, key: &str, text: String) {
        self.problems.push(Problem { place, key: key.to_owned(), text });
    }

    /// All layers in one tree, later ones over earlier ones.
    pub(super) fn merged(&self, defaults: &Value) -> Value {
        let base = Figment::from(Serialized::defaults(defaults));
        let all = self.layers.iter().fold(base, |all, layer| all.merge(Serialized::defaults(&layer.tree)));
        all.extract().unwrap_or_default()
    }

    /// Where the value at `path` was given; `Default` if nowhere.
    pub(super) fn origin(&self, path: &[String]) -> Place {
        self.layers.iter().rev().find_map(|layer| layer.place_of(path)).unwrap_or(Place::Default)
    }

    /// As [`Layers::origin`]; for a value that is missing, where the nearest table around it was opened.
    pub(super) fn nearest(&self, path: &[String]) -> Place {
        let origins = (1..=path.len()).rev().map(|length| self.origin(&path[..length]));
        origins.into_iter().find(|place| *place != Place::Default).unwrap_or(Place::Default)
    }
}

/// Finds lines by offset. A scan for each key would be quadratic in a file of ten thousand destinations.
struct Lines(Vec<usize>);

impl Lines {
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
