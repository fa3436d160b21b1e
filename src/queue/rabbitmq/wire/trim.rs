//! Headers that do not fit into a frame any more: the broker adds its own to what filled one already.

use std::collections::HashSet;
use std::ops::Range;

use super::super::headers::{LEFT_OUT, note};
use super::fields::Fields;

/// Of a frame, where its size stands.
const SIZE: Range<usize> = 3..7;
/// Bytes of a frame that its size does not count.
const AROUND: usize = 8;
/// Of a long string as a header's value: type and length.
const BEFORE_TEXT: usize = 5;

/// Leaves out headers of a frame, the largest first, until it has at most `most` bytes, and names them in a header of their own.
/// `table`: where the length of the table stands.
pub(super) fn trim(frame: &mut Vec<u8>, table: usize, most: usize) {
    let Some((entries, end)) = entries(&mut frame[table..]) else { return };
    let (mut length, mut names, mut gone) = (frame.len(), String::new(), HashSet::new());
    let mut largest = entries.clone();
    largest.sort_by_key(|entry| std::cmp::Reverse(entry.len()));
    for entry in largest {
        if length + LEFT_OUT.len() + 1 + BEFORE_TEXT + names.len() <= most {
            break;
        }
        length -= entry.len();
        note(&mut names, name(&frame[table..][entry.clone()]));
        gone.insert(entry.start);
    }
    tracing::warn!(
        headers = names,
        "a message is read without headers that do not fit into a frame beside the broker's own"
    );
    let kept = entries.into_iter().filter(|entry| !gone.contains(&entry.start));
    let mut kept: Vec<u8> = kept.flat_map(|entry| frame[table..][entry].to_vec()).collect();
    kept.extend(told(&names));
    let counted = length_of(kept.len()).into_iter().chain(kept);
    frame.splice(table..table + end, counted);
    let size = length_of(frame.len() - AROUND);
    frame[SIZE].copy_from_slice(&size);
}

/// Where each header stands, and where the table ends.
fn entries(table: &mut [u8]) -> Option<(Vec<Range<usize>>, usize)> {
    let mut fields = Fields::new(table);
    let end = fields.length()?;
    let mut entries = Vec::new();
    while fields.at() < end {
        let start = fields.at();
        fields.entry(1)?;
        entries.push(start..fields.at());
    }
    Some((entries, end))
}

/// The name of a header; readable by now.
fn name(entry: &[u8]) -> &str {
    let text = entry.split_first().and_then(|(length, rest)| rest.get(..usize::from(*length)));
    std::str::from_utf8(text.unwrap_or_default()).unwrap_or_default()
}

/// The header that names what is left out.
fn told(names: &str) -> impl Iterator<Item = u8> {
    let name = std::iter::once(u8::try_from(LEFT_OUT.len()).unwrap_or_default()).chain(LEFT_OUT.bytes());
    name.chain([b'S']).chain(length_of(names.len())).chain(names.bytes())
}

/// A length as it stands in a frame; nothing here is longer than that can tell.
fn length_of(count: usize) -> [u8; 4] {
    u32::try_from(count).unwrap_or(u32::MAX).to_be_bytes()
}
