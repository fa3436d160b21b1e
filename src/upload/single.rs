//! One PutObject.

use super::call::Calls;
use super::classify::ErrorSignal;
use super::part::Part;
use super::reconcile::{self, ExpectedObject};
use super::{Target, Uploaded, conditional, object_headers, verify};
use crate::domain::outcome::{Failure, Reason, Receipt};
use crate::runtime::failpoints;

/// Puts `part` as the whole object. The SDK receives a precomputed checksum and does not sign the
/// payload.
pub(super) async fn put(calls: &Calls, target: &Target<'_>, part: &Part) -> Result<Uploaded, Failure> {
    target.enter_gate().await?;
    let crc = part.crc.map(verify::crc_text);
    let put = async || {
        reconcile::check_free(calls, target, "PutObject").await?;
        let sent = calls.call("PutObject", calls.limit(part.length), |client| {
            let request = client
                .put_object()
                .bucket(target.destination.bucket.as_str())
                .key(target.key.as_str())
                .content_length(i64::try_from(part.length).unwrap_or(i64::MAX))
                .set_checksum_crc64_nvme(crc.clone())
                .set_expected_bucket_owner(calls.owner())
                .set_if_none_match(conditional(target))
                .body(part.body(None));
            let request = object_headers!(request, target);
            request.customize().disable_payload_signing().send()
        });
        sent.await
    };
    let reply = match put().await {
        Ok(reply) => reply,
        Err(error) => {
            target.record_write(error.ambiguous);
            if error.signal != ErrorSignal::PreconditionFailed {
                return Err(changed_or(error.failure, error.signal, part));
            }
            let expected = ExpectedObject { length: part.length, ..ExpectedObject::default() };
            return reconcile::taken(calls, target, error, (expected, crc), Some(part)).await;
        }
    };
    failpoints::hit("put");
    if let Some(file) = part.file() {
        // The bytes are there by now; a file that changed under them must not count as delivered.
        file.verify_unchanged()?;
    }
    let encryption = verify::encryption(target.destination, reply.server_side_encryption(), reply.ssekms_key_id())?;
    verify::checksum(crc.as_deref(), reply.checksum_crc64_nvme())?;
    Ok(Uploaded::Stored(Receipt {
        bytes: part.length,
        source_bytes: part.packed.map_or(part.length, |end| end.source),
        etag: reply.e_tag,
        version_id: reply.version_id,
        checksum_crc64nvme: crc,
        encryption: Some(encryption),
        ..Receipt::default()
    }))
}

/// Maps a checksum mismatch: either the file changed between the two passes, or the network
/// corrupted it.
pub(super) fn changed_or(failure: Failure, signal: ErrorSignal, part: &Part) -> Failure {
    let suspicious = signal == ErrorSignal::BadDigest || failure.reason == Reason::Connection;
    match part.file().filter(|_| suspicious).map(crate::source::file::FileSource::verify_unchanged) {
        Some(Err(changed)) => changed,
        _ => failure,
    }
}
