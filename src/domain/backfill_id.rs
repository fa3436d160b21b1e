//! Id of a backfill.

use super::destination::{Invalid, text_newtype};

text_newtype!(
    /// Id of a backfill: 1-64 of `[A-Za-z0-9._-]`, valid in the names of queues and files.
    BackfillId
);

impl BackfillId {
    /// Parses an id; the error's field is `backfill`.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        // It becomes a file name: neither hidden nor a parent directory.
        if text.is_empty() || text.len() > 64 || text.starts_with('.') || !text.bytes().all(inner) {
            let problem = "is not a backfill id; give 1-64 of A-Z, a-z, 0-9 and ._- that do not begin with a dot";
            return Err(Invalid::new("backfill", problem));
        }
        Ok(Self(text.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backfills_id_is_fit_for_a_file_and_a_queue() {
        for good in ["a", "A-1_b.c", &"x".repeat(64)] {
            assert!(BackfillId::parse(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", ".hidden", "a/b", "a b", "ä", &"x".repeat(65)] {
            assert!(BackfillId::parse(bad).is_err(), "{bad}");
        }
    }
}
