//! Source addresses in policies: who may call from where.
//!
//! `aws:SourceIp` is the address of whoever makes the call. It is of use for calls the worker itself makes over the public
//! internet: AssumeRole, and everything of S3. It must not be asked of KMS: S3 calls KMS in the worker's name, from an address of
//! S3. And it is absent where a call comes through a VPC endpoint, so a statement with it refuses those
//! (<https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_condition-keys.html#condition-keys-sourceip>).

use serde_json::{Map, Value, json};

use super::principal::Principal;
use super::resource::{bucket_arn, objects_arn};
use crate::destination::Destination;

/// Adds the addresses to a statement's condition; none leave it as it is.
pub(super) fn from_addresses(mut statement: Map<String, Value>, addresses: &[String]) -> Map<String, Value> {
    if addresses.is_empty() {
        return statement;
    }
    let condition = statement.entry("Condition").or_insert_with(|| json!({}));
    condition["IpAddress"] = json!({ "aws:SourceIp": addresses });
    statement
}

/// A statement for the bucket's policy that shuts this one role or user out from everywhere but these addresses.
///
/// It is a Deny, so it holds whatever else is allowed. Calls that a service makes in the caller's name are let through
/// (`aws:ViaAWSService`): they come from addresses of that service.
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
