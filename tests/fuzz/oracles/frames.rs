//! Frames of the broker, read by lapin's parser after the sanitizer. What a broker may send is
//! decided here by a reader of its own.

use std::collections::HashMap;

use amq_protocol::frame::{AMQPFrame, parsing::parse_frame};
use consign::fuzzing;

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;
/// Largest body that is read.
const MAX_BODY: u64 = 2 << 20;
const MARK: &[u8] = b"consign-unread:";
/// Levels of nested values that lapin may be given.
const MAX_DEPTH: usize = 16;
/// Fields after class and method, for the methods that carry texts of others or none: `t` is a text,
/// everything else a byte.
const METHODS: [([u8; 4], &str); 10] = [
    ([0, 10, 0, 30], "nnnnnnnn"),
    ([0, 10, 0, 50], "nntnnnn"),
    ([0, 20, 0, 40], "nntnnnn"),
    ([0, 20, 0, 41], ""),
    ([0, 60, 0, 11], ""),
    ([0, 60, 0, 50], "nnttt"),
    ([0, 60, 0, 60], "tnnnnnnnnbtt"),
    ([0, 60, 0, 71], "nnnnnnnnbttnnnn"),
    ([0, 60, 0, 80], "nnnnnnnnb"),
    ([0, 60, 0, 120], "nnnnnnnnb"),
];

/// What a broker sends is read by lapin, unchanged but for what lapin can't read; nothing depends
/// on where the stream is cut.
pub fn frames(bytes: &[u8]) {
    let Some((&[cut, limit], stream)) = bytes.split_first_chunk::<2>() else { return };
    let mut frame_max = [0, 4096, 8192, 131_072][usize::from(limit % 4)];
    let read = fuzzing::sanitized_frames(frame_max, [stream]);
    let in_parts = fuzzing::sanitized_frames(frame_max, stream.chunks(usize::from(cut).max(1)));
    assert_eq!(read, in_parts, "the stream was cut into {cut} bytes");

    let (mut read, mut dropped) = (&read[..], HashMap::new());
    let mut given = stream;
    while let Some(frame) = next_frame(&mut given) {
        let channel = [frame[1], frame[2]];
        if frame[0] == BODY
            && let Some(left) = dropped.get_mut(&channel)
        {
            *left -= (frame.len() as u64 - 8).min(*left);
            if *left == 0 {
                dropped.remove(&channel);
            }
            continue;
        }
        if [METHOD, HEADER].contains(&frame[0]) {
            dropped.remove(&channel);
        }
        // After a frame that no broker sends, the connection is over.
        let Some(sent) = Sent::of(frame) else { return };
        if let Sent::Header { body_size, .. } = sent
            && body_size > MAX_BODY
        {
            dropped.insert(channel, body_size);
        }
        let came = next_frame(&mut read).expect("every frame that is kept comes");
        sent.came(frame, came, frame_max);
        if frame[3..7] == [0, 0, 0, 12] && frame[7..11] == [0, 10, 0, 30] {
            let tuned = u32::from_be_bytes(frame[13..17].try_into().expect("four bytes"));
            frame_max = if frame_max == 0 || tuned == 0 { frame_max.max(tuned) } else { frame_max.min(tuned) };
        }
    }
}

/// Takes a complete frame with its end mark; `None` where there is none.
fn next_frame<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let size = u32::from_be_bytes(bytes.get(3..7)?.try_into().ok()?);
    let (frame, rest) = bytes.split_at_checked(usize::try_from(size).ok()?.checked_add(8)?)?;
    let known = [METHOD, HEADER, BODY, HEARTBEAT].contains(&frame[0]);
    (known && frame.ends_with(&[0xce])).then(|| *bytes = rest)?;
    Some(frame)
}

/// A frame that a broker may send.
enum Sent<'a> {
    Method,
    Header { body_size: u64, depth: usize, cluster_id: &'a [u8] },
    Other,
}

impl<'a> Sent<'a> {
    fn of(frame: &'a [u8]) -> Option<Self> {
        let mut reader = Reader { rest: &frame[7..frame.len() - 1], depth: 0 };
        let sent = match frame[0] {
            METHOD => reader.method().map(|()| Self::Method)?,
            HEADER => reader.header()?,
            _ => return Some(Self::Other),
        };
        reader.rest.is_empty().then_some(sent)
    }

    fn came(&self, given: &[u8], came: &[u8], frame_max: u32) {
        let (rest, parsed) = parse_frame(came).unwrap_or_else(|error| panic!("lapin can't read {came:?}: {error:?}"));
        assert!(rest.is_empty());
        let mut may_differ = false;
        if let Self::Header { body_size, depth, cluster_id } = self {
            let AMQPFrame::Header(_, header) = parsed else { panic!("{parsed:?} is no header") };
            let mark = format!("consign-unread:{body_size}");
            let cluster = header.properties.cluster_id().as_ref().map_or("", |text| text.as_str());
            if *body_size > MAX_BODY {
                assert_eq!((header.body_size, cluster), (0, mark.as_str()));
            } else {
                assert_eq!(header.body_size, *body_size);
                assert!(!cluster.as_bytes().starts_with(MARK), "the mark is forged");
            }
            let is_large = frame_max > 0 && came.len().max(given.len()) > frame_max as usize;
            assert!(frame_max < 4096 || came.len() <= frame_max as usize, "{} of {frame_max} bytes", came.len());
            may_differ = *body_size > MAX_BODY || cluster_id.starts_with(MARK) || is_large || *depth > MAX_DEPTH;
        }
        // Whatever lapin reads is left alone. It overflows its stack where values are nested too deeply.
        if !may_differ && parse_frame(given).is_ok() {
            assert_eq!(came, given);
        }
    }
}

/// Reads the fields of a frame as AMQP 0-9-1 and RabbitMQ define them.
struct Reader<'a> {
    rest: &'a [u8],
    depth: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(count)?;
        self.rest = rest;
        Some(taken)
    }

    fn text(&mut self) -> Option<&'a [u8]> {
        let length = self.take(1)?[0];
        self.take(usize::from(length))
    }

    fn long(&mut self) -> Option<&'a [u8]> {
        let length = u32::from_be_bytes(self.take(4)?.try_into().ok()?);
        self.take(usize::try_from(length).ok()?)
    }

    fn method(&mut self) -> Option<()> {
        let id = self.take(4)?;
        let (_, fields) = METHODS.iter().find(|(known, _)| known == id)?;
        fields.chars().try_for_each(|kind| match kind {
            't' => self.text().map(drop),
            _ => self.take(1).map(drop),
        })
    }

    fn header(&mut self) -> Option<Sent<'a>> {
        self.take(4).filter(|start| *start == [0, 60, 0, 0])?;
        let body_size = u64::from_be_bytes(self.take(8)?.try_into().ok()?);
        let flags = u16::from_be_bytes(self.take(2)?.try_into().ok()?);
        (flags.trailing_zeros() >= 2).then_some(())?;
        let mut cluster_id = &b""[..];
        for (at, kind) in "tthnntttt8tttt".chars().enumerate() {
            if flags & 1 << (15 - at) == 0 {
                continue;
            }
            match kind {
                't' => cluster_id = self.text()?,
                'h' => self.table(1)?,
                '8' => drop(self.take(8)?),
                _ => drop(self.take(1)?),
            }
        }
        let cluster_id = if flags & 4 == 0 { b"" } else { cluster_id };
        Some(Sent::Header { body_size, depth: self.depth, cluster_id })
    }

    fn table(&mut self, depth: usize) -> Option<()> {
        let mut inner = Reader { rest: self.long()?, depth };
        while !inner.rest.is_empty() {
            inner.text()?;
            inner.value(depth)?;
        }
        self.depth = self.depth.max(inner.depth);
        Some(())
    }

    fn value(&mut self, depth: usize) -> Option<()> {
        let fixed = match self.take(1)?[0] {
            b't' | b'b' | b'B' => 1,
            b's' | b'u' | b'U' => 2,
            b'i' | b'I' | b'f' => 4,
            b'D' => 5,
            b'l' | b'L' | b'd' | b'T' => 8,
            b'V' => 0,
            b'S' | b'x' => return self.long().map(drop),
            b'F' => return self.table(depth + 1),
            b'A' => {
                let mut inner = Reader { rest: self.long()?, depth: depth + 1 };
                while !inner.rest.is_empty() {
                    inner.value(depth + 1)?;
                }
                self.depth = self.depth.max(inner.depth);
                return Some(());
            }
            _ => return None,
        };
        self.take(fixed).map(drop)
    }
}
