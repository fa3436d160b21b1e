//! Removal of headers that no longer fit into a frame, because the broker added its own.

use std::collections::HashSet;
use std::ops::Range;

use super::super::fields::append_left_out;
use super::frame_reader::FrameReader;
use super::mark;
use crate::domain::headers::LEFT_OUT;

/// Bytes before the text of a long string: type and length.
const TEXT_PREFIX: usize = 5;

/// Removes headers of a frame, the largest first, until it has at most `max` bytes, and lists them
/// in a header. `table` is the position of the table's length.
pub(super) fn trim(frame: &mut Vec<u8>, table: usize, max: usize) {
    let Some((entries, end)) = entries(&mut frame[table..]) else { return };
    let (mut length, mut names, mut gone) = (frame.len(), String::new(), HashSet::new());
    let mut largest = entries.clone();
    largest.sort_by_key(|entry| std::cmp::Reverse(entry.len()));
    for entry in largest {
        if length + LEFT_OUT.len() + 1 + TEXT_PREFIX + names.len() <= max {
            break;
        }
        length -= entry.len();
        append_left_out(&mut names, name(&frame[table..][entry.clone()]));
        gone.insert(entry.start);
    }
    tracing::warn!(
        event = "headers_ignored",
        headers = names,
        next = "these headers are ignored",
        remedy = "publish jobs with fewer or shorter headers",
        "headers of a message and of the broker do not fit into a frame"
    );
    let kept = entries.into_iter().filter(|entry| !gone.contains(&entry.start));
    let mut kept: Vec<u8> = kept.flat_map(|entry| frame[table..][entry].to_vec()).collect();
    kept.extend(left_out(&names));
    let counted = length_of(kept.len()).into_iter().chain(kept);
    frame.splice(table..table + end, counted);
    mark::set_size(frame);
}

/// Returns the position of each header, and the end of the table.
fn entries(table: &mut [u8]) -> Option<(Vec<Range<usize>>, usize)> {
    let mut fields = FrameReader::new(table);
    let end = fields.length()?;
    let mut entries = Vec::new();
    while fields.at < end {
        let start = fields.at;
        fields.entry(1)?;
        entries.push(start..fields.at);
    }
    Some((entries, end))
}

/// Returns the name of a header, which is UTF-8 by now.
fn name(entry: &[u8]) -> &str {
    let text = entry.split_first().and_then(|(length, rest)| rest.get(..usize::from(*length)));
    std::str::from_utf8(text.unwrap_or_default()).unwrap_or_default()
}

/// Encodes the header that lists the removed ones.
fn left_out(names: &str) -> impl Iterator<Item = u8> {
    let name = std::iter::once(u8::try_from(LEFT_OUT.len()).unwrap_or_default()).chain(LEFT_OUT.bytes());
    name.chain([b'S']).chain(length_of(names.len())).chain(names.bytes())
}

/// Encodes a length; nothing here exceeds 32 bits.
fn length_of(count: usize) -> [u8; 4] {
    u32::try_from(count).unwrap_or(u32::MAX).to_be_bytes()
}
