//! The closed set of what a step of the connection test can say.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use crate::domain::text_enum::table_enum;

/// Party that has to act on a finding; it decides the exit code of `consign check`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Nobody: all is well, or the step was not needed.
    Nobody,
    /// The customer, in the account of the bucket; or the configuration of the destination. Exit
    /// code 3.
    Customer,
    /// The operator of consign: its own identity is absent or refused. Exit code 77.
    Identity,
    /// The operator of consign, in another way. Exit code 3.
    Operator,
    /// A service does not answer. Exit code 69.
    Service,
}

table_enum! {
    /// Finding of a step of the connection test. A closed set and part of the contract: a code
    /// never changes its meaning.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde_with::SerializeDisplay)]
    pub enum Code {
        /// Returns the party that has to act.
        fn side() -> Side;

        Ok "ok" Nobody "The step passed.",
        NotNeeded "not_needed" Nobody "The step does not apply to this destination.",
        NotTried "not_tried" Nobody "A previous step failed, and this one depends on it.",
        TimedOut "timed_out" Service "The step, or the whole test, took too long.",
        Unexpected "unexpected" Customer "A service gave an unexpected answer.",

        BrokerNotConfigured "broker_not_configured" Operator "broker.url is not set, or can't be used.",
        BrokerUnavailable "broker_unavailable" Service "The broker can't be reached, or refuses the login.",
        TopologyMissing "topology_missing" Operator "An exchange or queue is missing on the broker, or differs from what consign declares.",

        IdentityAbsent "identity_absent" Identity "This worker has no AWS credentials of its own.",
        IdentityRefused "identity_refused" Identity "AWS refuses this worker's own credentials.",
        IdentityMayNotAssume "identity_may_not_assume" Identity "This worker's own identity is not allowed to call sts:AssumeRole.",
        IdentityMayNotTag "identity_may_not_tag" Identity "The session tags of this worker's own identity (EKS Pod Identity) need sts:TagSession, which is denied.",
        IdentityUnknownInRegion "identity_unknown_in_region" Operator "STS in the region refuses this worker's credentials; they are valid in other regions.",
        RoleAuthOff "role_auth_off" Operator "This worker does not assume roles (session.role_auth = false).",
        ClockSkew "clock_skew" Operator "The clock of this machine differs from the time of AWS by more than AWS accepts.",
        StsUnavailable "sts_unavailable" Service "STS does not answer, or is temporarily unavailable.",

        RoleDenied "role_denied" Customer "The role does not exist, or its trust policy does not allow this platform to assume it.",
        RoleNotFound "role_not_found" Customer "The role does not exist.",
        RoleExplicitDeny "role_explicit_deny" Customer "A policy explicitly denies sts:AssumeRole on the role.",
        RoleRequestRefused "role_request_refused" Customer "STS refuses the request for the role as invalid.",
        OtherPartition "other_partition" Customer "The role belongs to another partition than the region or this worker's identity.",
        StsRegionDisabled "sts_region_disabled" Customer "STS is not activated in this region.",
        ExternalIdNotEnforced "external_id_not_enforced" Customer "The role can also be assumed without the external id.",
        ExternalIdAbsent "external_id_absent" Customer "The destination has no external id.",

        AccessKeyUnknown "access_key_unknown" Customer "The access key does not exist, was deleted, or is inactive.",
        AccessKeyDisabled "access_key_disabled" Customer "The access key is disabled.",
        AccessKeySecretWrong "access_key_secret_wrong" Customer "The secret does not belong to this access key.",
        AccessKeySecretUnreadable "access_key_secret_unreadable" Operator "The file of the secret can't be read.",
        AccessKeyRoot "access_key_root" Customer "The access key belongs to the root user of the account.",
        AccessKeyTemporary "access_key_temporary" Customer "The access key is temporary and expires within hours.",
        AccountDisabled "account_disabled" Customer "The account of the bucket is suspended, or not signed up for S3.",
        SessionRefused "session_refused" Customer "S3 refuses the session of the role.",

        BucketNotFound "bucket_not_found" Customer "The bucket does not exist.",
        WrongOwner "wrong_owner" Customer "The bucket belongs to another account than expected.",
        WrongRegion "wrong_region" Customer "The bucket is in another region than configured.",
        RegionUnchecked "region_unchecked" Customer "The region can't be looked up (s3:GetBucketLocation).",
        ListDenied "list_denied" Customer "The prefix can't be listed (s3:ListBucket).",

        PutDenied "put_denied" Customer "s3:PutObject is not allowed under the prefix.",
        PermissionDenied "permission_denied" Customer "Another named action is not allowed.",
        ExplicitDenySourceAddress "explicit_deny_source_address" Customer "The bucket policy denies every call, most likely by the source address.",
        ExplicitDenyUnencrypted "explicit_deny_unencrypted" Customer "The bucket policy denies the upload, most likely because it asks for no encryption.",
        ExplicitDenyEncryption "explicit_deny_encryption" Customer "The bucket policy denies the upload, most likely because it demands another KMS key or encryption.",
        ExplicitDenyIdentity "explicit_deny_identity" Customer "A policy or permissions boundary of the role or user denies the upload.",
        ExplicitDenyOrganization "explicit_deny_organization" Customer "A policy of the customer's organization denies the upload.",
        ExplicitDenyEndpoint "explicit_deny_endpoint" Operator "The policy of the platform's VPC endpoint denies the upload.",
        AccessDeniedUnspecified "access_denied_unspecified" Customer "S3 denies access without a reason; the possible causes are listed, most likely first.",

        KmsEncryptDeniedIdentity "kms_encrypt_denied_identity" Customer "No policy of the role or user allows kms:GenerateDataKey.",
        KmsEncryptDeniedKeyPolicy "kms_encrypt_denied_key_policy" Customer "The key's own policy does not allow kms:GenerateDataKey.",
        KmsEncryptDenied "kms_encrypt_denied" Customer "kms:GenerateDataKey is not allowed.",
        KmsDecryptDeniedIdentity "kms_decrypt_denied_identity" Customer "No policy of the role or user allows kms:Decrypt.",
        KmsDecryptDeniedKeyPolicy "kms_decrypt_denied_key_policy" Customer "The key's own policy does not allow kms:Decrypt.",
        KmsDecryptDenied "kms_decrypt_denied" Customer "kms:Decrypt is not allowed.",
        KmsKeyNotFound "kms_key_not_found" Customer "The KMS key does not exist.",
        KmsKeyOtherRegion "kms_key_other_region" Customer "The KMS key is in another region than the bucket.",
        KmsKeyDisabled "kms_key_disabled" Customer "The KMS key is disabled.",
        KmsKeyPendingDeletion "kms_key_pending_deletion" Customer "The KMS key is pending deletion.",
        KmsKeyUnusable "kms_key_unusable" Customer "The KMS key can't encrypt objects.",
        EncryptionMismatch "encryption_mismatch" Customer "S3 encrypts in another way than requested.",

        ObjectLockNeedsChecksum "object_lock_needs_checksum" Operator "The bucket has Object Lock, and the destination sends no checksum.",
        StoreLacksFeature "store_lacks_feature" Operator "The store does not know a header that is sent, such as a checksum.",
        QuotaExceeded "quota_exceeded" Customer "The quota of the bucket or its owner is used up.",
        NotS3 "not_s3" Operator "A proxy or web server answered instead of S3, with a web page.",
        AbortDenied "abort_denied" Customer "Unfinished uploads can't be aborted (s3:AbortMultipartUpload).",
        UploadLeftOpen "upload_left_open" Customer "The multipart probe is left open: its abort was denied.",
        DeleteDenied "delete_denied" Customer "The test file can't be deleted (s3:DeleteObject); the empty file stays in the bucket.",
        S3Unreachable "s3_unreachable" Service "S3 can't be reached.",
        S3Unavailable "s3_unavailable" Service "S3 is overloaded or unavailable.",
    }
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl JsonSchema for Code {
    fn schema_name() -> Cow<'static, str> {
        "code".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let one = |code: &Code| serde_json::json!({ "const": code.as_str(), "description": code.meaning() });
        json_schema!({ "type": "string", "oneOf": Code::ALL.iter().map(one).collect::<Vec<_>>() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_words_and_none_occurs_twice() {
        let mut texts: Vec<_> = Code::ALL.iter().map(|code| code.as_str()).collect();
        assert!(
            texts.iter().all(|text| text.bytes().all(|b| b.is_ascii_lowercase() || b == b'_' || b.is_ascii_digit()))
        );
        texts.sort_unstable();
        texts.dedup();
        assert_eq!(texts.len(), Code::ALL.len());
    }
}
