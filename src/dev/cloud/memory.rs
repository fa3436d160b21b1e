//! State that the store behind does not keep: the encryption of objects, and unfinished
//! uploads.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use s3s::dto::ServerSideEncryption;
use s3s::{S3Result, s3_error};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::body::ReceivedBody;

/// RequestedEncryption of an object, as the request named it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RequestedEncryption {
    pub(super) algorithm: String,
    pub(super) key: Option<String>,
    pub(super) bucket_key: Option<bool>,
}

impl RequestedEncryption {
    /// Default encryption of a bucket.
    pub(super) fn bucket_default() -> Self {
        Self { algorithm: ServerSideEncryption::AES256.to_owned(), key: None, bucket_key: None }
    }

    pub(super) fn sse(&self) -> ServerSideEncryption {
        self.algorithm.clone().into()
    }
}

/// An unfinished upload.
#[derive(Debug, Clone)]
pub(super) struct UnfinishedUpload {
    pub(super) bucket: String,
    pub(super) key: String,
    pub(super) encryption: RequestedEncryption,
    pub(super) parts: BTreeMap<i32, ReceivedBody>,
    /// Parts that were sent, refused ones and repetitions included.
    pub(super) sent: u32,
}

/// Remembers. Encryptions are kept beside the objects, so that they outlive the process; uploads
/// are not.
#[derive(Debug)]
pub(super) struct Memory {
    folder: PathBuf,
    uploads: Mutex<HashMap<String, UnfinishedUpload>>,
    again: Mutex<HashMap<(String, String), u32>>,
}

impl Memory {
    /// Keeps encryptions in `folder`, which is made.
    pub(super) fn open(folder: PathBuf) -> std::io::Result<Self> {
        std::fs::create_dir_all(&folder)?;
        Ok(Self { folder, uploads: Mutex::default(), again: Mutex::default() })
    }

    fn file(&self, bucket: &str, key: &str) -> PathBuf {
        self.folder.join(hex::encode(Sha256::digest(format!("{bucket}/{key}"))))
    }

    pub(super) async fn remember(&self, bucket: &str, key: &str, encryption: &RequestedEncryption) -> S3Result<()> {
        let text = serde_json::to_vec(encryption).unwrap_or_default();
        let written = tokio::fs::write(self.file(bucket, key), text).await;
        written.map_err(|problem| s3_error!(problem, InternalError, "the encryption can't be noted"))
    }

    pub(super) async fn encryption(&self, bucket: &str, key: &str) -> RequestedEncryption {
        let text = tokio::fs::read(self.file(bucket, key)).await.ok();
        let known = text.and_then(|text| serde_json::from_slice(&text).ok());
        known.unwrap_or_else(RequestedEncryption::bucket_default)
    }

    pub(super) fn begin(&self, id: String, upload: UnfinishedUpload) {
        self.uploads.lock().insert(id, upload);
    }

    /// A copy of what is known, or `NoSuchUpload`.
    pub(super) fn upload(&self, id: &str, bucket: &str, key: &str) -> S3Result<UnfinishedUpload> {
        let found = self.uploads.lock().get(id).filter(|upload| upload.bucket == bucket && upload.key == key).cloned();
        found.ok_or_else(|| s3_error!(NoSuchUpload, "The specified multipart upload does not exist."))
    }

    /// A part is about to be read.
    pub(super) fn part_sent(&self, id: &str) {
        if let Some(upload) = self.uploads.lock().get_mut(id) {
            upload.sent += 1;
        }
    }

    pub(super) fn part_kept(&self, id: &str, number: i32, seen: ReceivedBody) {
        if let Some(upload) = self.uploads.lock().get_mut(id) {
            upload.parts.insert(number, seen);
        }
    }

    /// The upload is gone, and nothing came of it.
    pub(super) fn forget(&self, id: &str) {
        self.uploads.lock().remove(id);
    }

    pub(super) fn completed(&self, id: &str) {
        let Some(upload) = self.uploads.lock().remove(id) else { return };
        let parts = u32::try_from(upload.parts.len()).unwrap_or(u32::MAX);
        let again = upload.sent.saturating_sub(parts);
        if again > 0 {
            let mut all = self.again.lock();
            all.insert((upload.bucket, upload.key), again);
        }
    }

    /// Takes the number of parts of this object that were sent more than once.
    pub(super) fn take_again(&self, bucket: &str, key: &str) -> u32 {
        let mut all = self.again.lock();
        all.remove(&(bucket.to_owned(), key.to_owned())).unwrap_or_default()
    }
}

/// Removes what unfinished uploads of an earlier process left in the store: their ids are
/// checksums any more.
pub(super) fn forget_uploads(root: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(root)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let of_upload = [".upload_id-", ".upload-"].iter().any(|prefix| name.starts_with(prefix))
            || (name.starts_with(".bucket-") && name.contains(".upload-"));
        if of_upload && entry.file_type()?.is_file() {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
