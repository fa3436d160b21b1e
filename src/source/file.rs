//! Local files below `source.file_root`, and nothing else: no `..`, no symlink, no FIFO, no device, no directory.

mod open;

use std::fmt;
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

use super::Chunks;
use crate::domain::outcome::{Failure, Reason};
use crate::metrics::Metrics;

/// Bytes of one chunk of [`FileSource::chunks`].
const CHUNK: usize = 256 * 1024;
/// Bytes hashed in one go on a blocking thread; a dropped digest stops after at most this much.
const DIGEST_STRIDE: u64 = 32 * 1024 * 1024;

/// A regular file that is open for reading, and what it was when it was opened.
///
/// Every range can be read any number of times and from any thread. The file may be unlinked or replaced by a rename
/// meanwhile (the open one stays what it was); writing into it is found out by [`FileSource::verify_unchanged`].
pub struct FileSource {
    file: File,
    path: PathBuf,
    opened: Stamp,
    nowait_unsupported: AtomicBool,
    metrics: Arc<Metrics>,
}

/// What changes when somebody writes into a file. Not ctime: that also changes when the name is replaced by a rename,
/// which leaves the open file as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    size: u64,
    modified_ns: i128,
}

impl FileSource {
    /// Opens a file below `root`. Blocks: a few system calls, on a blocking thread.
    ///
    /// Fails as `source_forbidden` (outside, or no regular file), `source_not_found`, `source_denied` or
    /// `source_unavailable`.
    pub fn open(root: &Path, path: &Path, metrics: Arc<Metrics>) -> Result<Self, Failure> {
        Self::opened(open::beneath(root, path)?, path, metrics)
    }

    /// The same without waiting for a disk: safe on a runtime worker, and without the two changes of threads that cost more
    /// than a small file's upload. `None` when it would have to wait, or at any trouble: then [`FileSource::open`] says which.
    pub fn open_cached(root: &Path, path: &Path, metrics: &Arc<Metrics>) -> Option<Self> {
        let file = open::beneath_cached(root, path)?;
        Self::opened(file, path, Arc::clone(metrics)).ok()
    }

    fn opened(file: File, path: &Path, metrics: Arc<Metrics>) -> Result<Self, Failure> {
        let opened = open::regular(&file, path)?;
        Ok(Self { file, path: path.to_owned(), opened, nowait_unsupported: AtomicBool::new(false), metrics })
    }

    /// Bytes of the file when it was opened.
    pub fn length(&self) -> u64 {
        self.opened.size
    }

    /// What identifies this content: modification time in nanoseconds and size, `NS-SIZE`.
    pub fn validator(&self) -> String {
        format!("{}-{}", self.opened.modified_ns, self.opened.size)
    }

    /// Reads what is in the page cache at `offset`, without ever waiting for a disk: safe on a runtime worker.
    ///
    /// May read less than asked for. `None` when it would have to wait, or where the kernel or the file system can't tell:
    /// then [`FileSource::read_at`] on a blocking thread is the way.
    pub fn read_at_cached(&self, offset: u64, buf: &mut [u8]) -> io::Result<Option<usize>> {
        if self.nowait_unsupported.load(Ordering::Relaxed) {
            return Ok(None);
        }
        match read_nowait(&self.file, offset, buf) {
            // Some kernels (5.9 to 5.11) answer 0 for a page that is merely absent: only a blocking read knows the end.
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

    /// Reads at `offset` until `buf` is full or the file ends. Blocks: for blocking threads only.
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

    /// Fails as `source_changed` if the file was written to since it was opened. One system call that does not wait on
    /// local file systems.
    pub fn verify_unchanged(&self) -> Result<(), Failure> {
        let now = open::stamp(&self.file).map_err(|error| self.unreadable(&error))?;
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
            .hint("Write the file elsewhere and rename it into place before the job is published."))
    }

    /// Counts bytes that went to an upload; passes for digests and checksums don't count.
    pub fn count_read(&self, bytes: u64) {
        self.metrics.source_read("file", bytes);
    }

    /// The failure of an I/O error of this file.
    pub fn unreadable(&self, error: &io::Error) -> Failure {
        Failure::new(Reason::SourceUnavailable, format!("{} can't be read: {error}", self.path.display()))
    }

    /// The failure of a file that ended at `offset`, before its length: for readers that find out themselves.
    pub fn ended_early(&self, offset: u64) -> Failure {
        let message = format!("{} ended at byte {offset}; it was {} bytes long", self.path.display(), self.opened.size);
        Failure::new(Reason::SourceChanged, message)
    }

    /// The file from start to end, as [`FileSource::chunks_from`] reads it.
    pub fn chunks(self: Arc<Self>) -> Chunks {
        self.chunks_from(0)
    }

    /// The file from byte `offset` to its end in chunks of 256 KiB, counted. Never blocks a runtime worker. The last chunk,
    /// or the end where there is none, comes only after the file was found unchanged.
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
        let wanted = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
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

    /// The SHA-256 of the whole file, which must not change meanwhile. Stops soon when dropped.
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
        let mut buf = vec![0; CHUNK];
        let mut offset = from;
        while offset < end {
            let wanted = usize::try_from(end - offset).unwrap_or(CHUNK).min(CHUNK);
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

impl fmt::Debug for FileSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileSource").field("path", &self.path).field("opened", &self.opened).finish_non_exhaustive()
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
