//! `Content-Encoding` of a source: origins send what they store, whatever the request accepts.

use std::io;

use async_compression::tokio::bufread::{GzipDecoder, ZlibDecoder, ZstdDecoder};
use async_compression::zstd::DParameter;
use futures_util::TryStreamExt as _;
use tokio::io::AsyncRead;
use tokio_util::io::{ReaderStream, StreamReader};

use super::chunks::Chunks;
use crate::domain::outcome::{Failure, Reason};

/// Size of a decoded chunk.
const CHUNK_SIZE: usize = 64 * 1024;
/// Most encodings of a source, each of which takes memory.
const MAX_ENCODINGS: usize = 3;
/// Logarithm of the largest window of zstd, the 8 MiB of RFC 9659. The source names the window, and
/// the memory for it is not part of `worker.memory_budget`.
const MAX_ZSTD_WINDOW_LOG: u32 = 23;

const HINT: &str = "remove compression from the job to deliver the bytes as they are, or store the source without it";

/// Returns the encodings of a header that change the bytes, separated by commas; `None` if there
/// are none. Some stores keep the `aws-chunked` of the upload's signature.
pub(super) fn listed(header: &str) -> Option<String> {
    let plain =
        |coding: &&str| coding.is_empty() || ["identity", "aws-chunked"].contains(&coding.to_lowercase().as_str());
    let codings: Vec<_> = header.split(',').map(str::trim).filter(|coding| !plain(coding)).collect();
    (!codings.is_empty()).then(|| codings.join(", "))
}

/// Undoes the encodings, which are in the order of their application.
///
/// # Errors
/// An encoding that this program can't decode is a `source_mismatch` at once; bytes that are not
/// what the header says are one in the stream. A failure of `chunks` passes through unchanged.
pub fn decode(chunks: Chunks, encodings: &str) -> Result<Chunks, Failure> {
    if encodings.split(',').count() > MAX_ENCODINGS {
        let message = format!("the source is encoded more than {MAX_ENCODINGS} times, which is too often to decode it");
        return Err(Failure::new(Reason::SourceMismatch, message).hint(HINT));
    }
    encodings.rsplit(',').map(str::trim).try_fold(chunks, decode_one)
}

fn decode_one(chunks: Chunks, encoding: &str) -> Result<Chunks, Failure> {
    let reader = StreamReader::new(chunks.map_err(io::Error::other));
    // Each format may consist of several members, which are all read: the source is verified at its end.
    Ok(match encoding.to_lowercase().as_str() {
        "gzip" | "x-gzip" => {
            let mut decoder = GzipDecoder::new(reader);
            decoder.multiple_members(true);
            decoded(decoder, "gzip")
        }
        "zstd" => {
            let mut decoder = ZstdDecoder::with_params(reader, &[DParameter::window_log_max(MAX_ZSTD_WINDOW_LOG)]);
            decoder.multiple_members(true);
            decoded(decoder, "zstd")
        }
        "deflate" => {
            let mut decoder = ZlibDecoder::new(reader);
            decoder.multiple_members(true);
            decoded(decoder, "deflate")
        }
        _ => return Err(unknown(encoding)),
    })
}

fn unknown(encoding: &str) -> Failure {
    let encoding: String = encoding.chars().filter(char::is_ascii_graphic).take(40).collect();
    let message = format!("the source is encoded as {encoding}, which can't be decoded for the job's compression");
    Failure::new(Reason::SourceMismatch, message).hint(HINT)
}

fn decoded(decoder: impl AsyncRead + Send + 'static, encoding: &'static str) -> Chunks {
    let chunks = ReaderStream::with_capacity(decoder, CHUNK_SIZE);
    Box::pin(chunks.map_err(move |error| match error.downcast::<Failure>() {
        Ok(failure) => failure,
        Err(error) => {
            let message = format!("the source says that it is encoded as {encoding}, and can't be decoded: {error}");
            Failure::new(Reason::SourceMismatch, message).hint(HINT)
        }
    }))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures_util::{StreamExt as _, stream};

    use super::*;
    use crate::domain::job::Compression;
    use crate::source::compress::compress;

    fn chunks(parts: &[&[u8]]) -> Chunks {
        let parts: Vec<_> = parts.iter().map(|part| Ok(Bytes::copy_from_slice(part))).collect();
        Box::pin(stream::iter(parts))
    }

    async fn whole(chunks: Chunks) -> Result<Vec<u8>, Reason> {
        Ok(chunks.try_collect::<Vec<_>>().await.map_err(|failure| failure.reason)?.concat())
    }

    #[test]
    fn encodings_that_leave_the_bytes_alone_are_not_listed() {
        assert_eq!(listed("gzip").as_deref(), Some("gzip"));
        assert_eq!(listed("GZIP, aws-chunked,").as_deref(), Some("GZIP"));
        assert_eq!(listed("zstd,gzip").as_deref(), Some("zstd, gzip"));
        for none in ["", "identity", "aws-chunked", " , "] {
            assert_eq!(listed(none), None, "{none}");
        }
    }

    #[tokio::test]
    async fn what_was_encoded_comes_back() {
        let plain = b"date,campaign,clicks\n".repeat(10_000);
        for (compression, name) in
            [(Compression::Gzip, "gzip"), (Compression::Gzip, "X-Gzip"), (Compression::Zstd, "zstd")]
        {
            let encoded = whole(compress(chunks(&[&plain]), compression)).await.unwrap();
            let (start, end) = encoded.split_at(encoded.len() / 2);
            assert_eq!(whole(decode(chunks(&[start, end]), name).unwrap()).await.unwrap(), plain, "{name}");
            let twice = whole(decode(chunks(&[&encoded, &encoded]), name).unwrap()).await.unwrap();
            assert_eq!(twice.len(), 2 * plain.len(), "{name} of two members");
            assert_eq!(whole(decode(chunks(&[start]), name).unwrap()).await, Err(Reason::SourceMismatch), "{name}");
            assert_eq!(whole(decode(chunks(&[b"plain"]), name).unwrap()).await, Err(Reason::SourceMismatch), "{name}");
        }
        let inner = compress(chunks(&[&plain]), Compression::Zstd);
        let nested = compress(inner, Compression::Gzip);
        assert_eq!(whole(decode(nested, "zstd, gzip").unwrap()).await.unwrap(), plain);
    }

    /// A source can't ask for more memory than the programs that serve the web do.
    #[tokio::test]
    async fn the_memory_of_the_decoders_is_bounded() {
        let encoded = |window_log| {
            let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
            encoder.window_log(window_log).unwrap();
            std::io::copy(&mut &*vec![7; 100_000], &mut encoder).unwrap();
            encoder.finish().unwrap()
        };
        let decoded = async |window_log| whole(decode(chunks(&[&encoded(window_log)]), "zstd").unwrap()).await;
        assert_eq!(decoded(MAX_ZSTD_WINDOW_LOG).await.map(|plain| plain.len()), Ok(100_000));
        assert_eq!(decoded(MAX_ZSTD_WINDOW_LOG + 1).await, Err(Reason::SourceMismatch));
        let failure = decode(chunks(&[]), &["zstd"; 100].join(", ")).err().unwrap();
        assert!(failure.reason == Reason::SourceMismatch && failure.message.contains("too often"), "{failure}");
    }

    #[tokio::test]
    async fn a_failure_of_the_source_passes_through() {
        let failure = Failure::new(Reason::SourceSlow, "slow").hint("hint");
        let input = stream::iter([Err(failure.clone())]);
        let ended = decode(Box::pin(input), "gzip").unwrap().next().await.unwrap().unwrap_err();
        assert_eq!(ended, failure);
    }

    #[test]
    fn other_encodings_are_refused_by_name() {
        let failure = decode(chunks(&[]), "br").err().unwrap();
        assert_eq!(failure.reason, Reason::SourceMismatch);
        assert!(failure.message.contains("br") && !failure.hint.is_empty(), "{}", failure.message);
    }
}
