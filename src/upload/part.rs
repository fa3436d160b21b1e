//! Parts: the retry unit. Each can be sent as often as needed, from memory or straight from a file.

mod file_body;

use std::io;
use std::sync::Arc;

use aws_smithy_types::body::SdkBody;
use aws_smithy_types::byte_stream::ByteStream;
use bytes::{Bytes, BytesMut};
use crc_fast::{CrcAlgorithm, Digest};
use futures_util::StreamExt as _;
use md5::{Digest as _, Md5};
use parking_lot::Mutex;

use super::budget::{Budget, Reservation};
use crate::domain::job::lease::PackedEnd;
use crate::domain::outcome::{Failure, Reason};
use crate::source::Chunks;
use crate::source::file::FileSource;
use file_body::FileBody;
pub(super) use file_body::Passage;

/// Bytes of a file that are read at once while the connection pulls. Larger chunks pollute the
/// cache, smaller ones cost calls.
pub(super) const CHUNK: usize = 128 * 1024;

/// Bytes that can be sent any number of times.
#[derive(Debug)]
pub(super) struct Part {
    /// 1 is the first.
    pub(super) number: u32,
    pub(super) length: u64,
    /// CRC-64/NVME of the bytes, if they were read for it. Those of a file are read when they are
    /// sent.
    pub(super) crc: Option<u64>,
    /// Position in the source at which a compressed part ends, if the upload could resume there.
    pub(super) packed: Option<PackedEnd>,
    bytes: PartBytes,
}

#[derive(Debug)]
enum PartBytes {
    File { file: Arc<FileSource>, offset: u64, pool: Pool },
    Memory { bytes: Bytes, _held: Option<Reservation> },
}

impl Part {
    /// Part of a range of a file, of an offset and a length. Nothing is read yet.
    pub(super) fn of_file(file: Arc<FileSource>, pool: Pool, number: u32, (offset, length): (u64, u64)) -> Self {
        Self { number, length, crc: None, packed: None, bytes: PartBytes::File { file, offset, pool } }
    }

    /// Computes the checksum before the bytes are sent, for a header. Those of a file are read for
    /// it, and once more from the page cache when they are sent.
    pub(super) async fn with_crc(self) -> Result<Self, Failure> {
        Ok(Self { crc: Some(self.compute_crc().await?), ..self })
    }

    /// The checksum of the bytes, which are read for it if it is not known.
    pub(super) async fn compute_crc(&self) -> Result<u64, Failure> {
        match (self.crc, &self.bytes) {
            (Some(crc), _) => Ok(crc),
            (None, PartBytes::Memory { bytes, .. }) => Ok(crc_fast::checksum(CrcAlgorithm::Crc64Nvme, bytes)),
            (None, PartBytes::File { file, offset, pool }) => {
                let digest = Digest::new(CrcAlgorithm::Crc64Nvme);
                let digest = digest_of_range((file, pool), (*offset, self.length), digest, Digest::update).await?;
                Ok(digest.finalize())
            }
        }
    }

    /// Bytes in memory, with the share of the budget they were read under.
    pub(super) fn of_memory(number: u32, bytes: Bytes, crc: Option<u64>, held: Option<Reservation>) -> Self {
        let length = bytes.len() as u64;
        let bytes = PartBytes::Memory { bytes, _held: held };
        Self { number, length, crc, packed: None, bytes }
    }

    /// Bytes in memory that are the only part, with their checksum if it is wanted.
    pub(super) fn whole(bytes: Bytes, checked: bool) -> Self {
        let crc = checked.then(|| crc_fast::checksum(CrcAlgorithm::Crc64Nvme, &bytes));
        Self::of_memory(1, bytes, crc, None)
    }

    /// Marks the end of the part as a position at which the compression can resume.
    pub(super) fn ending_at(self, end: PackedEnd) -> Self {
        Self { packed: Some(end), ..self }
    }

    /// The bytes, once more. The checksum of those of a file is computed in passing and is in
    /// `passage`, if there is one, once the last byte was read. That of bytes in memory is not
    /// computed.
    pub(super) fn body(&self, passage: Option<Passage>) -> ByteStream {
        match &self.bytes {
            PartBytes::Memory { bytes, .. } => ByteStream::from(bytes.clone()),
            PartBytes::File { file, offset, pool } => {
                let range = (*offset, self.length);
                ByteStream::new(SdkBody::from_body_1_x(FileBody::new(file.clone(), pool.clone(), range, passage)))
            }
        }
    }

    /// MD5 of the bytes, in hexadecimal; they are read once more. Where no KMS key encrypts, it is
    /// the ETag of an object that one PutObject wrote.
    pub(super) async fn md5(&self) -> Result<String, Failure> {
        let digest = match &self.bytes {
            PartBytes::Memory { bytes, .. } => {
                let bytes = bytes.clone();
                let digest = tokio::task::spawn_blocking(move || Md5::new_with_prefix(bytes)).await;
                digest.map_err(|_| Failure::new(Reason::Panic, "the bytes could not be hashed"))?
            }
            PartBytes::File { file, offset, pool } => {
                let update = |digest: &mut Md5, bytes: &[u8]| digest.update(bytes);
                digest_of_range((file, pool), (*offset, self.length), Md5::new(), update).await?
            }
        };
        Ok(hex::encode(digest.finalize()))
    }

    /// The file the bytes come from, if any: it may have changed under us.
    pub(super) fn file(&self) -> Option<&FileSource> {
        match &self.bytes {
            PartBytes::File { file, .. } => Some(file),
            PartBytes::Memory { .. } => None,
        }
    }
}

/// Reads a small file whole, at once where it is in the page cache.
///
/// The file must not be longer than [`CHUNK`].
pub(super) async fn read_small(file: &Arc<FileSource>, pool: &Pool, checked: bool) -> Result<Part, Failure> {
    let length = usize::try_from(file.length()).unwrap_or(usize::MAX).min(CHUNK);
    let mut buffer = pool.take();
    let cached = file.read_at_cached(0, &mut buffer[..length]).ok().flatten() == Some(length);
    if !cached {
        let reader = file.clone();
        let read = tokio::task::spawn_blocking(move || reader.read_at(0, &mut buffer[..length]).map(|n| (buffer, n)));
        let (filled, n) = read.await.map_err(io::Error::other).and_then(|r| r).map_err(|e| file.unreadable(&e))?;
        if n != length {
            return Err(file.ended_early(n as u64));
        }
        buffer = filled;
    }
    Ok(Part::whole(pool.wrap(buffer, length), checked))
}

/// Feeds the bytes of a file from `offset` on to a digest.
async fn digest_of_range<D: Send + 'static>(
    (file, pool): (&Arc<FileSource>, &Pool),
    (offset, length): (u64, u64),
    mut digest: D,
    update: fn(&mut D, &[u8]),
) -> Result<D, Failure> {
    let (reader, pool) = (file.clone(), pool.clone());
    let pass = tokio::task::spawn_blocking(move || {
        let mut buffer = pool.take();
        let mut done = 0;
        while done < length {
            let want = buffer.len().min(usize::try_from(length - done).unwrap_or(usize::MAX));
            let n = reader.read_at(offset + done, &mut buffer[..want])?;
            if n == 0 {
                return Ok(Err(offset + done));
            }
            update(&mut digest, &buffer[..n]);
            done += n as u64;
        }
        pool.give(buffer);
        Ok(Ok(digest))
    });
    match pass.await.map_err(io::Error::other).and_then(|read| read) {
        Ok(Ok(digest)) => Ok(digest),
        Ok(Err(end)) => Err(file.ended_early(end)),
        Err(error) => Err(file.unreadable(&error)),
    }
}

/// Buffers of [`CHUNK`] bytes that are used again: fresh ones would have to be cleared each time.
#[derive(Debug, Clone, Default)]
pub(super) struct Pool(Arc<Mutex<Vec<Box<[u8]>>>>);

/// More than this many idle buffers are not kept.
const MAX_IDLE_BUFFERS: usize = 64;

impl Pool {
    fn take(&self) -> Box<[u8]> {
        let idle = self.0.lock().pop();
        idle.unwrap_or_else(|| vec![0; CHUNK].into_boxed_slice())
    }

    fn give(&self, buffer: Box<[u8]>) {
        let mut idle = self.0.lock();
        if idle.len() < MAX_IDLE_BUFFERS {
            idle.push(buffer);
        }
    }

    /// Wraps the first `n` bytes of a buffer, which returns to the pool when they are sent.
    fn wrap(&self, buffer: Box<[u8]>, n: usize) -> Bytes {
        Bytes::from_owner(PooledBuffer { buffer, pool: self.clone() }).slice(..n)
    }
}

struct PooledBuffer {
    buffer: Box<[u8]>,
    pool: Pool,
}

impl AsRef<[u8]> for PooledBuffer {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for PooledBuffer {
    fn drop(&mut self) {
        self.pool.give(std::mem::take(&mut self.buffer));
    }
}

/// Cuts a stream that can be read once into parts in memory.
pub(super) struct PartReader {
    chunks: Chunks,
    left_over: Bytes,
    ended: bool,
    /// Number of the last part.
    pub(super) number: u32,
    budget: Budget,
    checked: bool,
}

impl PartReader {
    /// `after` is the number of the part that ends where `chunks` begin; 0 at the start.
    pub(super) fn new(chunks: Chunks, budget: Budget, checked: bool, after: u32) -> Self {
        Self { chunks, left_over: Bytes::new(), ended: false, number: after, budget, checked }
    }

    /// True once the source has ended; parts may still be on their way.
    pub(super) fn ended(&self) -> bool {
        self.ended && self.left_over.is_empty()
    }

    /// The next part, of `size` bytes unless it is the last; `None` when the source has ended.
    ///
    /// Its share of the budget is taken before the first byte is read and rides in the part.
    pub(super) async fn next(&mut self, size: u64) -> Result<Option<Part>, Failure> {
        if self.ended() {
            return Ok(None);
        }
        let held = self.budget.reserve(size).await;
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        // Taken whole: growing would copy, and take twice what was reserved. Pages that are not written cost nothing.
        let mut buffer = BytesMut::with_capacity(size);
        let mut digest = Digest::new(CrcAlgorithm::Crc64Nvme);
        while buffer.len() < size {
            let Some(chunk) = self.next_chunk().await? else { break };
            let fits = chunk.len().min(size - buffer.len());
            buffer.extend_from_slice(&chunk[..fits]);
            if self.checked {
                digest.update(&chunk[..fits]);
            }
            self.left_over = chunk.slice(fits..);
        }
        if buffer.is_empty() {
            return Ok(None);
        }
        self.number += 1;
        let crc = self.checked.then(|| digest.finalize());
        Ok(Some(Part::of_memory(self.number, buffer.freeze(), crc, Some(held))))
    }

    async fn next_chunk(&mut self) -> Result<Option<Bytes>, Failure> {
        if !self.left_over.is_empty() {
            return Ok(Some(std::mem::take(&mut self.left_over)));
        }
        if self.ended {
            return Ok(None);
        }
        if let Some(chunk) = self.chunks.next().await {
            chunk.map(Some)
        } else {
            self.ended = true;
            Ok(None)
        }
    }

    /// Reads on until the source has ended, which proves that it is whole; more bytes are a change.
    pub(super) async fn expect_end(&mut self) -> Result<(), Failure> {
        match self.next_chunk().await? {
            None => Ok(()),
            Some(chunk) if chunk.is_empty() => Box::pin(self.expect_end()).await,
            Some(_) => Err(Failure::new(Reason::SourceChanged, "the source is longer than it announced")),
        }
    }
}

/// The CRC of a whole object from those of its parts in order.
pub(super) fn combined_crc(parts: impl Iterator<Item = (Option<u64>, u64)>) -> Option<u64> {
    parts.into_iter().try_fold(None, |whole: Option<u64>, (crc, length)| {
        let crc = crc?;
        Some(Some(whole.map_or(crc, |whole| crc_fast::checksum_combine(CrcAlgorithm::Crc64Nvme, whole, crc, length))))
    })?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    #[tokio::test]
    async fn the_md5_of_a_part_is_that_of_its_bytes_in_memory_and_in_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let (path, bytes) = (folder.path().join("f"), vec![7; 3 * CHUNK + 1]);
        std::fs::write(&path, &bytes).unwrap();
        let file = Arc::new(FileSource::open(folder.path(), &path, Arc::new(Metrics::new(1))).unwrap());
        let length = bytes.len() as u64 - 5;
        let part = Part::of_file(file, Pool::default(), 2, (5, length)).with_crc().await.unwrap();
        let memory = Part::of_memory(2, Bytes::from(bytes).slice(5..), None, None);
        assert_eq!(part.md5().await.unwrap(), memory.md5().await.unwrap());
        assert_eq!(part.crc, Some(crc_fast::checksum(CrcAlgorithm::Crc64Nvme, &vec![7; 3 * CHUNK - 4])));
        let hello = Part::of_memory(1, Bytes::from_static(b"hello"), None, None);
        assert_eq!(hello.md5().await.unwrap(), "5d41402abc4b2a76b9719d911017c592");
    }
}
