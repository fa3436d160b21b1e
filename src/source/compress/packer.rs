//! Compression in segments, so that another worker can resume at the end of a segment.
//!
//! Each segment has an encoder of its own and ends on a whole byte. A checkpoint therefore only
//! needs the end of the segment in the source and the CRC-32 up to there. A segment of zstd is
//! a frame (RFC 8878 3: frames may follow each other). The segments of gzip form one member:
//! members may follow each other, too (RFC 1952 2.2), but browsers and some libraries read only the
//! first.

use std::io::{self, Write as _};

use bytes::{Bytes, BytesMut};
use crc_fast::{CrcAlgorithm, Digest};
use flate2::write::DeflateEncoder;
use futures_util::{StreamExt as _, stream};
use zstd::stream::write::Encoder as ZstdEncoder;

use crate::domain::job::Compression;
use crate::domain::job::lease::PackedEnd;
use crate::domain::outcome::{Failure, Reason};
use crate::source::chunks::Chunks;

/// Bytes compressed before the task yields to others: a millisecond of gzip.
pub(super) const STRIDE: usize = 64 * 1024;

/// Size from which a chunk of [`Packer::whole`] is yielded. It has this size plus what one stride
/// adds.
pub(super) const CHUNK_SIZE: usize = 64 * 1024;
/// Header of a gzip member: magic, deflate, no flags, no time, no hints, unknown system.
const GZIP_HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];

/// Compresses a stream into segments. The compression can resume at the end of each one. All
/// segments in sequence are one gzip member, or a sequence of zstd frames.
///
/// The same source and the same sizes give the same segments, however the source is divided into
/// chunks and whichever workers resume at whichever ends. Only the last segment ends with the
/// source: nothing remains to be done after an end that equals the source's length.
pub struct Packer {
    input: StrideReader,
    compression: Compression,
    at: PackedEnd,
    /// CRC-32 (as in gzip) of the source so far.
    crc: Digest,
    state: PackerState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PackerState {
    Ready,
    /// Inside a segment. A failure or a dropped future leaves the packer in this state for good.
    InSegment,
    Done,
}

impl Packer {
    /// Bytes by which a segment may exceed the requested size: the output of one stride (64 KiB),
    /// what an encoder buffers before and after it (zstd a block of 128 KiB, gzip about 80 KiB),
    /// and the framing. Measured with incompressible input: 192 KiB and 11 bytes.
    pub const SLACK: usize = 256 * 1024;

    /// Starts or resumes at `from` (its default is the start): `chunks` begin at byte `from.source`
    /// of the source.
    pub fn new(chunks: Chunks, compression: Compression, from: PackedEnd) -> Self {
        let input = StrideReader { chunks: Some(chunks), rest: Bytes::new() };
        // The state of a CRC-32 is its value with every bit inverted.
        let crc = Digest::new_with_init_state(CrcAlgorithm::Crc32IsoHdlc, (!from.crc32).into());
        Self { input, compression, at: from, crc, state: PackerState::Ready }
    }

    /// Appends the next segment to `out` and returns its end in the source; `None` after the last.
    ///
    /// A segment has at least `size` bytes unless it is the last, and at most `size` plus
    /// [`Packer::SLACK`]. It is never empty, so that an empty source gives an empty member or
    /// frame. The call waits until the source has more bytes or ends, so that the last segment is
    /// known to be the last.
    ///
    /// # Errors
    /// A failure of the source passes through unchanged. After a failure, or if the future was
    /// dropped, every further call fails.
    pub async fn next(&mut self, size: usize, out: &mut BytesMut) -> Result<Option<PackedEnd>, Failure> {
        match self.state {
            PackerState::Ready => {}
            PackerState::Done => return Ok(None),
            PackerState::InSegment => {
                return Err(Failure::new(Reason::Panic, "a segment was requested after an unfinished one"));
            }
        }
        self.state = PackerState::InSegment;
        // An empty source still has a compressed form.
        let begun = self.at.source > 0 || self.compression == Compression::None;
        if begun && !self.input.has_more().await? {
            self.state = PackerState::Done;
            return Ok(None);
        }
        let last = self.write_segment(size, out).await?;
        self.state = if last { PackerState::Done } else { PackerState::Ready };
        Ok(Some(self.at))
    }

    /// Returns true if it was the last segment.
    async fn write_segment(&mut self, size: usize, out: &mut BytesMut) -> Result<bool, Failure> {
        let begin = out.len();
        let mut encoder = self.begin(out)?;
        loop {
            let last = self.write_stride(&mut encoder, out).await?;
            if last || out.len() - begin >= size {
                encoder.finish(last, self.at, out).map_err(|error| encoder_failure(&error))?;
                return Ok(last);
            }
        }
    }

    /// Begins a segment: the first one of gzip with the header of the member.
    fn begin(&self, out: &mut BytesMut) -> Result<SegmentEncoder, Failure> {
        if self.compression == Compression::Gzip && self.at.source == 0 {
            out.extend_from_slice(&GZIP_HEADER);
        }
        SegmentEncoder::new(self.compression).map_err(|error| encoder_failure(&error))
    }

    /// Compresses the next stride. Returns true if it was the last.
    async fn write_stride(&mut self, encoder: &mut SegmentEncoder, out: &mut BytesMut) -> Result<bool, Failure> {
        let stride = self.input.next().await?;
        encoder.write(&stride, out).map_err(|error| encoder_failure(&error))?;
        self.advance(&stride);
        tokio::task::yield_now().await;
        Ok(!self.input.has_more().await?)
    }

    /// Compresses everything as one segment, and yields it in chunks.
    pub(super) fn whole(self) -> Chunks {
        Box::pin(stream::try_unfold((self, None), |(mut packer, begun)| async move {
            if packer.state == PackerState::Done {
                return Ok(None);
            }
            let mut out = BytesMut::new();
            let mut encoder = match begun {
                Some(encoder) => encoder,
                None => packer.begin(&mut out)?,
            };
            while out.len() < CHUNK_SIZE {
                if packer.write_stride(&mut encoder, &mut out).await? {
                    encoder.finish(true, packer.at, &mut out).map_err(|error| encoder_failure(&error))?;
                    packer.state = PackerState::Done;
                    return Ok(Some((out.freeze(), (packer, None))));
                }
            }
            Ok(Some((out.freeze(), (packer, Some(encoder)))))
        }))
    }

    fn advance(&mut self, stride: &[u8]) {
        self.at.source += stride.len() as u64;
        if self.compression == Compression::Gzip {
            self.crc.update(stride);
            self.at.crc32 = u32::try_from(self.crc.finalize()).unwrap_or_default();
        }
    }
}

/// Reads a stream in strides of one size, independent of its chunk sizes.
struct StrideReader {
    chunks: Option<Chunks>,
    rest: Bytes,
}

impl StrideReader {
    /// Returns [`STRIDE`] bytes; fewer only at the end.
    async fn next(&mut self) -> Result<Bytes, Failure> {
        if self.rest.len() >= STRIDE {
            return Ok(self.rest.split_to(STRIDE));
        }
        let mut stride = BytesMut::new();
        while stride.len() < STRIDE && self.has_more().await? {
            let missing = STRIDE - stride.len();
            stride.extend_from_slice(&self.rest.split_to(self.rest.len().min(missing)));
        }
        Ok(stride.freeze())
    }

    /// Waits for more bytes or the end. If it returns true, `rest` is not empty.
    async fn has_more(&mut self) -> Result<bool, Failure> {
        while self.rest.is_empty() {
            let Some(chunks) = &mut self.chunks else { return Ok(false) };
            match chunks.next().await {
                Some(chunk) => self.rest = chunk?,
                None => self.chunks = None,
            }
        }
        Ok(true)
    }
}

/// Encoder of one segment, at the default levels.
enum SegmentEncoder {
    Plain,
    Gzip(DeflateEncoder<Vec<u8>>),
    Zstd(ZstdEncoder<'static, Vec<u8>>),
}

impl SegmentEncoder {
    fn new(compression: Compression) -> io::Result<Self> {
        Ok(match compression {
            Compression::None => Self::Plain,
            Compression::Gzip => Self::Gzip(DeflateEncoder::new(Vec::new(), flate2::Compression::default())),
            Compression::Zstd => Self::Zstd(ZstdEncoder::new(Vec::new(), zstd::DEFAULT_COMPRESSION_LEVEL)?),
        })
    }

    /// Compresses a stride and appends to `out` what the encoder does not buffer.
    fn write(&mut self, stride: &[u8], out: &mut BytesMut) -> io::Result<()> {
        match self {
            Self::Plain => out.extend_from_slice(stride),
            Self::Gzip(encoder) => {
                encoder.write_all(stride)?;
                drain(encoder.get_mut(), out);
            }
            Self::Zstd(encoder) => {
                encoder.write_all(stride)?;
                drain(encoder.get_mut(), out);
            }
        }
        Ok(())
    }

    /// Appends the rest to `out`, up to a whole byte. A new encoder can continue after it.
    fn finish(self, last: bool, at: PackedEnd, out: &mut BytesMut) -> io::Result<()> {
        match self {
            Self::Plain => {}
            Self::Gzip(encoder) if last => {
                out.extend_from_slice(&encoder.finish()?);
                out.extend_from_slice(&at.crc32.to_le_bytes());
                // The length modulo 2^32: its lower half.
                out.extend_from_slice(&at.source.to_le_bytes()[..4]);
            }
            Self::Gzip(mut encoder) => {
                encoder.flush()?;
                drain(encoder.get_mut(), out);
            }
            Self::Zstd(encoder) => out.extend_from_slice(&encoder.finish()?),
        }
        Ok(())
    }
}

fn drain(from: &mut Vec<u8>, to: &mut BytesMut) {
    to.extend_from_slice(from);
    from.clear();
}

/// Returns the failure of an encoder. Writing to memory cannot fail, so this is a bug in the
/// worker.
fn encoder_failure(error: &io::Error) -> Failure {
    Failure::new(Reason::Panic, format!("the compression failed: {error}"))
}

#[cfg(test)]
mod tests;
