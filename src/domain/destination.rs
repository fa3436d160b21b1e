//! Destination of a job: a customer's bucket, the access to it, and the settings of its requests.
//!
//! A [`Destination`] is valid by construction. It is parsed from the config or from a job by
//! [`raw::RawDestination`], the one mirror both share.

mod arn;
mod arn_parts;
mod identity;
mod inline_policy;
mod names;
pub mod raw;
pub(crate) mod strict;

use std::collections::BTreeMap;
use std::num::{NonZeroU32, NonZeroU64};
use std::path::PathBuf;
use std::sync::Arc;

use secrecy::{ExposeSecret as _, SecretString};

pub(crate) use arn::is_iam_name;
pub use arn::{KmsKeyArn, RoleArn};
pub(crate) use arn_parts::{home_region_of, partition_named, partition_of, split_arn};
pub use identity::DestinationIdentity;
pub use inline_policy::InlinePolicy;
pub use names::{AccountId, BucketName, DestinationId, ExternalId, Invalid, ObjectKey, Prefix, Region};
pub(crate) use names::{refuse, text_newtype};

use super::text_enum::text_enum;

/// One customer's bucket or subfolder, with everything a transfer into it needs to know.
#[derive(Debug, Clone)]
pub struct Destination {
    /// The name used in routing keys, session names, metrics and logs.
    pub id: DestinationId,
    /// Identity, by which it is kept apart from every other destination.
    pub identity: DestinationIdentity,
    /// The bucket.
    pub bucket: BucketName,
    /// The region of the bucket as the customer gave it.
    pub region: Region,
    /// The subfolder; every key is below it.
    pub prefix: Prefix,
    /// Access to the bucket.
    pub auth: Auth,
    /// The encryption to ask for; `None` sends no encryption header at all, and the bucket's
    /// default applies.
    pub algorithm: Option<EncryptionAlgorithm>,
    /// The KMS key to ask for, with one of the KMS algorithms. Without it, they use the key that
    /// AWS manages in the account of the bucket.
    pub encryption: Option<KmsEncryption>,
    /// The account that must own the bucket; `None` sends no such header.
    pub expected_bucket_owner: Option<AccountId>,
    /// The most transfers at once into this destination.
    pub max_concurrency: Option<NonZeroU32>,
    /// The most bytes a second into this destination.
    pub max_bytes_per_second: Option<NonZeroU64>,
    /// Which checksum accompanies the bytes.
    pub checksum: Checksum,
    /// True for a store that wants all parts of an upload but the last of one length.
    pub equal_parts: bool,
    /// The session policy of an assumed role; `None` is `session.policy`.
    pub session_policy: Option<SessionPolicyMode>,
    /// The platform's own name of the customer; part of the session key and echoed in outcomes.
    pub tenant: Option<String>,
    /// Users of the broker whose jobs are accepted; empty for all.
    pub publishers: Vec<String>,
}

impl Destination {
    /// Returns true for a key of its bucket below its prefix.
    pub fn holds(&self, bucket: &str, key: &str) -> bool {
        self.bucket.as_str() == bucket && key.strip_prefix(self.prefix.as_str()).is_some_and(|rest| !rest.is_empty())
    }

    /// Returns true if answers of AWS for the other one hold for this one: they are the same
    /// bucket, accessed and encrypted in the same way.
    pub fn is_entered_like(&self, other: &Self) -> bool {
        (&self.bucket, &self.region, &self.prefix) == (&other.bucket, &other.region, &other.prefix)
            && (&self.encryption, self.checksum) == (&other.encryption, other.checksum)
            && self.algorithm == other.algorithm
            && self.expected_bucket_owner == other.expected_bucket_owner
            && self.auth == other.auth
    }

    /// Returns true if S3 may encrypt with a KMS key that is not configured here: that of the
    /// bucket's default.
    pub fn may_use_default_key(&self) -> bool {
        self.encryption.is_none() && self.algorithm != Some(EncryptionAlgorithm::Aes256)
    }

    /// The account's partition for ARNs: that of the role, else guessed from the region's name.
    pub fn partition(&self) -> &str {
        match &self.auth {
            Auth::IamRole { role_arn, .. } => role_arn.partition(),
            Auth::AccessKey { .. } => partition_of(self.region.as_str()),
        }
    }
}

/// Access to the customer's account.
#[derive(Debug, Clone, PartialEq)]
pub enum Auth {
    /// A role that trusts the worker's identity (recommended).
    IamRole {
        /// The role to assume.
        role_arn: RoleArn,
        /// Value of `sts:ExternalId` that the trust policy requires.
        external_id: Option<ExternalId>,
    },
    /// A long-lived key of an IAM user.
    AccessKey {
        /// The public half, `AKIA...`.
        access_key_id: String,
        /// The secret half.
        secret: SecretSource,
    },
}

/// Location of a secret. A file is read again when the service refuses the key, so that a rotated
/// secret is picked up.
#[derive(Debug, Clone)]
pub enum SecretSource {
    /// Given in the config or the environment.
    Inline(SecretString),
    /// Read from this file, trailing white space removed.
    File(PathBuf),
}

impl PartialEq for SecretSource {
    /// The content of files is not read.
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Inline(one), Self::Inline(other)) => one.expose_secret() == other.expose_secret(),
            (Self::File(one), Self::File(other)) => one == other,
            _ => false,
        }
    }
}

/// The policy that narrows the session of an assumed role.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum SessionPolicyMode {
    /// Bucket, prefix and KMS key.
    #[default]
    Full,
    /// Bucket and prefix, without KMS actions: for stores whose STS refuses actions it does not
    /// know.
    S3,
    /// No session policy: the session may do whatever the role may.
    None,
}

text_enum! {
    /// Server-side encryption, by its name in the header `x-amz-server-side-encryption`.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
    pub enum EncryptionAlgorithm {
        /// Keys of S3 (SSE-S3).
        #[serde(rename = "AES256")]
        Aes256 = "AES256",
        /// A KMS key (SSE-KMS).
        #[serde(rename = "aws:kms")]
        Kms = "aws:kms",
        /// Two layers with a KMS key (DSSE-KMS).
        #[serde(rename = "aws:kms:dsse")]
        KmsDsse = "aws:kms:dsse",
    }
}

/// Server-side encryption with a key of the customer (SSE-KMS or DSSE-KMS).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KmsEncryption {
    /// The key to ask for and to compare the reply with.
    pub key_arn: KmsKeyArn,
    /// `x-amz-server-side-encryption-bucket-key-enabled`, sent only if given.
    pub bucket_key_enabled: Option<bool>,
    /// The encryption context, sent as base64 of its JSON only if not empty.
    pub context: BTreeMap<String, String>,
}

/// The checksum that accompanies parts and objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Checksum {
    /// CRC-64/NVME of every part and of the whole object. S3 verifies the checksum of the object
    /// and the checksum header of a part. If a part has no header, its checksum is compared with
    /// the one in the response.
    #[default]
    Crc64Nvme,
    /// None: for S3-compatible stores that refuse the header.
    None,
}

/// All configured destinations by id. Replaced as a whole on a reload.
pub type Destinations = BTreeMap<DestinationId, Arc<Destination>>;
