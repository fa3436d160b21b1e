//! Sizes and durations in the form that people write.

use std::borrow::Cow;
use std::time::Duration;

use bytesize::ByteSize;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serializer};

/// A number of bytes, written as "8MiB", "64 kB" or a whole number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size(pub(super) u64);

/// The form of a duration: "30s" or "1h 30m".
pub(super) struct Span;

/// Serialization of plain numbers as sizes: `#[serde(with = "Size")]`.
impl Size {
    /// Serializes a number of bytes; `None` is skipped by its field.
    pub(super) fn serialize<B, S: Serializer>(bytes: &B, serializer: S) -> Result<S::Ok, S::Error>
    where
        B: Copy + Into<Option<u64>>,
    {
        serializer.collect_str(&Self((*bytes).into().unwrap_or_default()))
    }

    /// Deserializes a number of bytes.
    pub(super) fn deserialize<'de, B: From<u64>, D: Deserializer<'de>>(deserializer: D) -> Result<B, D::Error> {
        <Self as Deserialize>::deserialize(deserializer).map(|size| size.0.into())
    }
}

/// Serialization of plain durations: `#[serde(with = "Span")]`.
impl Span {
    /// Serializes a duration.
    pub(super) fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(*duration))
    }

    /// Deserializes a duration.
    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        struct SpanVisitor;

        impl Visitor<'_> for SpanVisitor {
            type Value = Duration;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a duration such as \"30s\" or \"5m\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Duration, E> {
                humantime::parse_duration(text).map_err(|_| E::invalid_value(de::Unexpected::Str(text), &self))
            }
        }

        deserializer.deserialize_any(SpanVisitor)
    }
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
        match units.iter().find(|(shift, _)| self.0 > 0 && self.0.trailing_zeros() >= *shift) {
            Some((shift, unit)) => write!(f, "{}{unit}", self.0 >> shift),
            None => write!(f, "{}B", self.0),
        }
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SizeVisitor;
        impl Visitor<'_> for SizeVisitor {
            type Value = Size;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a size such as \"8MiB\"")
            }

            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<Size, E> {
                Ok(Size(bytes))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Size, E> {
                let bytes = text.parse::<ByteSize>();
                bytes.map(|size| Size(size.as_u64())).map_err(|_| E::invalid_value(de::Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_any(SizeVisitor)
    }
}

impl JsonSchema for Size {
    fn schema_name() -> Cow<'static, str> {
        "size".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": ["string", "integer"], "description": "Bytes: \"8MiB\", \"64kB\" or a whole number.", "minimum": 0})
    }
}

impl JsonSchema for Span {
    fn schema_name() -> Cow<'static, str> {
        "duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "description": "A duration: \"30s\", \"5m\", \"1h 30m\"."})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(json: &str) -> Result<Size, serde_json::Error> {
        serde_json::from_str(json)
    }

    #[test]
    fn sizes_are_parsed_with_and_without_units() {
        assert_eq!(size("\"8MiB\"").unwrap(), Size(8 << 20));
        assert_eq!(size("\"1 kB\"").unwrap(), Size(1000));
        assert_eq!(size("4096").unwrap(), Size(4096));
        assert_eq!(size("\"4096\"").unwrap(), Size(4096));
        for bad in ["\"8 parts\"", "-1", "\"\"", "true"] {
            assert!(size(bad).unwrap_err().to_string().contains("a size such as \"8MiB\""), "{bad}");
        }
    }

    #[test]
    fn durations_need_a_unit() {
        let span = |json: &str| Span::deserialize(&mut serde_json::Deserializer::from_str(json));
        assert_eq!(span("\"1h 30m\"").unwrap(), Duration::from_secs(5400));
        for bad in ["\"30\"", "30", "\"soon\""] {
            assert!(span(bad).unwrap_err().to_string().contains("a duration such as"), "{bad}");
        }
    }

    #[test]
    fn sizes_and_durations_round_trip() {
        for text in ["1GiB", "256MiB", "64KiB", "1500B", "0B"] {
            assert_eq!(size(&format!("\"{text}\"")).unwrap().to_string(), text);
        }
        assert_eq!(Span::serialize(&Duration::from_secs(600), serde_json::value::Serializer).unwrap(), "10m");
        assert_eq!(Size::serialize(&(8_u64 << 20), serde_json::value::Serializer).unwrap(), "8MiB");
    }
}
