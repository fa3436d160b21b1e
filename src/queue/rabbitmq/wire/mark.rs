//! Mark of a message whose body is dropped: the size of the body in the property `cluster_id`,
//! which AMQP has abolished. It is the last property, so it is easy to set.

use std::ops::Range;

use super::super::fields::UNREAD_MARK;

/// Bytes around the content of a frame, which its size excludes: type, channel, size and end mark.
pub(super) const ENVELOPE: usize = 8;
/// Position of the size in a frame.
const SIZE: Range<usize> = 3..7;
/// Position of the size of the body in a content header.
const BODY_SIZE: Range<usize> = 11..19;
/// Position of the property flags in a content header: the lower byte.
const FLAGS: usize = 20;
/// Flag of `cluster_id`.
const CLUSTER_ID: u8 = 1 << 2;

/// Turns a content header into that of an empty body. `cluster_id` is the position of that
/// property, empty where it is to be inserted.
pub(super) fn set(frame: &mut Vec<u8>, cluster_id: Range<usize>, body_size: u64) {
    let mark = format!("{UNREAD_MARK}{body_size}");
    let length = u8::try_from(mark.len()).unwrap_or_default();
    frame.splice(cluster_id, std::iter::once(length).chain(mark.bytes()));
    frame[BODY_SIZE].fill(0);
    frame[FLAGS] |= CLUSTER_ID;
    set_size(frame);
}

/// Writes the size of a frame that has changed.
pub(super) fn set_size(frame: &mut [u8]) {
    let size = u32::try_from(frame.len() - ENVELOPE).unwrap_or(u32::MAX);
    frame[SIZE].copy_from_slice(&size.to_be_bytes());
}

/// Changes a property that looks like a mark. `cluster_id` begins with its length.
pub(super) fn make_unlike(cluster_id: &mut [u8]) {
    if let Some((_, text)) = cluster_id.split_first_mut()
        && text.starts_with(UNREAD_MARK.as_bytes())
    {
        text[0] = b'?';
    }
}
