//! The job as bytes: `application/vnd.consign.job.v1+bincode`. The only user of `bincode`, which is
//! unmaintained and pinned.
//!
//! One version byte, then a frozen struct in bincode's standard configuration (little endian,
//! variable-length integers), and nothing after it: a [`FrozenJob`] for version 1, and a
//! [`FrozenJob2`], which has a generation, for version 2. Jobs without one are written as version
//! 1, which every worker reads. The frozen structs are the format: they are never changed, and the
//! vectors in `tests/golden` say so. A further version gets structs of its own.
//! The way out is `wincode` or `postcard`, behind a new version byte.

mod frozen;
pub(super) mod lease;

use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use bincode::error::DecodeError;

use super::wire::{self, MAX_BODY, RawJob};
use super::{Invalid, Job, Rejected};
use crate::domain::outcome::Reason;
use frozen::{FrozenJob, FrozenJob2};

/// The content type of this form.
pub const CONTENT_TYPE: &str = "application/vnd.consign.job.v1+bincode";

const VERSION_BYTE: u8 = 1;
const VERSION_WITH_GENERATION: u8 = 2;

/// The limit is charged before anything is allocated, so a length field can't ask for more than a
/// message may have.
const CONFIG: Configuration<LittleEndian, Varint, Limit<MAX_BODY>> =
    bincode::config::standard().with_limit::<MAX_BODY>();

/// Reads a compact job, with the same checks as [`wire::parse`].
pub fn parse(body: &[u8]) -> Result<Job, Rejected> {
    decode(body)?.validate()
}

/// Reads the shape of a compact job: a wrong length, either way, is refused.
pub fn decode(body: &[u8]) -> Result<RawJob, Rejected> {
    wire::check_length(body)?;
    let (job, generation, left) = match body.split_first() {
        None => return Err(Rejected::job("body", "is empty; send a version byte and a job, or set content_type")),
        Some((&VERSION_BYTE, frozen)) => {
            let (job, read) = bincode::decode_from_slice::<FrozenJob, _>(frozen, CONFIG).map_err(|e| refused(&e))?;
            (job, None, frozen.len() - read)
        }
        Some((&VERSION_WITH_GENERATION, frozen)) => {
            let (frozen2, read) =
                bincode::decode_from_slice::<FrozenJob2, _>(frozen, CONFIG).map_err(|e| refused(&e))?;
            (frozen2.job, Some(frozen2.generation), frozen.len() - read)
        }
        Some((version, _)) => return Err(unknown_version(*version)),
    };
    let identity = job.identity();
    if left > 0 {
        let problem = format!("has {left} bytes after the job; send exactly one job");
        return Err(Rejected::job("body", problem).identified(identity));
    }
    let thawed = job.thaw().map_err(|problem| Rejected::from(problem).identified(identity))?;
    Ok(RawJob { generation, ..thawed })
}

fn unknown_version(version: u8) -> Rejected {
    let problem = format!("the version byte is {version}, and this worker reads 1 and 2; upgrade the workers first");
    Rejected::new(Reason::SchemaVersion, Invalid::new("version", problem))
}

/// Bincode's errors in words that repeat nothing of the message.
fn refused(problem: &DecodeError) -> Rejected {
    let what = match problem {
        DecodeError::UnexpectedEnd { .. } => "ends before the job does; send it whole",
        DecodeError::LimitExceeded => "asks for more than 256 KiB; it is damaged, or not written by `compact::encode`",
        DecodeError::Utf8 { .. } => "has a text that is not UTF-8",
        _ => "is not a compact job of version 1; it is damaged, or of another content_type",
    };
    Rejected::job("body", what)
}

/// Writes a compact job for a producer. A job that would be refused on arrival is refused here.
///
/// The digits of `source.sha256` come back in lower case; everything else comes back as it was.
pub fn encode(job: &RawJob) -> Result<Vec<u8>, Invalid> {
    let frozen = FrozenJob::freeze(job)?;
    let mut bytes = vec![if job.generation.is_some() { VERSION_WITH_GENERATION } else { VERSION_BYTE }];
    match job.generation {
        Some(generation) => bincode::encode_into_std_write(FrozenJob2 { job: frozen, generation }, &mut bytes, CONFIG),
        None => bincode::encode_into_std_write(frozen, &mut bytes, CONFIG),
    }
    .map_err(|_| Invalid::new("body", "can't be written in the compact form; send JSON"))?;
    parse(&bytes).map_err(|rejected| Invalid::new(rejected.field, rejected.message))?;
    Ok(bytes)
}
