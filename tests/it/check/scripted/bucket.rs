//! Buckets that are not what they should be, and optional permissions that are missing.

use serde_json::json;

use super::{CUSTOMER, PASTED, all};
use crate::check::by_role;
use crate::check::table::{Act, Hands, Setup};
use crate::fixture::{ACME, REGION};
use crate::testbed::scripted::Effect;

pub const BUCKETS_THAT_ARE_NOT_WHAT_THEY_SHOULD_BE: &[Setup] = &[
    Setup {
        code: "bucket_not_found",
        shows: "region: failed",
        exit: 3,
        to: by_role,
        broken: |hands| hands.to["bucket"] = json!("acme-exports"),
        says: &["create the bucket acme-exports"],
        mended: |hands| hands.s3.bucket("acme-exports", REGION, ACME),
    },
    Setup {
        code: "wrong_region",
        shows: "region: failed",
        exit: 3,
        to: by_role,
        broken: |hands| hands.s3.bucket("acme", "us-west-2", ACME),
        says: &["us-west-2", REGION],
        mended: |hands| hands.set_what_is_said(),
    },
    Setup {
        code: "wrong_owner",
        shows: "region: failed",
        exit: 3,
        to: by_role,
        broken: |hands| hands.to["expected_bucket_owner"] = json!("222222222222"),
        says: &["222222222222", "expected_bucket_owner"],
        mended: |hands| hands.to["expected_bucket_owner"] = json!(ACME),
    },
    Setup {
        code: "wrong_owner",
        shows: "list: failed",
        exit: 3,
        to: by_role,
        broken: |hands| {
            hands.s3.on("GetBucketLocation").before(Effect::Error(403, "AccessDenied", "Access Denied"));
            hands.to["expected_bucket_owner"] = json!("222222222222");
        },
        says: &["222222222222"],
        mended: |hands| {
            hands.s3.calm();
            hands.to["expected_bucket_owner"] = json!(ACME);
        },
    },
    Setup {
        code: "access_denied_unspecified",
        shows: "write: failed",
        exit: 3,
        to: by_role,
        // A stranger's bucket: S3 says the same of everything.
        broken: |hands| hands.s3.bucket("acme", REGION, "333333333333"),
        says: &["without a reason", "the bucket must belong to account 111111111111"],
        mended: |hands| hands.s3.bucket("acme", REGION, ACME),
    },
    Setup {
        code: "object_lock_needs_checksum",
        shows: "write: failed",
        exit: 3,
        to: || {
            let mut to = by_role();
            to["checksum"] = json!("none");
            to
        },
        broken: |hands| {
            let message = "Content-MD5 OR x-amz-checksum- HTTP header is required for Put Object requests with Object Lock parameters";
            let effect = Effect::Error(400, "InvalidRequest", message);
            hands.s3.on("PutObject").unless("x-amz-checksum-crc64nvme", None).before(effect);
        },
        says: &["Object Lock"],
        mended: |hands| hands.set_what_is_said(),
    },
    Setup {
        code: "store_lacks_feature",
        shows: "write: failed",
        exit: 3,
        to: by_role,
        broken: |hands| {
            let message = "A header you provided implies functionality that is not implemented";
            let effect = Effect::Error(501, "NotImplemented", message);
            hands.s3.on("PutObject").with("x-amz-checksum-crc64nvme").before(effect);
        },
        says: &["S3-compatible"],
        mended: |hands| hands.set_what_is_said(),
    },
    Setup {
        code: "quota_exceeded",
        shows: "write: failed",
        exit: 3,
        to: by_role,
        broken: |hands| hands.s3.on("PutObject").before(Effect::Error(403, "QuotaExceeded", "")),
        says: &["raise the quota"],
        mended: CUSTOMER,
    },
    Setup {
        code: "not_s3",
        shows: "write: failed",
        exit: 3,
        to: by_role,
        broken: |hands| hands.s3.on("PutObject").before(Effect::WebPage(403)),
        says: &["it uses no proxy", "aws.s3_endpoint_url"],
        mended: CUSTOMER,
    },
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn buckets_that_are_not_what_they_should_be() {
    all(BUCKETS_THAT_ARE_NOT_WHAT_THEY_SHOULD_BE).await;
}

fn denied(hands: &Hands<'_>, operation: &'static str) {
    hands.s3.on(operation).before(Effect::Error(403, "AccessDenied", "Access Denied"));
}
const fn weaker_row(code: &'static str, shows: &'static str, broken: Act, says: &'static [&'static str]) -> Setup {
    Setup { code, shows, exit: 0, to: by_role, broken, says, mended: PASTED }
}

pub const WHAT_IS_WEAKER_WITHOUT_AN_OPTIONAL_PERMISSION: &[Setup] = &[
    weaker_row(
        "region_unchecked",
        "region: warning",
        |hands| denied(hands, "GetBucketLocation"),
        &["s3:GetBucketLocation", "optional"],
    ),
    weaker_row(
        "list_denied",
        "list: warning",
        |hands| denied(hands, "ListObjectsV2"),
        &["s3:ListBucket", "\"s3:prefix\":\"in/*\""],
    ),
    weaker_row(
        "abort_denied",
        "multipart: warning",
        |hands| denied(hands, "AbortMultipartUpload"),
        &["lifecycle rule", "DaysAfterInitiation", r#"\"Prefix\":\"in/\""#],
    ),
    weaker_row(
        "delete_denied",
        "delete: warning",
        |hands| denied(hands, "DeleteObject"),
        &["stays in the bucket", "s3:DeleteObject"],
    ),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_weaker_without_an_optional_permission() {
    all(WHAT_IS_WEAKER_WITHOUT_AN_OPTIONAL_PERMISSION).await;
}
