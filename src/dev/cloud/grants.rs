//! Permissions of a signer: a customer's key may do what the customer's policy allows (and the
//! session's, where there is one), the platform's key nothing, the read-only key reading.

use std::sync::Arc;

use async_trait::async_trait;
use http::HeaderMap;
use s3s::access::{S3Access, S3AccessContext};
use s3s::path::S3Path;
use s3s::{S3Error, S3Result, s3_error};

use super::Customer;
use super::keys::{Keys, SigningPrincipal};
use super::policy::Asked;

/// Actions of a read-only key.
const READING: [&str; 7] =
    ["ListBuckets", "ListObjects", "ListObjectsV2", "HeadBucket", "HeadObject", "GetObject", "GetBucketLocation"];

/// The door of every bucket.
pub(super) struct Door {
    pub(super) keys: Arc<Keys>,
    pub(super) customers: Vec<Arc<Customer>>,
}

impl Door {
    /// S3 knows no bucket of that name, or it belongs to another account than the caller believes.
    fn owned_as_expected(&self, bucket: &str, headers: &HeaderMap) -> S3Result<()> {
        let owner = self.customers.iter().find(|customer| customer.bucket == bucket);
        let owner = owner.ok_or_else(|| s3_error!(NoSuchBucket, "The specified bucket does not exist"))?;
        match headers.get("x-amz-expected-bucket-owner") {
            Some(expected) if expected.as_bytes() != owner.account.as_bytes() => Err(denied()),
            _ => Ok(()),
        }
    }
}

/// Temporary keys are nothing without their token.
pub(super) fn carries(token: Option<&str>, headers: &HeaderMap) -> S3Result<()> {
    let given = headers.get("x-amz-security-token");
    match (token, given) {
        (None, None) => Ok(()),
        (Some(token), Some(given)) if token.as_bytes() == given.as_bytes() => Ok(()),
        (Some(_), None) => Err(s3_error!(InvalidAccessKeyId, "A temporary key needs its session token.")),
        _ => Err(s3_error!(InvalidToken, "The provided token is malformed or otherwise invalid.")),
    }
}

/// The permissions an operation needs; `None` for operations this cloud has no use for.
fn actions(operation: &str, headers: &HeaderMap) -> Option<Vec<&'static str>> {
    let mut actions = match operation {
        "PutObject" | "CreateMultipartUpload" | "UploadPart" | "CompleteMultipartUpload" => vec!["s3:PutObject"],
        "AbortMultipartUpload" => vec!["s3:AbortMultipartUpload"],
        "DeleteObject" => vec!["s3:DeleteObject"],
        "GetObject" | "HeadObject" => vec!["s3:GetObject"],
        "ListObjects" | "ListObjectsV2" | "HeadBucket" => vec!["s3:ListBucket"],
        "GetBucketLocation" => vec!["s3:GetBucketLocation"],
        _ => return None,
    };
    if headers.contains_key("x-amz-tagging") {
        actions.push("s3:PutObjectTagging");
    }
    if headers.contains_key("x-amz-acl") {
        actions.push("s3:PutObjectAcl");
    }
    Some(actions)
}

fn prefix_of(query: &str) -> Option<String> {
    url::form_urlencoded::parse(query.as_bytes())
        .find(|(name, _)| name == "prefix")
        .map(|(_, value)| value.into_owned())
}

fn denied() -> S3Error {
    s3_error!(AccessDenied, "Access Denied")
}

#[async_trait]
impl S3Access for Door {
    async fn check(&self, cx: &mut S3AccessContext<'_>) -> S3Result<()> {
        let key = cx.credentials().ok_or_else(denied)?.access_key.as_str();
        let signer = self.keys.signer(key).ok_or_else(denied)?;
        carries(signer.token.as_deref(), cx.headers())?;
        let operation = cx.s3_op().name();
        match signer.principal {
            SigningPrincipal::Viewer if READING.contains(&operation) => Ok(()),
            SigningPrincipal::Platform | SigningPrincipal::Viewer => Err(denied()),
            SigningPrincipal::Customer(customer, session) => {
                let bucket = cx.s3_path().get_bucket_name().ok_or_else(denied)?;
                self.owned_as_expected(bucket, cx.headers())?;
                let resource = match cx.s3_path() {
                    S3Path::Object { bucket, key } => format!("arn:aws:s3:::{bucket}/{key}"),
                    _ => format!("arn:aws:s3:::{bucket}"),
                };
                let prefix = cx.uri().query().and_then(prefix_of);
                let allowed = actions(operation, cx.headers()).is_some_and(|actions| {
                    actions.iter().all(|action| {
                        let asked = Asked { action, resource: &resource, prefix: prefix.as_deref() };
                        customer.grants().allows(&asked) && session.as_ref().is_none_or(|policy| policy.allows(&asked))
                    })
                });
                if allowed { Ok(()) } else { Err(denied()) }
            }
        }
    }
}
