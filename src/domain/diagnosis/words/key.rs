//! The KMS key: what it allows, and what state it is in.

use super::{Words, advice, grant, own_policy, told};
use crate::domain::destination::{Auth, KmsKeyArn};
use crate::domain::diagnosis::{Case, Code, Found, Remedy};
use crate::domain::policy::{Permission, Principal, kms_key_policy_statement, kms_statement_on};

pub(super) fn words(found: &Found<'_>, case: &Case<'_>) -> Option<Words> {
    denied(found, case).or_else(|| unusable(found, case))
}

/// The key as it is called in texts: the destination's, else that of the bucket's default
/// encryption, if the refusal names it.
fn name(found: &Found<'_>, case: &Case<'_>) -> String {
    let encryption = case.destination.encryption.as_ref();
    let configured = encryption.map(|kms| kms.key_arn.as_str().to_owned());
    let named = || default_key(found, case).map(|key| key.as_str().to_owned());
    configured.or_else(named).unwrap_or_else(|| "the bucket's default key".to_owned())
}

/// The key of the bucket's default encryption, where the destination has none and the refusal names
/// it.
fn default_key(found: &Found<'_>, case: &Case<'_>) -> Option<KmsKeyArn> {
    found.resource.filter(|_| case.destination.encryption.is_none()).and_then(|arn| KmsKeyArn::parse(arn).ok())
}

fn denied(found: &Found<'_>, case: &Case<'_>) -> Option<Words> {
    use Permission::{KmsDecrypt, KmsGenerateDataKey};
    let code = found.code;
    let (permission, key_policy) = match code {
        Code::KmsEncryptDenied | Code::KmsEncryptDeniedIdentity => (KmsGenerateDataKey, false),
        Code::KmsEncryptDeniedKeyPolicy => (KmsGenerateDataKey, true),
        Code::KmsDecryptDenied | Code::KmsDecryptDeniedIdentity => (KmsDecrypt, false),
        Code::KmsDecryptDeniedKeyPolicy => (KmsDecrypt, true),
        _ => return None,
    };
    let (action, key) = (permission.action(), name(found, case));
    let why = match permission {
        KmsDecrypt => "; S3 needs it to put the parts of a large file together",
        _ => "; S3 needs it to encrypt",
    };
    if key_policy {
        let cause = format!("the key policy of {key} does not allow {action}{why}");
        return Some(told(cause, in_the_key(case, &key)));
    }
    let whose = if matches!(code, Code::KmsEncryptDenied | Code::KmsDecryptDenied) {
        format!("{action} on {key} is not allowed{why}")
    } else {
        format!("no policy of the role or user allows {action} on {key}{why}")
    };
    let mut remedy = grant(permission, case);
    remedy.text = format!(
        "allow {} and {} on {key}, in {}; where the key's own policy does not leave that to IAM, allow it there, too",
        KmsGenerateDataKey.action(),
        KmsDecrypt.action(),
        own_policy(case)
    );
    if let Some(both) = crate::domain::policy::kms_statement(case.destination) {
        remedy.statement = Some(both);
    } else if let Some(key) = default_key(found, case) {
        remedy.statement = Some(kms_statement_on(case.destination, &key));
    }
    Some(told(whose, remedy))
}

/// The remedy in the key's own policy; its statement names whom we come as.
fn in_the_key(case: &Case<'_>, key: &str) -> Remedy {
    let grantee = match &case.destination.auth {
        Auth::IamRole { role_arn, .. } => Some(Principal::from(role_arn)),
        Auth::AccessKey { .. } => case.principal.and_then(|arn| Principal::parse(arn).ok()),
    };
    let text = "add kms:GenerateDataKey and kms:Decrypt for this role or user to the key's own policy";
    let remedy = advice(format!("{text} ({key})"));
    match grantee.and_then(|grantee| kms_key_policy_statement(case.destination, &grantee)) {
        Some(statement) => remedy.statement(format!("the key policy of {key}"), statement),
        None => remedy,
    }
}

fn unusable(found: &Found<'_>, case: &Case<'_>) -> Option<Words> {
    let key = name(found, case);
    let bucket = &case.destination.bucket;
    Some(match found.code {
        Code::KmsKeyNotFound => told(
            format!("there is no KMS key {key}"),
            advice("correct kms_key_arn, or leave it out to use the bucket's default encryption"),
        ),
        Code::KmsKeyOtherRegion => told(
            format!("the KMS key {key} lives in another region than the bucket {bucket}"),
            advice("use a key of the bucket's own region as kms_key_arn"),
        ),
        Code::KmsKeyDisabled => {
            told(format!("the KMS key {key} is disabled"), advice("enable the KMS key, or configure another one"))
        }
        Code::KmsKeyPendingDeletion => told(
            format!("the KMS key {key} is about to be deleted"),
            advice("cancel the deletion of the KMS key and enable it, or configure another one"),
        ),
        Code::KmsKeyUnusable => told(
            format!("the KMS key {key} can't encrypt objects: it must be an enabled, symmetric key for encryption"),
            advice("enable the KMS key, or configure another one, symmetric and for encryption"),
        ),
        Code::EncryptionMismatch => told(
            super::said(found, "S3 encrypts in another way than asked"),
            advice("use the ARN of the key itself, and check that the store honours encryption headers"),
        ),
        _ => return None,
    })
}
