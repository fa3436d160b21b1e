//! An opened source.

use std::fmt;
use std::future::ready;
use std::sync::Arc;

use futures_util::TryStreamExt as _;

use super::chunks::Chunks;
use super::file::FileSource;

/// An opened source.
pub struct SourceStream {
    /// Exact length in bytes, if the origin reports it. A stream of another length ends in a
    /// failure.
    pub length: Option<u64>,
    /// True if nothing can tell half of the content from all of it, and that was accepted: neither
    /// the origin nor the job gives a length or a digest.
    pub length_unproven: bool,
    /// Identifier of this version of the content: a strong entity tag, or the modification time and
    /// size of a file.
    pub validator: Option<String>,
    /// Encodings of the bytes according to the origin, such as `gzip`, in the order of their
    /// application. `None` for plain bytes and for files.
    pub content_encoding: Option<String>,
    /// True if another worker can later read the rest with [`Sources::open_at`] and `validator`:
    /// the origin supports ranges and has a strong validator.
    ///
    /// [`Sources::open_at`]: crate::source::Sources::open_at
    pub resumable: bool,
    /// The bytes.
    pub body: SourceBody,
}

/// The two ways to read a source.
pub enum SourceBody {
    /// A local file: any range can be read any number of times, so no part needs a buffer.
    File(Arc<FileSource>),
    /// Any other source: it is read once, from the start.
    Chunks(Chunks),
}

impl SourceStream {
    /// Returns the stream of an open file, which is always resumable.
    pub(super) fn of_file(file: Arc<FileSource>) -> Self {
        let (length, validator) = (Some(file.length()), Some(file.validator()));
        let body = SourceBody::File(file);
        Self { length, length_unproven: false, validator, content_encoding: None, resumable: true, body }
    }

    /// Drops the first `bytes` of the chunks: they were read only to verify them.
    pub(super) fn skip(self, mut bytes: u64) -> Self {
        let body = match self.body {
            SourceBody::Chunks(chunks) if bytes > 0 => {
                SourceBody::Chunks(Box::pin(chunks.try_filter_map(move |mut chunk| {
                    let first = chunk.split_to(chunk.len().min(usize::try_from(bytes).unwrap_or(usize::MAX)));
                    bytes -= first.len() as u64;
                    ready(Ok((!chunk.is_empty()).then_some(chunk)))
                })))
            }
            body => body,
        };
        Self { body, ..self }
    }
}

impl fmt::Debug for SourceStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SourceStream").field("length", &self.length).finish_non_exhaustive()
    }
}
