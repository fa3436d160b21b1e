//! Version and identity of a document that is no job of version 1, read as far as it goes.

use std::fmt;

use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::domain::job::rejected::JobIdentity;

/// Fields that could be read. A field that is missing, mistyped or behind a syntax error
/// stays `None`.
#[derive(Debug, Default)]
pub(super) struct JobProbe {
    /// `version`, if it is an integer.
    version: Option<i128>,
    /// True when the text is one JSON object and nothing else.
    pub(super) is_whole: bool,
    id: Option<String>,
    destination: Option<String>,
}

impl JobProbe {
    pub(super) fn of(text: &str) -> Self {
        let mut probe = Self::default();
        let mut json = serde_json::Deserializer::from_str(text);
        let read = ProbedFields(&mut probe).deserialize(&mut json).is_ok();
        probe.is_whole = read && json.end().is_ok();
        probe
    }

    /// Returns the version of a whole document, if it is an integer, but not ours.
    pub(super) fn other_version(&self) -> Option<i128> {
        self.version.filter(|version| self.is_whole && *version != super::VERSION.into())
    }

    pub(super) fn identity(&self) -> JobIdentity {
        JobIdentity::of(self.id.as_deref(), self.destination.as_deref())
    }
}

struct ProbedFields<'p>(&'p mut JobProbe);

impl<'de> DeserializeSeed<'de> for ProbedFields<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for ProbedFields<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<String>()? {
            match name.as_str() {
                "version" => self.0.version = map.next_value::<SeenValue>()?.number,
                "id" => self.0.id = map.next_value::<SeenValue>()?.text,
                "destination" => self.0.destination = map.next_value::<SeenValue>()?.text,
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}

/// A value of which only an integer, a text, or the text `id` of an object is kept.
#[derive(Default)]
struct SeenValue {
    number: Option<i128>,
    text: Option<String>,
}

impl<'de> Deserialize<'de> for SeenValue {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(SeenVisitor)
    }
}

struct SeenVisitor;

impl<'de> Visitor<'de> for SeenVisitor {
    type Value = SeenValue;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_u64<E>(self, number: u64) -> Result<SeenValue, E> {
        Ok(SeenValue { number: Some(number.into()), text: None })
    }

    fn visit_i64<E>(self, number: i64) -> Result<SeenValue, E> {
        Ok(SeenValue { number: Some(number.into()), text: None })
    }

    fn visit_f64<E>(self, _: f64) -> Result<SeenValue, E> {
        Ok(SeenValue::default())
    }

    fn visit_bool<E>(self, _: bool) -> Result<SeenValue, E> {
        Ok(SeenValue::default())
    }

    fn visit_unit<E>(self) -> Result<SeenValue, E> {
        Ok(SeenValue::default())
    }

    fn visit_str<E>(self, text: &str) -> Result<SeenValue, E> {
        Ok(SeenValue { number: None, text: Some(text.to_owned()) })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<SeenValue, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(SeenValue::default())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<SeenValue, A::Error> {
        let mut seen = SeenValue::default();
        while let Some(name) = map.next_key::<String>()? {
            if name == "id" {
                seen.text = map.next_value::<SeenValue>()?.text;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_and_an_id_are_read_whatever_other_fields_hold() {
        for destination in
            ["{\"x\":1e999}", "{\"prefix\":\"\\ud800\"}", &format!("{}1{}", "[".repeat(500), "]".repeat(500))]
        {
            let probe = JobProbe::of(&format!("{{\"version\":2,\"destination\":{destination},\"id\":\"x\"}}"));
            assert_eq!((probe.other_version(), probe.id.as_deref()), (Some(2), Some("x")), "{destination}");
        }
    }
}
