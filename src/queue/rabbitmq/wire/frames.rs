//! Frames of AMQP 0-9-1 from the broker, and the parts that lapin can't parse:
//!
//! | content | lapin | here |
//! |---|---|---|
//! | a short string (property, routing key, name of a header) that is not UTF-8 | closes the connection | `?` for each wrong byte |
//! | lists and tables in headers, nested hundreds of levels deep | overflows its stack, and the process aborts | opaque bytes from the 16th level on |
//! | headers that no longer fit into a frame with those that the broker added | closes the connection | the largest are removed, and listed |
//! | a body beyond [`MAX_BODY`] | holds all of it in memory | dropped as it arrives, and marked ([`mark`]) |
//!
//! RabbitMQ accepts all of this from a producer. Frames that can't be parsed pass unchanged.

use std::collections::HashMap;
use std::ops::Range;

use super::frame_reader::FrameReader;
use super::mark;
use super::trim::trim;
use crate::domain::job::lease::MAX_LEASE;

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;
/// Bytes before the content of a frame: type, channel and size.
const PREFIX: usize = 7;
/// Bytes around the content of a frame, with the end mark.
const ENVELOPE: usize = PREFIX + 1;
/// Largest body that is read: that of a lease. Every other message of consign is smaller.
const MAX_BODY: u64 = MAX_LEASE as u64;
/// Largest method or header; a longer one is not a frame of a broker.
const MAX_FRAME: usize = 16 * 1024 * 1024;

/// Class and method as one number, as in a frame.
const fn id(class: u32, method: u32) -> u32 {
    class << 16 | method
}
const TUNE: u32 = id(10, 30);
const CONNECTION_CLOSE: u32 = id(10, 50);
const CHANNEL_CLOSE: u32 = id(20, 40);
const RETURN: u32 = id(60, 50);
const DELIVER: u32 = id(60, 60);
const GET_OK: u32 = id(60, 71);

/// Rewrites the bytes from the broker for lapin.
#[derive(Debug, Default)]
pub(super) struct FrameSanitizer {
    /// Incomplete frame.
    partial: Vec<u8>,
    ready: Vec<u8>,
    /// Number of bytes of `ready` that were taken.
    taken: usize,
    /// Remaining bytes of a body and its end mark, which pass unchanged.
    passing: usize,
    /// Remaining bytes of a part of a dropped body and its end mark.
    dropping: usize,
    /// Remaining bytes of the dropped body of each channel.
    dropped: HashMap<u16, u64>,
    /// Largest frame in bytes that both sides agreed on; 0 without a limit.
    frame_max: usize,
    /// True when this is not AMQP: everything passes unchanged.
    pass_all: bool,
}

impl FrameSanitizer {
    /// Starts with the frame size in bytes that this side proposes; 0 without a limit.
    pub(super) fn new(proposed: u32) -> Self {
        Self { frame_max: usize::try_from(proposed).unwrap_or(0), ..Self::default() }
    }

    /// Moves ready bytes to `buffer`; returns their number.
    pub(super) fn take(&mut self, buffer: &mut [u8]) -> usize {
        let count = buffer.len().min(self.ready.len() - self.taken);
        buffer[..count].copy_from_slice(&self.ready[self.taken..self.taken + count]);
        self.taken += count;
        if self.taken == self.ready.len() {
            self.ready.clear();
            self.taken = 0;
        }
        count
    }

    /// Adds bytes from the socket.
    pub(super) fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let count = match (self.pass_all, self.passing + self.dropping) {
                (true, _) => bytes.len(),
                (false, 0) => self.missing().min(bytes.len()),
                (false, known) => known.min(bytes.len()),
            };
            let (now, later) = bytes.split_at(count);
            if self.dropping > 0 {
                self.dropping -= count;
            } else if self.pass_all || self.passing > 0 {
                self.ready.extend_from_slice(now);
                self.passing = self.passing.saturating_sub(count);
            } else {
                self.partial.extend_from_slice(now);
                self.classify();
            }
            bytes = later;
        }
    }

    /// Returns the number of missing bytes of the partial frame, as far as it is known.
    fn missing(&self) -> usize {
        self.size().map_or(PREFIX, |size| size + ENVELOPE).saturating_sub(self.partial.len())
    }

    fn size(&self) -> Option<usize> {
        let size = self.partial.get(3..PREFIX)?.try_into().ok()?;
        usize::try_from(u32::from_be_bytes(size)).ok()
    }

    /// Decides about the partial frame as soon as it is known well enough.
    fn classify(&mut self) {
        let Some(size) = self.size() else { return };
        let kind = self.partial[0];
        match kind {
            METHOD | HEADER if size <= MAX_FRAME && self.missing() > 0 => return,
            METHOD | HEADER if size <= MAX_FRAME => self.sanitize(),
            BODY if self.drops(size) => {
                self.partial.clear();
                self.dropping = size + 1;
            }
            BODY | HEARTBEAT => self.passing = size + 1,
            _ => self.pass_all = true,
        }
        self.ready.append(&mut self.partial);
    }

    fn channel(&self) -> u16 {
        u16::from_be_bytes([self.partial[1], self.partial[2]])
    }

    /// Returns true for a part of a dropped body.
    fn drops(&mut self, size: usize) -> bool {
        let channel = self.channel();
        let Some(left) = self.dropped.get_mut(&channel) else { return false };
        *left = left.saturating_sub(u64::try_from(size).unwrap_or(u64::MAX));
        if *left == 0 {
            self.dropped.remove(&channel);
        }
        true
    }

    /// Sanitizes a complete method or header frame.
    fn sanitize(&mut self) {
        let (kind, end, channel) = (self.partial[0], self.partial.len() - 1, self.channel());
        // Such a frame begins the next message, or ends the channel.
        self.dropped.remove(&channel);
        let mut fields = FrameReader::new(&mut self.partial[PREFIX..end]);
        if kind == METHOD {
            if let Some(limit) = method(&mut fields) {
                self.frame_max = smaller(self.frame_max, limit);
            }
            return;
        }
        let parts = header(&mut fields);
        if fields.changed {
            tracing::warn!(
                event = "message_cleaned",
                next = "these values are replaced",
                remedy = "publish header values as UTF-8 text",
                "a message has invalid UTF-8 or deeply nested headers"
            );
        }
        let Some(ContentHeader { body_size, table, cluster_id }) = parts else { return };
        let cluster_id = PREFIX + cluster_id.start..PREFIX + cluster_id.end;
        let is_dropped = body_size > MAX_BODY;
        if is_dropped {
            self.dropped.insert(channel, body_size);
            // The worker reports the rejection; a command may meet the same message often.
            tracing::debug!(
                event = "body_dropped",
                bytes = body_size,
                "a message is too large to be read; its body is dropped"
            );
            mark::set(&mut self.partial, cluster_id, body_size);
        } else {
            mark::make_unlike(&mut self.partial[cluster_id]);
        }
        if let Some(table) = table
            && self.frame_max > 0
            && self.partial.len() > self.frame_max
        {
            trim(&mut self.partial, PREFIX + table, self.frame_max);
        }
    }
}

/// Returns the smaller of two limits; 0 means none.
fn smaller(one: usize, other: usize) -> usize {
    if one == 0 || other == 0 { one.max(other) } else { one.min(other) }
}

/// Reads the texts of the methods that carry or quote texts of a producer. Returns the frame size
/// that `connection.tune` sets.
fn method(fields: &mut FrameReader<'_>) -> Option<usize> {
    match fields.u32()? {
        TUNE => {
            fields.skip(2)?;
            return usize::try_from(fields.u32()?).ok();
        }
        DELIVER => {
            fields.text()?;
            fields.skip(9)?;
            fields.text()?;
            fields.text()?;
        }
        GET_OK => {
            fields.skip(9)?;
            fields.text()?;
            fields.text()?;
        }
        RETURN => {
            fields.skip(2)?;
            fields.text()?;
            fields.text()?;
            fields.text()?;
        }
        CONNECTION_CLOSE | CHANNEL_CLOSE => {
            fields.skip(2)?;
            fields.text()?;
        }
        _ => {}
    }
    None
}

/// Kind of a property: a text, the table of headers, or a fixed number of bytes.
#[derive(Clone, Copy)]
enum PropertyKind {
    Text,
    Headers,
    Bytes(usize),
}

/// Properties from the highest flag on: `content_type`, `content_encoding`, `headers`,
/// `delivery_mode`, `priority`, `correlation_id`, `reply_to`, `expiration`, `message_id`,
/// `timestamp`, `type`, `user_id`, `app_id`, `cluster_id`.
const PROPERTIES: [PropertyKind; 14] = {
    use PropertyKind::{Bytes, Headers, Text};
    [Text, Text, Headers, Bytes(1), Bytes(1), Text, Text, Text, Text, Bytes(8), Text, Text, Text, Text]
};

/// Parts of a content header.
struct ContentHeader {
    body_size: u64,
    /// Position of the table of headers, if there is one.
    table: Option<usize>,
    /// Position of the last property, `cluster_id`; empty without one.
    cluster_id: Range<usize>,
}

/// Reads a content header.
fn header(fields: &mut FrameReader<'_>) -> Option<ContentHeader> {
    // Class and weight.
    fields.skip(4)?;
    let body_size = u64::from(fields.u32()?) << 32 | u64::from(fields.u32()?);
    let flags = fields.u16()?;
    let mut table = None;
    let mut last = fields.at();
    for (bit, kind) in (2..16).rev().zip(PROPERTIES) {
        last = fields.at();
        if flags & 1 << bit == 0 {
            continue;
        }
        match kind {
            PropertyKind::Text => fields.text()?,
            PropertyKind::Bytes(count) => fields.skip(count)?,
            PropertyKind::Headers => {
                table = Some(fields.at());
                fields.table()?;
            }
        }
    }
    Some(ContentHeader { body_size, table, cluster_id: last..fields.at() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let size = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&[kind, 0, 1][..], &size, payload, &[0xce]].concat()
    }

    fn text(text: &[u8]) -> Vec<u8> {
        [&[u8::try_from(text.len()).unwrap()][..], text].concat()
    }

    fn long(bytes: &[u8]) -> Vec<u8> {
        [&u32::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
    }

    fn headers(table: &[u8]) -> Vec<u8> {
        let start = [&[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 6][..], &(1_u16 << 13 | 1 << 7).to_be_bytes()].concat();
        frame(HEADER, &[start, long(table), text(b"id")].concat())
    }

    /// Output for input in chunks of several sizes, on which it must not depend.
    fn sanitized_within(frame_max: u32, bytes: &[u8]) -> Vec<u8> {
        let outs = [1, 7, 8, 4096, usize::MAX].map(|size| super::super::sanitized(frame_max, bytes.chunks(size)));
        assert!(outs.iter().all(|out| *out == outs[0]));
        outs[0].clone()
    }

    fn sanitized(bytes: &[u8]) -> Vec<u8> {
        sanitized_within(131_072, bytes)
    }

    #[test]
    fn readable_frames_pass_unchanged() {
        let table =
            [text(b"a"), b"S".to_vec(), long(b"\xff\xfe"), text(b"n"), b"A".to_vec(), long(b"I\0\0\0\x01V")].concat();
        let body = frame(BODY, b"\xff\xfe body");
        let all = [headers(&table), body, frame(HEARTBEAT, b""), frame(METHOD, &[0, 60, 0, 80, 1, 2, 3])].concat();
        assert_eq!(sanitized(&all), all);
    }

    #[test]
    fn texts_that_are_not_utf_8_are_made_readable_everywhere() {
        let table =
            [text(b"\xff"), b"V".to_vec(), text(b"t"), b"F".to_vec(), long(&[text(b"\xfe"), b"V".to_vec()].concat())];
        let came = sanitized(&headers(&table.concat()));
        let table = [text(b"?"), b"V".to_vec(), text(b"t"), b"F".to_vec(), long(&[text(b"?"), b"V".to_vec()].concat())];
        assert_eq!(came, headers(&table.concat()));
        let delivery = |key: &[u8]| {
            let parts = [vec![0, 60, 0, 60], text(b"tag"), vec![0; 9], text(b"ex"), text(key)];
            frame(METHOD, &parts.concat())
        };
        assert_eq!(sanitized(&delivery(b"job.scheduled.\xff")), delivery(b"job.scheduled.?"));
        let closed = |why: &[u8]| frame(METHOD, &[vec![0, 20, 0, 40, 1, 148], text(why), vec![0; 4]].concat());
        assert_eq!(sanitized(&closed(b"no queue \xff")), closed(b"no queue ?"));
    }

    #[test]
    fn values_nested_too_deeply_become_bytes_of_the_same_length() {
        for kind in [b"A", b"F"] {
            let nested = |levels: usize, last: &[u8]| {
                let name: &[u8] = if kind == b"F" { &[0] } else { &[] };
                let wrap = |value: Vec<u8>| [&kind[..], &long(&[name, &value].concat())].concat();
                let value = (0..levels).fold(last.to_vec(), |value, _| wrap(value));
                headers(&[text(b"d"), value].concat())
            };
            assert_eq!(sanitized(&nested(15, b"V")), nested(15, b"V"));
            let deep = sanitized(&nested(5_000, b"V"));
            assert_eq!(deep.len(), nested(5_000, b"V").len());
            let differ: Vec<_> = deep.iter().zip(nested(5_000, b"V")).filter(|(is, was)| **is != *was).collect();
            assert_eq!(differ, [(&b'x', kind[0])], "only the type of one value differs");
        }
    }

    #[test]
    fn headers_beyond_a_frame_are_removed_the_largest_first_and_listed() {
        let entry = |name: &[u8], size: usize| [text(name), b"S".to_vec(), long(&vec![b'v'; size])].concat();
        let all = [entry(b"small", 9), entry(b"large", 3000), entry(b"larger", 4000), entry(b"last", 10)].concat();
        let named = |names: &[u8]| [text(b"x-headers-left-out"), b"S".to_vec(), long(names)].concat();
        let expected = [entry(b"small", 9), entry(b"large", 3000), entry(b"last", 10), named(b"larger")].concat();
        assert_eq!(sanitized_within(4096, &headers(&all)), headers(&expected));
        let expected = [entry(b"small", 9), entry(b"last", 10), named(b"larger, large")].concat();
        assert_eq!(sanitized_within(1024, &headers(&all)), headers(&expected));
        assert_eq!(sanitized_within(0, &headers(&all)), headers(&all), "there is no limit");
        let tune = frame(METHOD, &[0, 10, 0, 30, 0, 0, 0, 0, 4, 0, 0, 60]);
        let after = sanitized_within(4096, &[tune.clone(), headers(&all)].concat());
        assert_eq!(after, [tune, headers(&expected)].concat(), "the limit of the broker is lower");
    }

    fn content(body_size: u64, cluster_id: Option<&[u8]>) -> Vec<u8> {
        let flags = 1_u16 << 13 | 1 << 7 | u16::from(cluster_id.is_some()) << 2;
        let start = [&[0, 60, 0, 0][..], &body_size.to_be_bytes(), &flags.to_be_bytes(), &long(b""), &text(b"id")];
        frame(HEADER, &[start.concat(), cluster_id.map(text).unwrap_or_default()].concat())
    }

    #[test]
    fn a_body_beyond_the_bound_is_dropped_and_its_message_is_marked() {
        let on = |channel: u8, mut frame: Vec<u8>| {
            frame[2] = channel;
            frame
        };
        let part = |size: usize| frame(BODY, &vec![7; size]);
        let (large, small) = (MAX_BODY + 1, MAX_BODY);
        let halves = [usize::try_from(large).unwrap() - 9, 9];
        let came = [
            on(1, content(large, None)),
            on(1, part(halves[0])),
            // Frames of other channels come in between.
            on(2, content(3, Some(b"mine"))),
            on(2, part(3)),
            frame(HEARTBEAT, b""),
            on(1, part(halves[1])),
            on(1, content(small, None)),
            on(1, part(9)),
        ];
        let expected = [
            on(1, content(0, Some(format!("consign-unread:{large}").as_bytes()))),
            on(2, content(3, Some(b"mine"))),
            on(2, part(3)),
            frame(HEARTBEAT, b""),
            on(1, content(small, None)),
            on(1, part(9)),
        ];
        assert_eq!(sanitized(&came.concat()), expected.concat());
        let (own, marked) = (content(large, Some(b"own")), content(0, Some(b"consign-unread:2097153")));
        assert_eq!(sanitized(&own), marked, "it takes the place of another one");
        let closed = frame(METHOD, &[0, 20, 0, 40, 1, 148, 0, 0, 0, 0, 0]);
        let after = [content(3, None), part(3)].concat();
        let came = sanitized(&[content(large, None), part(5), closed.clone(), after.clone()].concat());
        assert_eq!(
            came,
            [content(0, Some(b"consign-unread:2097153")), closed, after].concat(),
            "the channel was closed"
        );
    }

    #[test]
    fn a_mark_from_outside_does_not_pass() {
        let forged = content(2, Some(b"consign-unread:9"));
        assert_eq!(sanitized(&forged), content(2, Some(b"?onsign-unread:9")));
    }

    #[test]
    fn other_protocols_pass_unchanged() {
        for bytes in [&b"AMQP\0\0\x09\x01"[..], b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x01\0\0\xff\xff\xff\xff more"] {
            assert_eq!(sanitized(bytes), bytes);
        }
    }
}
