//! The parts of a stream, as it is or compressed on the way.

use std::sync::Arc;

use futures_util::stream::{self, Stream};

use super::pace::{RateLimiter, not_needed, paced};
use super::packed::PackedReader;
use super::part::{Part, PartReader};
use super::plan::{self, Growing};
use crate::domain::job::lease::PartSizes;
use crate::domain::outcome::Failure;

/// Where the parts of a stream come from.
pub(super) enum Reader {
    Raw(PartReader),
    Packed(Box<PackedReader>),
}

impl Reader {
    pub(super) async fn next(&mut self, size: u64) -> Result<Option<Part>, Failure> {
        match self {
            Self::Raw(reader) => reader.next(size).await,
            Self::Packed(reader) => reader.next(size).await,
        }
    }

    pub(super) fn next_number(&self) -> u32 {
        match self {
            Self::Raw(reader) => reader.next_number(),
            Self::Packed(reader) => reader.next_number(),
        }
    }

    pub(super) fn ended(&self) -> bool {
        match self {
            Self::Raw(reader) => reader.ended(),
            Self::Packed(reader) => reader.ended(),
        }
    }

    /// That nothing comes after a part that is the whole.
    pub(super) async fn expect_end(&mut self) -> Result<(), Failure> {
        match self {
            Self::Raw(reader) => reader.expect_end().await,
            Self::Packed(_) => Ok(()),
        }
    }

    pub(super) fn sizes(&self, growing: Growing) -> PartSizes {
        match (self, growing.sizes()) {
            (Self::Packed(_), PartSizes::Growing { first, largest }) => PartSizes::Packed { first, largest },
            (_, sizes) => sizes,
        }
    }
}

/// The parts that are still to be read, each when there is room for it, and when the destination may have it.
pub(super) fn remaining(
    reader: Reader,
    sizes: PartSizes,
    pace: Option<Arc<RateLimiter>>,
) -> impl Stream<Item = Result<Part, Failure>> {
    stream::try_unfold((reader, pace), move |(mut reader, pace)| async move {
        let size = plan::size(sizes, reader.next_number())?;
        if !reader.ended() {
            paced(pace.as_ref(), size).await;
        }
        let booked = if reader.ended() { 0 } else { size };
        let part = reader.next(size).await?;
        not_needed(pace.as_ref(), booked, part.as_ref().map_or(0, |part| part.length));
        Ok(part.map(|part| (part, (reader, pace))))
    })
}
