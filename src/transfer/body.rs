//! Bytes of an object: those of the source, or compressed on the way.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use crate::domain::job::Compression;
use crate::domain::job::lease::Checkpoint;
use crate::domain::outcome::Failure;
use crate::source::compress::{self, Packer};
use crate::source::{SourceBody, SourceStream, counted, encoding};
use crate::upload::UploadBody;

/// The bytes as they are.
pub(super) fn plain(source: SourceStream) -> UploadBody {
    match source.body {
        SourceBody::File(file) => UploadBody::File(file),
        SourceBody::Chunks(chunks) => UploadBody::Chunks { chunks, length: source.length },
    }
}

/// Compresses the source on the way, once it is decoded; the counter holds the bytes read.
pub(super) fn compressed(
    source: SourceStream,
    compression: Compression,
) -> Result<(UploadBody, Arc<AtomicU64>), Failure> {
    let chunks = match source.body {
        SourceBody::File(file) => file.chunks(),
        SourceBody::Chunks(chunks) => chunks,
    };
    let (chunks, read) = counted(chunks);
    let chunks = match source.content_encoding.filter(|_| source.length != Some(0)) {
        Some(encodings) => encoding::decode(chunks, &encodings)?,
        None => chunks,
    };
    Ok((UploadBody::Chunks { chunks: compress::compress(chunks, compression), length: None }, read))
}

/// Like [`compressed`], but resumable after every part; with `resume` it starts at the checkpoint.
pub(super) fn packed(source: SourceStream, compression: Compression, resume: Option<&Checkpoint>) -> UploadBody {
    let from = resume.and_then(|checkpoint| checkpoint.unbroken().last()).and_then(|part| part.packed);
    let from = from.unwrap_or_default();
    let chunks = match source.body {
        SourceBody::File(file) => file.chunks_from(from.source),
        SourceBody::Chunks(chunks) => chunks,
    };
    UploadBody::Packed(Box::new(Packer::new(chunks, compression, from)))
}
