//! Checkpoint of an upload: written by the upload, read by the lease of its job.

use std::collections::HashSet;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::domain::destination::{Checksum, Destination, ObjectKey};
use crate::domain::job::Compression;
use crate::domain::job::lease::{Checkpoint, PartDone, PartSizes};

/// Returns true if an unfinished upload still matches `destination`, `key` and `compression`:
/// bucket, key, encryption and checksums may have been reconfigured, and another worker may plan
/// other part sizes.
pub fn fits(checkpoint: &Checkpoint, destination: &Destination, key: &ObjectKey, compression: Compression) -> bool {
    let kms = destination.encryption.as_ref().map(|kms| kms.key_arn.as_str());
    let cut = match checkpoint.sizes {
        PartSizes::Even { part_size, parts } => {
            let length = checkpoint.source.length.unwrap_or_default();
            let due = |number: u32| part_size.min(length.saturating_sub(u64::from(number - 1) * part_size));
            compression == Compression::None
                && length.div_ceil(part_size) == u64::from(parts)
                && checkpoint.parts.iter().all(|part| part.length == due(part.number))
        }
        PartSizes::Growing { .. } => compression == Compression::None,
        PartSizes::Packed { .. } => compression != Compression::None,
    };
    cut && checkpoint.bucket == destination.bucket.as_str()
        && checkpoint.key == key.as_str()
        && checkpoint.kms_key_arn.as_deref() == kms
        && destination.algorithm.is_none_or(|asked| checkpoint.encryption.algorithm.as_deref() == Some(asked.as_str()))
        && checkpoint.checked == (destination.checksum == Checksum::Crc64Nvme)
}

/// Returns the offset in the source of the first part that remains to be sent. Files are read by
/// ranges, whatever the offset.
pub fn next_offset(checkpoint: &Checkpoint) -> u64 {
    let done = checkpoint.unbroken();
    match checkpoint.sizes {
        PartSizes::Packed { .. } => done.last().and_then(|part| part.packed).unwrap_or_default().source,
        PartSizes::Even { .. } | PartSizes::Growing { .. } => done.iter().map(|part| part.length).sum(),
    }
}

/// Returns the numbers of the parts that need not be sent again.
pub(super) fn done(resume: Option<&Checkpoint>) -> HashSet<u32> {
    resume.into_iter().flat_map(|checkpoint| &checkpoint.parts).map(|part| part.number).collect()
}

/// Returns the number of the last part before the first gap.
pub(super) fn unbroken(checkpoint: &Checkpoint) -> u32 {
    u32::try_from(checkpoint.unbroken().len()).unwrap_or(u32::MAX)
}

/// Checkpoint of the upload of one attempt. Empty until a resumable upload is open, and again once
/// it is completed or aborted. After a failed attempt its content is still open on S3: the owner
/// must hand it off or abort it.
#[derive(Debug, Default)]
pub struct OpenUpload {
    checkpoint: Mutex<Option<Checkpoint>>,
    /// The ids of all uploads that were ever in it.
    known: Mutex<Vec<String>>,
    begun: Notify,
}

impl OpenUpload {
    /// Returns the current checkpoint, its parts in order.
    pub fn checkpoint(&self) -> Option<Checkpoint> {
        self.checkpoint.lock().clone()
    }

    /// Waits until the recorded upload satisfies `wanted`: the moment to persist its id.
    pub async fn begun(&self, wanted: impl Fn(&Checkpoint) -> bool) {
        loop {
            let begun = self.begun.notified();
            if self.checkpoint.lock().as_ref().is_some_and(&wanted) {
                return;
            }
            begun.await;
        }
    }

    /// Returns true while an upload is recorded.
    pub fn is_open(&self) -> bool {
        self.checkpoint.lock().is_some()
    }

    /// Records an upload that is open on S3.
    pub fn open(&self, checkpoint: Checkpoint) {
        self.known.lock().push(checkpoint.upload_id.clone());
        *self.checkpoint.lock() = Some(checkpoint);
        self.begun.notify_waiters();
    }

    /// Returns true if this attempt has recorded the upload, which is then already resumed,
    /// completed or aborted.
    pub fn knows(&self, upload_id: &str) -> bool {
        self.known.lock().iter().any(|known| known == upload_id)
    }

    /// Adds a part that S3 has accepted. A part with the same number replaces the earlier one.
    pub fn part(&self, part: PartDone) {
        if let Some(checkpoint) = self.checkpoint.lock().as_mut() {
            match checkpoint.parts.binary_search_by_key(&part.number, |known| known.number) {
                Ok(at) => checkpoint.parts[at] = part,
                Err(at) => checkpoint.parts.insert(at, part),
            }
        }
    }

    /// Clears the checkpoint once the upload is completed or aborted.
    pub fn close(&self) {
        *self.checkpoint.lock() = None;
    }
}
