//! Where the bytes come from. [`Sources::open`] gives a [`SourceStream`] whatever the origin is.
//!
//! Who retries: a stream that breaks off is reopened inside, at the byte where it broke, where the origin has ranges and a
//! strong validator; a stream that ends without an error is complete and unchanged.

pub mod compress;
pub mod file;
pub mod guard;
pub mod https;
mod proof;
pub mod s3;

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::Stream;

use crate::outcome::Failure;

/// Chunks of a source in order. After the first error nothing follows. Ends without error only if the source was read whole.
pub type Chunks = Pin<Box<dyn Stream<Item = Result<Bytes, Failure>> + Send>>;

/// An opened source.
pub struct SourceStream {
    /// The exact length in bytes where the origin tells it; a stream that differs ends in a failure.
    pub length: Option<u64>,
    /// What identifies this very content: a strong ETag, or `mtime + size` of a file.
    pub validator: Option<String>,
    /// The bytes.
    pub body: SourceBody,
}

/// The two ways to read.
pub enum SourceBody {
    /// A local file: any range can be read any number of times, so no part needs a buffer.
    File(Arc<file::FileSource>),
    /// Anything else: once, from the start.
    Chunks(Chunks),
}

impl fmt::Debug for SourceStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SourceStream").field("length", &self.length).finish_non_exhaustive()
    }
}
