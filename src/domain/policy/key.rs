//! Permissions on the customer's KMS key, on both sides: in the role's own policy and in the
//! key's.

use serde_json::{Value, json};

use super::document::{single, single_on_key};
use super::permission::Permission;
use super::principal::Principal;
use super::resource::key_resource;
use crate::domain::destination::{Destination, KmsKeyArn};

pub(super) const ACTIONS: [Permission; 2] = [Permission::KmsGenerateDataKey, Permission::KmsDecrypt];

/// The statement of the role's or user's own policy; `None` for a destination without a key.
pub fn kms_statement(destination: &Destination) -> Option<Value> {
    Some(kms_statement_on(destination, &destination.encryption.as_ref()?.key_arn))
}

/// The same for a key that the destination doesn't name, such as that of the bucket's default
/// encryption.
pub fn kms_statement_on(destination: &Destination, key: &KmsKeyArn) -> Value {
    statement_on(destination, Some(key))
}

/// The same for any key; `None` stands for the one the bucket encrypts with by default.
pub(super) fn statement_on(destination: &Destination, key: Option<&KmsKeyArn>) -> Value {
    let mut statement = match key {
        Some(key) => single_on_key(Permission::KmsGenerateDataKey, destination, key),
        None => single(Permission::KmsGenerateDataKey, destination),
    };
    statement["Action"] = json!(ACTIONS.map(Permission::action));
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
        "Action": ACTIONS.map(Permission::action),
        "Resource": "*",
        "Condition": condition,
    }))
}
