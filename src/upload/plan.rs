//! Plan of an upload: single or multipart, and the part sizes. Pure.

use crate::config::UploadConfig;
use crate::domain::job::lease::PartSizes;
use crate::domain::outcome::{Failure, Reason};

const MIB: u64 = 1 << 20;
/// Largest number of parts of a multipart upload
/// (<https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html>).
pub(super) const MAX_PARTS: u32 = 10_000;
const MAX_PART: u64 = 5 << 30;
/// The largest object a PutObject can carry.
const MAX_SINGLE: u64 = 5 << 30;
/// Number of parts of each size for an object of unknown length: the first run has the configured
/// size, and every further run doubles it.
const PARTS_PER_STEP: u32 = 1000;

/// Requests that send the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum UploadPlan {
    /// One PutObject of so many bytes.
    Single(u64),
    /// Parts of equal size, or growing ones where the length shows at the end.
    Parts(PartSizes),
}

impl UploadPlan {
    /// The same with parts of one length, also where the length of the whole is unknown.
    pub(super) fn with_equal_parts(self) -> Self {
        match self {
            Self::Parts(PartSizes::Growing { first, .. }) => Self::Parts(PartSizes::Growing { first, largest: first }),
            plan => plan,
        }
    }
}

/// Limits of a plan.
#[derive(Debug, Clone, Copy)]
pub(super) struct PlanLimits {
    /// `upload.part_size`.
    pub(super) part_size: u64,
    /// `upload.multipart_threshold`.
    pub(super) multipart_threshold: u64,
    /// Largest part that may be held in memory. Parts of files are not buffered and may be as large
    /// as S3 allows.
    pub(super) largest_buffer: u64,
    /// Parts that the store accepts for one object, [`MAX_PARTS`] at most.
    pub(super) max_parts: u32,
}

impl PlanLimits {
    /// The limits of a worker: a buffered part may take a quarter of the memory budget.
    pub(super) fn new(config: &UploadConfig, memory_budget: u64, max_parts: u32) -> Self {
        Self {
            max_parts,
            part_size: config.part_size,
            multipart_threshold: config.multipart_threshold,
            largest_buffer: (memory_budget / 4).max(config.part_size),
        }
    }
}

/// Plans an upload. With `buffered`, parts must be held in memory.
///
/// Errors: `too_large` when the object would need more parts of the largest size allowed than the
/// store accepts.
pub(super) fn plan(length: Option<u64>, buffered: bool, limits: &PlanLimits) -> Result<UploadPlan, Failure> {
    let largest = if buffered { limits.largest_buffer.min(MAX_PART) } else { MAX_PART };
    let Some(length) = length else {
        // With fewer parts there is no room for small ones.
        let first = limits.part_size.saturating_mul(u64::from(MAX_PARTS / limits.max_parts)).min(largest);
        return Ok(UploadPlan::Parts(PartSizes::Growing { first, largest }));
    };
    let fits_memory = !buffered || length <= limits.largest_buffer;
    if length == 0 || (length < limits.multipart_threshold && length <= MAX_SINGLE && fits_memory) {
        return Ok(UploadPlan::Single(length));
    }
    let needed = length.div_ceil(u64::from(limits.max_parts)).next_multiple_of(MIB);
    let part_size = limits.part_size.max(needed);
    if part_size > largest {
        return Err(too_large(length, buffered, limits.max_parts));
    }
    let parts = u32::try_from(length.div_ceil(part_size)).unwrap_or(limits.max_parts);
    Ok(UploadPlan::Parts(PartSizes::Even { part_size, parts }))
}

fn too_large(length: u64, buffered: bool, max_parts: u32) -> Failure {
    let message = format!("{length} bytes need more than {max_parts} parts of the largest size allowed here");
    let hint = if buffered {
        "raise worker.memory_budget: a part may take a quarter of it if its source can't be read twice".to_owned()
    } else {
        format!("an object of this store has {max_parts} parts of 5 GiB at most; split the file")
    };
    Failure::new(Reason::TooLarge, message).hint(hint)
}

/// The size of the part with this number, 1 being the first; only the last may be shorter.
///
/// Errors: `too_large` past part 10,000 of growing parts.
pub(super) fn size(sizes: PartSizes, number: u32) -> Result<u64, Failure> {
    let (first, largest) = match sizes {
        PartSizes::Even { part_size, .. } => return Ok(part_size),
        PartSizes::Growing { first, largest } | PartSizes::Packed { first, largest } => (first, largest),
    };
    if number > MAX_PARTS {
        let reached = format!("the source did not end within {MAX_PARTS} parts of up to {largest} bytes");
        return Err(Failure::new(Reason::TooLarge, reached)
            .hint("raise worker.memory_budget: a part of a source of unknown length may take a quarter of it"));
    }
    let doublings = number.saturating_sub(1) / PARTS_PER_STEP;
    Ok((first << doublings.min(20)).min(largest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: PlanLimits = PlanLimits {
        part_size: 8 * MIB,
        multipart_threshold: 16 * MIB,
        largest_buffer: 64 * MIB,
        max_parts: MAX_PARTS,
    };

    #[test]
    fn small_objects_go_in_one_piece() {
        for length in [0, 1, 16 * MIB - 1] {
            assert_eq!(plan(Some(length), false, &LIMITS).unwrap(), UploadPlan::Single(length));
        }
        let even = UploadPlan::Parts(PartSizes::Even { part_size: 8 * MIB, parts: 2 });
        assert_eq!(plan(Some(16 * MIB), true, &LIMITS).unwrap(), even);
    }

    #[test]
    fn nothing_is_an_object_too() {
        let always = PlanLimits { multipart_threshold: 0, ..LIMITS };
        assert_eq!(plan(Some(0), true, &always).unwrap(), UploadPlan::Single(0));
    }

    #[test]
    fn the_largest_object_of_s3_fits_from_a_file_and_not_from_a_stream() {
        let largest = u64::from(MAX_PARTS) * MAX_PART;
        let planned = plan(Some(largest), false, &LIMITS).unwrap();
        assert!(matches!(planned, UploadPlan::Parts(PartSizes::Even { parts: MAX_PARTS, .. })));
        assert_eq!(plan(Some(largest + 1), false, &LIMITS).unwrap_err().reason, Reason::TooLarge);
        let failure = plan(Some(largest), true, &LIMITS).unwrap_err();
        assert!(failure.hint.contains("worker.memory_budget"));
    }

    #[test]
    fn unknown_length_grows_in_steps_up_to_the_buffer() {
        let UploadPlan::Parts(growing) = plan(None, true, &LIMITS).unwrap() else { panic!("not growing") };
        let sizes = [1, 1000, 1001, 2001, 9999].map(|n| size(growing, n).unwrap() / MIB);
        assert_eq!(sizes, [8, 8, 16, 32, 64]);
        assert_eq!(size(growing, 10_001).unwrap_err().reason, Reason::TooLarge);
    }

    #[test]
    fn a_store_with_fewer_parts_gets_larger_ones() {
        let limits = PlanLimits { max_parts: 1000, ..LIMITS };
        let even = UploadPlan::Parts(PartSizes::Even { part_size: 20 * MIB, parts: 1000 });
        assert_eq!(plan(Some(20_000 * MIB), true, &limits).unwrap(), even);
        let growing = UploadPlan::Parts(PartSizes::Growing { first: 64 * MIB, largest: 64 * MIB });
        assert_eq!(plan(None, true, &limits).unwrap(), growing);
        let failure = plan(Some(1000 * MAX_PART + 1), false, &limits).unwrap_err();
        assert!(failure.message.contains("more than 1000 parts") && failure.hint.contains("1000 parts"), "{failure}");
    }

    proptest! {
        #[test]
        fn parts_cover_the_object_exactly(length in 0u64..(48u64 << 40), buffered: bool, part_mib in 5u64..512) {
            let limits = PlanLimits { part_size: part_mib * MIB, largest_buffer: 1024 * MIB, ..LIMITS };
            match plan(Some(length), buffered, &limits) {
                Ok(UploadPlan::Single(n)) => prop_assert!(n == length && n <= MAX_SINGLE),
                Ok(UploadPlan::Parts(PartSizes::Even { part_size, parts })) => {
                    prop_assert!((1..=MAX_PARTS).contains(&parts));
                    prop_assert!((5 * MIB..=MAX_PART).contains(&part_size));
                    prop_assert!(part_size * u64::from(parts) >= length);
                    prop_assert!(part_size * u64::from(parts - 1) < length);
                    prop_assert!(!buffered || part_size <= limits.largest_buffer);
                }
                Ok(UploadPlan::Parts(_)) => prop_assert!(false, "the length is known"),
                Err(failure) => {
                    prop_assert_eq!(failure.reason, Reason::TooLarge);
                    prop_assert!(buffered && length > limits.largest_buffer * 9_999);
                }
            }
        }
    }
}
