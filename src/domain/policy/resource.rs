//! The names of things in policies: buckets, objects below a prefix, keys.

use serde_json::{Value, json};

/// The name of the one object the connection test writes, below the destination's prefix.
pub const TEST_OBJECT: &str = "consign-connection-test";

use crate::domain::destination::{Destination, KmsKeyArn, partition_named};

pub(super) fn bucket_arn(destination: &Destination) -> String {
    if destination.bucket.is_access_point() {
        return destination.bucket.to_string();
    }
    format!("arn:{}:s3:::{}", destination.partition(), destination.bucket)
}

/// A key below the prefix, or a pattern of keys.
fn object_arn(destination: &Destination, rest: &str) -> String {
    let objects = if destination.bucket.is_access_point() { "/object" } else { "" };
    format!("{}{objects}/{}{rest}", bucket_arn(destination), literal(destination.prefix.as_str()))
}

/// Everything below the prefix.
pub(super) fn objects_arn(destination: &Destination) -> String {
    object_arn(destination, "*")
}

/// The connection test's own file.
pub(super) fn test_object_arn(destination: &Destination) -> String {
    object_arn(destination, TEST_OBJECT)
}

/// Lists below the prefix alone. Without a prefix there is no condition: the key it would compare
/// may be absent then.
pub(super) fn list_condition(destination: &Destination) -> Value {
    if destination.prefix.as_str().is_empty() {
        return json!({});
    }
    json!({ "StringLike": { "s3:prefix": format!("{}*", literal(destination.prefix.as_str())) } })
}

/// A key as a resource, used by S3 in the bucket's region alone.
///
/// IAM can't name a key by its alias as a resource, so there the alias is a condition. Without a
/// key, it is the one the bucket encrypts with by default: unknown, but in the bucket's region.
pub(super) fn key_resource(destination: &Destination, key: Option<&KmsKeyArn>) -> (String, Value) {
    let via = json!({ "kms:ViaService": via_service(destination, destination.region.as_str()) });
    match key {
        Some(key) if !key.is_alias() => (key.as_str().to_owned(), json!({ "StringEquals": via })),
        Some(alias) => {
            let (_, name) = alias.as_str().split_once(":alias/").unwrap_or_default();
            let aliases = json!({ "kms:ResourceAliases": format!("alias/{name}") });
            (keys_beside(alias), json!({ "StringEquals": via, "ForAnyValue:StringEquals": aliases }))
        }
        None => {
            let any = format!("arn:{}:kms:{}:*:key/*", destination.partition(), destination.region);
            (any, json!({ "StringEquals": via }))
        }
    }
}

/// All keys of the account and region of an alias.
pub(super) fn keys_beside(alias: &KmsKeyArn) -> String {
    let (account, _) = alias.as_str().split_once(":alias/").unwrap_or((alias.as_str(), ""));
    format!("{account}:key/*")
}

/// S3 of a region (or `*`), as KMS sees it calling.
pub(super) fn via_service(destination: &Destination, region: &str) -> String {
    format!("s3.{region}.{}", partition_named(destination.partition()).dns_suffix)
}

/// `*`, `?` and `$` of a folder's name stand for themselves
/// (<https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_variables.html>).
pub(super) fn literal(text: &str) -> String {
    text.replace('$', "${$}").replace('*', "${*}").replace('?', "${?}")
}
