//! Sizes and durations in the form that people write.

use std::borrow::Cow;
use std::time::Duration;

use bytesize::ByteSize;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A number of bytes, written as "8MiB", "64 kB" or a whole number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size(pub(super) u64);

/// A duration, written as "30s" or "1h 30m".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span(pub(super) Duration);

impl Size {
    /// Returns a size in mebibytes.
    pub(super) const fn mib(count: u64) -> Self {
        Self(count << 20)
    }
}

impl Span {
    /// Returns a duration in seconds.
    pub(super) const fn seconds(count: u64) -> Self {
        Self(Duration::from_secs(count))
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

impl std::fmt::Display for Span {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
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

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SpanVisitor;
        impl Visitor<'_> for SpanVisitor {
            type Value = Span;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a duration such as \"30s\" or \"5m\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Span, E> {
                let duration = humantime::parse_duration(text);
                duration.map(Span).map_err(|_| E::invalid_value(de::Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_any(SpanVisitor)
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
        let span = |json: &str| serde_json::from_str::<Span>(json);
        assert_eq!(span("\"1h 30m\"").unwrap(), Span::seconds(5400));
        for bad in ["\"30\"", "30", "\"soon\""] {
            assert!(span(bad).unwrap_err().to_string().contains("a duration such as"), "{bad}");
        }
    }

    #[test]
    fn sizes_and_durations_round_trip() {
        for text in ["1GiB", "256MiB", "64KiB", "1500B", "0B"] {
            assert_eq!(size(&format!("\"{text}\"")).unwrap().to_string(), text);
        }
        assert_eq!(Span::seconds(600).to_string(), "10m");
    }
}
