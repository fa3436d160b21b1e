//! The serde mirror of a job.

use std::collections::BTreeMap;
use std::fmt;

use schemars::JsonSchema;
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::domain::destination::raw::RawDestination;
use crate::domain::destination::strict::{object, unique};
use crate::domain::job::{Compression, IfExists};

/// Largest generation: every language has an integer for it.
pub const MAX_GENERATION: u64 = i64::MAX as u64;

/// Transfer job: one source that is delivered as one object.
#[serde_with::skip_serializing_none]
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "consign job")]
pub struct RawJob {
    /// Version of the format: 1.
    #[schemars(extend("const" = 1))]
    pub version: u64,
    /// Identity of the job, for idempotency: 1-200 of `[A-Za-z0-9._:/=@+-]`.
    #[schemars(regex(pattern = r"^[A-Za-z0-9._:/=@+-]{1,200}$"))]
    pub id: String,
    /// Source of the bytes.
    #[serde(deserialize_with = "object")]
    pub source: RawJobSource,
    /// A configured destination's id, or an inline destination without secrets.
    pub destination: RawDestinationRef,
    /// Key of the object, below the prefix of the destination.
    #[schemars(length(min = 1, max = 1024))]
    pub key: String,
    /// `Content-Type` of the object.
    pub content_type: Option<String>,
    /// `Content-Encoding` of the object.
    pub content_encoding: Option<String>,
    /// User-defined metadata of the object (`x-amz-meta-*`): lower-case names, at most 2,048 bytes
    /// in total.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "unique")]
    pub metadata: BTreeMap<String, String>,
    /// Object tags, at most 10; they need `s3:PutObjectTagging`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "unique")]
    pub tags: BTreeMap<String, String>,
    /// Storage class of the object (`x-amz-storage-class`), such as `STANDARD_IA`.
    pub storage_class: Option<String>,
    /// Compression of the object.
    #[serde(default, skip_serializing_if = "is_default")]
    pub compression: Compression,
    /// Behaviour if the key exists: "replace" the object, "keep" it (`skipped`), or "fail"
    /// (`object_exists`).
    #[serde(default, skip_serializing_if = "is_default")]
    pub if_exists: IfExists,
    /// Order of the refreshes of one object: the delivered one with the highest generation stays.
    /// Default: `created_at`, else the AMQP `timestamp`, in microseconds since 1970.
    #[schemars(range(max = MAX_GENERATION))]
    pub generation: Option<u64>,
    /// Time at which the job was created, RFC 3339.
    #[schemars(extend("format" = "date-time"))]
    pub created_at: Option<String>,
    /// Time after which the job is no longer delivered, RFC 3339.
    #[schemars(extend("format" = "date-time"))]
    pub expires_at: Option<String>,
    /// Labels that are copied to the outcome, at most 64.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "unique")]
    pub labels: BTreeMap<String, String>,
}

/// Source of a job.
#[serde_with::skip_serializing_none]
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "RawSource")]
pub struct RawJobSource {
    /// URL of the source: `https://...`, `file:///...` or `s3://bucket/key`.
    pub url: String,
    /// Exact length in bytes.
    pub size: Option<u64>,
    /// The SHA-256 of the bytes, 64 hexadecimal digits.
    pub sha256: Option<String>,
    /// ETag that the source must have.
    pub etag: Option<String>,
    /// Accepts a source that does not announce its length. The outcome then has `length_unproven`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub allow_unproven_length: bool,
}

/// `destination` as written: an id or an object.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum RawDestinationRef {
    /// Id of a configured destination.
    Id(String),
    /// Inline destination: one that comes with the job.
    Inline(Box<RawDestination>),
}

impl RawDestinationRef {
    /// The destination's id as it is written.
    pub fn id(&self) -> Option<&str> {
        match self {
            Self::Id(id) => Some(id),
            Self::Inline(inline) => inline.id.as_deref(),
        }
    }
}

impl RawJob {
    /// A job with what is required, everything else at its default.
    pub fn new(id: impl Into<String>, url: impl Into<String>, to: RawDestinationRef, key: impl Into<String>) -> Self {
        Self {
            version: super::VERSION,
            id: id.into(),
            source: RawJobSource { url: url.into(), ..RawJobSource::default() },
            destination: to,
            key: key.into(),
            content_type: None,
            content_encoding: None,
            metadata: BTreeMap::new(),
            tags: BTreeMap::new(),
            storage_class: None,
            compression: Compression::default(),
            if_exists: IfExists::default(),
            generation: None,
            created_at: None,
            expires_at: None,
            labels: BTreeMap::new(),
        }
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl<'de> Deserialize<'de> for RawDestinationRef {
    /// By hand instead of `untagged`, which would forget the path of a problem inside.
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = RawDestinationRef;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a destination's id or an inline destination")
            }

            fn visit_str<E>(self, id: &str) -> Result<Self::Value, E> {
                Ok(RawDestinationRef::Id(id.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                RawDestination::deserialize(MapAccessDeserializer::new(map))
                    .map(|inline| RawDestinationRef::Inline(Box::new(inline)))
            }
        }

        from.deserialize_any(Either)
    }
}
