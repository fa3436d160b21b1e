//! Reconciliation after a lost reply: finds out if the object under the key is the one that we
//! wrote.

use std::time::{Duration, SystemTime};

use aws_sdk_s3::types::Object;

use super::call::Calls;
use super::classify::CallError;
use super::{Target, Uploaded};
use crate::domain::job::IfExists;
use crate::domain::outcome::{Failure, Receipt};

/// Seconds by which our clock may be ahead of S3's and the comparison still holds.
const CLOCK_SLACK: u64 = 2;

/// Properties of the object that we would have written.
#[derive(Debug, Clone, Copy)]
pub(super) struct ExpectedObject {
    pub(super) length: u64,
    /// `Some` for a multipart upload: the ETag ends in `-<parts>`.
    pub(super) parts: Option<u32>,
    /// Earliest modification time. For multipart objects S3 reports the time of initiation, in
    /// whole seconds of its own clock.
    pub(super) since: SystemTime,
}

/// Returns the object under the exact key if it is the one that we would have written; `None` when
/// it is not, or listing is not allowed.
pub(super) async fn find(calls: &Calls, target: &Target<'_>, expected: &ExpectedObject) -> Option<Object> {
    let listed = calls
        .call("ListObjectsV2", 0, |client| {
            client
                .list_objects_v2()
                .bucket(target.destination.bucket.as_str())
                .prefix(target.key.as_str())
                .max_keys(1)
                .set_expected_bucket_owner(target.owner())
                .send()
        })
        .await
        .ok()?;
    let found = listed.contents?.into_iter().find(|object| object.key() == Some(target.key.as_str()))?;
    is_ours(&found, expected).then_some(found)
}

fn is_ours(object: &Object, expected: &ExpectedObject) -> bool {
    let length = object.size().and_then(|size| u64::try_from(size).ok());
    let etag = object.e_tag().unwrap_or_default().trim_matches('"');
    let shape = match expected.parts {
        Some(parts) => etag.rsplit_once('-').is_some_and(|(_, count)| count == parts.to_string()),
        None => !etag.contains('-'),
    };
    let written = object.last_modified().and_then(|at| SystemTime::try_from(*at).ok());
    length == Some(expected.length) && shape && written.is_some_and(|at| at >= expected.since)
}

/// Returns true if the object belongs to a multipart upload that was initiated after `instant`: S3
/// reports that time, in whole seconds.
pub(super) fn is_younger(object: &Object, instant: SystemTime) -> bool {
    object.last_modified().and_then(|at| SystemTime::try_from(*at).ok()).is_some_and(|at| at > instant)
}

/// Handles a conditional write that failed because the key exists: either an earlier try of ours
/// wrote the object, or another client did.
pub(super) async fn taken(
    calls: &Calls,
    target: &Target<'_>,
    error: CallError,
    length: u64,
    crc: Option<String>,
    multipart: Option<(u32, SystemTime)>,
) -> Result<Uploaded, Failure> {
    let own_try = error.ambiguous.then(|| no_later_than(target.started));
    let since = multipart.filter(|_| error.ambiguous).map(|(_, since)| since).or(own_try);
    let since = [since, target.earlier.map(no_later_than)].into_iter().flatten().min();
    if let Some(since) = since {
        let expected = ExpectedObject { length, parts: multipart.map(|(parts, _)| parts), since };
        if let Some(object) = find(calls, target, &expected).await {
            return Ok(Uploaded::Stored(receipt(object, &expected, crc)));
        }
    }
    match target.if_exists {
        IfExists::Keep => Ok(Uploaded::KeptExisting),
        IfExists::Fail | IfExists::Replace => Err(error.failure),
    }
}

/// An instant of our clock as a bound for times of S3, which are whole seconds of another clock.
pub(super) fn no_later_than(instant: SystemTime) -> SystemTime {
    let seconds = instant.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.saturating_sub(CLOCK_SLACK))
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

    const AT: Duration = Duration::from_secs(1_800_000_000);

    fn object(size: i64, etag: &str, second: i64) -> Object {
        Object::builder().key("k").size(size).e_tag(etag).last_modified(DateTime::from_secs(second)).build()
    }

    #[test]
    fn only_an_object_of_the_same_shape_and_time_is_ours() {
        let expected = ExpectedObject { length: 10, parts: Some(3), since: SystemTime::UNIX_EPOCH + AT };
        assert!(is_ours(&object(10, "\"abc-3\"", 1_800_000_000), &expected));
        for other in [
            object(11, "\"abc-3\"", 1_800_000_000),
            object(10, "\"abc-2\"", 1_800_000_000),
            object(10, "\"abc\"", 1_800_000_000),
            object(10, "\"abc-3\"", 1_799_999_999),
            Object::builder().key("k").size(10).e_tag("\"abc-3\"").build(),
        ] {
            assert!(!is_ours(&other, &expected), "{other:?}");
        }
        let single = ExpectedObject { parts: None, ..expected };
        assert!(is_ours(&object(10, "\"abc\"", 1_800_000_000), &single));
        assert!(!is_ours(&object(10, "\"abc-3\"", 1_800_000_000), &single));
    }
}
