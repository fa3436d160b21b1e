//! Explanation of permissions and denials of the bucket.

use super::{Explanation, explained, grant, own_policy};
use crate::domain::destination::Auth;
use crate::domain::diagnosis::{Code, DiagnosisContext, Evidence, Reads, Remedy};
use crate::domain::policy::{Permission, lifecycle};

pub(super) fn words(evidence: &Evidence<'_>, context: &DiagnosisContext<'_>) -> Option<Explanation> {
    let bucket = &context.destination.bucket;
    Some(match evidence.code {
        Code::PutDenied => explained(
            format!("s3:PutObject is not allowed under {bucket}/{}", context.destination.prefix),
            grant(Permission::PutObject, context),
        ),
        Code::PermissionDenied => permission_denied(evidence, context),
        Code::AccessDeniedUnspecified => unspecified(evidence, context),
        Code::RegionUnchecked => {
            weaker(Permission::GetBucketLocation, "the bucket's region can't be looked up", context)
        }
        Code::ListDenied => weaker(Permission::ListBucket, "the prefix can't be listed", context),
        Code::DeleteDenied => {
            weaker(Permission::DeleteObject, "the empty test file can't be deleted and stays in the bucket", context)
        }
        Code::AbortDenied => {
            let rule = format!(
                "use a lifecycle rule of the bucket instead of the permission: {}",
                lifecycle(context.destination)
            );
            let explanation =
                weaker(Permission::AbortMultipartUpload, "an unfinished upload can't be aborted", context);
            Explanation { ranked: vec![rule], ..explanation }
        }
        Code::UploadLeftOpen => explained(
            "the multipart probe failed and could not be aborted; an incomplete upload of at most one byte stays in \
             the bucket",
            grant(Permission::AbortMultipartUpload, context),
        ),
        code => return explicit_deny(code, context),
    })
}

/// An optional permission is missing: what is weaker without it.
fn weaker(permission: Permission, what: &str, context: &DiagnosisContext<'_>) -> Explanation {
    let mut remedy = grant(permission, context);
    remedy.text = format!("optional: {}", remedy.text);
    explained(format!("{what} ({} is not allowed): {}", permission.as_str(), permission.without()), remedy)
}

fn permission_denied(evidence: &Evidence<'_>, context: &DiagnosisContext<'_>) -> Explanation {
    let action = evidence.action.unwrap_or("an action");
    let bucket = &context.destination.bucket;
    let remedy = Permission::of_action(action).map_or_else(
        || Remedy::from(format!("allow {action} on the bucket {bucket}, in {}", own_policy(context))),
        |permission| grant(permission, context),
    );
    explained(format!("{action} is not allowed"), remedy)
}

fn explicit_deny(code: Code, context: &DiagnosisContext<'_>) -> Option<Explanation> {
    let bucket = &context.destination.bucket;
    Some(match code {
        Code::ExplicitDenySourceAddress => explained(
            format!(
                "a Deny in the policy of the bucket {bucket} applies to every call of this platform, most likely \
                 because of its source address"
            ),
            format!("exclude {} from the Deny in the bucket policy", addresses(context)),
        ),
        Code::ExplicitDenyUnencrypted => denied_by_encryption(
            "encryption",
            "set encryption of the destination to what the bucket policy requires (\"AES256\", \"aws:kms\" \
             or \"aws:kms:dsse\"), and kms_key_arn to the key that it requires, if any",
            "the bucket policy denies uploads without an encryption header, or without a KMS key",
            context,
        ),
        Code::ExplicitDenyEncryption => denied_by_encryption(
            "another KMS key or encryption",
            "set encryption and kms_key_arn of the destination to what the bucket policy requires; give the \
             ARN of the key, not of an alias",
            "the bucket policy requires another encryption or KMS key, or names the same key in another form",
            context,
        ),
        Code::ExplicitDenyIdentity => explained(
            "an explicit Deny in a policy or the permissions boundary of the role or user applies to the upload",
            format!("look for a Deny of s3:PutObject in {} and in its permissions boundary", own_policy(context)),
        ),
        Code::ExplicitDenyOrganization => explained(
            "a service or resource control policy of the customer's organization explicitly denies the upload",
            "ask the administrators of the AWS organization to let this role or user write to the bucket",
        ),
        Code::ExplicitDenyEndpoint => explained(
            "the policy of the VPC endpoint that this worker uses explicitly denies the upload",
            "allow s3:PutObject on the customer's bucket in the policy of the worker's VPC endpoint",
        ),
        _ => return None,
    })
}

/// Explains a Deny of the bucket policy that most likely demands `required`.
fn denied_by_encryption(required: &str, remedy: &str, likeliest: &str, context: &DiagnosisContext<'_>) -> Explanation {
    let (bucket, prefix) = (&context.destination.bucket, &context.destination.prefix);
    let cause = format!(
        "a Deny in the policy of the bucket {bucket} applies to uploads under {prefix}; most likely it requires {required}"
    );
    let ranked = vec![
        likeliest.to_owned(),
        format!("the bucket policy denies by source address, and does not exclude {}", addresses(context)),
        "the bucket policy denies this prefix, or this principal".to_owned(),
    ];
    Explanation { ranked, ..explained(cause, remedy) }
}

/// This platform's addresses, where they are configured.
fn addresses(context: &DiagnosisContext<'_>) -> String {
    if context.egress.is_empty() {
        return "the public addresses of this platform".to_owned();
    }
    format!("the public addresses {} of this platform", context.egress.join(", "))
}

/// Explains a bare `Access Denied`, which S3 always answers across accounts: the possible causes,
/// the likeliest first.
fn unspecified(evidence: &Evidence<'_>, context: &DiagnosisContext<'_>) -> Explanation {
    let destination = context.destination;
    let remedy = grant(permission_of(evidence.operation), context);
    let mut ranked = vec![remedy.text.clone()];
    if let Some(key) = &destination.encryption {
        let key = key.key_arn.as_str();
        ranked.push(format!(
            "allow kms:GenerateDataKey and kms:Decrypt on {key}, in the same policy and in the key's own policy"
        ));
    }
    if let (Some(owner), true) = (&destination.expected_bucket_owner, context.reads != Reads::Answered) {
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
        "look for a Deny in the bucket policy, by encryption or by source address ({} must be excluded)",
        addresses(context)
    ));
    let text = ranked.join("; or ");
    Explanation {
        cause: format!("S3 denies access to {}/{} without a reason", destination.bucket, destination.prefix),
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
