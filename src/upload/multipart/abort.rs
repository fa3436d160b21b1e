//! Giving an unfinished upload up.

use crate::crash;
use crate::job::lease::Checkpoint;
use crate::upload::call::Calls;
use crate::upload::classify::Signal;

/// Gives up an upload of an earlier attempt.
pub(in crate::upload) async fn abandon(calls: &Calls, checkpoint: &Checkpoint) {
    abort(calls, &checkpoint.bucket, &checkpoint.key, &checkpoint.upload_id).await;
}

/// What came of giving an upload up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::upload) enum Aborted {
    /// Nothing is left behind.
    Gone,
    /// It is still open: the customer does not allow it to be aborted.
    Denied,
    /// Nobody knows; most likely it is still open.
    Unknown,
}

pub(super) async fn abort(calls: &Calls, bucket: &str, key: &str, id: &str) -> Aborted {
    let owner = calls.destination.expected_bucket_owner.as_ref().map(|owner| owner.as_str().to_owned());
    let answer = calls
        .call("AbortMultipartUpload", 0, |client| {
            client
                .abort_multipart_upload()
                .bucket(bucket)
                .key(key)
                .upload_id(id)
                .set_expected_bucket_owner(owner.clone())
                .send()
        })
        .await;
    match answer {
        Ok(_) => {
            crash::point("aborted");
            calls.metrics.multipart_aborted();
            Aborted::Gone
        }
        // Completed or aborted by an earlier try whose answer was lost: nothing is left behind.
        Err(error) if error.signal == Signal::NoSuchUpload => {
            calls.metrics.multipart_aborted();
            Aborted::Gone
        }
        Err(error) if error.signal == Signal::Denied => {
            tracing::warn!(
                destination = %calls.destination.id,
                "an unfinished upload could not be aborted; allow s3:AbortMultipartUpload, or give the bucket a lifecycle \
                 rule for incomplete uploads"
            );
            calls.metrics.multipart_abort_denied();
            Aborted::Denied
        }
        Err(error) => {
            tracing::warn!(destination = %calls.destination.id, cause = %error.failure, "an unfinished upload is left behind");
            calls.metrics.multipart_orphaned();
            Aborted::Unknown
        }
    }
}
