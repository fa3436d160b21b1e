//! Version and identity of a document that is no job of version 1, read as far as it goes.

use std::fmt;

use serde::Deserializer as _;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use crate::domain::job::rejected::JobIdentity;

/// Fields that could be read. A field that is missing, mistyped or behind a syntax error
/// stays `Null`.
#[derive(Debug, Default)]
pub(super) struct JobProbe {
    pub(super) version: Value,
    /// True when the text is one JSON object and nothing else.
    pub(super) is_whole: bool,
    id: Value,
    destination: Value,
}

impl JobProbe {
    pub(super) fn of(text: &str) -> Self {
        let mut probe = Self::default();
        let mut json = serde_json::Deserializer::from_str(text);
        let read = json.deserialize_map(ProbedFields(&mut probe)).is_ok();
        probe.is_whole = read && json.end().is_ok();
        probe
    }

    /// Returns true for a whole document whose version is an integer, but not ours.
    pub(super) fn is_of_other_version(&self) -> bool {
        let is_integer = self.version.is_i64() || self.version.is_u64();
        self.is_whole && is_integer && self.version != super::VERSION
    }

    pub(super) fn identity(&self) -> JobIdentity {
        JobIdentity::of(text(&self.id), text(&self.destination))
    }
}

struct ProbedFields<'p>(&'p mut JobProbe);

impl<'de> Visitor<'de> for ProbedFields<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<String>()? {
            match name.as_str() {
                "version" => self.0.version = map.next_value()?,
                "id" => self.0.id = map.next_value()?,
                "destination" => self.0.destination = map.next_value()?,
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}

/// Returns a text, or the text `id` of an object.
fn text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| text(value.get("id")?))
}
