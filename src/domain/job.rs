//! A transfer job, valid by construction.
//!
//! Bytes become a [`Job`] in [`wire`] (versioned JSON) or [`compact`] (the bincode form); nothing
//! else makes one.

pub mod compact;
pub mod lease;
mod location;
mod rejected;
#[cfg(test)]
mod tests;
mod validate;
pub mod wire;

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;

use crate::domain::destination::{Destination, DestinationId, DestinationIdentity, text_newtype};

pub use crate::domain::destination::Invalid;
pub use rejected::Rejected;

/// Reads a message as a job: JSON or the compact form by its `content_type`, everything checked
/// that can be checked without the configuration.
///
/// `message_id`, if set, must be the job's id; a rejection of a body without a readable id is
/// identified by it.
pub fn parse(content_type: Option<&str>, message_id: Option<&str>, body: &[u8]) -> Result<Job, Rejected> {
    let parsed = match content_type.map(essence).as_deref() {
        None | Some("application/json") => wire::parse(body),
        Some(compact::CONTENT_TYPE) => compact::parse(body),
        Some(_) => Err(Rejected::job("content_type", UNKNOWN_FORM)),
    };
    let job = parsed.map_err(|rejected| rejected.identified(rejected::JobIdentity::of(message_id, None)))?;
    match message_id {
        Some(given) if given != job.id.as_str() => {
            let rejected = Rejected::job("message_id", "differs from the job's id; set both alike, or leave it out");
            Err(rejected
                .identified(rejected::JobIdentity::of(Some(job.id.as_str()), Some(job.destination.id().as_str()))))
        }
        _ => Ok(job),
    }
}

/// Rejection of a message whose body of `size` bytes was too large to be read.
pub fn unread(size: u64, message_id: Option<&str>) -> Rejected {
    let (job, lease) = (wire::MAX_BODY, lease::MAX_LEASE);
    let problem = format!("has {size} bytes, and a job at most {job}; more than {lease} are not even read");
    Rejected::job("body", problem).identified(rejected::JobIdentity::of(message_id, None))
}

/// Rejection of a lease that a producer has published.
pub fn forged_lease(message_id: Option<&str>) -> Rejected {
    let problem = "is that of a lease, which workers alone publish; send the job as application/json";
    Rejected::job("content_type", problem).identified(rejected::JobIdentity::of(message_id, None))
}

const UNKNOWN_FORM: &str =
    "is not known; send application/json (or none) or application/vnd.consign.job.v1+bincode, as the body is";

/// A media type without its parameters, in lower case.
fn essence(content_type: &str) -> String {
    content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// One file to deliver as one object.
#[derive(Debug, Clone)]
pub struct Job {
    /// The idempotency identity: the same id delivered twice ends as one object and one outcome
    /// that counts.
    pub id: JobId,
    /// Source of the bytes.
    pub source: Source,
    /// Destination of the object.
    pub destination: DestinationRef,
    /// The key below the destination's prefix, already free of `.` and `..`; joined with the prefix
    /// in a transfer.
    pub key: RelativeKey,
    /// Headers of the object.
    pub object: ObjectAttributes,
    /// Compression of the bytes.
    pub compression: Compression,
    /// Behaviour when the object exists.
    pub if_exists: IfExists,
    /// Order among the jobs of one destination and key: of those that are delivered, the highest
    /// stays. `None` if the producer gave none; see [`Job::generation_or`].
    pub generation: Option<u64>,
    /// Time at which the producer created the job.
    pub created_at: Option<Timestamp>,
    /// Past this instant the job is not delivered any more.
    pub expires_at: Option<Timestamp>,
    /// Echoed in the outcome; never a metric label.
    pub labels: BTreeMap<String, String>,
}

impl Job {
    /// Returns the job's generation: its own, else the microseconds of `created_at`, else those of
    /// `published_at`, in which the message says when it was published, in seconds since 1970.
    /// `None` orders nothing.
    pub fn generation_or(&self, published_at: Option<u64>) -> Option<u64> {
        let created = || self.created_at.and_then(|at| u64::try_from(at.as_microsecond()).ok());
        self.generation.or_else(created).or_else(|| published_at?.checked_mul(1_000_000))
    }
}

text_newtype!(
    /// A job's id: 1-200 of `[A-Za-z0-9._:/=@+-]`.
    JobId
);

impl JobId {
    /// Parses an id; the error's field is `id`.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let inner =
            |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b':' | b'/' | b'=' | b'@' | b'+' | b'-');
        if text.is_empty() || text.len() > 200 || !text.bytes().all(inner) {
            return Err(Invalid::new("id", "is not a job id; give 1-200 of A-Z, a-z, 0-9 and ._:/=@+-"));
        }
        Ok(Self(text.into()))
    }
}

/// A destination by name, or brought along.
#[derive(Debug, Clone)]
pub enum DestinationRef {
    /// One of the configured destinations.
    Configured(DestinationId),
    /// One that came with the job; its id may not be that of a configured one.
    Inline(Arc<Destination>),
}

impl DestinationRef {
    /// The name used in routing keys, logs and metrics.
    pub fn id(&self) -> &DestinationId {
        match self {
            Self::Configured(id) => id,
            Self::Inline(destination) => &destination.id,
        }
    }

    /// Identity, by which it is kept apart from every other destination.
    pub fn identity(&self) -> DestinationIdentity {
        match self {
            Self::Configured(id) => DestinationIdentity::configured(id.clone()),
            Self::Inline(destination) => destination.identity.clone(),
        }
    }
}

/// The origin of the bytes and what must be true of it.
#[derive(Debug, Clone)]
pub struct Source {
    /// The place, parsed and of a known scheme. Whether it may be read is for `source::guard`.
    pub location: Location,
    /// The exact length in bytes, if the producer knows it; must match, else nothing is delivered.
    pub size: Option<u64>,
    /// The SHA-256 of the bytes, if given; must match, else nothing is delivered.
    pub sha256: Option<[u8; 32]>,
    /// The entity tag, if given; must match, else nothing is delivered.
    pub etag: Option<String>,
    /// Accepts an origin whose end proves nothing; the outcome then has `length_unproven`.
    pub allow_unproven_length: bool,
}

/// A parsed source URL. Its `Debug` leaves the query out.
#[derive(Clone, PartialEq, Eq)]
pub enum Location {
    /// `file:///absolute/path`, below `source.file_root`.
    File(std::path::PathBuf),
    /// `https://...`, or `http://...` where `source.allow_http` permits it.
    Http(url::Url),
    /// `s3://bucket/key` in one of the places of `source.s3`.
    S3 {
        /// The staging bucket.
        bucket: crate::domain::destination::BucketName,
        /// The whole key.
        key: String,
    },
}

impl Location {
    /// `file`, `https`, `http` or `s3`: a closed set, fit for a metric label.
    pub fn scheme(&self) -> &'static str {
        match self {
            Self::File(_) => "file",
            Self::Http(url) if url.scheme() == "http" => "http",
            Self::Http(_) => "https",
            Self::S3 { .. } => "s3",
        }
    }
}

text_newtype!(
    /// A key below the destination's prefix. Checked against an empty prefix when the job is
    /// parsed; the joined length is checked again by `Prefix::join`.
    RelativeKey
);

impl RelativeKey {
    /// Parses a key; the error's field is `key`.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        crate::domain::destination::Prefix::parse("")?.join(text)?;
        Ok(Self(text.into()))
    }
}

/// The headers a customer sees on the object.
#[derive(Debug, Clone, Default)]
pub struct ObjectAttributes {
    /// `Content-Type`.
    pub content_type: Option<String>,
    /// `Content-Encoding`; when absent and the job compresses, that of the compression.
    pub content_encoding: Option<String>,
    /// `x-amz-meta-*`.
    pub metadata: BTreeMap<String, String>,
    /// Object tags; they need `s3:PutObjectTagging`, so none are sent unless given.
    pub tags: BTreeMap<String, String>,
    /// `x-amz-storage-class`.
    pub storage_class: Option<String>,
}

/// Compression of the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// They are delivered as they are.
    #[default]
    None,
    /// gzip (RFC 1952).
    Gzip,
    /// zstd (RFC 8878).
    Zstd,
}

/// Behaviour when the object exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum IfExists {
    /// The object is replaced.
    #[default]
    Replace,
    /// The object stays; the outcome is `skipped`.
    Keep,
    /// The object stays; the outcome is `failed` with reason `object_exists`.
    Fail,
}
