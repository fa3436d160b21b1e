//! Progress of one upload, for the status page and for probes.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// Bytes and parts that S3 has accepted so far.
#[derive(Debug, Default)]
pub struct Progress {
    bytes: AtomicU64,
    parts: AtomicU32,
    sent: AtomicBool,
    length: OnceLock<Length>,
    source: OnceLock<u64>,
}

/// Length of the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Length {
    /// So many bytes.
    Known(u64),
    /// It shows at the end: the source does not say, or the bytes are compressed on the way.
    Unknown,
}

impl Progress {
    /// Bytes accepted.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Parts accepted.
    pub fn parts(&self) -> u32 {
        self.parts.load(Ordering::Relaxed)
    }

    /// Length of the object; `None` until the source is open and the upload begins.
    pub fn length(&self) -> Option<Length> {
        self.length.get().copied()
    }

    /// Length of the source, once it is open and if it states one. It is the length of the object,
    /// unless the bytes are compressed on the way.
    pub fn source(&self) -> Option<u64> {
        self.source.get().copied()
    }

    /// The source is open and has this length.
    pub(crate) fn source_opened(&self, length: u64) {
        self.source.get_or_init(|| length);
    }

    /// The upload begins. A second one of the same attempt sends the same bytes.
    pub(crate) fn begin(&self, length: Option<u64>) {
        self.length.get_or_init(|| length.map_or(Length::Unknown, Length::Known));
    }

    /// True once S3 has accepted bytes of this attempt.
    pub(crate) fn has_sent(&self) -> bool {
        self.sent.load(Ordering::Relaxed)
    }

    /// S3 has accepted so much more.
    pub(crate) fn add(&self, bytes: u64, parts: u32) {
        self.had(bytes, parts);
        self.sent.store(true, Ordering::Relaxed);
    }

    /// S3 has so much from an earlier attempt.
    pub(crate) fn had(&self, bytes: u64, parts: u32) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.parts.fetch_add(parts, Ordering::Relaxed);
    }
}
