//! Reconciliation: finds out if the object under a key is one that this job wrote, by its content
//! as a listing shows it.
//!
//! It is asked after a lost reply, and when a conditional write finds the key taken while an
//! earlier attempt of the job may have written the object. Size, number of parts and time are never
//! enough:
//!
//! | the listed object | is judged |
//! |---|---|
//! | another size or number of parts | foreign |
//! | the ETag of our bytes: their MD5, or that of the MD5s of our parts | ours |
//! | another ETag, although S3 reported for our upload that no KMS key encrypts | foreign |
//! | same size and parts, and the second in which S3 initiated our own upload in parts | ours |
//! | everything else of the same size | undecidable |
//!
//! Undecidable are single puts under a KMS key, uploads in parts under one by a worker that was
//! killed before its lease recorded them, and everything where listing is denied. An earlier
//! attempt that cut the object into parts of another size counts as foreign.

use std::time::{Duration, SystemTime};

use aws_sdk_s3::types::Object;
use md5::{Digest as _, Md5};

use super::call::{BASE_TIMEOUT, Calls};
use super::classify::{CallError, ErrorSignal};
use super::part::Part;
use super::{Target, Uploaded};
use crate::domain::job::IfExists;
use crate::domain::job::lease::PartDone;
use crate::domain::outcome::{Class, Encryption, Failure, Reason, Receipt};

/// Largest difference between the `Date` of the reply that created an upload and the time of its
/// initiation, which S3 gives in whole seconds.
const INITIATION_TOLERANCE: Duration = Duration::from_secs(1);

/// Properties of the object that this job would have written.
#[derive(Debug, Clone, Default)]
pub(crate) struct ExpectedObject {
    /// Bytes.
    pub(crate) length: u64,
    /// Number of parts; `None` for a single put.
    pub(crate) parts: Option<u32>,
    /// ETag of the content where ETags are digests, as far as it is known.
    pub(crate) etag: Option<String>,
    /// True if S3 reported an encryption under which ETags are digests.
    pub(crate) digests: bool,
    /// Time at which S3 initiated the upload in parts: its clock, in whole seconds. It reports that
    /// as the modification time of the object.
    pub(crate) initiated: Option<SystemTime>,
}

/// Existing object, as a listing shows it.
#[derive(Debug, Clone)]
pub(crate) struct ListedObject {
    /// Bytes.
    pub(crate) length: Option<u64>,
    /// ETag, without quotes.
    pub(crate) etag: String,
    /// Time of modification.
    pub(crate) modified: Option<SystemTime>,
}

/// Writer of an existing object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Provenance {
    /// This job.
    Ours,
    /// Another writer.
    Foreign,
    /// A listing does not show it.
    Undecidable,
}

impl ExpectedObject {
    /// Returns the object that an upload of these parts makes.
    pub(super) fn of_parts(parts: &[PartDone], encryption: &Encryption, initiated: SystemTime) -> Self {
        Self {
            length: parts.iter().map(|part| part.length).sum(),
            parts: Some(u32::try_from(parts.len()).unwrap_or(u32::MAX)),
            etag: etag_of_parts(parts),
            digests: encryption.algorithm.as_deref().is_some_and(|algorithm| algorithm == "AES256"),
            initiated: Some(initiated),
        }
    }

    fn has_shape_of(&self, listed: &ListedObject) -> bool {
        let parts = listed.etag.rsplit_once('-').and_then(|(_, count)| count.parse().ok());
        listed.length == Some(self.length) && parts == self.parts
    }
}

impl ListedObject {
    fn of(object: &Object) -> Self {
        Self {
            length: object.size().and_then(|size| u64::try_from(size).ok()),
            etag: object.e_tag().unwrap_or_default().trim_matches('"').to_owned(),
            modified: object.last_modified().and_then(|at| SystemTime::try_from(*at).ok()),
        }
    }
}

/// Judges who wrote an existing object, by the table above.
pub(crate) fn judge(listed: &ListedObject, expected: &ExpectedObject) -> Provenance {
    if !expected.has_shape_of(listed) {
        return Provenance::Foreign;
    }
    match &expected.etag {
        Some(etag) if *etag == listed.etag => return Provenance::Ours,
        Some(_) if expected.digests => return Provenance::Foreign,
        _ => {}
    }
    let apart =
        |(one, other): (SystemTime, SystemTime)| one.duration_since(other).unwrap_or_else(|late| late.duration());
    let initiated = expected.initiated.zip(listed.modified).map(apart);
    if initiated.is_some_and(|apart| apart <= INITIATION_TOLERANCE) {
        Provenance::Ours
    } else {
        Provenance::Undecidable
    }
}

/// Returns the ETag of an object of these parts where ETags are digests; `None` if those of the
/// parts are none.
fn etag_of_parts(parts: &[PartDone]) -> Option<String> {
    let mut whole = Md5::new();
    for part in parts {
        let mut digest = [0; 16];
        hex::decode_to_slice(part.etag.as_deref()?.trim_matches('"'), &mut digest).ok()?;
        whole.update(digest);
    }
    Some(format!("{}-{}", hex::encode(whole.finalize()), parts.len()))
}

/// Lists the exact key; `None` if there is no such object.
async fn list(calls: &Calls, target: &Target<'_>) -> Result<Option<Object>, CallError> {
    let listed = calls
        .call("ListObjectsV2", BASE_TIMEOUT, |client| {
            client
                .list_objects_v2()
                .bucket(target.destination.bucket.as_str())
                .prefix(target.key.as_str())
                .max_keys(1)
                .set_expected_bucket_owner(calls.owner())
                .send()
        })
        .await?;
    Ok(listed.contents.unwrap_or_default().into_iter().find(|object| object.key() == Some(target.key.as_str())))
}

/// Checks that a key is free before `operation` writes it, by a listing, where the job wants that
/// and the store does not check it itself. What another client writes after the listing is
/// replaced.
pub(super) async fn check_free(calls: &Calls, target: &Target<'_>, operation: &'static str) -> Result<(), CallError> {
    if target.if_exists == IfExists::Replace || !calls.sessions.ignores_if_none_match(operation) {
        return Ok(());
    }
    match list(calls, target).await {
        Ok(None) => Ok(()),
        Ok(Some(_)) => {
            let message = format!("{operation}: the key is taken, as a listing shows");
            let hint = "the object stays as it is; use another key, or if_exists = \"replace\"";
            let failure = Failure::new(Reason::ObjectExists, message).hint(hint);
            Err(CallError { signal: ErrorSignal::PreconditionFailed, ..CallError::new(failure) })
        }
        Err(denied) if denied.signal == ErrorSignal::Denied => {
            let hint =
                "this store does not check if_exists itself, so the key is listed: allow s3:ListBucket for the prefix";
            Err(CallError { failure: with_hint(denied.failure, hint), ..denied })
        }
        Err(error) => Err(error),
    }
}

/// Returns the object under the exact key if it is the one that we would have written; `None` when
/// that can't be shown, or listing is not possible.
pub(super) async fn find(calls: &Calls, target: &Target<'_>, expected: &ExpectedObject) -> Option<Object> {
    let found = list(calls, target).await.ok().flatten()?;
    (judge(&ListedObject::of(&found), expected) == Provenance::Ours).then_some(found)
}

/// Returns true if the object has the age of the multipart upload whose creation S3 answered at
/// `answered`: the same whole second. False also for an upload that was initiated in the second
/// before.
pub(super) fn is_of_upload(object: &Object, answered: SystemTime) -> bool {
    let second = |at: SystemTime| at.duration_since(SystemTime::UNIX_EPOCH).ok().map(|age| age.as_secs());
    ListedObject::of(object).modified.is_some_and(|at| second(at) == second(answered))
}

/// Handles a conditional write that failed because the key exists: either an earlier try or attempt
/// of ours wrote the object, or another client did. The bytes of a single put are in `part`, and
/// are read again only if the object has their size.
pub(super) async fn taken(
    calls: &Calls,
    target: &Target<'_>,
    error: CallError,
    (mut expected, crc): (ExpectedObject, Option<String>),
    part: Option<&Part>,
) -> Result<Uploaded, Failure> {
    if !target.may_be_written() {
        return conflict(target, error.failure);
    }
    let found = match list(calls, target).await {
        Ok(found) => found,
        Err(denied) if denied.signal == ErrorSignal::Denied => {
            let hint = "without s3:ListBucket, an object of an earlier attempt of this job is not recognised: allow it for the prefix";
            return conflict(target, with_hint(error.failure, hint));
        }
        // Without a listing nothing is decided: the next attempt finds the key taken again.
        Err(unlisted) if unlisted.failure.class() != Class::Job => return Err(unlisted.failure),
        Err(_) => None,
    };
    // It was deleted meanwhile, or the store has no listings.
    let Some(found) = found else { return conflict(target, error.failure) };
    let listed = ListedObject::of(&found);
    if let Some(part) = part.filter(|_| expected.has_shape_of(&listed)) {
        expected.etag = Some(part.md5().await?);
    }
    match judge(&listed, &expected) {
        Provenance::Ours => Ok(Uploaded::Stored(receipt(found, &expected, crc))),
        Provenance::Foreign => conflict(target, error.failure),
        Provenance::Undecidable => {
            let hint = "it has the size of this job's object, but the ETag of other content. Under KMS encryption an \
                ETag does not identify the content, so an earlier attempt of this job may have written it; compare \
                the two";
            conflict(target, with_hint(error.failure, hint))
        }
    }
}

/// The end of a job whose key is taken by another writer, as far as can be shown.
fn conflict(target: &Target<'_>, failure: Failure) -> Result<Uploaded, Failure> {
    match target.if_exists {
        IfExists::Keep => Ok(Uploaded::KeptExisting),
        IfExists::Fail | IfExists::Replace => Err(failure),
    }
}

fn with_hint(failure: Failure, hint: &str) -> Failure {
    let before = Some(failure.hint.clone()).filter(|before| !before.is_empty());
    let hint = before.map_or_else(|| hint.to_owned(), |before| format!("{before}; {hint}"));
    failure.hint(hint)
}

/// A receipt from a listing: it knows no version and no encryption.
pub(super) fn receipt(object: Object, expected: &ExpectedObject, crc: Option<String>) -> Receipt {
    Receipt {
        bytes: expected.length,
        source_bytes: expected.length,
        parts: expected.parts.unwrap_or(0),
        etag: object.e_tag,
        checksum_crc64nvme: crc,
        ..Receipt::default()
    }
}

#[cfg(test)]
mod tests {
    use aws_smithy_types::DateTime;

    use super::*;

    const SECOND: u64 = 1_800_000_000;

    fn at(second: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(second)
    }

    fn listed(length: i64, etag: &str, second: u64) -> ListedObject {
        let modified = DateTime::from_secs(i64::try_from(second).unwrap());
        ListedObject::of(&Object::builder().key("k").size(length).e_tag(etag).last_modified(modified).build())
    }

    fn part(number: u32, bytes: &[u8], etag: Option<&str>) -> PartDone {
        let length = bytes.len() as u64;
        PartDone { number, length, crc: None, etag: etag.map(str::to_owned), packed: None }
    }

    fn encryption(algorithm: Option<&str>) -> Encryption {
        Encryption { algorithm: algorithm.map(str::to_owned), kms_key_arn: None }
    }

    /// Two parts as S3 reports them, and the ETag of their object.
    fn parts() -> ([PartDone; 2], &'static str) {
        let first = part(1, b"hello ", Some("\"f814893777bcc2295fff05f00e508da6\""));
        let second = part(2, b"world", Some("\"7d793037a0760186574b0282f2f435e7\""));
        ([first, second], "\"e09e4fd6265b36115fe3db32df945d84-2\"")
    }

    #[test]
    fn a_single_put_is_recognised_by_its_digest_alone() {
        let etag = Some("5d41402abc4b2a76b9719d911017c592".to_owned());
        let expected = ExpectedObject { length: 5, etag, ..ExpectedObject::default() };
        let judged = |length, etag: &str| judge(&listed(length, etag, SECOND), &expected);
        assert_eq!(judged(5, "\"5d41402abc4b2a76b9719d911017c592\""), Provenance::Ours);
        assert_eq!(judged(6, "\"5d41402abc4b2a76b9719d911017c592\""), Provenance::Foreign);
        assert_eq!(judged(5, "\"5d41402abc4b2a76b9719d911017c592-1\""), Provenance::Foreign, "it was put in parts");
        assert_eq!(judged(5, "\"7d793037a0760186574b0282f2f435e7\""), Provenance::Undecidable, "a key may encrypt");
        let unlisted = ListedObject { length: None, ..listed(5, "", SECOND) };
        assert_eq!(judge(&unlisted, &expected), Provenance::Foreign);
    }

    #[test]
    fn an_upload_in_parts_is_recognised_by_the_digest_of_its_parts() {
        let (parts, etag) = parts();
        for algorithm in [Some("AES256"), Some("aws:kms"), None] {
            let expected = ExpectedObject::of_parts(&parts, &encryption(algorithm), at(SECOND));
            let judged = |length, etag: &str, second| judge(&listed(length, etag, second), &expected);
            assert_eq!(judged(11, etag, SECOND + 500), Provenance::Ours, "whenever it was initiated");
            assert_eq!(judged(12, etag, SECOND), Provenance::Foreign);
            assert_eq!(judged(11, &etag.replace("-2", "-3"), SECOND), Provenance::Foreign);
            assert_eq!(judged(11, &etag.replace("-2", ""), SECOND), Provenance::Foreign);
        }
    }

    #[test]
    fn the_time_of_initiation_counts_only_where_etags_are_no_digests() {
        let (parts, _) = parts();
        let other = "\"00000000000000000000000000000000-2\"";
        for (algorithm, second, judged) in [
            (Some("AES256"), SECOND, Provenance::Foreign),
            (Some("aws:kms"), SECOND, Provenance::Ours),
            (Some("aws:kms"), SECOND - 1, Provenance::Ours),
            (Some("aws:kms"), SECOND + 1, Provenance::Ours),
            (Some("aws:kms"), SECOND - 2, Provenance::Undecidable),
            (Some("aws:kms"), SECOND + 2, Provenance::Undecidable),
            (None, SECOND, Provenance::Ours),
            (None, SECOND + 2, Provenance::Undecidable),
        ] {
            let expected = ExpectedObject::of_parts(&parts, &encryption(algorithm), at(SECOND));
            assert_eq!(judge(&listed(11, other, second), &expected), judged, "{algorithm:?} {second}");
        }
        let expected = ExpectedObject::of_parts(&parts, &encryption(Some("aws:kms")), at(SECOND));
        let timeless = ListedObject { modified: None, ..listed(11, other, SECOND) };
        assert_eq!(judge(&timeless, &expected), Provenance::Undecidable);
    }

    #[test]
    fn tags_of_parts_that_are_no_digests_give_no_etag() {
        assert_eq!(etag_of_parts(&[part(1, b"a", None)]), None);
        assert_eq!(etag_of_parts(&[part(1, b"a", Some("\"opaque\""))]), None);
    }
}
