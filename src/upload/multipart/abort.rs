//! Aborts of unfinished uploads.

use std::time::Duration;

use tokio::time::sleep;

use crate::domain::destination::Destination;
use crate::domain::job::lease::Checkpoint;
use crate::domain::outcome::Failure;
use crate::runtime::failpoints;
use crate::runtime::retry::Retry;
use crate::upload::call::{BASE_TIMEOUT, Calls};
use crate::upload::classify::ErrorSignal;

/// Later tries, for about eight minutes.
const LATER: u32 = 7;
const BASE_RETRY_DELAY: Duration = Duration::from_secs(5);
const MAX_RETRY_DELAY: Duration = Duration::from_secs(300);

/// Aborts an upload of an earlier attempt.
pub(in crate::upload) async fn abort_upload(calls: &Calls, checkpoint: &Checkpoint) {
    abort(calls, &checkpoint.bucket, &checkpoint.key, &checkpoint.upload_id).await;
}

/// Logs a checkpoint whose upload is not aborted, because it is not the destination's.
pub(in crate::upload) fn log_foreign_checkpoint(destination: &Destination) {
    tracing::warn!(
        event = "checkpoint_foreign",
        destination = %destination.id,
        next = "the upload is not aborted",
        remedy = "find out who published the message; the checkpoint may be forged",
        "a checkpoint names an upload outside of its destination"
    );
}

/// Result of an abort.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::upload) enum Aborted {
    /// Nothing is left behind.
    Gone,
    /// It is still open: the customer does not allow it to be aborted.
    Denied,
    /// Nobody knows; most likely it is still open.
    Unknown,
}

/// Aborts an upload. If S3 or STS does not answer, which is most likely what ended the upload, the
/// abort is retried in the background for some minutes.
pub(super) async fn abort(calls: &Calls, bucket: &str, key: &str, id: &str) -> Aborted {
    match once(calls, bucket, key, id).await {
        Ok(aborted) => aborted,
        Err(cause) => {
            tracing::info!(
                event = "upload_abort_delayed",
                destination = %calls.destination.id,
                %cause,
                "an unfinished upload is aborted later"
            );
            let (later, bucket) = (calls.clone(), bucket.to_owned());
            let (key, id) = (key.to_owned(), id.to_owned());
            calls.aborts.spawn(async move { abort_with_retries(&later, &bucket, &key, &id).await });
            Aborted::Unknown
        }
    }
}

/// Aborts an upload in the background, for a transfer that was cancelled.
pub(super) fn abort_in_background(calls: Calls, bucket: String, key: String, id: String) {
    let aborts = calls.aborts.clone();
    aborts.spawn(async move {
        abort(&calls, &bucket, &key, &id).await;
    });
}

async fn abort_with_retries(calls: &Calls, bucket: &str, key: &str, id: &str) {
    let mut retry = Retry::bounded(LATER, BASE_RETRY_DELAY, MAX_RETRY_DELAY);
    while let Some(wait) = retry.next_wait(None) {
        let is_last = calls.aborts.unless_finishing(sleep(wait)).await.is_none();
        if once(calls, bucket, key, id).await.is_ok() {
            return;
        }
        if is_last {
            break;
        }
    }
    tracing::warn!(
        event = "upload_orphaned",
        destination = %calls.destination.id,
        next = "the upload is left in the bucket",
        remedy = "give the bucket a lifecycle rule for incomplete uploads",
        "an unfinished upload could not be aborted in time"
    );
    calls.metrics.multipart_orphaned();
}

async fn once(calls: &Calls, bucket: &str, key: &str, id: &str) -> Result<Aborted, Failure> {
    let answer = calls
        .call("AbortMultipartUpload", BASE_TIMEOUT, |client| {
            client
                .abort_multipart_upload()
                .bucket(bucket)
                .key(key)
                .upload_id(id)
                .set_expected_bucket_owner(calls.owner())
                .send()
        })
        .await;
    match answer {
        Ok(_) => {
            failpoints::hit("aborted");
            calls.metrics.multipart_aborted();
            Ok(Aborted::Gone)
        }
        // Completed or aborted by an earlier try whose answer was lost: nothing is left behind.
        Err(error) if error.signal == ErrorSignal::NoSuchUpload => {
            calls.metrics.multipart_aborted();
            Ok(Aborted::Gone)
        }
        Err(error) if error.signal == ErrorSignal::Denied => {
            tracing::warn!(
                event = "upload_abort_denied",
                destination = %calls.destination.id,
                next = "the upload is left in the bucket",
                remedy = "allow s3:AbortMultipartUpload, or give the bucket a lifecycle rule for incomplete uploads",
                "the abort of an unfinished upload was denied"
            );
            calls.metrics.multipart_abort_denied();
            Ok(Aborted::Denied)
        }
        Err(error) => Err(error.failure),
    }
}
