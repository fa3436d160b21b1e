//! gzip and zstd compression of a stream. A compressed file is read as chunks, not as a file.

mod packer;

use async_compression::tokio::write::{GzipEncoder, ZstdEncoder};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};

use super::chunks::Chunks;
use crate::domain::job::Compression;
use crate::domain::outcome::Failure;
use packer::{STRIDE, encoder_failure};

pub use packer::Packer;

/// Size from which compressed bytes are yielded. A chunk has this size plus what one stride adds.
const CHUNK_SIZE: usize = 64 * 1024;

/// Compresses a stream as one gzip member or one zstd frame.
///
/// A failure of `chunks` passes through unchanged, and nothing follows it. The same bytes in the
/// same chunks give the same output at any timing: nothing is flushed before the end.
pub fn compress(chunks: Chunks, compression: Compression) -> Chunks {
    match compression {
        Compression::None => chunks,
        Compression::Gzip => encoded(chunks, Box::new(GzipEncoder::new(Vec::new()))),
        Compression::Zstd => encoded(chunks, Box::new(ZstdEncoder::new(Vec::new()))),
    }
}

/// An encoder that writes into memory.
trait MemoryEncoder: AsyncWrite + Send + Unpin {
    fn output(&mut self) -> &mut Vec<u8>;
}

impl MemoryEncoder for GzipEncoder<Vec<u8>> {
    fn output(&mut self) -> &mut Vec<u8> {
        self.get_mut()
    }
}

impl MemoryEncoder for ZstdEncoder<Vec<u8>> {
    fn output(&mut self) -> &mut Vec<u8> {
        self.get_mut()
    }
}

struct CompressedStream {
    input: Option<Chunks>,
    /// The part of the last chunk that is not compressed yet.
    rest: Bytes,
    encoder: Box<dyn MemoryEncoder>,
}

fn encoded(chunks: Chunks, encoder: Box<dyn MemoryEncoder>) -> Chunks {
    let state = CompressedStream { input: Some(chunks), rest: Bytes::new(), encoder };
    Box::pin(stream::try_unfold(state, |mut state| async move {
        let chunk = state.next().await?;
        Ok((!chunk.is_empty()).then_some((chunk, state)))
    }))
}

impl CompressedStream {
    /// Returns the next compressed chunk; empty at the end.
    async fn next(&mut self) -> Result<Bytes, Failure> {
        while self.encoder.output().len() < CHUNK_SIZE {
            if !self.rest.is_empty() {
                self.compress_stride().await?;
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

    async fn compress_stride(&mut self) -> Result<(), Failure> {
        let stride = self.rest.split_to(self.rest.len().min(STRIDE));
        self.encoder.write_all(&stride).await.map_err(|error| encoder_failure(&error))?;
        tokio::task::yield_now().await;
        Ok(())
    }

    async fn finish(&mut self) -> Result<(), Failure> {
        self.input = None;
        self.encoder.shutdown().await.map_err(|error| encoder_failure(&error))
    }
}

#[cfg(test)]
mod tests {
    use async_compression::tokio::bufread::{GzipDecoder, ZstdDecoder};
    use futures_util::TryStreamExt as _;
    use tokio::io::{AsyncRead, AsyncReadExt as _};

    use super::*;
    use crate::domain::outcome::Reason;

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
    async fn compressed_bytes_decompress_to_the_input() {
        let repeated = b"date,campaign,clicks\n".repeat(100_000);
        for compression in [Compression::Gzip, Compression::Zstd] {
            for plain in [Vec::new(), vec![7], noise(600_000), repeated.clone()] {
                let chunks: Vec<Bytes> = compress(chunked(&plain, 100_000), compression).try_collect().await.unwrap();
                assert!(chunks.iter().all(|c| (1..=CHUNK_SIZE + 2 * STRIDE).contains(&c.len())), "{compression:?}");
                let whole = chunks.concat();
                assert_eq!(decoded(compression, &whole).await, plain, "{compression:?} of {} bytes", plain.len());
                assert!(plain != repeated || whole.len() < plain.len() / 20, "{compression:?} compresses");
            }
        }
    }

    #[tokio::test]
    async fn without_compression_the_chunks_are_unchanged() {
        let chunks: Vec<Bytes> = compress(chunked(b"abc", 2), Compression::None).try_collect().await.unwrap();
        assert_eq!(chunks, ["ab", "c"]);
    }

    #[tokio::test]
    async fn a_failure_passes_through() {
        let failure = || Err(Failure::new(Reason::SourceSlow, "slow").hint("hint"));
        for compression in [Compression::Gzip, Compression::Zstd] {
            let input = chunked(b"some bytes", 4).chain(stream::once(async move { failure() }));
            let mut output = compress(Box::pin(input), compression);
            let error = output.by_ref().try_for_each(|_| async { Ok(()) }).await.unwrap_err();
            assert_eq!((error.reason, error.hint.as_str()), (Reason::SourceSlow, "hint"));
            assert!(output.next().await.is_none(), "nothing follows a failure, in particular no valid end");
        }
    }
}
