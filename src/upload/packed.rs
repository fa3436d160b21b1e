//! Parts of a stream that is compressed on the way. Each part ends where the compression can
//! restart, so that another worker can resume there.

use bytes::BytesMut;
use crc_fast::CrcAlgorithm;

use super::budget::Budget;
use super::part::Part;
use crate::domain::outcome::Failure;
use crate::source::compress::Packer;

/// Cuts a compressed stream into parts in memory.
pub(super) struct PackedReader {
    packer: Packer,
    /// Number of the part that was returned last; 0 before the first.
    pub(super) number: u32,
    budget: Budget,
    /// True once the final part was returned.
    pub(super) ended: bool,
}

impl PackedReader {
    /// `after` is the number of the part that ends where `packer` begins; 0 at the start.
    pub(super) fn new(packer: Packer, budget: Budget, after: u32) -> Self {
        Self { packer, number: after, budget, ended: false }
    }

    /// Returns the next part, of at least `size` bytes unless it is the last; `None` when the
    /// source has ended.
    ///
    /// Its share of the budget is reserved before the first byte is read and is held by the part.
    pub(super) async fn next(&mut self, size: u64) -> Result<Option<Part>, Failure> {
        let held = self.budget.reserve(size.saturating_add(Packer::SLACK as u64)).await;
        let least = usize::try_from(size).unwrap_or(usize::MAX);
        let mut buffer = BytesMut::with_capacity(least.saturating_add(Packer::SLACK));
        let Some(end) = self.packer.next(least, &mut buffer).await? else {
            self.ended = true;
            return Ok(None);
        };
        self.ended = buffer.len() < least;
        self.number += 1;
        let crc = crc_fast::checksum(CrcAlgorithm::Crc64Nvme, &buffer);
        let part = Part::of_memory(self.number, buffer.freeze(), Some(crc), Some(held));
        Ok(Some(part.ending_at(end)))
    }
}
