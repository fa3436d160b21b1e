//! A range of a file as a request body: it is read while the connection pulls, and its checksum is
//! computed in passing where that is wanted.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use crc_fast::{CrcAlgorithm, Digest};
use http_body::{Frame, SizeHint};
use tokio::task::JoinHandle;

use super::{CHUNK, Pool};
use crate::domain::outcome::Failure;
use crate::source::file::FileSource;

/// A buffer and the number of bytes that were read into it.
type Read = (Box<[u8]>, usize);

/// Result of one pass of a body over its range. Empty until the body has read its last byte, or has
/// failed to read one.
#[derive(Debug, Clone, Default)]
pub(in crate::upload) struct Passage(Arc<OnceLock<Result<u64, Failure>>>);

impl Passage {
    /// Returns the CRC-64/NVME of the whole range, if all of it was read.
    pub(in crate::upload) fn crc(&self) -> Option<u64> {
        self.0.get()?.as_ref().ok().copied()
    }

    /// Returns why the file could not be read to the end of the range.
    pub(in crate::upload) fn failure(&self) -> Option<Failure> {
        self.0.get()?.as_ref().err().cloned()
    }

    /// Each body has a passage of its own, and ends once.
    fn end(&self, result: Result<u64, Failure>) {
        let _ = self.0.set(result);
    }
}

/// A range of a file as a request body.
pub(super) struct FileBody {
    file: Arc<FileSource>,
    pool: Pool,
    offset: u64,
    left: u64,
    reading: Option<JoinHandle<io::Result<Read>>>,
    passing: Option<(Digest, Passage)>,
}

impl FileBody {
    /// The range of an offset and a length. With `passage`, the checksum is computed.
    pub(super) fn new(
        file: Arc<FileSource>,
        pool: Pool,
        (offset, length): (u64, u64),
        passage: Option<Passage>,
    ) -> Self {
        let passing = passage.map(|passage| (Digest::new(CrcAlgorithm::Crc64Nvme), passage));
        Self { file, pool, offset, left: length, reading: None, passing }
    }

    fn want(&self) -> usize {
        CHUNK.min(usize::try_from(self.left).unwrap_or(usize::MAX))
    }

    /// Reads from the page cache, without waiting for the disk; `None` where that is not possible.
    fn cached(&self) -> Option<io::Result<Read>> {
        let mut buffer = self.pool.take();
        let want = self.want();
        match self.file.read_at_cached(self.offset, &mut buffer[..want]) {
            Ok(Some(n)) => Some(Ok((buffer, n))),
            Ok(None) => {
                self.pool.give(buffer);
                None
            }
            Err(error) => Some(Err(error)),
        }
    }

    /// A read that may wait for the disk, on a thread that may block.
    fn uncached(&self) -> JoinHandle<io::Result<Read>> {
        let (file, offset, want, mut buffer) = (self.file.clone(), self.offset, self.want(), self.pool.take());
        tokio::task::spawn_blocking(move || file.read_at(offset, &mut buffer[..want]).map(|n| (buffer, n)))
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Read>> {
        if self.reading.is_none()
            && let Some(read) = self.cached()
        {
            return Poll::Ready(read);
        }
        let mut reading = self.reading.take().unwrap_or_else(|| self.uncached());
        let read = Pin::new(&mut reading).poll(cx);
        if read.is_pending() {
            self.reading = Some(reading);
        }
        Poll::Ready(ready!(read).map_err(io::Error::other).and_then(|read| read))
    }

    fn accept(&mut self, read: io::Result<Read>) -> io::Result<Bytes> {
        match read {
            Ok((_, 0)) => Err(self.failed(self.file.ended_early(self.offset), io::ErrorKind::UnexpectedEof.into())),
            Ok((buffer, n)) => Ok(self.advance(buffer, n)),
            Err(error) => Err(self.failed(self.file.unreadable(&error), error)),
        }
    }

    fn advance(&mut self, buffer: Box<[u8]>, n: usize) -> Bytes {
        self.offset += n as u64;
        self.left -= n as u64;
        if let Some((digest, passage)) = &mut self.passing {
            digest.update(&buffer[..n]);
            if self.left == 0 {
                passage.end(Ok(digest.finalize()));
            }
        }
        self.pool.wrap(buffer, n)
    }

    fn failed(&self, failure: Failure, error: io::Error) -> io::Error {
        if let Some((_, passage)) = &self.passing {
            passage.end(Err(failure));
        }
        error
    }
}

impl http_body::Body for FileBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let read = ready!(self.poll_read(cx));
        Poll::Ready(Some(self.accept(read).map(Frame::data)))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;
    use crate::domain::outcome::Reason;
    use crate::metrics::Metrics;
    use crate::upload::part::Part;

    /// Not a multiple of a chunk.
    const LENGTH: usize = 3 * CHUNK + 1;
    const OFFSET: usize = 5;

    fn bytes() -> Vec<u8> {
        (0u8..251).cycle().take(OFFSET + LENGTH).collect()
    }

    /// A part of a file, and the folder that the file is in.
    fn part() -> (tempfile::TempDir, Part) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        std::fs::write(&path, bytes()).unwrap();
        let file = Arc::new(FileSource::open(folder.path(), &path, Arc::new(Metrics::new(1))).unwrap());
        (folder, Part::of_file(file, Pool::default(), 1, (OFFSET as u64, LENGTH as u64)))
    }

    fn crc() -> u64 {
        crc_fast::checksum(CrcAlgorithm::Crc64Nvme, &bytes()[OFFSET..])
    }

    async fn frame(body: &mut aws_smithy_types::body::SdkBody) -> Option<Bytes> {
        Some(body.frame().await?.unwrap().into_data().unwrap())
    }

    #[tokio::test]
    async fn one_send_gives_the_checksum_with_the_last_byte_and_not_before() {
        let (_folder, part) = part();
        let passage = Passage::default();
        let mut body = part.body(Some(passage.clone())).into_inner();
        let mut sent = Vec::new();
        while let Some(chunk) = frame(&mut body).await {
            assert_eq!(passage.crc().is_some(), sent.len() + chunk.len() == LENGTH, "after {} bytes", sent.len());
            sent.extend_from_slice(&chunk);
        }
        assert!(sent == bytes()[OFFSET..], "other bytes");
        assert_eq!((passage.crc(), passage.failure()), (Some(crc()), None));
    }

    #[tokio::test]
    async fn a_send_that_broke_has_no_checksum_and_the_next_one_starts_again() {
        let (_folder, part) = part();
        let (broken, whole) = (Passage::default(), Passage::default());
        let mut first = part.body(Some(broken.clone())).into_inner();
        frame(&mut first).await.unwrap();
        drop(first);
        part.body(Some(whole.clone())).into_inner().collect().await.unwrap();
        assert_eq!((broken.crc(), broken.failure()), (None, None));
        assert_eq!(whole.crc(), Some(crc()));
    }

    #[tokio::test]
    async fn a_file_that_shrinks_in_between_fails_as_changed() {
        let (folder, part) = part();
        let passage = Passage::default();
        let mut body = part.body(Some(passage.clone())).into_inner();
        frame(&mut body).await.unwrap();
        let file = std::fs::OpenOptions::new().write(true).open(folder.path().join("f")).unwrap();
        file.set_len(2 * CHUNK as u64).unwrap();
        body.collect().await.unwrap_err();
        assert_eq!(passage.crc(), None);
        let failure = passage.failure().unwrap();
        assert_eq!(failure.reason, Reason::SourceChanged);
        assert!(failure.message.contains(&format!("byte {}", 2 * CHUNK)), "{failure}");
    }

    #[tokio::test]
    async fn a_body_with_a_header_computes_nothing() {
        let (_folder, part) = part();
        let sent = part.body(None).collect().await.unwrap().into_bytes();
        assert!(sent == bytes()[OFFSET..], "other bytes");
        assert_eq!(part.compute_crc().await.unwrap(), crc());
        assert_eq!(part.crc, None);
    }
}
