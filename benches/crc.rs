//! Cost of the checksum: CRC64NVME over one part, and the combination of part checksums into that
//! of the object.

use std::hint::black_box;

use crc_fast::{CrcAlgorithm, checksum, checksum_combine};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const PART: u64 = 8 * 1024 * 1024;
const PARTS: u64 = 256;

/// Bytes that differ, because a table would be cheap to keep in the cache for equal ones.
fn part() -> Vec<u8> {
    (0..PART).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56).to_le_bytes()[0]).collect()
}

fn crc(criterion: &mut Criterion) {
    let part = part();
    let mut group = criterion.benchmark_group("crc64nvme");
    group.throughput(Throughput::Bytes(PART));
    group.bench_function("8 MiB part", |bench| bench.iter(|| checksum(CrcAlgorithm::Crc64Nvme, black_box(&part))));
    group.throughput(Throughput::Elements(PARTS));
    let one = checksum(CrcAlgorithm::Crc64Nvme, &part);
    group.bench_function("combine 256 parts", |bench| {
        bench.iter(|| {
            (1..PARTS).fold(one, |whole, _| checksum_combine(CrcAlgorithm::Crc64Nvme, whole, black_box(one), PART))
        });
    });
    group.finish();
}

criterion_group!(benches, crc);
criterion_main!(benches);
