//! Calls of the connection test: those of a transfer, one at a time, and what they leave in the
//! bucket.
//!
//! They write one object alone. A multipart upload is aborted, or, where that is denied, completed
//! as a one-byte object under the same key, which the last write replaces by an empty one.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bytes::Bytes;
use tokio::time::Instant;

use super::call::{BASE_TIMEOUT, Calls};
use super::multipart::{Aborted, MultipartUpload};
use super::part::Part;
use super::{Progress, Target, single};
use crate::domain::destination::{Destination, ObjectKey, Region};
use crate::domain::job::{IfExists, ObjectAttributes};
use crate::domain::outcome::{Failure, Reason};

/// The one part of the probe.
const BYTE: &[u8] = b"0";

/// Boxed future: the type of a sequence of SDK calls is too deep for the compiler.
type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Calls into one destination, for one key.
#[derive(Debug)]
pub struct BucketProbe {
    calls: Calls,
    key: ObjectKey,
    attributes: ObjectAttributes,
    progress: Progress,
    written: AtomicBool,
}

/// Residue of a multipart upload that the connection test made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProbeResidue {
    /// Nothing.
    Nothing,
    /// An object of one byte: the upload could not be aborted, so it was completed.
    Object,
    /// An open upload: it could neither be aborted nor completed.
    OpenUpload,
}

impl BucketProbe {
    pub(super) fn new(calls: Calls, key: ObjectKey) -> Self {
        let (attributes, progress) = (ObjectAttributes::default(), Progress::default());
        Self { calls, key, attributes, progress, written: AtomicBool::new(false) }
    }

    /// The key that is written.
    pub fn key(&self) -> &ObjectKey {
        &self.key
    }

    fn destination(&self) -> &Arc<Destination> {
        &self.calls.destination
    }

    fn target(&self) -> Target<'_> {
        Target {
            destination: self.destination(),
            key: &self.key,
            attributes: &self.attributes,
            if_exists: IfExists::Replace,
            may_be_written: &self.written,
            progress: &self.progress,
            rate_limiter: None,
            gate: None,
        }
    }

    /// Returns the expected owner if the call should check it.
    fn owner(&self, demanded: bool) -> Option<String> {
        self.calls.owner().filter(|_| demanded)
    }

    /// Returns the region of the bucket; `None` if the server names none. Without `owner` the
    /// expected owner is not checked.
    pub fn region(&self, owner: bool) -> Boxed<'_, Result<Option<Region>, Failure>> {
        Box::pin(async move {
            let bucket = self.destination().bucket.as_str();
            let reply = self
                .calls
                .call("GetBucketLocation", BASE_TIMEOUT, |client| {
                    client.get_bucket_location().bucket(bucket).set_expected_bucket_owner(self.owner(owner)).send()
                })
                .await?;
            let named = reply.location_constraint.as_ref().map(|region| region.as_str().to_owned()).unwrap_or_default();
            Ok(match named.as_str() {
                // Amazon's oldest region has no name there; another store may just not know.
                "" if self.calls.sessions.is_aws() => Region::parse("us-east-1").ok(),
                "" => None,
                // What the oldest buckets of Ireland say.
                "EU" => Region::parse("eu-west-1").ok(),
                named => Region::parse(named).ok(),
            })
        })
    }

    /// Lists the one key. Without `owner` the expected owner is not checked.
    pub fn list(&self, owner: bool) -> Boxed<'_, Result<(), Failure>> {
        Box::pin(async move {
            let bucket = self.destination().bucket.as_str();
            self.calls
                .call("ListObjectsV2", BASE_TIMEOUT, |client| {
                    client
                        .list_objects_v2()
                        .bucket(bucket)
                        .prefix(self.key.as_str())
                        .max_keys(1)
                        .set_expected_bucket_owner(self.owner(owner))
                        .send()
                })
                .await?;
            Ok(())
        })
    }

    /// Creates a multipart upload and sends one part before `until`, then aborts it before
    /// `abort_until`.
    pub fn multipart(&self, until: Instant, abort_until: Instant) -> Boxed<'_, (Result<(), Failure>, ProbeResidue)> {
        Box::pin(async move {
            let target = self.target();
            let created = within(until, MultipartUpload::create(&self.calls, &target, None)).await;
            let mut open = match created {
                Ok(open) => open,
                Err(failure) => return (Err(failure), ProbeResidue::Nothing),
            };
            let part = Part::whole(Bytes::from_static(BYTE), target.wants_checksum());
            let sent = within(until, open.send(&part)).await;
            let aborted = within(abort_until, async { Ok(open.try_abort().await) }).await.unwrap_or(Aborted::Unknown);
            match (sent, aborted) {
                (Ok(_), Aborted::Gone) => (Ok(()), ProbeResidue::Nothing),
                (Err(failure), Aborted::Gone) => (Err(failure), ProbeResidue::Nothing),
                (Err(failure), _) => (Err(failure), ProbeResidue::OpenUpload),
                (Ok(sent), _) => match within(abort_until, open.complete(&target, vec![sent])).await {
                    Ok(_) => (Ok(()), ProbeResidue::Object),
                    Err(failure) => (Err(failure), ProbeResidue::OpenUpload),
                },
            }
        })
    }

    /// Writes the empty object.
    pub fn write(&self) -> Boxed<'_, Result<(), Failure>> {
        Box::pin(async move {
            let target = self.target();
            let nothing = Part::whole(Bytes::new(), target.wants_checksum());
            single::put(&self.calls, &target, &nothing).await.map(drop)
        })
    }

    /// Deletes the object.
    pub fn delete(&self) -> Boxed<'_, Result<(), Failure>> {
        Box::pin(async move {
            let bucket = self.destination().bucket.as_str();
            self.calls
                .call("DeleteObject", BASE_TIMEOUT, |client| {
                    client
                        .delete_object()
                        .bucket(bucket)
                        .key(self.key.as_str())
                        .set_expected_bucket_owner(self.owner(true))
                        .send()
                })
                .await?;
            Ok(())
        })
    }
}

async fn within<T>(until: Instant, call: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let late = || Failure::new(Reason::Timeout, "S3 did not answer within the time of the connection test");
    // A timer that is due already may fire after a fast answer.
    if Instant::now() >= until {
        return Err(late());
    }
    tokio::time::timeout_at(until, call).await.map_err(|_| late())?
}
