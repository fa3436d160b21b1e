//! The values of a layer, and of all layers merged: a tree in which each value knows its origin.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use toml::de::{DeTable, DeValue};

/// Place of a value: its layer, by number, and the line in a file (0 if there is none).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) layer: usize,
    pub(super) line: usize,
}

/// The offsets of the line ends of a text: a scan for each key would be quadratic in a file with
/// ten thousand destinations.
pub(super) struct LineIndex(Vec<usize>);

impl LineIndex {
    pub(super) fn of(text: &str) -> Self {
        Self(text.match_indices('\n').map(|(offset, _)| offset).collect())
    }

    /// Returns the number of the line at this offset; the first is 1.
    pub(super) fn at(&self, offset: usize) -> usize {
        self.0.partition_point(|newline| *newline < offset) + 1
    }
}

/// A value, or a table of them. Its `Debug` shows no values: some are secret.
#[derive(Clone)]
pub(super) struct TreeNode {
    pub(super) place: Place,
    content: Content,
}

#[derive(Clone)]
enum Content {
    Value(Value),
    Table(BTreeMap<String, TreeNode>),
}

impl TreeNode {
    /// A value of one place. Objects become tables.
    pub(super) fn of_value(value: Value, place: Place) -> Self {
        let content = match value {
            Value::Object(table) => {
                Content::Table(table.into_iter().map(|(key, inner)| (key, Self::of_value(inner, place))).collect())
            }
            value => Content::Value(value),
        };
        Self { place, content }
    }

    /// A table of a TOML file. The error is the line of a number that is out of range.
    pub(super) fn of_toml(table: &DeTable<'_>, place: Place, lines: &LineIndex) -> Result<Self, usize> {
        let entries = table.iter().map(|(key, value)| {
            let place = Place { line: lines.at(key.span().start), ..place };
            let node = match value.get_ref() {
                DeValue::Table(inner) => Self::of_toml(inner, place, lines)?,
                other => Self { place, content: Content::Value(leaf(other).ok_or(place.line)?) },
            };
            Ok::<_, usize>((key.get_ref().to_string(), node))
        });
        Ok(Self { place, content: Content::Table(entries.collect::<Result<_, _>>()?) })
    }

    /// The entries of a table; `None` for a value.
    pub(super) fn entries(&self) -> Option<&BTreeMap<String, Self>> {
        match &self.content {
            Content::Table(entries) => Some(entries),
            Content::Value(_) => None,
        }
    }

    /// The entries of a table, to change them.
    pub(super) fn entries_mut(&mut self) -> Option<&mut BTreeMap<String, Self>> {
        match &mut self.content {
            Content::Table(entries) => Some(entries),
            Content::Value(_) => None,
        }
    }

    /// The node at a path of keys.
    pub(super) fn at(&self, path: &[String]) -> Option<&Self> {
        path.iter().try_fold(self, |node, key| node.entries()?.get(key))
    }

    /// Merges a higher layer into this one: tables entry by entry, values replaced.
    pub(super) fn merge(&mut self, higher: Self) {
        self.place = higher.place;
        match (&mut self.content, higher.content) {
            (Content::Table(entries), Content::Table(others)) => {
                for (key, other) in others {
                    match entries.get_mut(&key) {
                        Some(entry) => entry.merge(other),
                        None => drop(entries.insert(key, other)),
                    }
                }
            }
            (content, other) => *content = other,
        }
    }

    /// Sets a value below a path of keys, of which `*` stands for every key there is, unless a
    /// layer above the defaults has set it.
    pub(super) fn fill(&mut self, path: &[String], node: &Self) {
        let (Some((key, rest)), Some(entries)) = (path.split_first(), self.entries_mut()) else { return };
        if key == "*" {
            entries.values_mut().for_each(|inner| inner.fill(rest, node));
        } else if !rest.is_empty() {
            entries.get_mut(key).into_iter().for_each(|inner| inner.fill(rest, node));
        } else if entries.get(key).is_none_or(|present| present.place.layer == 0) {
            entries.insert(key.clone(), node.clone());
        }
    }

    /// The value, with the tables as objects.
    pub(super) fn value(&self) -> Value {
        self.value_without(None)
    }

    /// The value without one key.
    pub(super) fn value_without(&self, left_out: Option<&str>) -> Value {
        match &self.content {
            Content::Value(value) => value.clone(),
            Content::Table(entries) => {
                let kept = entries.iter().filter(|(key, _)| Some(key.as_str()) != left_out);
                Value::Object(kept.map(|(key, inner)| (key.clone(), inner.value())).collect::<Map<_, _>>())
            }
        }
    }
}

impl std::fmt::Debug for TreeNode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TreeNode").field("place", &self.place).finish_non_exhaustive()
    }
}

/// A value of TOML; `None` for a number that is out of range.
fn leaf(value: &DeValue<'_>) -> Option<Value> {
    Some(match value {
        DeValue::String(text) => Value::from(text.as_ref()),
        DeValue::Boolean(flag) => Value::from(*flag),
        DeValue::Datetime(time) => Value::from(time.to_string()),
        DeValue::Float(number) => Value::from(number.as_str().parse::<f64>().ok()?),
        DeValue::Integer(number) => Value::from(i64::from_str_radix(number.as_str(), number.radix()).ok()?),
        DeValue::Array(items) => Value::Array(items.iter().map(|item| leaf(item.get_ref())).collect::<Option<_>>()?),
        DeValue::Table(table) => {
            let entries = table.iter().map(|(key, inner)| Some((key.get_ref().to_string(), leaf(inner.get_ref())?)));
            Value::Object(entries.collect::<Option<_>>()?)
        }
    })
}
