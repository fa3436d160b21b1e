//! The job as JSON, version 1 (CONTRACT, section 3).
//!
//! [`RawJob`] has the shape of the message and nothing more; [`RawJob::validate`] makes a [`Job`]
//! of it. The compact form goes through the same two steps, so both forms accept exactly the same
//! jobs.

mod check;
mod explain;
mod probe;
mod raw;

pub use check::{RawCheckRequest, check_schema, read_check};
pub use raw::MAX_GENERATION;
pub use raw::{RawDestinationRef, RawJob, RawJobSource};

use serde::de::DeserializeOwned;

use super::rejected::JobIdentity;
use super::{Job, Rejected};
use crate::domain::destination::strict;
use probe::JobProbe;

/// The longest message, in bytes.
pub const MAX_BODY: usize = 256 * 1024;

/// The version this program reads and writes.
pub const VERSION: u64 = 1;

/// Reads a JSON job and checks everything about it that can be checked without the configuration.
///
/// A document of another version is rejected as `schema_version`, whatever else is in it.
pub fn parse(body: &[u8]) -> Result<Job, Rejected> {
    read(body)?.validate()
}

/// Reads the shape of a JSON job: unknown, missing, doubled or mistyped fields and trailing data
/// are refused.
pub fn read(body: &[u8]) -> Result<RawJob, Rejected> {
    check_length(body)?;
    let body = without_byte_order_mark(body);
    let text = std::str::from_utf8(body).map_err(|problem| {
        let place = problem.valid_up_to();
        Rejected::job("body", format!("is not UTF-8 (from byte {place}); send JSON in UTF-8, or set content_type"))
    })?;
    let raw = of_our_version(text, "job", |raw: &RawJob| raw.version);
    raw.map_err(|(rejected, identity)| rejected.identified(identity))
}

/// Parses a document of the kind `what`, `job` or `check`. A rejection comes with the identity that
/// could be read.
fn of_our_version<T: DeserializeOwned>(
    text: &str,
    what: &str,
    version: impl Fn(&T) -> u64,
) -> Result<T, (Rejected, JobIdentity)> {
    let read = match strict(text) {
        Ok(raw) if version(&raw) == VERSION => return Ok(raw),
        Ok(raw) => Ok(i128::from(version(&raw))),
        Err(problem) => Err(problem),
    };
    let probe = JobProbe::of(text);
    let rejected = match (read, probe.other_version()) {
        (Ok(version), _) | (Err(_), Some(version)) => explain::unknown_version(version),
        (Err((path, problem)), None) => explain::refused(&path, &problem, probe.is_whole, what),
    };
    Err((rejected, probe.identity()))
}

/// Drops a byte order mark, which some Windows tools write before a text in UTF-8.
pub fn without_byte_order_mark(body: &[u8]) -> &[u8] {
    body.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(body)
}

pub(super) fn check_length(body: &[u8]) -> Result<(), Rejected> {
    if body.len() <= MAX_BODY {
        return Ok(());
    }
    let problem = format!("has {} bytes, and a job at most {MAX_BODY}; shorten labels or metadata", body.len());
    Err(Rejected::job("body", problem))
}

fn strict<T: DeserializeOwned>(text: &str) -> Result<T, (String, serde_json::Error)> {
    let mut json = serde_json::Deserializer::from_str(text);
    match strict::object(&mut json) {
        Ok(job) => json.end().map(|()| job).map_err(|problem| (".".to_owned(), problem)),
        Err(problem) => Err((path_of_the_problem::<T>(text), problem)),
    }
}

/// Tracking the path costs as much as reading, so only a refused document is read with it.
fn path_of_the_problem<T: DeserializeOwned>(text: &str) -> String {
    let mut json = serde_json::Deserializer::from_str(text);
    let mut track = serde_path_to_error::Track::new();
    let tracked = serde_path_to_error::Deserializer::new(&mut json, &mut track);
    let _: Result<T, _> = strict::object(tracked);
    track.path().to_string()
}

/// Writes a job for a producer. What is at its default is left out.
pub fn render(job: &RawJob) -> Vec<u8> {
    // Strings, numbers and maps with string keys: serde_json has nothing to refuse here.
    serde_json::to_vec(job).unwrap_or_default()
}

/// The JSON Schema of a job, for producers. It is as strict as the shape; lengths and contents are
/// checked on arrival.
pub fn schema() -> schemars::Schema {
    without_secrets(schemars::schema_for!(RawJob))
}

fn without_secrets(mut schema: schemars::Schema) -> schemars::Schema {
    // An inline destination carries no secret, so the schema must not invite one.
    if let Some(auth) = schema.pointer_mut("/$defs/RawAuth/properties").and_then(serde_json::Value::as_object_mut) {
        auth.retain(|name, _| matches!(name.as_str(), "method" | "role_arn" | "external_id"));
        auth.insert("method".into(), serde_json::json!({ "const": "iam_role" }));
    }
    if let Some(inline) = schema.pointer_mut("/$defs/RawDestination/properties").and_then(|all| all.as_object_mut()) {
        inline.remove("publishers");
    }
    schema
}
