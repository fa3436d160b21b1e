//! Policies of the customer beside the permissions of the role or user: the trust policy of the
//! role, the statements on the KMS key, in the role's own policy and in the key's, and the settings
//! of the bucket: its policy, where another account must be let in or addresses shut out, and its
//! lifecycle.

use serde_json::{Value, json};

use super::document::{Scope, document, from_addresses, single, single_on_key, statements};
use super::permission::Permission;
use super::principal::Principal;
use super::resource::{bucket_arn, key_resource, objects_arn};
use crate::domain::destination::{Destination, ExternalId, KmsKeyArn};

/// After how many days a lifecycle rule removes an upload that was never finished. The longest one
/// lives a day or so.
const DAYS: u32 = 7;
const ACTIONS: [Permission; 2] = [Permission::KmsGenerateDataKey, Permission::KmsDecrypt];

/// The trust policy of the customer's role: only the platform's principal, only with the external
/// id agreed on, and, where addresses are given, only from there.
///
/// Without an external id the policy has no such condition: anybody who could make the platform use
/// this role's ARN would write into the bucket (the confused deputy), so one should always be
/// agreed on.
pub fn trust(principal: &Principal, external_id: Option<&ExternalId>, source_addresses: &[String]) -> Value {
    let mut statement = json!({
        "Sid": "ConsignAssumesThisRole",
        "Effect": "Allow",
        "Principal": { "AWS": principal.as_str() },
        "Action": "sts:AssumeRole",
    });
    if let Some(id) = external_id {
        statement["Condition"] = json!({ "StringEquals": { "sts:ExternalId": id.expose() } });
    }
    document(&[from_addresses(statement, source_addresses)])
}

/// The statement of the role's or user's own policy; `None` for a destination without a key.
pub fn kms_statement(destination: &Destination) -> Option<Value> {
    Some(kms_statement_on(destination, Some(&destination.encryption.as_ref()?.key_arn)))
}

/// The same for any key, also one that the destination doesn't name; `None` stands for the one the
/// bucket encrypts with by default.
pub fn kms_statement_on(destination: &Destination, key: Option<&KmsKeyArn>) -> Value {
    let mut statement = match key {
        Some(key) => single_on_key(Permission::KmsGenerateDataKey, destination, key),
        None => single(Permission::KmsGenerateDataKey, destination),
    };
    statement["Action"] = json!(ACTIONS.map(Permission::as_str));
    statement
}

/// The statement to add to the key's own policy; `None` for a destination without a key.
///
/// It is needed when key and role (or user) belong to different accounts, or when the key's policy
/// does not leave access to IAM (the default statement for `:root`, "Enable IAM User Permissions").
/// Then both statements are needed, this one and [`kms_statement`].
pub fn kms_key_policy_statement(destination: &Destination, grantee: &Principal) -> Option<Value> {
    let key = &destination.encryption.as_ref()?.key_arn;
    // In a key's policy the only resource is the key itself, so an alias needs no condition either.
    let (_, mut condition) = key_resource(destination, Some(key));
    if let Some(tests) = condition.as_object_mut() {
        tests.retain(|test, _| test == "StringEquals");
    }
    Some(json!({
        "Sid": "ConsignEncrypt",
        "Effect": "Allow",
        "Principal": { "AWS": grantee.as_str() },
        "Action": ACTIONS.map(Permission::as_str),
        "Resource": "*",
        "Condition": condition,
    }))
}

/// The statements for the policy of a bucket that belongs to another account than the role or user:
/// both sides must allow. A key has its own policy ([`super::kms_key_policy_statement`]).
pub fn bucket_policy_grant(destination: &Destination, grantee: &Principal, scope: &Scope) -> Vec<Value> {
    let mut all = statements(destination, scope, |permission| !permission.is_kms());
    for statement in &mut all {
        statement["Principal"] = json!({ "AWS": grantee.as_str() });
    }
    all
}

/// A statement for the bucket's policy that shuts this one role or user out from everywhere but
/// these addresses.
///
/// It is a Deny, so it holds whatever else is allowed. Calls that a service makes in the caller's
/// name are let through (`aws:ViaAWSService`): they come from addresses of that service.
pub fn bucket_policy_fence(destination: &Destination, grantee: &Principal, addresses: &[String]) -> Value {
    json!({
        "Sid": "ConsignOnlyFromItsAddresses",
        "Effect": "Deny",
        "Principal": { "AWS": grantee.as_str() },
        "Action": "s3:*",
        "Resource": [bucket_arn(destination), objects_arn(destination)],
        "Condition": {
            "NotIpAddress": { "aws:SourceIp": addresses },
            "BoolIfExists": { "aws:ViaAWSService": "false" },
        },
    })
}

/// A lifecycle configuration whose one rule removes what is left below the prefix of uploads that
/// were never finished. It is what replaces `s3:AbortMultipartUpload`.
pub fn lifecycle(destination: &Destination) -> Value {
    json!({
        "Rules": [{
            "ID": "consign-incomplete-uploads",
            "Status": "Enabled",
            "Filter": { "Prefix": destination.prefix.as_str() },
            "AbortIncompleteMultipartUpload": { "DaysAfterInitiation": DAYS },
        }],
    })
}
