//! Checks of a stream's content. Its last chunk is only yielded after all of them have passed.

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use sha2::{Digest as _, Sha256};

use super::chunks::Chunks;
use crate::domain::job;
use crate::domain::outcome::{Failure, Reason};

/// Properties of a source that are known before its bytes are read.
#[derive(Debug, Clone)]
pub(super) struct ExpectedContent {
    /// Length in bytes according to the job.
    pub(super) declared: Option<u64>,
    /// Length in bytes according to the origin.
    pub(super) announced: Option<u64>,
    /// True if the transport marks the end of the content: a broken connection can't look like it.
    pub(super) end_marked: bool,
    /// SHA-256 according to the job.
    pub(super) sha256: Option<[u8; 32]>,
    /// `source.max_bytes`.
    pub(super) max_bytes: Option<u64>,
}

impl ExpectedContent {
    /// Compares the job with what the origin announced, before anything is read. Fails as
    /// `source_mismatch` or `too_large`.
    pub(super) fn new(
        source: &job::Source,
        max_bytes: Option<u64>,
        content: &AnnouncedContent<'_>,
    ) -> Result<Self, Failure> {
        let AnnouncedContent { length: announced, etag, end_marked } = *content;
        let expected = Self { declared: source.size, announced, end_marked, sha256: source.sha256, max_bytes };
        if let Some(announced) = announced {
            expected.check_max_bytes(announced)?;
            if source.size.is_some_and(|declared| declared != announced) {
                return Err(expected.length_mismatch(announced));
            }
        }
        if let Some(declared) = &source.etag {
            check_etag(declared, etag)?;
        }
        Ok(expected)
    }

    /// Returns true if nothing can tell half of the content from all of it.
    pub(super) fn is_unproven(&self) -> bool {
        !self.tells_its_end() && self.declared.is_none() && self.sha256.is_none()
    }

    fn tells_its_end(&self) -> bool {
        self.announced.is_some() || self.end_marked
    }

    /// Returns the length to plan the upload with.
    pub(super) fn length(&self) -> Option<u64> {
        self.announced.or(self.declared)
    }

    /// Checks the number of bytes so far, after every chunk.
    fn check_progress(&self, read: u64) -> Result<(), Failure> {
        self.check_max_bytes(read)?;
        if let Some(declared) = self.declared.filter(|declared| read > *declared) {
            let message = format!("the source is longer than {declared} bytes, the size in the job");
            return Err(Failure::new(Reason::SourceMismatch, message).hint(WRONG_SIZE));
        }
        match self.announced {
            Some(announced) if read > announced => {
                let message = format!("the source sent more than the {announced} bytes that it had announced");
                Err(Failure::new(Reason::SourceChanged, message))
            }
            _ => Ok(()),
        }
    }

    /// Checks length and digest at the end of the stream.
    fn check_end(&self, read: u64, digest: Option<[u8; 32]>) -> Result<(), Failure> {
        if let Some(announced) = self.announced.filter(|announced| *announced != read) {
            let message = format!("the source ended after {read} of {announced} bytes");
            return Err(Failure::new(Reason::SourceUnavailable, message));
        }
        // A broken connection looks like this, and is not the job's fault.
        if let Some(declared) = self.declared.filter(|declared| read < *declared && !self.tells_its_end()) {
            let message = format!("the source ended after {read} of {declared} bytes without saying how long it is");
            return Err(Failure::new(Reason::SourceUnavailable, message));
        }
        if self.declared.is_some_and(|declared| declared != read) {
            return Err(self.length_mismatch(read));
        }
        match (digest, self.sha256) {
            (Some(actual), Some(declared)) => check_digest(&declared, &actual),
            _ => Ok(()),
        }
    }

    fn check_max_bytes(&self, bytes: u64) -> Result<(), Failure> {
        match self.max_bytes {
            Some(max) if bytes > max => {
                let message = format!("the source is longer than the {max} bytes that source.max_bytes allows");
                Err(Failure::new(Reason::TooLarge, message).hint("raise source.max_bytes, or split the file"))
            }
            _ => Ok(()),
        }
    }

    fn length_mismatch(&self, read: u64) -> Failure {
        let declared = self.declared.unwrap_or_default();
        let message = format!("the source has {read} bytes, the job says {declared}");
        Failure::new(Reason::SourceMismatch, message).hint(WRONG_SIZE)
    }
}

/// Hint for a source of another length than in the job.
const WRONG_SIZE: &str = "correct source.size in the job, or replace the source";

/// Description of a content by its origin, before it is read.
#[derive(Debug, Clone, Copy)]
pub(super) struct AnnouncedContent<'a> {
    /// Length in bytes.
    pub(super) length: Option<u64>,
    /// Entity tag, strong or weak.
    pub(super) etag: Option<&'a str>,
    /// True if the transport marks the end.
    pub(super) end_marked: bool,
}

/// Returns the failure for a source whose end proves nothing. Another attempt may reach a server
/// that tells the length.
pub(super) fn unproven_length() -> Failure {
    let message = "the source's response ended without saying how long it is (neither Content-Length nor chunks), \
                   so a broken connection would look like its end";
    let hint = "give source.size or source.sha256 in the job, or make the server send Content-Length; to deliver such \
                sources anyway, set allow_unproven_length in the job's source or in [source]";
    Failure::new(Reason::SourceUnavailable, message).hint(hint)
}

/// Fails as `source_mismatch` unless the digests are equal.
pub(super) fn check_digest(declared: &[u8; 32], actual: &[u8; 32]) -> Result<(), Failure> {
    if declared == actual {
        return Ok(());
    }
    let (actual, declared) = (hex::encode(actual), hex::encode(declared));
    let message = format!("the source's SHA-256 is {actual}, the job says {declared}");
    Err(Failure::new(Reason::SourceMismatch, message).hint("correct source.sha256 in the job, or replace the source"))
}

/// Compares entity tags, with or without their quotes. A weak tag never equals a strong one.
fn check_etag(declared: &str, actual: Option<&str>) -> Result<(), Failure> {
    let bare = |tag: &str| match tag.trim().strip_prefix("W/") {
        Some(weak) => (true, weak.trim_matches('"').to_owned()),
        None => (false, tag.trim().trim_matches('"').to_owned()),
    };
    let message = match actual {
        Some(actual) if bare(actual) == bare(declared) => return Ok(()),
        Some(actual) => format!("the source's etag is {actual}, the job says {declared}"),
        None => format!("the source has no etag, the job says {declared}"),
    };
    Err(Failure::new(Reason::SourceMismatch, message)
        .hint("give the source's etag as source.etag in the job, or omit it"))
}

/// Checks a stream that begins at byte `from` against the expected content. A digest can only be
/// verified from byte 0.
///
/// The last chunk is held back until the checks at the end have passed. A consumer that counts to
/// the length therefore never gets the last bytes of a wrong source.
pub(super) fn verified(chunks: Chunks, expected: ExpectedContent, from: u64) -> Chunks {
    let hasher = expected.sha256.filter(|_| from == 0).map(|_| Sha256::new());
    let state = VerifiedStream { input: Some(chunks), expected, read: from, hasher, held_back: None };
    Box::pin(stream::try_unfold(state, |mut state| async move { Ok(state.next().await?.map(|chunk| (chunk, state))) }))
}

struct VerifiedStream {
    input: Option<Chunks>,
    expected: ExpectedContent,
    read: u64,
    hasher: Option<Sha256>,
    /// Last chunk so far: yielded when another one follows, or after the checks at the end.
    held_back: Option<Bytes>,
}

impl VerifiedStream {
    async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        while let Some(input) = &mut self.input {
            let Some(chunk) = input.next().await.transpose()? else {
                self.input = None;
                let digest = self.hasher.take().map(|hasher| hasher.finalize().into());
                self.expected.check_end(self.read, digest)?;
                break;
            };
            self.check(&chunk)?;
            if let Some(before) = self.held_back.replace(chunk).filter(|before| !before.is_empty()) {
                return Ok(Some(before));
            }
        }
        Ok(self.held_back.take().filter(|last| !last.is_empty()))
    }

    fn check(&mut self, chunk: &Bytes) -> Result<(), Failure> {
        self.read += chunk.len() as u64;
        self.expected.check_progress(self.read)?;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(chunk);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use futures_util::TryStreamExt as _;

    use super::*;

    /// Chunks with an end mark, as every proven content without a length.
    const UNKNOWN: ExpectedContent =
        ExpectedContent { declared: None, announced: None, end_marked: true, sha256: None, max_bytes: None };

    /// Returns the text that the stream yielded, and the reason of its failure.
    async fn run(parts: &[&'static str], expected: ExpectedContent) -> (String, Option<Reason>) {
        let parts: Vec<_> = parts.iter().map(|part| Ok(Bytes::from_static(part.as_bytes()))).collect();
        let mut out = verified(Box::pin(stream::iter(parts)), expected, 0);
        let mut text = String::new();
        loop {
            match out.try_next().await {
                Ok(Some(chunk)) => text.push_str(std::str::from_utf8(&chunk).unwrap()),
                Ok(None) => return (text, None),
                Err(failure) => {
                    let temporary = [Reason::SourceUnavailable, Reason::SourceChanged, Reason::SourceSlow];
                    let explained = !failure.hint.is_empty() || temporary.contains(&failure.reason);
                    assert!(explained, "no remedy: {failure:?}");
                    return (text, Some(failure.reason));
                }
            }
        }
    }

    #[tokio::test]
    async fn matching_content_passes_unchanged() {
        let exact = ExpectedContent {
            declared: Some(6),
            announced: Some(6),
            sha256: Some(Sha256::digest("abcdef").into()),
            max_bytes: Some(6),
            ..UNKNOWN
        };
        assert_eq!(run(&["ab", "", "cd", "ef", ""], exact).await, ("abcdef".into(), None));
        assert_eq!(run(&["ab", "c"], UNKNOWN).await, ("abc".into(), None));
        assert_eq!(run(&[], ExpectedContent { announced: Some(0), ..UNKNOWN }).await, (String::new(), None));
    }

    #[tokio::test]
    async fn each_length_mismatch_has_its_reason() {
        for (expected, reason) in [
            (ExpectedContent { declared: Some(5), ..UNKNOWN }, Reason::SourceMismatch),
            (ExpectedContent { declared: Some(7), ..UNKNOWN }, Reason::SourceMismatch),
            (ExpectedContent { declared: Some(7), end_marked: false, ..UNKNOWN }, Reason::SourceUnavailable),
            (ExpectedContent { declared: Some(5), end_marked: false, ..UNKNOWN }, Reason::SourceMismatch),
            (ExpectedContent { announced: Some(5), ..UNKNOWN }, Reason::SourceChanged),
            (ExpectedContent { announced: Some(7), ..UNKNOWN }, Reason::SourceUnavailable),
            (ExpectedContent { max_bytes: Some(5), ..UNKNOWN }, Reason::TooLarge),
        ] {
            let (out, ended) = run(&["ab", "cd", "ef"], expected.clone()).await;
            assert_eq!(ended, Some(reason), "{expected:?}");
            assert!("abcd".starts_with(&out), "the last chunk is held back, not {out} of {expected:?}");
        }
    }

    #[tokio::test]
    async fn a_wrong_digest_holds_the_last_chunk_back() {
        let expected = ExpectedContent { announced: Some(6), sha256: Some([0; 32]), ..UNKNOWN };
        assert_eq!(run(&["abcd", "ef"], expected).await, ("abcd".into(), Some(Reason::SourceMismatch)));
    }

    #[tokio::test]
    async fn a_failure_of_the_source_passes_through() {
        let broken = stream::iter([Ok(Bytes::from_static(b"ab")), Err(Failure::new(Reason::SourceSlow, "slow"))]);
        let failure = verified(Box::pin(broken), UNKNOWN, 0).try_collect::<Vec<_>>().await.unwrap_err();
        assert_eq!(failure.reason, Reason::SourceSlow);
    }

    fn source(size: Option<u64>, etag: Option<&str>) -> job::Source {
        let location = job::Location::File("/x".into());
        let etag = etag.map(Into::into);
        job::Source { location, size, sha256: None, etag, allow_unproven_length: false }
    }

    fn content(length: Option<u64>, etag: Option<&str>) -> AnnouncedContent<'_> {
        AnnouncedContent { length, etag, end_marked: false }
    }

    #[test]
    fn only_a_length_an_end_mark_or_the_job_proves_the_end() {
        let unproven = |size, digest: Option<[u8; 32]>, length, end_marked| {
            let source = job::Source { sha256: digest, ..source(size, None) };
            let content = AnnouncedContent { end_marked, ..content(length, None) };
            ExpectedContent::new(&source, None, &content).unwrap().is_unproven()
        };
        assert!(unproven(None, None, None, false));
        assert!(!unproven(Some(6), None, None, false) && !unproven(None, Some([0; 32]), None, false));
        assert!(!unproven(None, None, Some(6), false) && !unproven(None, None, None, true));
    }

    #[test]
    fn the_job_is_compared_before_anything_is_read() {
        let reason = |size, max, announced| {
            ExpectedContent::new(&source(size, None), max, &content(announced, None)).err().map(|f| f.reason)
        };
        assert_eq!(reason(Some(3), None, Some(3)), None);
        assert_eq!(reason(Some(3), None, None), None);
        assert_eq!(reason(Some(3), None, Some(4)), Some(Reason::SourceMismatch));
        assert_eq!(reason(None, Some(3), Some(4)), Some(Reason::TooLarge));
        assert_eq!(reason(None, Some(4), Some(4)), None);
    }

    #[test]
    fn tags_are_compared_without_their_quotes() {
        let same = |wanted, is| ExpectedContent::new(&source(None, Some(wanted)), None, &content(None, is)).is_ok();
        assert!(same("abc", Some("\"abc\"")) && same("\"abc\"", Some("abc")) && same("W/\"abc\"", Some("W/\"abc\"")));
        assert!(!same("abc", Some("W/\"abc\"")) && !same("abc", Some("abcd")) && !same("abc", None));
    }
}
