//! How far an upload has come: written by the upload, read by whoever keeps the lease of its job.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::domain::destination::{Checksum, Destination, ObjectKey};
use crate::domain::job::Compression;
use crate::domain::job::lease::{Checkpoint, PartDone, PartSizes};

/// Whether an unfinished upload is still what `job` asks of `destination`: bucket, key, encryption and checksums may have been
/// configured anew, and a worker may cut other parts.
pub fn fits(checkpoint: &Checkpoint, destination: &Destination, key: &ObjectKey, compression: Compression) -> bool {
    let kms = destination.encryption.as_ref().map(|kms| kms.key_arn.as_str());
    let cut = match checkpoint.sizes {
        PartSizes::Even { part_size, parts } => {
            let length = checkpoint.source.length.unwrap_or_default();
            compression == Compression::None
                && length.div_ceil(part_size) == u64::from(parts)
                && even(checkpoint, length)
        }
        PartSizes::Growing { .. } => compression == Compression::None,
        PartSizes::Packed { .. } => compression != Compression::None,
    };
    cut && checkpoint.bucket == destination.bucket.as_str()
        && checkpoint.key == key.as_str()
        && checkpoint.kms_key_arn.as_deref() == kms
        && checkpoint.checked == (destination.checksum == Checksum::Crc64Nvme)
}

/// Whether each part is as long as the plan has it.
fn even(checkpoint: &Checkpoint, length: u64) -> bool {
    let PartSizes::Even { part_size, .. } = checkpoint.sizes else { return true };
    let due = |number: u32| part_size.min(length.saturating_sub(u64::from(number - 1) * part_size));
    checkpoint.parts.iter().all(|part| part.length == due(part.number))
}

/// Where in the source the first part begins that is still to be sent; a file is read by ranges, whatever the offset.
pub fn next_offset(checkpoint: &Checkpoint) -> u64 {
    let done = checkpoint.unbroken();
    match checkpoint.sizes {
        PartSizes::Packed { .. } => done.last().and_then(|part| part.packed).unwrap_or_default().source,
        PartSizes::Even { .. } | PartSizes::Growing { .. } => done.iter().map(|part| part.length).sum(),
    }
}

/// What of a checkpoint's parts need not be sent again.
pub(super) fn done(resume: Option<&Checkpoint>) -> HashSet<u32> {
    resume.into_iter().flat_map(|checkpoint| &checkpoint.parts).map(|part| part.number).collect()
}

/// The number of the last part before the first gap.
pub(super) fn unbroken(checkpoint: &Checkpoint) -> u32 {
    u32::try_from(checkpoint.unbroken().len()).unwrap_or(u32::MAX)
}

/// The checkpoint of one attempt's upload. Empty until an upload that can be continued is open, and again when it is completed or
/// given up. What is in it after a failed attempt is still open on S3: whoever does not hand it on must abandon it.
#[derive(Debug, Default)]
pub struct OpenUpload {
    checkpoint: Mutex<Option<Checkpoint>>,
    /// The ids of all uploads that were ever in it.
    known: Mutex<Vec<String>>,
    begun: Notify,
}

impl OpenUpload {
    /// The checkpoint as of now, its parts in order.
    pub fn checkpoint(&self) -> Option<Checkpoint> {
        self.lock().clone()
    }

    /// Resolves when an upload is on record that is `wanted`: the moment to write its id down.
    pub async fn begun(&self, wanted: impl Fn(&Checkpoint) -> bool) {
        loop {
            let begun = self.begun.notified();
            if self.lock().as_ref().is_some_and(&wanted) {
                return;
            }
            begun.await;
        }
    }

    /// Whether an upload is on record.
    pub fn is_open(&self) -> bool {
        self.lock().is_some()
    }

    /// An upload is open on S3.
    pub fn open(&self, checkpoint: Checkpoint) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).push(checkpoint.upload_id.clone());
        *self.lock() = Some(checkpoint);
        self.begun.notify_waiters();
    }

    /// Whether this attempt has had to do with an upload: then it is continued, completed or given up already.
    pub fn knows(&self, upload_id: &str) -> bool {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).iter().any(|known| known == upload_id)
    }

    /// S3 has accepted a part; a second one of the same number takes the place of the first.
    pub fn part(&self, part: PartDone) {
        if let Some(checkpoint) = self.lock().as_mut() {
            match checkpoint.parts.binary_search_by_key(&part.number, |known| known.number) {
                Ok(at) => checkpoint.parts[at] = part,
                Err(at) => checkpoint.parts.insert(at, part),
            }
        }
    }

    /// The upload is completed or given up.
    pub fn close(&self) {
        *self.lock() = None;
    }

    fn lock(&self) -> MutexGuard<'_, Option<Checkpoint>> {
        self.checkpoint.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
