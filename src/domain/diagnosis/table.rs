//! Table of known problems, by code and status of an answer.
//!
//! A message is examined only where one code of AWS stands for several problems. The words are
//! those of IAM's access denied messages
//! (<https://docs.aws.amazon.com/IAM/latest/UserGuide/troubleshoot_access-denied.html>).

use super::{Code, DiagnosisContext, Reads};
use crate::domain::destination::Auth;
use crate::domain::outcome::{AwsError, Reason, denied_action};

/// The problem behind an answer; `reason` is what the transfer makes of it.
pub(super) fn code(answer: &AwsError, reason: Reason, context: &DiagnosisContext<'_>) -> Code {
    match (answer.operation, &context.destination.auth) {
        ("AssumeRole", _) | ("GetCallerIdentity", Auth::IamRole { .. }) => sts(answer, reason),
        ("GetCallerIdentity", Auth::AccessKey { .. }) => sts_of_a_key(answer, reason),
        _ => s3(answer, reason, context),
    }
}

/// The problem behind a failure that no service answered.
pub(super) fn without_answer(reason: Reason) -> Code {
    match reason {
        Reason::Timeout | Reason::Connection => Code::S3Unreachable,
        Reason::StsUnavailable => Code::StsUnavailable,
        Reason::IdentityDenied => Code::IdentityAbsent,
        Reason::RoleAuthOff => Code::RoleAuthOff,
        Reason::AccessKeyInvalid => Code::AccessKeySecretUnreadable,
        Reason::WrongOwner => Code::WrongOwner,
        // No request is made across partitions.
        Reason::WrongRegion => Code::OtherPartition,
        Reason::EncryptionMismatch => Code::EncryptionMismatch,
        Reason::S3Unavailable | Reason::SlowDown | Reason::Throttled => Code::S3Unavailable,
        _ => Code::Unexpected,
    }
}

fn s3(answer: &AwsError, reason: Reason, context: &DiagnosisContext<'_>) -> Code {
    let (code, status, said) = (answer.code.as_str(), answer.status, answer.message.as_str());
    match code {
        "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "ExpiredToken" | "TokenRefreshRequired" | "InvalidToken" => {
            credentials(code, said, context)
        }
        "RequestTimeTooSkewed" | "RequestExpired" => Code::ClockSkew,
        "AllAccessDisabled" | "AccountProblem" | "NotSignedUp" => Code::AccountDisabled,
        "KMS.AccessDeniedException" => denied(answer, context),
        "KMS.DisabledException" => Code::KmsKeyDisabled,
        // S3 looks the key up in the bucket's own region, and says `Invalid arn REGION` of a key elsewhere.
        "KMS.NotFoundException" if said.starts_with("Invalid arn") => Code::KmsKeyOtherRegion,
        "KMS.NotFoundException" => Code::KmsKeyNotFound,
        "KMS.KMSInvalidStateException" if said.contains("pending deletion") => Code::KmsKeyPendingDeletion,
        _ if code.starts_with("KMS.") && reason != Reason::Throttled => Code::KmsKeyUnusable,
        "NoSuchBucket" => Code::BucketNotFound,
        "InvalidRequest" if said.contains("Object Lock") => Code::ObjectLockNeedsChecksum,
        "" if reason == Reason::Connection && status != 0 => Code::NotS3,
        "NotImplemented" => Code::StoreLacksFeature,
        // The transfer makes a denial of a checksum that only the completion refuses, and of nothing else here.
        "BadDigest" | "XAmzContentChecksumMismatch" | "InvalidDigest" | "IncompleteBody"
            if reason == Reason::AccessDenied =>
        {
            Code::StoreLacksFeature
        }
        "XMinioStorageFull" => Code::QuotaExceeded,
        _ if code.ends_with("QuotaExceeded") || status == 507 => Code::QuotaExceeded,
        _ if status == 501 => Code::StoreLacksFeature,
        _ => s3_by_meaning(reason, answer, context),
    }
}

/// Maps the reason of the transfer, which has considered code and status, where the code says no
/// more.
fn s3_by_meaning(reason: Reason, answer: &AwsError, context: &DiagnosisContext<'_>) -> Code {
    match reason {
        Reason::AccessDenied | Reason::KmsDenied => denied(answer, context),
        Reason::WrongRegion => Code::WrongRegion,
        Reason::BucketNotFound => Code::BucketNotFound,
        Reason::KmsUnavailable => Code::KmsKeyUnusable,
        Reason::EncryptionMismatch => Code::EncryptionMismatch,
        Reason::S3Unavailable | Reason::SlowDown | Reason::Throttled => Code::S3Unavailable,
        Reason::Timeout | Reason::Connection => Code::S3Unreachable,
        _ => Code::Unexpected,
    }
}

fn credentials(code: &str, said: &str, context: &DiagnosisContext<'_>) -> Code {
    let Auth::AccessKey { access_key_id, .. } = &context.destination.auth else { return Code::SessionRefused };
    match code {
        _ if access_key_id.starts_with(TEMPORARY) => Code::AccessKeyTemporary,
        "SignatureDoesNotMatch" => Code::AccessKeySecretWrong,
        // AWS says the same of unknown and inactive keys; some stores say which.
        "InvalidAccessKeyId" if said.contains("disabled") || said.contains("nactive") => Code::AccessKeyDisabled,
        _ => Code::AccessKeyUnknown,
    }
}

/// Prefix of the ids of temporary keys
/// (<https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_identifiers.html>).
pub(super) const TEMPORARY: &str = "ASIA";

/// Access denied, with or without a reason.
fn denied(answer: &AwsError, context: &DiagnosisContext<'_>) -> Code {
    let said = answer.message.as_str();
    let explicit = said.contains("explicit deny");
    match denied_action(said) {
        Some("kms:Decrypt") => {
            kms(said, [Code::KmsDecryptDenied, Code::KmsDecryptDeniedIdentity, Code::KmsDecryptDeniedKeyPolicy])
        }
        Some(action) if action.starts_with("kms:") => kms_encrypt(said),
        None if answer.code == "KMS.AccessDeniedException" => kms_encrypt(said),
        _ if explicit => explicit_deny(said, context),
        Some("s3:PutObject") => Code::PutDenied,
        Some(_) => Code::PermissionDenied,
        None => Code::AccessDeniedUnspecified,
    }
}

fn kms_encrypt(said: &str) -> Code {
    kms(said, [Code::KmsEncryptDenied, Code::KmsEncryptDeniedIdentity, Code::KmsEncryptDeniedKeyPolicy])
}

fn kms(said: &str, [unsaid, identity, key_policy]: [Code; 3]) -> Code {
    if said.contains("identity-based policy") {
        identity
    } else if said.contains("resource-based policy") {
        key_policy
    } else {
        unsaid
    }
}

fn explicit_deny(said: &str, context: &DiagnosisContext<'_>) -> Code {
    let by = |kind: &str| said.contains(kind);
    if by("service control policy") || by("resource control policy") {
        Code::ExplicitDenyOrganization
    } else if by("VPC endpoint policy") {
        Code::ExplicitDenyEndpoint
    } else if by("identity-based policy") || by("permissions boundary") || by("session policy") {
        Code::ExplicitDenyIdentity
    } else if context.reads == Reads::ExplicitlyDenied {
        Code::ExplicitDenySourceAddress
    } else if context.destination.algorithm.is_none() {
        Code::ExplicitDenyUnencrypted
    } else {
        Code::ExplicitDenyEncryption
    }
}

fn sts(answer: &AwsError, reason: Reason) -> Code {
    let said = answer.message.as_str();
    match answer.code.as_str() {
        "AccessDenied" | "AccessDeniedException" if denied_action(said) == Some("sts:TagSession") => {
            Code::IdentityMayNotTag
        }
        "AccessDenied" | "AccessDeniedException" if said.contains("explicit deny") => Code::RoleExplicitDeny,
        "AccessDenied" | "AccessDeniedException" if said.contains("no identity-based policy allows") => {
            Code::IdentityMayNotAssume
        }
        "AccessDenied" | "AccessDeniedException" if answer.operation == "AssumeRole" => Code::RoleDenied,
        "NoSuchEntity" | "NoSuchEntityException" => Code::RoleNotFound,
        "RegionDisabledException" => Code::StsRegionDisabled,
        "PackedPolicyTooLarge" | "PackedPolicyTooLargeException" | "MalformedPolicyDocument" | "ValidationError" => {
            Code::RoleRequestRefused
        }
        _ => match reason {
            Reason::ClockSkew => Code::ClockSkew,
            Reason::IdentityDenied => Code::IdentityRefused,
            // The identity is valid at home.
            Reason::WrongRegion => Code::IdentityUnknownInRegion,
            Reason::StsUnavailable | Reason::Throttled => Code::StsUnavailable,
            _ if answer.operation == "AssumeRole" => Code::RoleRequestRefused,
            _ => Code::IdentityRefused,
        },
    }
}

/// Maps an error of STS about a customer's access key.
fn sts_of_a_key(answer: &AwsError, reason: Reason) -> Code {
    match answer.code.as_str() {
        "InvalidClientTokenId" | "UnrecognizedClientException" | "InvalidAccessKeyId" => Code::AccessKeyUnknown,
        "SignatureDoesNotMatch" if reason != Reason::ClockSkew => Code::AccessKeySecretWrong,
        _ => match reason {
            Reason::ClockSkew => Code::ClockSkew,
            _ => Code::StsUnavailable,
        },
    }
}
