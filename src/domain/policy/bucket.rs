//! Settings of the bucket itself: its policy, where another account must be let in or
//! addresses shut out, and its lifecycle.

use serde_json::{Value, json};

use super::document::{Scope, statements};
use super::principal::Principal;
use super::resource::{bucket_arn, objects_arn};
use crate::domain::destination::Destination;

/// After how many days a lifecycle rule removes an upload that was never finished. The longest one
/// lives a day or so.
const DAYS: u32 = 7;

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
