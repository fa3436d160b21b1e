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
use super::mark::{self, ENVELOPE};
use super::trim::trim;
use crate::domain::job::lease::MAX_LEASE;

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;
/// Bytes before the content of a frame: type, channel and size.
const PREFIX: usize = 7;
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
    use FieldKind::{Bytes, Text};
    let parts: &[FieldKind] = match fields.u32()? {
        TUNE => {
            fields.skip(2)?;
            return usize::try_from(fields.u32()?).ok();
        }
        DELIVER => &[Text, Bytes(9), Text, Text],
        GET_OK => &[Bytes(9), Text, Text],
        RETURN => &[Bytes(2), Text, Text, Text],
        CONNECTION_CLOSE | CHANNEL_CLOSE => &[Bytes(2), Text],
        _ => &[],
    };
    parts.iter().try_for_each(|part| part.read(fields))?;
    None
}

/// Kind of a field: a text, the table of headers, or a fixed number of bytes.
#[derive(Clone, Copy)]
enum FieldKind {
    Text,
    Headers,
    Bytes(usize),
}

impl FieldKind {
    fn read(self, fields: &mut FrameReader<'_>) -> Option<()> {
        match self {
            Self::Text => fields.text(),
            Self::Headers => fields.table(),
            Self::Bytes(count) => fields.skip(count),
        }
    }
}

/// Properties from the highest flag on: `content_type`, `content_encoding`, `headers`,
/// `delivery_mode`, `priority`, `correlation_id`, `reply_to`, `expiration`, `message_id`,
/// `timestamp`, `type`, `user_id`, `app_id`, `cluster_id`.
const PROPERTIES: [FieldKind; 14] = {
    use FieldKind::{Bytes, Headers, Text};
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
    let mut last = fields.at;
    for (bit, kind) in (2..16).rev().zip(PROPERTIES) {
        last = fields.at;
        if flags & 1 << bit == 0 {
            continue;
        }
        if matches!(kind, FieldKind::Headers) {
            table = Some(fields.at);
        }
        kind.read(fields)?;
    }
    Some(ContentHeader { body_size, table, cluster_id: last..fields.at })
}

#[cfg(test)]
mod tests;
