use std::future::Future as _;
use std::io::{ErrorKind, Read as _};
use std::pin::pin;
use std::process::{Command, Stdio};
use std::task::{Context, Poll, Waker};

use futures_util::stream;
use proptest::prelude::*;

use super::*;

const BOTH: [Compression; 2] = [Compression::Gzip, Compression::Zstd];

/// Kinds of content that differ for an encoder.
#[derive(Debug, Clone, Copy)]
enum ContentKind {
    Zeros,
    Text,
    /// Incompressible.
    Noise,
    /// Many short matches far away: the worst case for what an encoder buffers.
    Words,
}

const KINDS: [ContentKind; 4] = [ContentKind::Zeros, ContentKind::Text, ContentKind::Noise, ContentKind::Words];

fn content(runs: &[(ContentKind, usize)]) -> Vec<u8> {
    let mut state = 88_172_645_463_325_252_u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut all = Vec::new();
    for (kind, length) in runs {
        let end = all.len() + length;
        while all.len() < end {
            match kind {
                ContentKind::Zeros => all.extend([0; 1024]),
                ContentKind::Text => {
                    all.extend(format!("2026-01-01,campaign-{},{}\n", next() % 100, next() % 1000).bytes());
                }
                ContentKind::Noise => all.extend(next().to_le_bytes()),
                ContentKind::Words => {
                    all.extend((next() % 8000).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[..4].iter());
                }
            }
        }
        all.truncate(end);
    }
    all
}

/// Returns the bytes from `from` on in chunks of these sizes in turn.
fn chunked(bytes: &[u8], from: u64, sizes: &[usize]) -> Chunks {
    let mut rest = Bytes::copy_from_slice(&bytes[usize::try_from(from).unwrap()..]);
    let mut chunks = Vec::new();
    for size in sizes.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        chunks.push(Ok(rest.split_to(rest.len().min(*size))));
    }
    Box::pin(stream::iter(chunks))
}

type Segment = (PackedEnd, Vec<u8>);

/// Returns all segments of `chunks`, requested with these sizes in turn.
async fn packed(chunks: Chunks, compression: Compression, from: PackedEnd, sizes: &[usize]) -> Vec<Segment> {
    let mut packer = Packer::new(chunks, compression, from);
    let mut segments = Vec::new();
    for size in sizes.iter().cycle() {
        let mut out = BytesMut::from("before");
        let Some(end) = packer.next(*size, &mut out).await.unwrap() else {
            assert_eq!(out, "before", "nothing follows the last");
            break;
        };
        segments.push((end, out[6..].to_vec()));
    }
    assert_eq!(packer.next(1, &mut BytesMut::new()).await.unwrap(), None);
    segments
}

fn joined(segments: &[Segment]) -> Vec<u8> {
    segments.iter().flat_map(|(_, bytes)| bytes.iter().copied()).collect()
}

/// Decompresses one gzip member or any number of zstd frames, with nothing after them.
fn unpacked(compression: Compression, mut bytes: &[u8]) -> Vec<u8> {
    if compression == Compression::Zstd {
        return zstd::stream::decode_all(bytes).unwrap();
    }
    let mut plain = Vec::new();
    flate2::bufread::GzDecoder::new(&mut bytes).read_to_end(&mut plain).unwrap();
    assert!(bytes.is_empty(), "{} bytes after the member", bytes.len());
    plain
}

/// Asserts that each segment but the last has the requested size, that none is too long, and that
/// only the last one ends with the source.
fn within_bounds(segments: &[Segment], sizes: &[usize], length: usize) {
    let (last, before) = segments.split_last().unwrap();
    for ((end, bytes), size) in before.iter().zip(sizes.iter().cycle()) {
        assert!((*size..=size + Packer::SLACK).contains(&bytes.len()), "{} of {size}", bytes.len());
        assert!(end.source < length as u64, "a segment that ends inside the source is not the last");
    }
    let asked = sizes[before.len() % sizes.len()];
    assert!((1..=asked + Packer::SLACK).contains(&last.1.len()), "{} of {asked}", last.1.len());
    assert_eq!(last.0.source, length as u64);
}

fn runs() -> impl Strategy<Value = Vec<(ContentKind, usize)>> {
    let length = prop_oneof![0..3000_usize, 0..300_000_usize, Just(STRIDE), Just(2 * STRIDE)];
    prop::collection::vec((prop::sample::select(KINDS.to_vec()), length), 0..5)
}

fn sizes(largest: usize) -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(prop_oneof![1..2000_usize, 1..largest], 1..4)
}

fn chunk_sizes() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(prop_oneof![1000..5000_usize, 1000..400_000_usize, Just(STRIDE)], 1..4)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_workers_gives_output_that_decompresses_to_the_source(
        runs in runs(),
        gzip: bool,
        cut in chunk_sizes(),
        cut_again in chunk_sizes(),
        sizes in sizes(200_000),
        other_sizes in sizes(200_000),
        at: prop::sample::Index,
    ) {
        let compression = if gzip { Compression::Gzip } else { Compression::Zstd };
        let plain = content(&runs);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let start = PackedEnd::default();
            let segments = packed(chunked(&plain, 0, &cut), compression, start, &sizes).await;
            within_bounds(&segments, &sizes, plain.len());
            assert!(unpacked(compression, &joined(&segments)) == plain, "the decompressed bytes differ");

            let kept = at.index(segments.len());
            let from = if kept == 0 { start } else { segments[kept - 1].0 };
            let mut turned = sizes.clone();
            turned.rotate_left(kept % sizes.len());
            let again = packed(chunked(&plain, from.source, &cut_again), compression, from, &turned).await;
            assert!(again == segments[kept..], "a second worker gives other segments for the same bytes");

            let others = packed(chunked(&plain, from.source, &cut_again), compression, from, &other_sizes).await;
            within_bounds(&others, &other_sizes, plain.len());
            let whole = [joined(&segments[..kept]), joined(&others)].concat();
            assert!(unpacked(compression, &whole) == plain, "the decompressed bytes differ after a resume");
        });
    }
}

/// Tests the largest overshoot of each kind of content, near sizes at which the encoders emit a
/// block.
#[tokio::test]
async fn the_slack_holds_for_the_worst_content() {
    let mut worst = 0;
    for compression in BOTH {
        for kind in KINDS {
            // The zeros compress to almost nothing, so the worst case begins at every offset in a block.
            for before in [0, 20_000, STRIDE, STRIDE + 20_000, 2 * STRIDE - 1] {
                let plain = content(&[(ContentKind::Zeros, before), (kind, 600_000)]);
                for size in [1, 100, 10_000, STRIDE - 1, STRIDE + 1, 2 * STRIDE + 20, 180_000] {
                    let segments =
                        packed(chunked(&plain, 0, &[100_000]), compression, PackedEnd::default(), &[size]).await;
                    within_bounds(&segments, &[size], plain.len());
                    let over = segments.iter().map(|(_, bytes)| bytes.len().saturating_sub(size)).max().unwrap();
                    worst = worst.max(over);
                }
            }
        }
    }
    assert!(worst > Packer::SLACK / 4, "{worst} is the largest overshoot: the slack is far too large");
}

#[tokio::test]
async fn an_empty_source_gives_an_empty_member_or_frame() {
    for compression in BOTH {
        let segments = packed(chunked(&[], 0, &[1]), compression, PackedEnd::default(), &[1 << 20]).await;
        assert_eq!(segments.len(), 1);
        assert_eq!(segments[0].0, PackedEnd::default());
        assert!(unpacked(compression, &segments[0].1).is_empty());
        assert!(compression == Compression::Zstd || segments[0].1.len() == 20, "{}", segments[0].1.len());
    }
    assert!(packed(chunked(&[], 0, &[1]), Compression::None, PackedEnd::default(), &[1]).await.is_empty());
}

#[tokio::test]
async fn nothing_remains_after_the_end_of_the_source() {
    for strides in 1..=6 {
        // Some of these reach the size exactly at the end of the source.
        let plain = content(&[(ContentKind::Noise, strides * STRIDE)]);
        for compression in BOTH {
            let segments = packed(chunked(&plain, 0, &[STRIDE]), compression, PackedEnd::default(), &[1]).await;
            within_bounds(&segments, &[1], plain.len());
            assert_eq!(unpacked(compression, &joined(&segments)), plain);
            let end = segments.last().unwrap().0;
            assert!(packed(chunked(&plain, end.source, &[1]), compression, end, &[1]).await.is_empty());
        }
    }
}

#[tokio::test]
async fn without_compression_the_bytes_are_unchanged() {
    let plain = content(&[(ContentKind::Text, 3 * STRIDE + 5)]);
    let segments = packed(chunked(&plain, 0, &[1000]), Compression::None, PackedEnd::default(), &[STRIDE + 1]).await;
    within_bounds(&segments, &[STRIDE + 1], plain.len());
    assert_eq!((segments.len(), joined(&segments)), (2, plain));
}

#[tokio::test]
async fn the_trailer_wraps_at_four_gigabytes() {
    let from = PackedEnd { source: (1 << 32) - 3, crc32: 7 };
    let segments = packed(chunked(b"0123456789", 0, &[10]), Compression::Gzip, from, &[1]).await;
    let (end, bytes) = segments.last().unwrap();
    assert_eq!(end.source, (1 << 32) + 7);
    assert_eq!(bytes[bytes.len() - 8..], [end.crc32.to_le_bytes(), 7_u32.to_le_bytes()].concat());
}

#[tokio::test]
async fn a_failure_passes_through_and_nothing_follows_it() {
    let failure = || Err(Failure::new(Reason::SourceSlow, "slow").hint("hint"));
    for compression in BOTH {
        let input = chunked(b"some bytes", 0, &[4]).chain(stream::once(async move { failure() }));
        let mut packer = Packer::new(Box::pin(input), compression, PackedEnd::default());
        let error = packer.next(1, &mut BytesMut::new()).await.unwrap_err();
        assert_eq!((error.reason, error.hint.as_str()), (Reason::SourceSlow, "hint"));
        let mut out = BytesMut::new();
        assert_eq!(packer.next(1, &mut out).await.unwrap_err().reason, Reason::Panic, "in particular no end");
        assert!(out.is_empty());
    }
}

#[tokio::test]
async fn no_segment_follows_a_dropped_one() {
    let input = chunked(b"some bytes", 0, &[4]).chain(stream::pending());
    let mut packer = Packer::new(Box::pin(input), Compression::Gzip, PackedEnd::default());
    let mut out = BytesMut::new();
    assert!(matches!(pin!(packer.next(1, &mut out)).poll(&mut Context::from_waker(Waker::noop())), Poll::Pending));
    assert_eq!(packer.next(1, &mut out).await.unwrap_err().reason, Reason::Panic);
}

#[tokio::test]
async fn other_tasks_run_between_two_strides() {
    let plain = content(&[(ContentKind::Text, 20 * STRIDE)]);
    let packing = packed(chunked(&plain, 0, &[plain.len()]), Compression::Gzip, PackedEnd::default(), &[1 << 30]);
    let mut turns = 0;
    tokio::select! {
        biased;
        _ = packing => {}
        () = async { loop { turns += 1; tokio::task::yield_now().await; } } => {}
    }
    assert!(turns >= 19, "{turns}");
}

/// Decompresses with an external program; `None` if it is not installed.
fn decompress_with(program: &str, bytes: &[u8]) -> Option<Vec<u8>> {
    let mut file = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut file, bytes).unwrap();
    std::io::Seek::rewind(&mut file).unwrap();
    let child = Command::new(program).args(["-d", "-c"]).stdin(file).stdout(Stdio::piped()).spawn();
    if child.as_ref().is_err_and(|error| error.kind() == ErrorKind::NotFound) {
        return None;
    }
    let output = child.unwrap().wait_with_output().unwrap();
    assert!(output.status.success(), "{program} does not accept it");
    Some(output.stdout)
}

#[tokio::test]
async fn external_programs_read_the_output_of_two_workers() {
    let plain = content(&KINDS.map(|kind| (kind, 300_000)));
    for (compression, program) in [(Compression::Gzip, "gzip"), (Compression::Zstd, "zstd")] {
        let mut packer = Packer::new(chunked(&plain, 0, &[70_000]), compression, PackedEnd::default());
        let mut whole = BytesMut::new();
        let end = packer.next(100_000, &mut whole).await.unwrap().unwrap();
        drop(packer);
        let rest = packed(chunked(&plain, end.source, &[90_000]), compression, end, &[150_000]).await;
        assert!(rest.len() > 1, "more than one segment follows");
        whole.extend_from_slice(&joined(&rest));
        assert!(decompress_with(program, &whole).is_none_or(|read| read == plain), "{program} reads something else");
    }
}

#[tokio::test]
async fn incompressible_bytes_after_compressible_ones_survive_a_flush() {
    let plain = content(&[(ContentKind::Words, 218_124), (ContentKind::Noise, 44_021)]);
    for size in [11, 1] {
        let segments = packed(chunked(&plain, 0, &[1000]), Compression::Gzip, PackedEnd::default(), &[size]).await;
        assert!(unpacked(Compression::Gzip, &joined(&segments)) == plain, "{size}");
    }
}
