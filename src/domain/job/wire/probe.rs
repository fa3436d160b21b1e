//! Version and identity of a document that is no job of version 1, read as far as it goes.

use std::fmt;

use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::domain::job::rejected::Identity;

/// What could be read. Whatever is missing, mistyped or behind a syntax error stays `None`.
#[derive(Debug, Default)]
pub(super) struct Probe {
    /// `version`, if it is an integer.
    pub(super) version: Option<i128>,
    /// True when the text is one JSON object and nothing else.
    pub(super) is_whole: bool,
    id: Option<String>,
    destination: Option<String>,
}

impl Probe {
    pub(super) fn of(text: &str) -> Self {
        let mut probe = Self::default();
        let mut json = serde_json::Deserializer::from_str(text);
        let read = Fields(&mut probe).deserialize(&mut json).is_ok();
        probe.is_whole = read && json.end().is_ok();
        probe
    }

    pub(super) fn identity(&self) -> Identity {
        Identity::of(self.id.as_deref(), self.destination.as_deref())
    }
}

struct Fields<'p>(&'p mut Probe);

impl<'de> DeserializeSeed<'de> for Fields<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Fields<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<String>()? {
            match name.as_str() {
                "version" => self.0.version = map.next_value::<Seen>()?.number,
                "id" => self.0.id = map.next_value::<Seen>()?.text,
                "destination" => self.0.destination = map.next_value::<Seen>()?.text,
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}

/// A value of which only an integer, a text, or the text `id` of an object is kept.
#[derive(Default)]
struct Seen {
    number: Option<i128>,
    text: Option<String>,
}

impl<'de> Deserialize<'de> for Seen {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(SeenVisitor)
    }
}

struct SeenVisitor;

impl<'de> Visitor<'de> for SeenVisitor {
    type Value = Seen;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_u64<E>(self, number: u64) -> Result<Seen, E> {
        Ok(Seen { number: Some(number.into()), text: None })
    }

    fn visit_i64<E>(self, number: i64) -> Result<Seen, E> {
        Ok(Seen { number: Some(number.into()), text: None })
    }

    fn visit_f64<E>(self, _: f64) -> Result<Seen, E> {
        Ok(Seen::default())
    }

    fn visit_bool<E>(self, _: bool) -> Result<Seen, E> {
        Ok(Seen::default())
    }

    fn visit_unit<E>(self) -> Result<Seen, E> {
        Ok(Seen::default())
    }

    fn visit_str<E>(self, text: &str) -> Result<Seen, E> {
        Ok(Seen { number: None, text: Some(text.to_owned()) })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Seen, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Seen::default())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Seen, A::Error> {
        let mut seen = Seen::default();
        while let Some(name) = map.next_key::<String>()? {
            if name == "id" {
                seen.text = map.next_value::<Seen>()?.text;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(seen)
    }
}
