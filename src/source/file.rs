//! Local files below `source.file_root`, and nothing else: no `..`, no symlink, no FIFO, no device,
//! no directory.

mod open;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures_util::stream;
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use super::chunks::Chunks;
use crate::domain::outcome::{Failure, Reason};
use crate::metrics::Metrics;
use open::FileStamp;

const CHUNK_SIZE: usize = 256 * 1024;
/// Bytes hashed in one blocking task. A dropped digest stops after at most this many.
const DIGEST_STRIDE: u64 = 32 * 1024 * 1024;

/// A regular file that is open for reading, with its size and modification time at the opening.
///
/// Every range can be read any number of times and from any thread. Unlinking the file or replacing
/// it by a rename does not affect the open one. [`FileSource::verify_unchanged`] detects writes.
#[derive(Debug)]
pub struct FileSource {
    file: File,
    path: PathBuf,
    opened: FileStamp,
    nowait_unsupported: AtomicBool,
    metrics: Arc<Metrics>,
}

impl FileSource {
    /// Opens a file below `root`. Blocks for a few system calls: call it on a blocking thread.
    ///
    /// Fails as `source_forbidden` (outside of the root, or not a regular file),
    /// `source_not_found`, `source_denied` or `source_unavailable`.
    pub fn open(root: &Path, path: &Path, metrics: Arc<Metrics>) -> Result<Self, Failure> {
        Self::from_file(open::open_beneath(root, path)?, path, metrics)
    }

    /// Opens a file without waiting for a disk: safe on a runtime worker, and without the two
    /// thread switches that cost more than the upload of a small file. Returns `None` if it would
    /// have to wait, and on any error: then call [`FileSource::open`], which reports the error.
    pub fn open_cached(root: &Path, path: &Path, metrics: &Arc<Metrics>) -> Option<Self> {
        let file = open::open_beneath_cached(root, path)?;
        Self::from_file(file, path, Arc::clone(metrics)).ok()
    }

    fn from_file(file: File, path: &Path, metrics: Arc<Metrics>) -> Result<Self, Failure> {
        let opened = open::regular_file_stamp(&file, path)?;
        Ok(Self { file, path: path.to_owned(), opened, nowait_unsupported: AtomicBool::new(false), metrics })
    }

    /// Returns the length of the file at the opening.
    pub fn length(&self) -> u64 {
        self.opened.size
    }

    /// Returns the identifier of this content: modification time in nanoseconds and size,
    /// `NS-SIZE`.
    pub fn validator(&self) -> String {
        format!("{}-{}", self.opened.modified_ns, self.opened.size)
    }

    /// Reads from the page cache at `offset` and never waits for a disk: safe on a runtime worker.
    ///
    /// May read less than requested. Returns `None` if it would have to wait, or if the kernel or
    /// the file system does not support it: then call [`FileSource::read_at`] on a blocking thread.
    pub fn read_at_cached(&self, offset: u64, buf: &mut [u8]) -> io::Result<Option<usize>> {
        if self.nowait_unsupported.load(Ordering::Relaxed) {
            return Ok(None);
        }
        match read_nowait(&self.file, offset, buf) {
            // Some kernels (5.9 to 5.11) return 0 for a page that is only absent from the cache: only
            // a blocking read finds the end.
            Ok(0) if offset < self.opened.size => Ok(None),
            Ok(read) => Ok(Some(read)),
            Err(Errno::AGAIN | Errno::INTR) => Ok(None),
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
                self.nowait_unsupported.store(true, Ordering::Relaxed);
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Reads at `offset` until `buf` is full or the file ends. For blocking threads only.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buf.len() {
            match self.file.read_at(&mut buf[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    /// Fails as `source_changed` if the file was written to after the opening. One system call,
    /// which does not wait on local file systems.
    pub fn verify_unchanged(&self) -> Result<(), Failure> {
        let now = open::current_stamp(&self.file).map_err(|error| self.unreadable(&error))?;
        if now == self.opened {
            return Ok(());
        }
        let message = if now.size == self.opened.size {
            format!("{} was written to while it was read", self.path.display())
        } else {
            let (was, is) = (self.opened.size, now.size);
            format!("{} was {was} bytes long when it was opened and is {is} bytes long now", self.path.display())
        };
        Err(Failure::new(Reason::SourceChanged, message)
            .hint("write the file elsewhere and rename it into place before the job is published"))
    }

    /// Counts bytes that were read for an upload. Reads for digests and checksums are not counted.
    pub fn count_read(&self, bytes: u64) {
        self.metrics.source_read("file", bytes);
    }

    /// Returns the failure for an I/O error of this file.
    pub fn unreadable(&self, error: &io::Error) -> Failure {
        Failure::new(Reason::SourceUnavailable, format!("{} can't be read: {error}", self.path.display()))
    }

    /// Returns the failure for a file that ended at `offset`, before its length, for callers that
    /// read it themselves.
    pub fn ended_early(&self, offset: u64) -> Failure {
        let message = format!("{} ended at byte {offset}; it was {} bytes long", self.path.display(), self.opened.size);
        Failure::new(Reason::SourceChanged, message)
    }

    /// Reads the file from start to end, as [`FileSource::chunks_from`].
    pub fn chunks(self: Arc<Self>) -> Chunks {
        self.chunks_from(0)
    }

    /// Reads the file from byte `offset` to its end in chunks of 256 KiB and counts them. Never
    /// blocks a runtime worker. The last chunk (or the end, if there is none) is only yielded after
    /// the file was found unchanged.
    pub fn chunks_from(self: Arc<Self>, offset: u64) -> Chunks {
        Box::pin(stream::try_unfold((self, offset), |(file, offset)| async move {
            let chunk = Self::chunk_at(&file, offset).await?;
            let next = offset + chunk.len() as u64;
            if next >= file.length() {
                file.verify_unchanged()?;
            }
            file.count_read(chunk.len() as u64);
            Ok((!chunk.is_empty()).then_some((chunk, (file, next))))
        }))
    }

    async fn chunk_at(file: &Arc<Self>, offset: u64) -> Result<Bytes, Failure> {
        let left = file.length().saturating_sub(offset);
        let wanted = usize::try_from(left).unwrap_or(CHUNK_SIZE).min(CHUNK_SIZE);
        if wanted == 0 {
            return Ok(Bytes::new());
        }
        let mut buf = vec![0; wanted];
        let cached = file.read_at_cached(offset, &mut buf).map_err(|error| file.unreadable(&error))?;
        let (mut buf, read) = match cached {
            Some(read) => (buf, read),
            None => Self::read_blocking(file, offset, buf).await?,
        };
        if read == 0 {
            return Err(file.ended_early(offset));
        }
        buf.truncate(read);
        Ok(buf.into())
    }

    async fn read_blocking(file: &Arc<Self>, offset: u64, mut buf: Vec<u8>) -> Result<(Vec<u8>, usize), Failure> {
        let reader = Arc::clone(file);
        let task = tokio::task::spawn_blocking(move || reader.read_at(offset, &mut buf).map(|read| (buf, read)));
        task.await.map_err(io::Error::other).and_then(|read| read).map_err(|error| file.unreadable(&error))
    }

    /// Computes the SHA-256 of the whole file. Fails if the file changes meanwhile. When dropped,
    /// it stops after the current stride.
    pub(super) async fn sha256(file: &Arc<Self>) -> Result<[u8; 32], Failure> {
        let (mut hasher, mut offset) = (Sha256::new(), 0);
        while offset < file.length() {
            let reader = Arc::clone(file);
            let task = tokio::task::spawn_blocking(move || reader.hash_stride(offset, hasher));
            (hasher, offset) = task.await.map_err(|error| file.unreadable(&io::Error::other(error)))??;
        }
        file.verify_unchanged()?;
        Ok(hasher.finalize().into())
    }

    fn hash_stride(&self, from: u64, mut hasher: Sha256) -> Result<(Sha256, u64), Failure> {
        let end = self.length().min(from + DIGEST_STRIDE);
        let mut buf = vec![0; CHUNK_SIZE];
        let mut offset = from;
        while offset < end {
            let wanted = usize::try_from(end - offset).unwrap_or(CHUNK_SIZE).min(CHUNK_SIZE);
            let read = self.read_at(offset, &mut buf[..wanted]).map_err(|error| self.unreadable(&error))?;
            if read == 0 {
                return Err(self.ended_early(offset));
            }
            hasher.update(&buf[..read]);
            offset += read as u64;
        }
        Ok((hasher, offset))
    }
}

#[cfg(target_os = "linux")]
fn read_nowait(file: &File, offset: u64, buf: &mut [u8]) -> rustix::io::Result<usize> {
    rustix::io::preadv2(file, &mut [io::IoSliceMut::new(buf)], offset, rustix::io::ReadWriteFlags::NOWAIT)
}

#[cfg(not(target_os = "linux"))]
fn read_nowait(_: &File, _: u64, _: &mut [u8]) -> rustix::io::Result<usize> {
    Err(Errno::OPNOTSUPP)
}

#[cfg(test)]
mod tests;
