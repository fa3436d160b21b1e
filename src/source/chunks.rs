//! The byte stream of a source that is read once, from front to back.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};

use crate::domain::outcome::Failure;

/// Chunks of a source in order. Nothing follows the first error. The stream ends without an error
/// only if the whole source was read.
pub type Chunks = Pin<Box<dyn Stream<Item = Result<Bytes, Failure>> + Send>>;

/// Returns the same chunks and a running count of their bytes, for callers that transform the
/// chunks and still report how many bytes were read.
pub fn counted(chunks: Chunks) -> (Chunks, Arc<AtomicU64>) {
    let count = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&count);
    let chunks = chunks.inspect(move |item| {
        if let Ok(chunk) = item {
            counter.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        }
    });
    (Box::pin(chunks), count)
}
