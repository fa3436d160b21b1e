//! A request body that reads its range of a file in passing, 256 KiB at a time, in buffers that
//! come back.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;

const CHUNK: usize = 256 * 1024;

/// Buffers that nobody holds at the moment.
#[derive(Clone, Default)]
pub struct Pool(Arc<Mutex<Vec<Vec<u8>>>>);

impl Pool {
    fn take(&self) -> Vec<u8> {
        self.0.lock().pop().unwrap_or_else(|| vec![0; CHUNK])
    }
}

/// The filled part of a buffer; the buffer goes back to the pool when the last `Bytes` of it is
/// dropped.
struct Borrowed {
    buffer: Vec<u8>,
    filled: usize,
    pool: Pool,
}

impl AsRef<[u8]> for Borrowed {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[..self.filled]
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.buffer);
        self.pool.0.lock().push(buffer);
    }
}

/// The bytes `at..at + left` of a file, bytes in memory, or none at all.
pub struct Chunks {
    memory: Option<Bytes>,
    file: Option<Arc<File>>,
    at: u64,
    left: u64,
    pool: Pool,
}

impl Chunks {
    pub fn of(file: Arc<File>, at: u64, length: u64, pool: &Pool) -> Self {
        Self { memory: None, file: Some(file), at, left: length, pool: pool.clone() }
    }

    pub fn of_memory(bytes: Vec<u8>, pool: &Pool) -> Self {
        Self { file: None, at: 0, left: bytes.len() as u64, memory: Some(bytes.into()), pool: pool.clone() }
    }

    pub fn none(pool: &Pool) -> Self {
        Self { memory: None, file: None, at: 0, left: 0, pool: pool.clone() }
    }

    fn read(&mut self) -> io::Result<Option<Frame<Bytes>>> {
        if let Some(bytes) = self.memory.take() {
            self.left = 0;
            return Ok(Some(Frame::data(bytes)));
        }
        let Some(file) = self.file.as_ref().filter(|_| self.left > 0) else { return Ok(None) };
        let filled = usize::try_from(self.left).unwrap_or(CHUNK).min(CHUNK);
        let mut buffer = self.pool.take();
        // Blocking on purpose: the file is in the page cache, and nothing is cheaper than this.
        file.read_exact_at(&mut buffer[..filled], self.at)?;
        self.at += filled as u64;
        self.left -= filled as u64;
        let borrowed = Borrowed { buffer, filled, pool: self.pool.clone() };
        Ok(Some(Frame::data(Bytes::from_owner(borrowed))))
    }
}

impl Body for Chunks {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        Poll::Ready(self.read().transpose())
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
