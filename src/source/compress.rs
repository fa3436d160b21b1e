//! gzip and zstd on the way. Whoever compresses reads chunks, so that a compressed file is no longer a file.

mod packer;

use std::io;

use async_compression::tokio::write::{GzipEncoder, ZstdEncoder};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};

use super::Chunks;
use crate::domain::job::Compression;
use crate::domain::outcome::{Failure, Reason};
pub use packer::Packer;

/// Bytes compressed between two chances for other tasks: a millisecond of gzip.
const STRIDE: usize = 64 * 1024;
/// Compressed bytes are handed on from this many; one chunk is this much and what one stride adds.
const CHUNK: usize = 64 * 1024;

/// Compresses a stream, as one gzip member or one zstd frame. A failure of `chunks` comes out as it is, and nothing follows
/// it. The same bytes in the same chunks give the same output whatever the timing: nothing is flushed before the end.
pub fn compress(chunks: Chunks, compression: Compression) -> Chunks {
    match compression {
        Compression::None => chunks,
        Compression::Gzip => encoded(chunks, Box::new(GzipEncoder::new(Vec::new()))),
        Compression::Zstd => encoded(chunks, Box::new(ZstdEncoder::new(Vec::new()))),
    }
}

/// An encoder that writes into memory.
trait Encoder: AsyncWrite + Send + Unpin {
    fn output(&mut self) -> &mut Vec<u8>;
}

impl Encoder for GzipEncoder<Vec<u8>> {
    fn output(&mut self) -> &mut Vec<u8> {
        self.get_mut()
    }
}

impl Encoder for ZstdEncoder<Vec<u8>> {
    fn output(&mut self) -> &mut Vec<u8> {
        self.get_mut()
    }
}

struct Encoding {
    input: Option<Chunks>,
    /// What of the last chunk is not compressed yet.
    rest: Bytes,
    encoder: Box<dyn Encoder>,
}

fn encoded(chunks: Chunks, encoder: Box<dyn Encoder>) -> Chunks {
    let state = Encoding { input: Some(chunks), rest: Bytes::new(), encoder };
    Box::pin(stream::try_unfold(state, |mut state| async move {
        let chunk = state.next().await?;
        Ok((!chunk.is_empty()).then_some((chunk, state)))
    }))
}

impl Encoding {
    /// The next compressed chunk; empty at the end.
    async fn next(&mut self) -> Result<Bytes, Failure> {
        while self.encoder.output().len() < CHUNK {
            if !self.rest.is_empty() {
                self.stride().await?;
            } else if let Some(input) = &mut self.input {
                match input.next().await {
                    Some(chunk) => self.rest = chunk?,
                    None => self.finish().await?,
                }
            } else {
                break;
            }
        }
        Ok(std::mem::take(self.encoder.output()).into())
    }

    async fn stride(&mut self) -> Result<(), Failure> {
        let piece = self.rest.split_to(self.rest.len().min(STRIDE));
        self.encoder.write_all(&piece).await.map_err(|error| broken(&error))?;
        tokio::task::yield_now().await;
        Ok(())
    }

    async fn finish(&mut self) -> Result<(), Failure> {
        self.input = None;
        self.encoder.shutdown().await.map_err(|error| broken(&error))
    }
}

/// Memory does not fail to be written to: this is a rule of ours that broke.
fn broken(error: &io::Error) -> Failure {
    Failure::new(Reason::Panic, format!("the compression failed: {error}"))
}

#[cfg(test)]
mod tests {
    use async_compression::tokio::bufread::{GzipDecoder, ZstdDecoder};
    use futures_util::TryStreamExt as _;
    use tokio::io::{AsyncRead, AsyncReadExt as _};

    use super::*;

    fn noise(length: usize) -> Vec<u8> {
        let mut state = 88_172_645_463_325_252_u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[0]
        };
        (0..length).map(|_| next()).collect()
    }

    fn chunked(bytes: &[u8], size: usize) -> Chunks {
        let chunks: Vec<_> = bytes.chunks(size).map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
        Box::pin(stream::iter(chunks))
    }

    async fn decoded(compression: Compression, bytes: &[u8]) -> Vec<u8> {
        let mut decoder: Box<dyn AsyncRead + Unpin> = match compression {
            Compression::Gzip => Box::new(GzipDecoder::new(bytes)),
            _ => Box::new(ZstdDecoder::new(bytes)),
        };
        let mut plain = Vec::new();
        decoder.read_to_end(&mut plain).await.unwrap();
        plain
    }

    #[tokio::test]
    async fn what_is_compressed_can_be_had_back() {
        let repeated = b"date,campaign,clicks\n".repeat(100_000);
        for compression in [Compression::Gzip, Compression::Zstd] {
            for plain in [Vec::new(), vec![7], noise(600_000), repeated.clone()] {
                let chunks: Vec<Bytes> = compress(chunked(&plain, 100_000), compression).try_collect().await.unwrap();
                assert!(chunks.iter().all(|c| (1..=CHUNK + 2 * STRIDE).contains(&c.len())), "{compression:?}");
                let whole = chunks.concat();
                assert_eq!(decoded(compression, &whole).await, plain, "{compression:?} of {} bytes", plain.len());
                assert!(plain != repeated || whole.len() < plain.len() / 20, "{compression:?} compresses");
            }
        }
    }

    #[tokio::test]
    async fn no_compression_changes_nothing() {
        let chunks: Vec<Bytes> = compress(chunked(b"abc", 2), Compression::None).try_collect().await.unwrap();
        assert_eq!(chunks, ["ab", "c"]);
    }

    #[tokio::test]
    async fn a_failure_comes_out_as_it_went_in() {
        let failure = || Err(Failure::new(Reason::SourceSlow, "slow").hint("hint"));
        for compression in [Compression::Gzip, Compression::Zstd] {
            let input = chunked(b"some bytes", 4).chain(stream::once(async move { failure() }));
            let mut output = compress(Box::pin(input), compression);
            let error = output.by_ref().try_for_each(|_| async { Ok(()) }).await.unwrap_err();
            assert_eq!((error.reason, error.hint.as_str()), (Reason::SourceSlow, "hint"));
            assert!(output.next().await.is_none(), "nothing follows a failure, least of all a valid end");
        }
    }
}
