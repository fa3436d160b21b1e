//! gzip and zstd compression of a stream. A compressed file is read as chunks, not as a file.

mod packer;

use super::chunks::Chunks;
use crate::domain::job::Compression;
use crate::domain::job::lease::PackedEnd;
pub use packer::Packer;

/// Compresses a stream as one gzip member or one zstd frame.
///
/// A failure of `chunks` passes through unchanged, and nothing follows it. The same bytes give the
/// same output at any timing: nothing is flushed before the end.
pub fn compress(chunks: Chunks, compression: Compression) -> Chunks {
    match compression {
        Compression::None => chunks,
        compression => Packer::new(chunks, compression, PackedEnd::default()).whole(),
    }
}

#[cfg(test)]
mod tests {
    use async_compression::tokio::bufread::{GzipDecoder, ZstdDecoder};
    use bytes::Bytes;
    use futures_util::{StreamExt as _, TryStreamExt as _, stream};
    use tokio::io::{AsyncRead, AsyncReadExt as _};

    use super::packer::{CHUNK_SIZE, STRIDE};
    use super::*;
    use crate::domain::outcome::{Failure, Reason};

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
