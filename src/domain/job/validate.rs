//! From the shape of a job to a [`Job`]. The first problem found is reported; fields are looked at
//! in the order of the contract.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;

use super::rejected::JobIdentity;
use super::wire::{MAX_GENERATION, RawDestinationRef, RawJob, RawJobSource};
use super::{DestinationRef, Invalid, Job, JobId, Location, ObjectAttributes, Rejected, RelativeKey, Source};
use crate::domain::destination::raw::RawDestination;
use crate::domain::destination::{DestinationId, refuse};
use crate::domain::outcome::Reason;

impl RawJob {
    /// Checks everything that can be checked without the configuration. A rejection carries the
    /// identity if that was readable.
    pub fn validate(self) -> Result<Job, Rejected> {
        let identity = JobIdentity::of(Some(&self.id), self.destination.id());
        self.validated(identity.clone()).map_err(|rejected| rejected.identified(identity))
    }

    fn validated(self, identity: JobIdentity) -> Result<Job, Rejected> {
        let id = identity.job_id.map_or_else(|| JobId::parse(&self.id), Ok)?;
        let source = self.source.validated()?;
        let destination = match (self.destination, identity.destination) {
            (RawDestinationRef::Id(_), Some(id)) => DestinationRef::Configured(id),
            (other, _) => other.validated()?,
        };
        let key = key_below(&destination, &self.key)?;
        let object = ObjectAttributes {
            content_type: self.content_type.map(|v| header("content_type", v)).transpose()?,
            content_encoding: self.content_encoding.map(|v| header("content_encoding", v)).transpose()?,
            metadata: metadata(self.metadata)?,
            tags: tags(self.tags)?,
            storage_class: self.storage_class.map(storage_class).transpose()?,
        };
        Ok(Job {
            id,
            source,
            destination,
            key,
            object,
            compression: self.compression,
            if_exists: self.if_exists,
            generation: self.generation.map(generation).transpose()?,
            created_at: self.created_at.map(|at| timestamp("created_at", &at)).transpose()?,
            expires_at: self.expires_at.map(|at| timestamp("expires_at", &at)).transpose()?,
            labels: labels(self.labels)?,
        })
    }
}

impl RawDestinationRef {
    /// Checks the id, or the whole inline destination; the error's field begins with `destination`.
    pub(super) fn validated(self) -> Result<DestinationRef, Rejected> {
        match self {
            Self::Inline(inline) => Ok(inline_destination(*inline).map_err(|p| p.under("destination"))?),
            Self::Id(id) => match DestinationId::parse(&id) {
                Ok(id) => Ok(DestinationRef::Configured(id)),
                Err(problem) => Ok(refuse("destination", problem.problem)?),
            },
        }
    }
}

impl RawJobSource {
    fn validated(self) -> Result<Source, Rejected> {
        let location = Location::parse(&self.url)?;
        let sha256 = self.sha256.as_deref().map(sha256).transpose()?;
        let etag = self.etag.map(|tag| header("source.etag", tag)).transpose()?;
        let allow_unproven_length = self.allow_unproven_length;
        Ok(Source { location, size: self.size, sha256, etag, allow_unproven_length })
    }
}

pub(super) fn sha256(text: &str) -> Result<[u8; 32], Invalid> {
    let mut digest = [0; 32];
    match hex::decode_to_slice(text, &mut digest) {
        Ok(()) => Ok(digest),
        Err(_) => refuse(
            "source.sha256",
            "is not a SHA-256; give 64 hexadecimal digits, computed from the bytes of the source",
        ),
    }
}

fn inline_destination(inline: RawDestination) -> Result<DestinationRef, Invalid> {
    if inline.tenant.as_ref().is_some_and(|name| !plain(name, 1, 200)) {
        return refuse("tenant", "is not valid; give 1-200 bytes without control characters");
    }
    let destination = inline.validate_inline().map_err(|problems| {
        problems.into_iter().next().unwrap_or_else(|| Invalid::new("id", "the destination is not valid"))
    })?;
    Ok(DestinationRef::Inline(Arc::new(destination)))
}

/// The joined length is known only for an inline destination; for others the transfer checks it.
fn key_below(destination: &DestinationRef, key: &str) -> Result<RelativeKey, Rejected> {
    let parsed = RelativeKey::parse(key).and_then(|key| match destination {
        DestinationRef::Inline(inline) => inline.prefix.join(key.as_str()).map(|_| key),
        DestinationRef::Configured(_) => Ok(key),
    });
    parsed.map_err(|problem| Rejected::new(Reason::InvalidKey, problem))
}

fn generation(given: u64) -> Result<u64, Invalid> {
    if given <= MAX_GENERATION {
        Ok(given)
    } else {
        refuse("generation", format!("is too large; give at most {MAX_GENERATION}"))
    }
}

/// Text of `min` to `max` bytes without control characters.
fn plain(text: &str, min: usize, max: usize) -> bool {
    (min..=max).contains(&text.len()) && !text.chars().any(char::is_control)
}

/// Visible ASCII and inner spaces: what every HTTP stack and every signature carries unchanged.
fn carried(text: &str) -> bool {
    text.bytes().all(|b| b == b' ' || b.is_ascii_graphic()) && text.trim() == text
}

fn header(field: &str, value: String) -> Result<String, Invalid> {
    if (1..=256).contains(&value.len()) && carried(&value) {
        return Ok(value);
    }
    refuse(field, "is not valid; give 1-256 visible ASCII characters, without spaces at either end")
}

fn metadata(all: BTreeMap<String, String>) -> Result<BTreeMap<String, String>, Invalid> {
    for (name, value) in &all {
        let token = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"!#$%&'*+-.^_`|~".contains(&b);
        if name.is_empty() || name.len() > 128 || !name.bytes().all(token) {
            let problem = "has a name that is not valid; give 1-128 of a-z, 0-9 and -._~ (S3 stores names in lower \
                case), without x-amz-meta-";
            return refuse("metadata", problem);
        }
        if !carried(value) {
            let problem = "has a value that is not visible ASCII, or has spaces at either end; encode it";
            return refuse(&format!("metadata.{name}"), problem);
        }
    }
    let total: usize = all.iter().map(|(name, value)| name.len() + value.len()).sum();
    if total > 2048 {
        return refuse(
            "metadata",
            format!("has {total} bytes of names and values; shorten them to the 2,048 that S3 allows"),
        );
    }
    Ok(all)
}

fn tags(all: BTreeMap<String, String>) -> Result<BTreeMap<String, String>, Invalid> {
    if all.len() > 10 {
        return refuse("tags", format!("has {} tags; give the 10 that S3 allows, or fewer", all.len()));
    }
    let allowed = |c: char| c.is_alphanumeric() || matches!(c, ' ' | '+' | '-' | '=' | '.' | '_' | ':' | '/' | '@');
    for (key, value) in &all {
        let fits = (1..=128).contains(&key.chars().count()) && value.chars().count() <= 256;
        if !fits || !key.chars().chain(value.chars()).all(allowed) || key.starts_with("aws:") {
            let problem = "has a tag that is not valid; give a key of 1-128 and a value of 0-256 letters, digits, \
                spaces and +-=._:/@ (keys that begin with \"aws:\" are reserved)";
            return refuse("tags", problem);
        }
    }
    Ok(all)
}

fn storage_class(name: String) -> Result<String, Invalid> {
    if (1..=32).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_') {
        return Ok(name);
    }
    refuse(
        "storage_class",
        "is not a storage class; give a name of S3 such as STANDARD_IA, INTELLIGENT_TIERING or GLACIER_IR",
    )
}

/// RFC 3339 alone; jiff by itself would also take week dates, missing seconds and zone names in
/// brackets.
fn timestamp(field: &str, text: &str) -> Result<Timestamp, Invalid> {
    let b = text.as_bytes();
    let shaped = (20..=40).contains(&b.len()) && matches!(b[10], b'T' | b't') && b[13] == b':' && b[16] == b':';
    match text.parse() {
        Ok(at) if shaped && !text.contains('[') => Ok(at),
        _ => refuse(field, "is not a time of RFC 3339 with an offset; write it as 2026-11-22T06:00:00Z"),
    }
}

fn labels(all: BTreeMap<String, String>) -> Result<BTreeMap<String, String>, Invalid> {
    if all.len() > 64 {
        return refuse("labels", format!("has {} labels; give at most 64", all.len()));
    }
    for (name, value) in &all {
        if !plain(name, 1, 128) || !plain(value, 0, 1024) {
            let problem = "has a label that is not valid; give a name of 1-128 and a value of 0-1,024 bytes, without \
                control characters";
            return refuse("labels", problem);
        }
    }
    Ok(all)
}
