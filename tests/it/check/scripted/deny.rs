//! Policies that deny.

use serde_json::json;

use super::{CUSTOMER, OTHER_KEY, PASTED, SSE, SSE_KEY, all, by_role_with_key, unauthorized, writes};
use crate::check::by_role;
use crate::check::table::{Hands, Setup};
use crate::fixture::KMS_KEY;
use crate::testbed::scripted::Effect;

const EXPLICIT: &str = unauthorized!("s3:PutObject", "with an explicit deny in a resource-based policy");

/// A policy of the bucket that denies every upload without this value of a header.
fn demands(hands: &Hands<'_>, header: &str, value: &str) {
    for operation in ["CreateMultipartUpload", "PutObject"] {
        hands.s3.on(operation).unless(header, Some(value)).before(Effect::Error(403, "AccessDenied", EXPLICIT));
    }
}

pub const POLICIES_THAT_DENY: &[Setup] = &[
    Setup {
        code: "put_denied",
        shows: "write: failed",
        exit: 3,
        to: by_role,
        broken: |hands| {
            let message =
                unauthorized!("s3:PutObject", "because no identity-based policy allows the s3:PutObject action");
            writes(hands, &Effect::Error(403, "AccessDenied", message));
        },
        says: &["s3:PutObject", "arn:aws:s3:::acme/in/*", "\"Effect\":\"Allow\""],
        mended: PASTED,
    },
    Setup {
        code: "access_denied_unspecified",
        shows: "write: failed",
        exit: 3,
        to: by_role_with_key,
        broken: |hands| writes(hands, &Effect::Error(403, "AccessDenied", "Access Denied")),
        says: &["without a reason", "kms:GenerateDataKey", "\"Action\":\"s3:PutObject\""],
        mended: PASTED,
    },
    Setup {
        code: "permission_denied",
        shows: "write: failed",
        exit: 3,
        to: by_role,
        broken: |hands| {
            let message = unauthorized!(
                "s3:PutObjectTagging",
                "because no identity-based policy allows the s3:PutObjectTagging action"
            );
            hands.s3.on("PutObject").before(Effect::Error(403, "AccessDenied", message));
        },
        says: &["s3:PutObjectTagging is not allowed", "\"Action\":\"s3:PutObjectTagging\""],
        mended: PASTED,
    },
    Setup {
        code: "explicit_deny_unencrypted",
        shows: "write: failed",
        exit: 3,
        to: by_role,
        broken: |hands| demands(hands, SSE, "aws:kms"),
        says: &["requires encryption", "kms_key_arn"],
        mended: |hands| hands.to["kms_key_arn"] = json!(KMS_KEY),
    },
    // The example of AWS.
    Setup {
        code: "explicit_deny_unencrypted",
        shows: "write: failed",
        exit: 3,
        to: by_role,
        broken: |hands| demands(hands, SSE, "AES256"),
        says: &[
            "requires encryption",
            r#"set encryption of the destination to what the bucket policy requires (\"AES256\","#,
        ],
        mended: |hands| hands.to["encryption"] = json!("AES256"),
    },
    Setup {
        code: "explicit_deny_encryption",
        shows: "write: failed",
        exit: 3,
        to: by_role_with_key,
        broken: |hands| demands(hands, SSE_KEY, OTHER_KEY),
        says: &["another KMS key", "kms_key_arn"],
        mended: |hands| hands.to["kms_key_arn"] = json!(OTHER_KEY),
    },
    Setup {
        code: "explicit_deny_source_address",
        shows: "write: failed",
        exit: 3,
        to: by_role,
        broken: |hands| {
            hands.site.set("check.egress_addresses", vec!["192.0.2.17", "198.51.100.0/24"]);
            for operation in
                ["GetBucketLocation", "ListObjectsV2", "CreateMultipartUpload", "PutObject", "DeleteObject"]
            {
                hands.s3.on(operation).before(Effect::Error(403, "AccessDenied", EXPLICIT));
            }
        },
        says: &["source address", "192.0.2.17, 198.51.100.0/24"],
        mended: CUSTOMER,
    },
    Setup {
        code: "explicit_deny_identity",
        shows: "write: failed",
        exit: 3,
        to: by_role,
        broken: |hands| {
            let message = unauthorized!("s3:PutObject", "with an explicit deny in a permissions boundary");
            writes(hands, &Effect::Error(403, "AccessDenied", message));
        },
        says: &["permissions boundary", "Deny of s3:PutObject"],
        mended: CUSTOMER,
    },
    Setup {
        code: "explicit_deny_organization",
        shows: "write: failed",
        exit: 3,
        to: by_role,
        broken: |hands| {
            let message = unauthorized!("s3:PutObject", "with an explicit deny in a service control policy");
            writes(hands, &Effect::Error(403, "AccessDenied", message));
        },
        says: &["organization"],
        mended: CUSTOMER,
    },
    Setup {
        code: "explicit_deny_endpoint",
        shows: "write: failed",
        exit: 3,
        to: by_role,
        broken: |hands| {
            let message = unauthorized!("s3:PutObject", "with an explicit deny in a VPC endpoint policy");
            writes(hands, &Effect::Error(403, "AccessDenied", message));
        },
        says: &["VPC endpoint"],
        mended: CUSTOMER,
    },
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_that_deny() {
    all(POLICIES_THAT_DENY).await;
}
