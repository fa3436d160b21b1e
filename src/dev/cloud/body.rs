//! A body on its way in: counted, its CRC-64/NVME taken, and refused at its end when it is not what
//! the caller announced.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::future::ready;
use std::sync::Arc;

use crc_fast::{CrcAlgorithm, Digest};
use futures_util::stream::{self, StreamExt as _};
use parking_lot::Mutex;
use s3s::dto::StreamingBlob;
use s3s::{S3Error, S3Result, StdError, s3_error};

/// Received bytes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ReceivedBody {
    pub(super) crc: u64,
    pub(super) length: u64,
    wrong: bool,
}

/// Totals of the stream.
#[derive(Debug, Clone, Default)]
pub(super) struct Witness(Arc<Mutex<ReceivedBody>>);

impl Witness {
    pub(super) fn seen(&self) -> ReceivedBody {
        *self.0.lock()
    }

    /// The error of S3 for what went wrong while the body was stored.
    pub(super) fn explain(&self, error: S3Error) -> S3Error {
        if self.seen().wrong { bad_digest() } else { error }
    }
}

pub(super) fn bad_digest() -> S3Error {
    s3_error!(BadDigest, "The CRC64NVME you specified did not match the calculated checksum.")
}

/// Wraps a body. Nothing of a body with another checksum than `expected` is kept: its stream ends
/// in an error.
pub(super) fn checked(body: Option<StreamingBlob>, expected: Option<String>) -> S3Result<(StreamingBlob, Witness)> {
    let inner = body.ok_or_else(|| s3_error!(IncompleteBody, "there is no body"))?;
    let witness = Witness::default();
    let (seen, mut digest, mut length) = (witness.clone(), Digest::new(CrcAlgorithm::Crc64Nvme), 0);
    let checked = inner.map(Some).chain(stream::iter([None])).filter_map(move |item| {
        if let Some(Ok(bytes)) = &item {
            digest.update(bytes);
            length += bytes.len() as u64;
        }
        let end = || {
            let crc = digest.finalize();
            let wrong = expected.as_ref().is_some_and(|expected| *expected != crc_text(crc));
            *seen.0.lock() = ReceivedBody { crc, length, wrong };
            wrong.then(|| Err("the checksum is another".into()))
        };
        ready(item.or_else(end).map(|item| item.map_err(Broken)))
    });
    Ok((StreamingBlob::wrap(checked), witness))
}

/// Reads a body to its end and forgets it: an answer before that may never reach a client that is
/// still sending.
pub(super) async fn drained(body: Option<StreamingBlob>) {
    if let Some(mut body) = body {
        while let Some(Ok(_)) = body.next().await {}
    }
}

/// The stream's error as an error type: boxes are none.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Broken(StdError);

/// A CRC-64/NVME as S3 writes it.
pub(super) fn crc_text(crc: u64) -> String {
    STANDARD.encode(crc.to_be_bytes())
}
