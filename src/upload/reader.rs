//! The parts of a stream, as it is or compressed on the way.

use std::sync::Arc;

use futures_util::stream::{self, Stream};

use super::packed::PackedReader;
use super::part::{Part, PartReader};
use super::plan;
use super::rate_limiter::{RateLimiter, return_unused, wait_for_rate};
use crate::domain::job::lease::PartSizes;
use crate::domain::outcome::Failure;

/// Reader of the parts of a stream.
pub(super) enum ChunkReader {
    Raw(PartReader),
    Packed(Box<PackedReader>),
}

impl ChunkReader {
    pub(super) async fn next(&mut self, size: u64) -> Result<Option<Part>, Failure> {
        match self {
            Self::Raw(reader) => reader.next(size).await,
            Self::Packed(reader) => reader.next(size).await,
        }
    }

    pub(super) fn next_number(&self) -> u32 {
        match self {
            Self::Raw(reader) => reader.number + 1,
            Self::Packed(reader) => reader.number + 1,
        }
    }

    pub(super) fn ended(&self) -> bool {
        match self {
            Self::Raw(reader) => reader.ended(),
            Self::Packed(reader) => reader.ended,
        }
    }

    /// Fails if bytes follow a part that should be the whole object.
    pub(super) async fn expect_end(&mut self) -> Result<(), Failure> {
        match self {
            Self::Raw(reader) => reader.expect_end().await,
            Self::Packed(_) => Ok(()),
        }
    }

    pub(super) fn sizes(&self, sizes: PartSizes) -> PartSizes {
        match (self, sizes) {
            (Self::Packed(_), PartSizes::Growing { first, largest }) => PartSizes::Packed { first, largest },
            (_, sizes) => sizes,
        }
    }
}

/// Stream of the parts that remain to be read. Each waits for the memory budget and the rate
/// limiter.
pub(super) fn remaining(
    reader: ChunkReader,
    sizes: PartSizes,
    rate_limiter: Option<Arc<RateLimiter>>,
) -> impl Stream<Item = Result<Part, Failure>> {
    stream::try_unfold((reader, rate_limiter), move |(mut reader, rate_limiter)| async move {
        let size = plan::size(sizes, reader.next_number())?;
        if !reader.ended() {
            wait_for_rate(rate_limiter.as_ref(), size).await;
        }
        let booked = if reader.ended() { 0 } else { size };
        let part = reader.next(size).await?;
        return_unused(rate_limiter.as_ref(), booked, part.as_ref().map_or(0, |part| part.length));
        Ok(part.map(|part| (part, (reader, rate_limiter))))
    })
}
