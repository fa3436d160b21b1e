//! The fields of a frame, where they stand: texts and tables are made readable without changing their length.

/// Bytes that stand where a text has others than UTF-8.
const INSTEAD: u8 = b'?';
/// Lists and tables in each other. lapin reads them by recursion, and the stack of its thread ends far below what a frame holds.
const DEEPEST: u32 = 16;
/// The type of a value that nobody looks into.
const BYTES: u8 = b'x';

/// A place in a frame. Every step answers `None` at its end, or at what can't be a field.
pub(super) struct Fields<'a> {
    bytes: &'a mut [u8],
    at: usize,
    /// Whether something was unreadable and is not any more.
    pub(super) mended: bool,
}

impl<'a> Fields<'a> {
    pub(super) fn new(bytes: &'a mut [u8]) -> Self {
        Self { bytes, at: 0, mended: false }
    }

    /// How far it is read.
    pub(super) fn at(&self) -> usize {
        self.at
    }

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

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.read().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.read().map(u32::from_be_bytes)
    }

    /// A short string: lapin takes nothing but UTF-8, though neither AMQP nor RabbitMQ asks for it.
    pub(super) fn text(&mut self) -> Option<()> {
        let [length] = self.read()?;
        let from = self.at;
        self.skip(length.into())?;
        self.mended |= readable(&mut self.bytes[from..self.at]);
        Some(())
    }

    /// A table from its length on.
    pub(super) fn table(&mut self) -> Option<()> {
        let end = self.length()?;
        self.entries(end, 1)
    }

    /// One entry of a table: its name and its value.
    pub(super) fn entry(&mut self, depth: u32) -> Option<()> {
        self.text()?;
        self.value(depth)
    }

    /// Reads the length of what follows; answers where that ends.
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
        let place = self.at;
        let [kind] = self.read()?;
        match kind {
            b't' | b'b' | b'B' => self.skip(1),
            b's' | b'u' | b'U' => self.skip(2),
            b'i' | b'I' | b'f' => self.skip(4),
            b'l' | b'L' | b'd' | b'T' => self.skip(8),
            b'D' => self.skip(5),
            b'S' | BYTES => {
                let end = self.length()?;
                self.skip(end - self.at)
            }
            b'V' => Some(()),
            b'A' | b'F' if depth >= DEEPEST => {
                self.bytes[place] = BYTES;
                self.mended = true;
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

/// Makes UTF-8 of it; whether that took anything.
fn readable(mut text: &mut [u8]) -> bool {
    let mut mended = false;
    while let Err(problem) = std::str::from_utf8(text) {
        let from = problem.valid_up_to();
        let to = problem.error_len().map_or(text.len(), |length| from + length);
        text[from..to].fill(INSTEAD);
        text = &mut text[to..];
        mended = true;
    }
    mended
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
            let mended = readable(&mut text);
            assert_eq!((String::from_utf8(text).unwrap().as_str(), mended), (expected, given != expected.as_bytes()));
        }
    }

    #[test]
    fn what_is_no_field_is_left_alone_and_nothing_is_read_beyond_the_end() {
        for bad in
            [&b"\0\0\0\x05\x01a?"[..], b"\xff\xff\xff\xff", b"\0\0\0\x08\x01aS\0\0\0\x09x", b"\0\0\0\x03\x05ab", b""]
        {
            let mut bytes = bad.to_vec();
            assert_eq!(Fields::new(&mut bytes).table(), None, "{bad:?}");
            assert_eq!(bytes, bad);
        }
    }
}
