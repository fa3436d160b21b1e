//! What the bucket allows and denies.

use super::{Words, advice, grant, own_policy, told};
use crate::domain::destination::Auth;
use crate::domain::diagnosis::{Case, Code, Found, Reads, Remedy};
use crate::domain::policy::{Permission, lifecycle};

pub(super) fn words(found: &Found<'_>, case: &Case<'_>) -> Option<Words> {
    let bucket = &case.destination.bucket;
    Some(match found.code {
        Code::PutDenied => told(
            format!("s3:PutObject is not allowed under {bucket}/{}", case.destination.prefix),
            grant(Permission::PutObject, case),
        ),
        Code::PermissionDenied => permission_denied(found, case),
        Code::AccessDeniedUnspecified => unspecified(found, case),
        Code::RegionUnchecked => weaker(Permission::GetBucketLocation, "the bucket's region can't be looked up", case),
        Code::ListDenied => weaker(Permission::ListBucket, "the prefix can't be listed", case),
        Code::DeleteDenied => weaker(Permission::DeleteObject, "the test file can't be deleted; it stays, empty", case),
        Code::AbortDenied => {
            let mut said = weaker(Permission::AbortMultipartUpload, "an unfinished upload can't be aborted", case);
            said.ranked = vec![format!(
                "instead of the permission, a lifecycle rule of the bucket serves: {}",
                lifecycle(case.destination)
            )];
            said
        }
        Code::UploadLeftOpen => told(
            "the probe of a multipart upload failed and could not be aborted; it is left open, unseen, with a byte at most",
            grant(Permission::AbortMultipartUpload, case),
        ),
        code => return explicit_deny(code, case),
    })
}

/// An optional permission is missing: what is weaker without it.
fn weaker(permission: Permission, what: &str, case: &Case<'_>) -> Words {
    let mut remedy = grant(permission, case);
    remedy.text = format!("optional: {}", remedy.text);
    told(format!("{what} ({} is not allowed): {}", permission.action(), permission.without()), remedy)
}

fn permission_denied(found: &Found<'_>, case: &Case<'_>) -> Words {
    let action = found.action.unwrap_or("an action");
    let bucket = &case.destination.bucket;
    let remedy = Permission::of_action(action).map_or_else(
        || advice(format!("allow {action} on the bucket {bucket}, in {}", own_policy(case))),
        |permission| grant(permission, case),
    );
    told(format!("{action} is not allowed"), remedy)
}

fn explicit_deny(code: Code, case: &Case<'_>) -> Option<Words> {
    let (bucket, prefix) = (&case.destination.bucket, &case.destination.prefix);
    Some(match code {
        Code::ExplicitDenySourceAddress => told(
            format!(
                "a Deny in the policy of the bucket {bucket} hits every call of ours, most likely by its source address"
            ),
            advice(format!("let {} through in the Deny of the bucket policy", addresses(case))),
        ),
        Code::ExplicitDenyUnencrypted => {
            let mut said = told(
                format!(
                    "a Deny in the policy of the bucket {bucket} hits uploads under {prefix}: most likely it demands encryption"
                ),
                advice("set kms_key_arn of the destination to the key that the bucket policy demands"),
            );
            said.ranked = vec![
                "the bucket policy refuses uploads that ask for no encryption, or for none with a KMS key".to_owned(),
                format!("the bucket policy denies by source address, and does not let {} through", addresses(case)),
                "the bucket policy denies this prefix, or this principal".to_owned(),
            ];
            said
        }
        Code::ExplicitDenyEncryption => {
            let mut said = told(
                format!(
                    "a Deny in the policy of the bucket {bucket} hits uploads under {prefix}: most likely it demands another KMS key"
                ),
                advice(
                    "set kms_key_arn of the destination to the key that the bucket policy demands, as the ARN of the key itself",
                ),
            );
            said.ranked = vec![
                "the bucket policy demands another KMS key, or writes the same key in another form".to_owned(),
                format!("the bucket policy denies by source address, and does not let {} through", addresses(case)),
                "the bucket policy denies this prefix, or this principal".to_owned(),
            ];
            said
        }
        Code::ExplicitDenyIdentity => told(
            "an explicit Deny on our side of the bucket hits the upload: in a policy or the permissions boundary of the role or user",
            advice(format!("look for a Deny of s3:PutObject in {} and in its permissions boundary", own_policy(case))),
        ),
        Code::ExplicitDenyOrganization => told(
            "a service or resource control policy of the customer's organization explicitly denies the upload",
            advice("ask the administrators of the AWS organization to let this role or user write to the bucket"),
        ),
        Code::ExplicitDenyEndpoint => told(
            "the policy of the VPC endpoint that this worker uses explicitly denies the upload",
            advice("allow s3:PutObject on the customer's bucket in the policy of the worker's VPC endpoint"),
        ),
        _ => return None,
    })
}

/// This platform's addresses, where they are configured.
fn addresses(case: &Case<'_>) -> String {
    if case.egress.is_empty() {
        return "the public addresses of this platform".to_owned();
    }
    format!("our public addresses {}", case.egress.join(", "))
}

/// S3 says no more than `Access Denied`: always so across accounts. What it may be, the likeliest
/// first.
fn unspecified(found: &Found<'_>, case: &Case<'_>) -> Words {
    let destination = case.destination;
    let remedy = grant(permission_of(found.operation), case);
    let mut ranked = vec![remedy.text.clone()];
    if let Some(key) = &destination.encryption {
        let key = key.key_arn.as_str();
        ranked.push(format!(
            "allow kms:GenerateDataKey and kms:Decrypt on {key}, in the same policy and in the key's own policy"
        ));
    }
    if let (Some(owner), true) = (&destination.expected_bucket_owner, case.reads != Reads::Answered) {
        ranked.push(format!("the bucket must belong to account {owner}, or expected_bucket_owner must be corrected"));
    }
    if let (Auth::IamRole { role_arn, .. }, Some(owner)) = (&destination.auth, &destination.expected_bucket_owner)
        && role_arn.account() != owner
    {
        ranked.push(format!(
            "the bucket is in another account than the role: its bucket policy must allow the role {}",
            role_arn.as_str()
        ));
    }
    ranked.push(format!(
        "look for a bucket policy that denies it, by encryption or by source address ({} must be let through)",
        addresses(case)
    ));
    let text = ranked.join("; or ");
    Words {
        cause: format!("S3 denies access to {}/{} and does not say why", destination.bucket, destination.prefix),
        ranked,
        remedy: Some(Remedy { text, ..remedy }),
    }
}

/// The permission that an operation needs.
fn permission_of(operation: &str) -> Permission {
    match operation {
        "ListObjectsV2" => Permission::ListBucket,
        "GetBucketLocation" => Permission::GetBucketLocation,
        "AbortMultipartUpload" => Permission::AbortMultipartUpload,
        "DeleteObject" => Permission::DeleteObject,
        _ => Permission::PutObject,
    }
}
