//! The IAM documents a destination needs, from one model: what a transfer does, and so what it must be allowed to do.
//!
//! The session policy narrows an assumed role to exactly this bucket, prefix and key: whatever else the customer's role
//! may do, this session may not.

use serde_json::{Value, json};

use crate::destination::{Destination, KmsKeyArn};

/// The most characters STS takes as an inline session policy
/// (<https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html>).
pub const SESSION_POLICY_LIMIT: usize = 2048;

/// What an upload does with objects below the prefix. Only the first is required; a denied one of the others weakens
/// cleaning up and tagging, never a delivery.
const OBJECT_ACTIONS: [&str; 4] = ["s3:PutObject", "s3:AbortMultipartUpload", "s3:PutObjectTagging", "s3:DeleteObject"];
/// What SSE-KMS multipart uploads need on the key.
const KMS_ACTIONS: [&str; 2] = ["kms:GenerateDataKey", "kms:Decrypt"];

/// The compact inline session policy of a destination, at most [`SESSION_POLICY_LIMIT`] characters.
///
/// With a very long prefix the permission to list is left out to stay within the limit: it only serves to reconcile an
/// upload whose reply was lost.
pub fn session_policy(destination: &Destination) -> String {
    let whole = document(&[objects(destination), location(destination), kms(destination), list(destination)]);
    if whole.len() <= SESSION_POLICY_LIMIT {
        return whole;
    }
    document(&[objects(destination), location(destination), kms(destination)])
}

fn document(statements: &[Value]) -> String {
    json!({ "Version": "2012-10-17", "Statement": statements }).to_string()
}

fn objects(destination: &Destination) -> Value {
    json!({ "Effect": "Allow", "Action": OBJECT_ACTIONS, "Resource": objects_arn(destination) })
}

fn location(destination: &Destination) -> Value {
    json!({ "Effect": "Allow", "Action": "s3:GetBucketLocation", "Resource": bucket_arn(destination) })
}

fn list(destination: &Destination) -> Value {
    let prefix = format!("{}*", literal(destination.prefix.as_str()));
    json!({
        "Effect": "Allow",
        "Action": "s3:ListBucket",
        "Resource": bucket_arn(destination),
        "Condition": { "StringLike": { "s3:prefix": prefix } },
    })
}

fn kms(destination: &Destination) -> Value {
    let via = json!({ "StringLike": { "kms:ViaService": format!("s3.*.{}", dns_suffix(destination.partition())) } });
    match destination.encryption.as_ref().map(|encryption| &encryption.key_arn) {
        Some(key) if !key.is_alias() => {
            json!({ "Effect": "Allow", "Action": KMS_ACTIONS, "Resource": key.as_str() })
        }
        // A policy can't name a key by its alias, so the alias' own account and region bound it.
        Some(alias) => {
            json!({ "Effect": "Allow", "Action": KMS_ACTIONS, "Resource": keys_beside(alias), "Condition": via })
        }
        // The bucket's default may be a customer's key that nobody told us.
        None => json!({ "Effect": "Allow", "Action": KMS_ACTIONS, "Resource": "*", "Condition": via }),
    }
}

fn keys_beside(alias: &KmsKeyArn) -> String {
    let (account, _) = alias.as_str().split_once(":alias/").unwrap_or((alias.as_str(), ""));
    format!("{account}:key/*")
}

fn bucket_arn(destination: &Destination) -> String {
    format!("arn:{}:s3:::{}", destination.partition(), destination.bucket)
}

fn objects_arn(destination: &Destination) -> String {
    format!("{}/{}*", bucket_arn(destination), literal(destination.prefix.as_str()))
}

/// `*`, `?` and `$` of a folder's name stand for themselves
/// (<https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_variables.html>).
fn literal(text: &str) -> String {
    text.replace('$', "${$}").replace('*', "${*}").replace('?', "${?}")
}

/// The DNS suffix of the services of a partition.
pub fn dns_suffix(partition: &str) -> &'static str {
    match partition {
        "aws-cn" => "amazonaws.com.cn",
        _ => "amazonaws.com",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::destination::DestinationId;
    use crate::destination::raw::{RawAuth, RawDestination};

    fn destination(prefix: &str, key: Option<&str>) -> Destination {
        let auth = RawAuth { role_arn: Some("arn:aws-cn:iam::123456789012:role/r".into()), ..RawAuth::default() };
        let raw = RawDestination {
            bucket: "acme-exports".into(),
            region: "cn-north-1".into(),
            prefix: prefix.into(),
            auth,
            kms_key_arn: key.map(str::to_owned),
            ..RawDestination::default()
        };
        raw.validate(DestinationId::parse("acme").unwrap()).unwrap()
    }

    fn parsed(destination: &Destination) -> Value {
        serde_json::from_str(&session_policy(destination)).unwrap()
    }

    #[test]
    fn the_session_may_write_below_the_prefix_alone() {
        let policy = parsed(&destination("exports", None));
        assert_eq!(policy["Statement"][0]["Resource"], "arn:aws-cn:s3:::acme-exports/exports/*");
        assert_eq!(policy["Statement"][3]["Condition"]["StringLike"]["s3:prefix"], "exports/*");
    }

    #[test]
    fn an_empty_prefix_does_not_reach_beyond_the_bucket() {
        let policy = parsed(&destination("", None));
        assert_eq!(policy["Statement"][0]["Resource"], "arn:aws-cn:s3:::acme-exports/*");
        assert_eq!(policy["Statement"][3]["Resource"], "arn:aws-cn:s3:::acme-exports");
    }

    #[test]
    fn wildcards_of_a_folders_name_stand_for_themselves() {
        let policy = parsed(&destination("a*b?c$d/", None));
        assert_eq!(policy["Statement"][0]["Resource"], "arn:aws-cn:s3:::acme-exports/a${*}b${?}c${$}d/*");
    }

    #[test]
    fn the_key_is_named_or_bounded_by_the_service() {
        let key = "arn:aws-cn:kms:cn-north-1:123456789012:key/k";
        assert_eq!(parsed(&destination("", Some(key)))["Statement"][2]["Resource"], key);
        let alias = parsed(&destination("", Some("arn:aws-cn:kms:cn-north-1:123456789012:alias/x")));
        assert_eq!(alias["Statement"][2]["Resource"], "arn:aws-cn:kms:cn-north-1:123456789012:key/*");
        let unnamed = parsed(&destination("", None));
        assert_eq!(unnamed["Statement"][2]["Resource"], "*");
        let via = &unnamed["Statement"][2]["Condition"]["StringLike"]["kms:ViaService"];
        assert_eq!(via, "s3.*.amazonaws.com.cn");
    }

    #[test]
    fn it_stays_within_the_limit_of_sts() {
        let long = destination(&"p".repeat(990), None);
        assert!(session_policy(&long).len() <= SESSION_POLICY_LIMIT);
        assert!(session_policy(&long).contains("s3:PutObject"));
    }
}
