//! Lease: a job together with the checkpoint of its transfer, so that another worker can continue
//! there.
//!
//! It travels as `application/vnd.consign.lease.v1+bincode` (see [`super::compact`]) through any
//! queue that jobs travel through, and is validated as strictly as a job on whichever queue it
//! returns.

use bytes::Bytes;

use super::{Job, Rejected};
use crate::domain::lane::Lane;
use crate::domain::outcome::Encryption;

/// The content type of a lease.
pub const CONTENT_TYPE: &str = "application/vnd.consign.lease.v1+bincode";
/// The longest lease; a longer one is refused, and none is written.
pub const MAX_LEASE: usize = 2 << 20;

/// A job in work. What comes in is checked by [`Lease::decode`], and the job in it by
/// [`Lease::job`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The job's original body, untouched: what a dead letter carries.
    pub body: Bytes,
    /// The original content type.
    pub content_type: Option<String>,
    /// The lane the job was published to.
    pub lane: Lane,
    /// Unfinished upload; `None` if the job must start over (its source can't be resumed, or
    /// nothing is uploaded yet).
    pub checkpoint: Option<Checkpoint>,
}

/// Unfinished multipart upload and the position in its source: everything that another worker needs
/// to continue with the next part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Bucket of the upload. A destination that was changed meanwhile starts over.
    pub bucket: String,
    /// The whole key.
    pub key: String,
    /// S3's id of the upload.
    pub upload_id: String,
    /// Time at which S3 initiated it, in whole seconds since 1970 on S3's clock.
    pub initiated: u64,
    /// The KMS key that was asked for.
    pub kms_key_arn: Option<String>,
    /// Encryption that S3 reported when the upload was created.
    pub encryption: Encryption,
    /// True if the upload was created with CRC-64/NVME checksums.
    pub checked: bool,
    /// Division of the object into parts.
    pub sizes: PartSizes,
    /// Source that was read.
    pub source: SourceMark,
    /// The parts that S3 has accepted, in the order of their numbers; there may be gaps.
    pub parts: Vec<PartDone>,
}

/// Identity of the content that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceMark {
    /// A strong entity tag, or modification time and size of a file.
    pub validator: String,
    /// The length in bytes, where the source reports it.
    pub length: Option<u64>,
}

/// Division of an object into parts. It stays as it was when the upload was created, whatever the
/// next worker's configuration says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartSizes {
    /// Parts of equal size; only the last may be shorter.
    Even {
        /// Bytes of each part.
        part_size: u64,
        /// Number of parts.
        parts: u32,
    },
    /// The length shows at the end; sizes grow with the number of the part.
    Growing {
        /// Bytes of the first part.
        first: u64,
        /// Bytes of the largest.
        largest: u64,
    },
    /// Compressed on the way: as `Growing`, but each part is a little longer, because it ends where
    /// the compression can restart.
    Packed {
        /// The least bytes of the first part.
        first: u64,
        /// The least bytes of the largest.
        largest: u64,
    },
}

/// A part that S3 has accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartDone {
    /// 1 is the first.
    pub number: u32,
    /// Bytes as they were sent.
    pub length: u64,
    /// CRC-64/NVME of them; `None` where the destination wants no checksum.
    pub crc: Option<u64>,
    /// S3's tag of the part.
    pub etag: Option<String>,
    /// End of a compressed part in the source.
    pub packed: Option<PackedEnd>,
}

/// Position in the source at which a compressed part ends, and the state from which the compression
/// continues.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PackedEnd {
    /// Bytes of the source up to there.
    pub source: u64,
    /// CRC-32 of those bytes: the trailer of a gzip member has it.
    pub crc32: u32,
}

impl Lease {
    /// Reads the job in it; `message_id`, if set, must be the job's id.
    ///
    /// # Errors
    /// As for a job that comes by itself.
    pub fn job(&self, message_id: Option<&str>) -> Result<Job, Rejected> {
        super::parse(self.content_type.as_deref(), message_id, &self.body)
    }

    /// Returns true if a message of this content type is a lease.
    pub fn is_type(content_type: Option<&str>) -> bool {
        content_type.is_some_and(|given| super::essence(given) == CONTENT_TYPE)
    }
}

impl Checkpoint {
    /// The parts from the first on without a gap.
    pub fn unbroken(&self) -> &[PartDone] {
        let gap = self.parts.iter().zip(1..).position(|(part, number)| part.number != number);
        &self.parts[..gap.unwrap_or(self.parts.len())]
    }

    /// Bytes that S3 has accepted.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.length).sum()
    }
}
