//! Frames of AMQP 0-9-1 as the broker sends them, and what of them lapin can't read:
//!
//! | what | lapin | here |
//! |---|---|---|
//! | a short string (property, routing key, name of a header) that is not UTF-8 | ends the connection | `?` for each wrong byte |
//! | lists and tables of headers, hundreds in each other | overflows its stack, and the process ends | from the 16th on, they are bytes |
//! | headers that no longer fit into a frame with what the broker added | ends the connection | the largest are left out, and named |
//!
//! RabbitMQ takes all of this from a producer. What can't be made out passes as it is.

use super::fields::Fields;
use super::trim::trim;

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;
/// Type, channel and size before the content of a frame.
const HEAD: usize = 7;
/// And its end mark.
const AROUND: usize = HEAD + 1;
/// A method or header beyond this is no frame of a broker's.
const LARGEST: usize = 16 * 1024 * 1024;

/// Class and method in one number, as they stand in a frame.
const fn id(class: u32, method: u32) -> u32 {
    class << 16 | method
}
const TUNE: u32 = id(10, 30);
const CONNECTION_CLOSE: u32 = id(10, 50);
const CHANNEL_CLOSE: u32 = id(20, 40);
const RETURN: u32 = id(60, 50);
const DELIVER: u32 = id(60, 60);
const GET_OK: u32 = id(60, 71);

/// Takes what the broker sent and gives what lapin reads.
#[derive(Debug, Default)]
pub(super) struct Mender {
    /// Less than a frame.
    held: Vec<u8>,
    ready: Vec<u8>,
    /// Of `ready`, what is taken.
    taken: usize,
    /// Bytes of a body that pass as they are, and its end mark.
    passing: usize,
    /// The most bytes of a frame, as the broker and this side agree; 0 without a bound.
    frame_max: usize,
    /// This is not AMQP: everything passes.
    blind: bool,
}

impl Mender {
    /// `asked`: the most bytes of a frame that this side proposes; 0 without a bound.
    pub(super) fn new(asked: u32) -> Self {
        Self { frame_max: usize::try_from(asked).unwrap_or(0), ..Self::default() }
    }

    /// Fills `buffer` with what is ready; answers how much.
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

    /// Takes what was read.
    pub(super) fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let count = match (self.blind, self.passing) {
                (true, _) => bytes.len(),
                (false, 0) => self.missing().min(bytes.len()),
                (false, passing) => passing.min(bytes.len()),
            };
            let (now, later) = bytes.split_at(count);
            if self.blind || self.passing > 0 {
                self.ready.extend_from_slice(now);
                self.passing = self.passing.saturating_sub(count);
            } else {
                self.held.extend_from_slice(now);
                self.sort();
            }
            bytes = later;
        }
    }

    /// How much of the frame that is held is still to come, as far as is known.
    fn missing(&self) -> usize {
        self.size().map_or(HEAD, |size| size + AROUND).saturating_sub(self.held.len())
    }

    fn size(&self) -> Option<usize> {
        let size = self.held.get(3..HEAD)?.try_into().ok()?;
        usize::try_from(u32::from_be_bytes(size)).ok()
    }

    /// Decides about what is held, where that is possible.
    fn sort(&mut self) {
        let Some(size) = self.size() else { return };
        match self.held[0] {
            METHOD | HEADER if size <= LARGEST && self.missing() > 0 => return,
            METHOD | HEADER if size <= LARGEST => self.mend(),
            BODY | HEARTBEAT => self.passing = size + 1,
            _ => self.blind = true,
        }
        self.ready.append(&mut self.held);
    }

    /// A whole frame of those that may be unreadable.
    fn mend(&mut self) {
        let (kind, end) = (self.held[0], self.held.len() - 1);
        let mut fields = Fields::new(&mut self.held[HEAD..end]);
        if kind == METHOD {
            if let Some(told) = method(&mut fields) {
                self.frame_max = smaller(self.frame_max, told);
            }
            return;
        }
        let table = header(&mut fields);
        if fields.mended {
            tracing::warn!(
                "a message has texts that are no UTF-8, or headers that are too deep; it is read without them"
            );
        }
        if let Some(table) = table
            && self.frame_max > 0
            && self.held.len() > self.frame_max
        {
            trim(&mut self.held, HEAD + table, self.frame_max);
        }
    }
}

/// Of two bounds, 0 being none.
fn smaller(one: usize, other: usize) -> usize {
    if one == 0 || other == 0 { one.max(other) } else { one.min(other) }
}

/// The texts of the methods that carry some of a producer's, or quote them; answers the bound of frames where this tells it.
fn method(fields: &mut Fields<'_>) -> Option<usize> {
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

/// What the properties are, from the highest flag on: a text, the table of headers, or so many bytes.
#[derive(Clone, Copy)]
enum Kind {
    Text,
    Headers,
    Bytes(usize),
}

/// `content_type`, `content_encoding`, `headers`, `delivery_mode`, `priority`, `correlation_id`, `reply_to`, `expiration`, `message_id`,
/// `timestamp`, `type`, `user_id`, `app_id`, `cluster_id`.
const PROPERTIES: [Kind; 14] = {
    use Kind::{Bytes, Headers, Text};
    [Text, Text, Headers, Bytes(1), Bytes(1), Text, Text, Text, Text, Bytes(8), Text, Text, Text, Text]
};

/// A content header; answers where its table of headers begins, if it has one.
fn header(fields: &mut Fields<'_>) -> Option<usize> {
    // Class, weight and the size of the body.
    fields.skip(12)?;
    let flags = fields.u16()?;
    let mut table = None;
    for (bit, kind) in (2..16).rev().zip(PROPERTIES) {
        if flags & 1 << bit == 0 {
            continue;
        }
        match kind {
            Kind::Text => fields.text()?,
            Kind::Bytes(count) => fields.skip(count)?,
            Kind::Headers => {
                table = Some(fields.at());
                fields.table()?;
            }
        }
    }
    table
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

    /// What comes out when it goes in in pieces of each of these sizes; it must not depend on them.
    fn mended_within(frame_max: u32, bytes: &[u8]) -> Vec<u8> {
        let outs = [1, 7, 8, 4096, usize::MAX].map(|size| {
            let mut mender = Mender::new(frame_max);
            let mut out = Vec::new();
            for piece in bytes.chunks(size) {
                mender.feed(piece);
                let mut buffer = vec![0; 64 * 1024];
                while let count @ 1.. = mender.take(&mut buffer) {
                    out.extend_from_slice(&buffer[..count]);
                }
            }
            out
        });
        assert!(outs.iter().all(|out| *out == outs[0]));
        outs[0].clone()
    }

    fn mended(bytes: &[u8]) -> Vec<u8> {
        mended_within(131_072, bytes)
    }

    #[test]
    fn what_is_readable_passes_as_it_is() {
        let table =
            [text(b"a"), b"S".to_vec(), long(b"\xff\xfe"), text(b"n"), b"A".to_vec(), long(b"I\0\0\0\x01V")].concat();
        let body = frame(BODY, b"\xff\xfe body");
        let all = [headers(&table), body, frame(HEARTBEAT, b""), frame(METHOD, &[0, 60, 0, 80, 1, 2, 3])].concat();
        assert_eq!(mended(&all), all);
    }

    #[test]
    fn texts_that_are_no_utf_8_are_made_readable_wherever_they_stand() {
        let table =
            [text(b"\xff"), b"V".to_vec(), text(b"t"), b"F".to_vec(), long(&[text(b"\xfe"), b"V".to_vec()].concat())];
        let came = mended(&headers(&table.concat()));
        let table = [text(b"?"), b"V".to_vec(), text(b"t"), b"F".to_vec(), long(&[text(b"?"), b"V".to_vec()].concat())];
        assert_eq!(came, headers(&table.concat()));
        let delivery = |key: &[u8]| {
            let parts = [vec![0, 60, 0, 60], text(b"tag"), vec![0; 9], text(b"ex"), text(key)];
            frame(METHOD, &parts.concat())
        };
        assert_eq!(mended(&delivery(b"job.scheduled.\xff")), delivery(b"job.scheduled.?"));
        let closed = |why: &[u8]| frame(METHOD, &[vec![0, 20, 0, 40, 1, 148], text(why), vec![0; 4]].concat());
        assert_eq!(mended(&closed(b"no queue \xff")), closed(b"no queue ?"));
    }

    #[test]
    fn what_is_too_deep_is_bytes_of_the_same_length() {
        for kind in [b"A", b"F"] {
            let nested = |levels: usize, last: &[u8]| {
                let name: &[u8] = if kind == b"F" { &[0] } else { &[] };
                let wrap = |value: Vec<u8>| [&kind[..], &long(&[name, &value].concat())].concat();
                let value = (0..levels).fold(last.to_vec(), |value, _| wrap(value));
                headers(&[text(b"d"), value].concat())
            };
            assert_eq!(mended(&nested(15, b"V")), nested(15, b"V"));
            let deep = mended(&nested(5_000, b"V"));
            assert_eq!(deep.len(), nested(5_000, b"V").len());
            let differ: Vec<_> = deep.iter().zip(nested(5_000, b"V")).filter(|(is, was)| **is != *was).collect();
            assert_eq!(differ, [(&b'x', kind[0])], "and it is the type of one value");
        }
    }

    #[test]
    fn headers_beyond_a_frame_are_left_out_the_largest_first_and_named() {
        let entry = |name: &[u8], size: usize| [text(name), b"S".to_vec(), long(&vec![b'v'; size])].concat();
        let all = [entry(b"small", 9), entry(b"large", 3000), entry(b"larger", 4000), entry(b"last", 10)].concat();
        let named = |names: &[u8]| [text(b"x-headers-left-out"), b"S".to_vec(), long(names)].concat();
        let expected = [entry(b"small", 9), entry(b"large", 3000), entry(b"last", 10), named(b"larger")].concat();
        assert_eq!(mended_within(4096, &headers(&all)), headers(&expected));
        let expected = [entry(b"small", 9), entry(b"last", 10), named(b"larger, large")].concat();
        assert_eq!(mended_within(1024, &headers(&all)), headers(&expected));
        assert_eq!(mended_within(0, &headers(&all)), headers(&all), "nobody set a bound");
        let tune = frame(METHOD, &[0, 10, 0, 30, 0, 0, 0, 0, 4, 0, 0, 60]);
        let after = mended_within(4096, &[tune.clone(), headers(&all)].concat());
        assert_eq!(after, [tune, headers(&expected)].concat(), "the broker's is less");
    }

    #[test]
    fn what_is_no_amqp_passes() {
        for bytes in [&b"AMQP\0\0\x09\x01"[..], b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x01\0\0\xff\xff\xff\xff more"] {
            assert_eq!(mended(bytes), bytes);
        }
    }
}
