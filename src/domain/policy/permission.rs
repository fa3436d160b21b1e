//! Permissions that consign uses in a customer's account: eight actions, and the purpose of each.

use serde_json::{Value, json};

use super::resource::{bucket_arn, key_resource, list_condition, objects_arn, test_object_arn};
use crate::domain::destination::Destination;
use crate::domain::text_enum::text_enum;

text_enum! {
    /// IAM actions that a customer may allow, the required ones first. Only
    /// [`Permission::PutObject`] is always required.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
    pub enum Permission {
        /// Write objects below the prefix, in one request or in parts.
        PutObject = "s3:PutObject",
        /// Encrypt with the customer's KMS key.
        KmsGenerateDataKey = "kms:GenerateDataKey",
        /// Put parts together that are encrypted with the customer's KMS key.
        KmsDecrypt = "kms:Decrypt",
        /// Attach the tags a job asks for.
        PutObjectTagging = "s3:PutObjectTagging",
        /// Abort a multipart upload.
        AbortMultipartUpload = "s3:AbortMultipartUpload",
        /// List below the prefix.
        ListBucket = "s3:ListBucket",
        /// Ask for the bucket's region.
        GetBucketLocation = "s3:GetBucketLocation",
        /// Remove the connection test's own file, and nothing else.
        DeleteObject = "s3:DeleteObject",
    }
}

/// Condition under which a permission is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Nothing, or not everything, can be delivered without it.
    Required,
    /// Required by jobs with tags, of no use to others.
    ForTags,
    /// Required only where the bucket's default encryption is a KMS key of the customer's own.
    ForDefaultKey,
    /// Deliveries work without it; [`Permission::without`] says what is weaker then.
    Optional,
}

impl Permission {
    /// The permission of an action as IAM calls it, as refusals name it; `None` for one that
    /// consign never needs.
    pub fn of_action(action: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|permission| permission.as_str().eq_ignore_ascii_case(action))
    }

    /// True for the actions on the KMS key.
    pub fn is_kms(self) -> bool {
        matches!(self, Self::KmsGenerateDataKey | Self::KmsDecrypt)
    }

    /// Returns true if this destination needs it.
    pub fn need(self, destination: &Destination) -> Need {
        match self {
            Self::PutObject => Need::Required,
            Self::PutObjectTagging => Need::ForTags,
            Self::KmsGenerateDataKey | Self::KmsDecrypt if destination.encryption.is_some() => Need::Required,
            Self::KmsGenerateDataKey | Self::KmsDecrypt => Need::ForDefaultKey,
            Self::GetBucketLocation | Self::ListBucket | Self::AbortMultipartUpload | Self::DeleteObject => {
                Need::Optional
            }
        }
    }

    /// Purpose, in plain words.
    pub fn purpose(self) -> &'static str {
        match self {
            Self::PutObject => "writes the files below the prefix, small ones in one request and large ones in parts",
            Self::PutObjectTagging => "attaches tags to the objects of jobs that ask for tags",
            Self::GetBucketLocation => "compares the bucket's region with the configured one in the connection test",
            Self::ListBucket => "checks below the prefix whether an upload has arrived although its response was lost",
            Self::AbortMultipartUpload => "removes the parts of a large upload that could not be finished",
            Self::DeleteObject => "removes the connection test's empty file, and nothing else",
            Self::KmsGenerateDataKey => "encrypts the objects with your KMS key",
            Self::KmsDecrypt => "assembles the parts of large objects that are encrypted with your KMS key",
        }
    }

    /// Consequence of its absence, in plain words.
    pub fn without(self) -> &'static str {
        match self {
            Self::PutObject => "nothing can be delivered",
            Self::PutObjectTagging => "jobs with tags fail; jobs without tags are not affected",
            Self::GetBucketLocation => {
                "the connection test can't compare the region; a wrong one shows up at the first write"
            }
            Self::ListBucket => {
                "an upload is sent again if its response was lost, so some objects are written twice with the same content"
            }
            Self::AbortMultipartUpload => {
                "parts of unfinished uploads stay in the bucket; object listings do not show them, but AWS charges you for them; add a lifecycle rule \
                 that removes incomplete uploads after a few days"
            }
            Self::DeleteObject => "the connection test leaves one empty file behind, named consign-connection-test",
            Self::KmsGenerateDataKey => "objects that must be encrypted with the KMS key can't be delivered",
            Self::KmsDecrypt => {
                "small files arrive, large ones (uploaded in parts) fail, because S3 must decrypt the parts to assemble them"
            }
        }
    }

    /// The statement's name.
    pub(super) fn sid(self) -> &'static str {
        match self {
            Self::PutObject => "ConsignWrite",
            Self::PutObjectTagging => "ConsignTag",
            Self::GetBucketLocation => "ConsignFindRegion",
            Self::ListBucket => "ConsignList",
            Self::AbortMultipartUpload => "ConsignAbort",
            Self::DeleteObject => "ConsignDeleteTestFile",
            Self::KmsGenerateDataKey | Self::KmsDecrypt => "ConsignEncrypt",
        }
    }

    /// Resource that it applies to, and its condition (an empty object for none).
    pub(super) fn bounds(self, destination: &Destination) -> (String, Value) {
        match self {
            Self::PutObject | Self::PutObjectTagging | Self::AbortMultipartUpload => {
                (objects_arn(destination), json!({}))
            }
            Self::DeleteObject => (test_object_arn(destination), json!({})),
            Self::GetBucketLocation => (bucket_arn(destination), json!({})),
            Self::ListBucket => (bucket_arn(destination), list_condition(destination)),
            Self::KmsGenerateDataKey | Self::KmsDecrypt => {
                key_resource(destination, destination.encryption.as_ref().map(|encryption| &encryption.key_arn))
            }
        }
    }
}
