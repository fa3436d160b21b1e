//! Source addresses in policies: who may call from where.
//!
//! `aws:SourceIp` is the address of the caller. It is of use for calls the worker itself makes over
//! the public internet: AssumeRole, and everything of S3. It must not be asked of KMS: S3 calls KMS
//! in the worker's name, from an address of S3. And it is absent where a call comes through a VPC
//! endpoint, so a statement with it refuses those
//! (<https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_condition-keys.html#condition-keys-sourceip>).

use serde_json::{Map, Value, json};

/// Adds the addresses to a statement's condition; none leave it as it is.
pub(super) fn from_addresses(mut statement: Map<String, Value>, addresses: &[String]) -> Map<String, Value> {
    if addresses.is_empty() {
        return statement;
    }
    let condition = statement.entry("Condition").or_insert_with(|| json!({}));
    condition["IpAddress"] = json!({ "aws:SourceIp": addresses });
    statement
}
