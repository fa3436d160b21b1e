//! The KMS key: what it allows, and what state it is in.

use super::{Explanation, explained, grant, own_policy};
use crate::domain::destination::{Auth, KmsKeyArn};
use crate::domain::diagnosis::{Code, DiagnosisContext, Evidence, Remedy};
use crate::domain::policy::{Permission, Principal, kms_key_policy_statement, kms_statement_on};

pub(super) fn words(evidence: &Evidence<'_>, context: &DiagnosisContext<'_>) -> Option<Explanation> {
    denied(evidence, context).or_else(|| unusable(evidence, context))
}

/// Returns the name of the key in texts: the destination's, else that of the bucket's default
/// encryption, if the error names it.
fn name(evidence: &Evidence<'_>, context: &DiagnosisContext<'_>) -> String {
    let encryption = context.destination.encryption.as_ref();
    let configured = encryption.map(|kms| kms.key_arn.as_str().to_owned());
    let named = || default_key(evidence, context).map(|key| key.as_str().to_owned());
    configured.or_else(named).unwrap_or_else(|| "the bucket's default key".to_owned())
}

/// Returns the key of the bucket's default encryption, if the destination has none and the error
/// names it.
fn default_key(evidence: &Evidence<'_>, context: &DiagnosisContext<'_>) -> Option<KmsKeyArn> {
    evidence.resource.filter(|_| context.destination.may_use_default_key()).and_then(|arn| KmsKeyArn::parse(arn).ok())
}

fn denied(evidence: &Evidence<'_>, context: &DiagnosisContext<'_>) -> Option<Explanation> {
    use Permission::{KmsDecrypt, KmsGenerateDataKey};
    let code = evidence.code;
    let (permission, key_policy) = match code {
        Code::KmsEncryptDenied | Code::KmsEncryptDeniedIdentity => (KmsGenerateDataKey, false),
        Code::KmsEncryptDeniedKeyPolicy => (KmsGenerateDataKey, true),
        Code::KmsDecryptDenied | Code::KmsDecryptDeniedIdentity => (KmsDecrypt, false),
        Code::KmsDecryptDeniedKeyPolicy => (KmsDecrypt, true),
        _ => return None,
    };
    let (action, key) = (permission.as_str(), name(evidence, context));
    let why = match permission {
        KmsDecrypt => "; S3 needs it to join the parts of a large file",
        _ => "; S3 needs it to encrypt",
    };
    if key_policy {
        let cause = format!("the key policy of {key} does not allow {action}{why}");
        return Some(explained(cause, in_the_key(context, &key)));
    }
    let whose = if matches!(code, Code::KmsEncryptDenied | Code::KmsDecryptDenied) {
        format!("{action} on {key} is not allowed{why}")
    } else {
        format!("no policy of the role or user allows {action} on {key}{why}")
    };
    let mut remedy = grant(permission, context);
    remedy.text = format!(
        "allow {} and {} on {key}, in {}; if the key policy does not delegate to IAM, allow it there, too",
        KmsGenerateDataKey.as_str(),
        KmsDecrypt.as_str(),
        own_policy(context)
    );
    if let Some(both) = crate::domain::policy::kms_statement(context.destination) {
        remedy.statement = Some(both);
    } else if let Some(key) = default_key(evidence, context) {
        remedy.statement = Some(kms_statement_on(context.destination, Some(&key)));
    }
    Some(explained(whose, remedy))
}

/// The remedy in the key's own policy; its statement names whom we come as.
fn in_the_key(context: &DiagnosisContext<'_>, key: &str) -> Remedy {
    let grantee = match &context.destination.auth {
        Auth::IamRole { role_arn, .. } => Some(Principal::from(role_arn)),
        Auth::AccessKey { .. } => context.principal.and_then(|arn| Principal::parse(arn).ok()),
    };
    let text = "allow this role or user kms:GenerateDataKey and kms:Decrypt in the key policy";
    let remedy = Remedy::from(format!("{text} ({key})"));
    match grantee.and_then(|grantee| kms_key_policy_statement(context.destination, &grantee)) {
        Some(statement) => remedy.statement(format!("the key policy of {key}"), statement),
        None => remedy,
    }
}

fn unusable(evidence: &Evidence<'_>, context: &DiagnosisContext<'_>) -> Option<Explanation> {
    let key = name(evidence, context);
    let bucket = &context.destination.bucket;
    Some(match evidence.code {
        Code::KmsKeyNotFound => explained(
            format!("there is no KMS key {key}"),
            "correct kms_key_arn, or leave it out to use the bucket's default encryption",
        ),
        Code::KmsKeyOtherRegion => explained(
            format!("the KMS key {key} is in another region than the bucket {bucket}"),
            "set kms_key_arn to a key in the region of the bucket",
        ),
        Code::KmsKeyDisabled => {
            explained(format!("the KMS key {key} is disabled"), "enable the KMS key, or configure another one")
        }
        Code::KmsKeyPendingDeletion => explained(
            format!("the KMS key {key} is pending deletion"),
            "cancel the deletion of the KMS key and enable it, or configure another one",
        ),
        Code::KmsKeyUnusable => explained(
            format!("the KMS key {key} can't encrypt objects: it must be an enabled, symmetric key for encryption"),
            "enable the KMS key, or configure a symmetric encryption key",
        ),
        Code::EncryptionMismatch => explained(
            super::said(evidence, "S3 encrypts in another way than requested"),
            "use the ARN of the key itself, and check that the store honours encryption headers",
        ),
        _ => return None,
    })
}
