//! Reader of the raw fields of a frame. It makes texts and tables readable in place, without
//! changing their length.

/// Replacement for bytes that are not UTF-8.
const REPLACEMENT: u8 = b'?';
/// Nesting depth of lists and tables. lapin parses them by recursion, and its stack overflows far
/// below the depth that fits into a frame.
const MAX_DEPTH: u32 = 16;
/// Type of an opaque byte array.
const BYTE_ARRAY: u8 = b'x';

/// Cursor in a frame. Every method returns `None` at the end, or where there is no valid field.
pub(super) struct FrameReader<'a> {
    bytes: &'a mut [u8],
    /// Position.
    pub(super) at: usize,
    /// True once something unreadable was replaced.
    pub(super) changed: bool,
}

impl<'a> FrameReader<'a> {
    /// Starts at the beginning.
    pub(super) fn new(bytes: &'a mut [u8]) -> Self {
        Self { bytes, at: 0, changed: false }
    }

    /// Skips bytes.
    pub(super) fn skip(&mut self, count: usize) -> Option<()> {
        let to = self.at.checked_add(count).filter(|to| *to <= self.bytes.len())?;
        self.at = to;
        Some(())
    }

    fn read<const N: usize>(&mut self) -> Option<[u8; N]> {
        let from = self.at;
        self.skip(N)?;
        self.bytes[from..self.at].try_into().ok()
    }

    /// Reads a big-endian number.
    pub(super) fn u16(&mut self) -> Option<u16> {
        self.read().map(u16::from_be_bytes)
    }

    /// Reads a big-endian number.
    pub(super) fn u32(&mut self) -> Option<u32> {
        self.read().map(u32::from_be_bytes)
    }

    /// Reads a short string. lapin requires UTF-8, though neither AMQP nor RabbitMQ does.
    pub(super) fn text(&mut self) -> Option<()> {
        let [length] = self.read()?;
        let from = self.at;
        self.skip(length.into())?;
        self.changed |= make_utf8(&mut self.bytes[from..self.at]);
        Some(())
    }

    /// Reads a table, beginning with its length.
    pub(super) fn table(&mut self) -> Option<()> {
        let end = self.length()?;
        self.entries(end, 1)
    }

    /// Reads one entry of a table: its name and its value.
    pub(super) fn entry(&mut self, depth: u32) -> Option<()> {
        self.text()?;
        self.value(depth)
    }

    /// Reads a length; returns the end of the bytes that follow.
    pub(super) fn length(&mut self) -> Option<usize> {
        let length = usize::try_from(self.u32()?).ok()?;
        self.at.checked_add(length).filter(|end| *end <= self.bytes.len())
    }

    fn entries(&mut self, end: usize, depth: u32) -> Option<()> {
        while self.at < end {
            self.entry(depth)?;
        }
        (self.at == end).then_some(())
    }

    fn value(&mut self, depth: u32) -> Option<()> {
        let type_at = self.at;
        let [kind] = self.read()?;
        match kind {
            b't' | b'b' | b'B' => self.skip(1),
            b's' | b'u' | b'U' => self.skip(2),
            b'i' | b'I' | b'f' => self.skip(4),
            b'l' | b'L' | b'd' | b'T' => self.skip(8),
            b'D' => self.skip(5),
            b'S' | BYTE_ARRAY => {
                let end = self.length()?;
                self.skip(end - self.at)
            }
            b'V' => Some(()),
            b'A' | b'F' if depth >= MAX_DEPTH => {
                self.bytes[type_at] = BYTE_ARRAY;
                self.changed = true;
                let end = self.length()?;
                self.skip(end - self.at)
            }
            b'F' => {
                let end = self.length()?;
                self.entries(end, depth + 1)
            }
            b'A' => {
                let end = self.length()?;
                while self.at < end {
                    self.value(depth + 1)?;
                }
                (self.at == end).then_some(())
            }
            _ => None,
        }
    }
}

/// Replaces bytes that are not UTF-8; returns true when there were any.
fn make_utf8(mut text: &mut [u8]) -> bool {
    let mut changed = false;
    while let Err(problem) = std::str::from_utf8(text) {
        let from = problem.valid_up_to();
        let to = problem.error_len().map_or(text.len(), |length| from + length);
        text[from..to].fill(REPLACEMENT);
        text = &mut text[to..];
        changed = true;
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_become_readable_and_keep_their_length() {
        for (given, expected) in [
            (&b"plain \xc3\xa9"[..], "plain \u{e9}"),
            (b"\xff\xfea", "??a"),
            (b"a\xe2\x82", "a??"),
            (b"\xf0\x9f\x92z\xed\xa0\x80", "???z???"),
            (b"", ""),
        ] {
            let mut text = given.to_vec();
            let changed = make_utf8(&mut text);
            assert_eq!((String::from_utf8(text).unwrap().as_str(), changed), (expected, given != expected.as_bytes()));
        }
    }

    #[test]
    fn invalid_fields_stay_unchanged_and_nothing_is_read_beyond_the_end() {
        for bad in
            [&b"\0\0\0\x05\x01a?"[..], b"\xff\xff\xff\xff", b"\0\0\0\x08\x01aS\0\0\0\x09x", b"\0\0\0\x03\x05ab", b""]
        {
            let mut bytes = bad.to_vec();
            assert_eq!(FrameReader::new(&mut bytes).table(), None, "{bad:?}");
            assert_eq!(bytes, bad);
        }
    }
}
