//! What must be true of a stream before its last chunk is let go.

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use sha2::{Digest as _, Sha256};

use super::Chunks;
use crate::domain::job;
use crate::domain::outcome::{Failure, Reason};

/// What is known of a source before its bytes are read.
#[derive(Debug, Clone)]
pub(super) struct Expected {
    /// What the job says.
    pub(super) declared: Option<u64>,
    /// What the origin says.
    pub(super) told: Option<u64>,
    /// What the job says.
    pub(super) sha256: Option<[u8; 32]>,
    /// `source.max_bytes`.
    pub(super) max_bytes: Option<u64>,
}

impl Expected {
    /// Compares what the job says with what the origin says before anything is read: `source_mismatch` or `too_large`.
    pub(super) fn of(
        source: &job::Source,
        max_bytes: Option<u64>,
        told: Option<u64>,
        etag: Option<&str>,
    ) -> Result<Self, Failure> {
        let expected = Self { declared: source.size, told, sha256: source.sha256, max_bytes };
        if let Some(told) = told {
            expected.not_more_than_allowed(told)?;
            if source.size.is_some_and(|declared| declared != told) {
                return Err(expected.mismatch(told));
            }
        }
        if let Some(wanted) = &source.etag {
            same_tag(wanted, etag)?;
        }
        Ok(expected)
    }

    /// The length to plan with.
    pub(super) fn length(&self) -> Option<u64> {
        self.told.or(self.declared)
    }

    /// After every chunk: the bytes so far are not too many.
    fn so_far(&self, read: u64) -> Result<(), Failure> {
        self.not_more_than_allowed(read)?;
        if self.declared.is_some_and(|declared| read > declared) {
            let message =
                format!("the source is longer than the {} bytes of the job", self.declared.unwrap_or_default());
            return Err(Failure::new(Reason::SourceMismatch, message));
        }
        match self.told {
            Some(told) if read > told => {
                let message = format!("the source sent more than the {told} bytes it had announced");
                Err(Failure::new(Reason::SourceChanged, message))
            }
            _ => Ok(()),
        }
    }

    /// At the end: the bytes are as many as expected, and the expected ones.
    fn at_end(&self, read: u64, digest: Option<[u8; 32]>) -> Result<(), Failure> {
        if let Some(told) = self.told.filter(|told| *told != read) {
            let message = format!("the source broke off after {read} of {told} bytes");
            return Err(Failure::new(Reason::SourceUnavailable, message));
        }
        if self.declared.is_some_and(|declared| declared != read) {
            return Err(self.mismatch(read));
        }
        match (digest, self.sha256) {
            (Some(is), Some(wanted)) => same_digest(&wanted, &is),
            _ => Ok(()),
        }
    }

    fn not_more_than_allowed(&self, bytes: u64) -> Result<(), Failure> {
        match self.max_bytes {
            Some(max) if bytes > max => {
                let message = format!("the source is longer than the {max} bytes that source.max_bytes allows");
                Err(Failure::new(Reason::TooLarge, message))
            }
            _ => Ok(()),
        }
    }

    fn mismatch(&self, read: u64) -> Failure {
        let declared = self.declared.unwrap_or_default();
        Failure::new(Reason::SourceMismatch, format!("the source has {read} bytes, the job says {declared}"))
    }
}

/// Fails as `source_mismatch` unless the digests are equal.
pub(super) fn same_digest(wanted: &[u8; 32], is: &[u8; 32]) -> Result<(), Failure> {
    if wanted == is {
        return Ok(());
    }
    let message = format!("the source's SHA-256 is {}, the job says {}", hex::encode(is), hex::encode(wanted));
    Err(Failure::new(Reason::SourceMismatch, message))
}

/// Compares entity tags, with or without their quotes; a weak tag is never equal to a strong one.
fn same_tag(wanted: &str, is: Option<&str>) -> Result<(), Failure> {
    let bare = |tag: &str| match tag.trim().strip_prefix("W/") {
        Some(weak) => (true, weak.trim_matches('"').to_owned()),
        None => (false, tag.trim().trim_matches('"').to_owned()),
    };
    let message = match is {
        Some(is) if bare(is) == bare(wanted) => return Ok(()),
        Some(is) => format!("the source's etag is {is}, the job says {wanted}"),
        None => format!("the source has no etag, the job says {wanted}"),
    };
    Err(Failure::new(Reason::SourceMismatch, message))
}

struct Proving {
    input: Option<Chunks>,
    expected: Expected,
    read: u64,
    hasher: Option<Sha256>,
    /// The last chunk so far: let go when another one follows, or when everything is proven.
    held: Option<Bytes>,
}

/// Holds a stream that begins at byte `from` to what is expected of the whole; a digest can only be proven from byte 0 on. One
/// chunk is held back, so that a consumer who counts to the length still does not get the last bytes of a source that is
/// proven wrong by its end.
pub(super) fn proven(chunks: Chunks, expected: Expected, from: u64) -> Chunks {
    let hasher = expected.sha256.filter(|_| from == 0).map(|_| Sha256::new());
    let state = Proving { input: Some(chunks), expected, read: from, hasher, held: None };
    Box::pin(stream::try_unfold(state, |mut state| async move { Ok(state.next().await?.map(|chunk| (chunk, state))) }))
}

impl Proving {
    async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        while let Some(input) = &mut self.input {
            let Some(chunk) = input.next().await.transpose()? else {
                self.input = None;
                let digest = self.hasher.take().map(|hasher| hasher.finalize().into());
                self.expected.at_end(self.read, digest)?;
                break;
            };
            self.take(&chunk)?;
            if let Some(before) = self.held.replace(chunk).filter(|before| !before.is_empty()) {
                return Ok(Some(before));
            }
        }
        Ok(self.held.take().filter(|last| !last.is_empty()))
    }

    fn take(&mut self, chunk: &Bytes) -> Result<(), Failure> {
        self.read += chunk.len() as u64;
        self.expected.so_far(self.read)?;
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

    const FREE: Expected = Expected { declared: None, told: None, sha256: None, max_bytes: None };

    /// Everything that came out, and how it ended.
    async fn run(parts: &[&'static str], expected: Expected) -> (String, Option<Reason>) {
        let parts: Vec<_> = parts.iter().map(|part| Ok(Bytes::from_static(part.as_bytes()))).collect();
        let mut out = proven(Box::pin(stream::iter(parts)), expected, 0);
        let mut text = String::new();
        loop {
            match out.try_next().await {
                Ok(Some(chunk)) => text.push_str(std::str::from_utf8(&chunk).unwrap()),
                Ok(None) => return (text, None),
                Err(failure) => return (text, Some(failure.reason)),
            }
        }
    }

    #[tokio::test]
    async fn what_is_as_expected_passes_whole() {
        let exact = Expected {
            declared: Some(6),
            told: Some(6),
            sha256: Some(Sha256::digest("abcdef").into()),
            max_bytes: Some(6),
        };
        assert_eq!(run(&["ab", "", "cd", "ef", ""], exact).await, ("abcdef".into(), None));
        assert_eq!(run(&["ab", "c"], FREE).await, ("abc".into(), None));
        assert_eq!(run(&[], Expected { told: Some(0), ..FREE }).await, (String::new(), None));
    }

    #[tokio::test]
    async fn lengths_that_differ_end_in_their_own_reason() {
        for (expected, reason) in [
            (Expected { declared: Some(5), ..FREE }, Reason::SourceMismatch),
            (Expected { declared: Some(7), ..FREE }, Reason::SourceMismatch),
            (Expected { told: Some(5), ..FREE }, Reason::SourceChanged),
            (Expected { told: Some(7), ..FREE }, Reason::SourceUnavailable),
            (Expected { max_bytes: Some(5), ..FREE }, Reason::TooLarge),
        ] {
            let (out, ended) = run(&["ab", "cd", "ef"], expected.clone()).await;
            assert_eq!(ended, Some(reason), "{expected:?}");
            assert!("abcd".starts_with(&out), "the last chunk is kept back, not {out} of {expected:?}");
        }
    }

    #[tokio::test]
    async fn a_wrong_digest_keeps_the_last_chunk_back() {
        let expected = Expected { told: Some(6), sha256: Some([0; 32]), ..FREE };
        assert_eq!(run(&["abcd", "ef"], expected).await, ("abcd".into(), Some(Reason::SourceMismatch)));
    }

    #[tokio::test]
    async fn a_failure_of_the_source_passes() {
        let broken = stream::iter([Ok(Bytes::from_static(b"ab")), Err(Failure::new(Reason::SourceSlow, "slow"))]);
        let failure = proven(Box::pin(broken), FREE, 0).try_collect::<Vec<_>>().await.unwrap_err();
        assert_eq!(failure.reason, Reason::SourceSlow);
    }

    fn source(size: Option<u64>, etag: Option<&str>) -> job::Source {
        let location = job::Location::File("/x".into());
        job::Source { location, size, sha256: None, etag: etag.map(Into::into) }
    }

    #[test]
    fn what_the_job_says_is_compared_before_anything_is_read() {
        let reason = |size, max, told| Expected::of(&source(size, None), max, told, None).err().map(|f| f.reason);
        assert_eq!(reason(Some(3), None, Some(3)), None);
        assert_eq!(reason(Some(3), None, None), None);
        assert_eq!(reason(Some(3), None, Some(4)), Some(Reason::SourceMismatch));
        assert_eq!(reason(None, Some(3), Some(4)), Some(Reason::TooLarge));
        assert_eq!(reason(None, Some(4), Some(4)), None);
    }

    #[test]
    fn tags_are_compared_without_their_quotes() {
        let same = |wanted, is| Expected::of(&source(None, Some(wanted)), None, None, is).is_ok();
        assert!(same("abc", Some("\"abc\"")) && same("\"abc\"", Some("abc")) && same("W/\"abc\"", Some("W/\"abc\"")));
        assert!(!same("abc", Some("W/\"abc\"")) && !same("abc", Some("abcd")) && !same("abc", None));
    }
}
