//! Compression in stretches, so that another worker can go on where one of them ended.
//!
//! Each stretch is made by an encoder of its own and ends on a whole byte, so nothing but its end in the source (and the CRC-32
//! up to there) has to be kept. The stretches of zstd are frames (RFC 8878 3: frames may follow each other). Those of gzip are
//! one member together: members may follow each other, too (RFC 1952 2.2), but browsers and some libraries read only the first.

use std::io::{self, Write as _};

use bytes::{Bytes, BytesMut};
use crc_fast::{CrcAlgorithm, Digest};
use flate2::write::DeflateEncoder;
use futures_util::StreamExt as _;
use zstd::stream::write::Encoder as ZstdEncoder;

use super::{STRIDE, broken};
use crate::domain::job::Compression;
use crate::domain::job::lease::PackedEnd;
use crate::domain::outcome::{Failure, Reason};
use crate::source::Chunks;

/// Magic, deflate, no flags, no time, no hints, unknown system.
const GZIP_HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];

/// Compresses a stream into stretches, each of which ends where the compression can begin anew. All of them, one after the
/// other, are one gzip member, or zstd frames.
///
/// The same source and the same sizes give the same stretches, however the source is cut into chunks and whoever goes on where.
/// The last stretch ends with the source, and no other does: after the end that has the source's length nothing is left to do.
pub struct Packer {
    pieces: Pieces,
    compression: Compression,
    at: PackedEnd,
    /// CRC-32, as gzip has it, of the source so far.
    crc: Digest,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Ready,
    /// In the middle of a stretch: where a failure, or dropping the future, leaves it for good.
    Within,
    Done,
}

impl Packer {
    /// What a stretch may be longer than asked: what one stride gives (64 KiB), what an encoder holds back before and after it
    /// (zstd a block of 128 KiB, gzip some 80 KiB), and what frames them. Measured: 192 KiB and 11 bytes with what can't be
    /// compressed.
    pub const SLACK: usize = 256 * 1024;

    /// Goes on at `from` (default: at the start): `chunks` begin at byte `from.source` of the source.
    pub fn new(chunks: Chunks, compression: Compression, from: PackedEnd) -> Self {
        let pieces = Pieces { chunks: Some(chunks), rest: Bytes::new() };
        // The state of a CRC-32 is its value with every bit turned over.
        let crc = Digest::new_with_init_state(CrcAlgorithm::Crc32IsoHdlc, (!from.crc32).into());
        Self { pieces, compression, at: from, crc, state: State::Ready }
    }

    /// Appends the next stretch to `out`: at least `size` bytes unless it is the last, at most `size` and [`Packer::SLACK`] (and
    /// never nothing, so that an empty source gives an empty member or frame). Says where it ends in the source; `None`
    /// after the last.
    ///
    /// Waits until the source says whether more follows, so that the last stretch is known to be the last.
    ///
    /// # Errors
    /// A failure of the source comes out as it is. After any, or when the future was dropped, every further call fails.
    pub async fn next(&mut self, size: usize, out: &mut BytesMut) -> Result<Option<PackedEnd>, Failure> {
        match self.state {
            State::Ready => {}
            State::Done => return Ok(None),
            State::Within => {
                return Err(Failure::new(Reason::Panic, "a stretch was to follow one that was broken off"));
            }
        }
        self.state = State::Within;
        // Compressed, even nothing is something.
        let begun = self.at.source > 0 || self.compression == Compression::None;
        if begun && !self.pieces.more().await? {
            self.state = State::Done;
            return Ok(None);
        }
        let last = self.stretch(size, out).await?;
        self.state = if last { State::Done } else { State::Ready };
        Ok(Some(self.at))
    }

    /// Says whether it was the last.
    async fn stretch(&mut self, size: usize, out: &mut BytesMut) -> Result<bool, Failure> {
        let begin = out.len();
        if self.compression == Compression::Gzip && self.at.source == 0 {
            out.extend_from_slice(&GZIP_HEADER);
        }
        let mut encoder = Encoder::new(self.compression).map_err(|error| broken(&error))?;
        loop {
            let piece = self.pieces.next().await?;
            encoder.write(&piece, out).map_err(|error| broken(&error))?;
            self.advance(&piece);
            let last = !self.pieces.more().await?;
            if last || out.len() - begin >= size {
                encoder.end(last, self.at, out).map_err(|error| broken(&error))?;
                return Ok(last);
            }
            tokio::task::yield_now().await;
        }
    }

    fn advance(&mut self, piece: &[u8]) {
        self.at.source += piece.len() as u64;
        if self.compression == Compression::Gzip {
            self.crc.update(piece);
            self.at.crc32 = u32::try_from(self.crc.finalize()).unwrap_or_default();
        }
    }
}

/// A stream in pieces of one size, however its chunks are cut.
struct Pieces {
    chunks: Option<Chunks>,
    rest: Bytes,
}

impl Pieces {
    /// [`STRIDE`] bytes, fewer only at the end.
    async fn next(&mut self) -> Result<Bytes, Failure> {
        if self.rest.len() >= STRIDE {
            return Ok(self.rest.split_to(STRIDE));
        }
        let mut piece = BytesMut::new();
        while piece.len() < STRIDE && self.more().await? {
            let missing = STRIDE - piece.len();
            piece.extend_from_slice(&self.rest.split_to(self.rest.len().min(missing)));
        }
        Ok(piece.freeze())
    }

    /// Waits until it is known whether more follows; then there is some in `rest`.
    async fn more(&mut self) -> Result<bool, Failure> {
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

/// What makes one stretch. At the levels that [`compress`](super::compress) has.
enum Encoder {
    Plain,
    Gzip(DeflateEncoder<Vec<u8>>),
    Zstd(ZstdEncoder<'static, Vec<u8>>),
}

impl Encoder {
    fn new(compression: Compression) -> io::Result<Self> {
        Ok(match compression {
            Compression::None => Self::Plain,
            Compression::Gzip => Self::Gzip(DeflateEncoder::new(Vec::new(), flate2::Compression::default())),
            Compression::Zstd => Self::Zstd(ZstdEncoder::new(Vec::new(), zstd::DEFAULT_COMPRESSION_LEVEL)?),
        })
    }

    /// What the encoder does not hold back goes to `out`.
    fn write(&mut self, piece: &[u8], out: &mut BytesMut) -> io::Result<()> {
        match self {
            Self::Plain => out.extend_from_slice(piece),
            Self::Gzip(encoder) => {
                encoder.write_all(piece)?;
                drain(encoder.get_mut(), out);
            }
            Self::Zstd(encoder) => {
                encoder.write_all(piece)?;
                drain(encoder.get_mut(), out);
            }
        }
        Ok(())
    }

    /// Everything goes to `out`, up to a whole byte; after it a new encoder may go on.
    fn end(self, last: bool, at: PackedEnd, out: &mut BytesMut) -> io::Result<()> {
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

#[cfg(test)]
mod tests;
