//! Access keys that do not fit.

use serde_json::json;

use super::{CUSTOMER, all, writes};
use crate::check::by_key;
use crate::check::table::Setup;
use crate::testbed::scripted::Effect;

pub const ACCESS_KEYS_THAT_DO_NOT_FIT: &[Setup] = &[
    Setup {
        code: "access_key_unknown",
        shows: "access_key: failed",
        exit: 3,
        to: by_key,
        broken: |hands| {
            let message = "The security token included in the request is invalid.";
            hands.s3.on("GetCallerIdentity").before(Effect::Error(403, "InvalidClientTokenId", message));
        },
        says: &["inactive", "create a new access key"],
        mended: CUSTOMER,
    },
    Setup {
        code: "access_key_unknown",
        shows: "region: failed",
        exit: 3,
        to: by_key,
        broken: |hands| {
            let message = "The AWS Access Key Id you provided does not exist in our records.";
            hands.s3.on("GetBucketLocation").before(Effect::Error(403, "InvalidAccessKeyId", message));
        },
        says: &["create a new access key"],
        mended: CUSTOMER,
    },
    Setup {
        code: "access_key_disabled",
        shows: "region: failed",
        exit: 3,
        to: by_key,
        broken: |hands| {
            let message = "Your account is disabled; please contact your administrator.";
            hands.s3.on("GetBucketLocation").before(Effect::Error(403, "InvalidAccessKeyId", message));
        },
        says: &["enable it"],
        mended: CUSTOMER,
    },
    Setup {
        code: "access_key_secret_wrong",
        shows: "region: failed",
        exit: 3,
        to: by_key,
        broken: |hands| {
            let message = "The request signature we calculated does not match the signature you provided.";
            hands.s3.on("GetBucketLocation").before(Effect::Error(403, "SignatureDoesNotMatch", message));
        },
        says: &["the secret does not belong"],
        mended: CUSTOMER,
    },
    Setup {
        code: "access_key_secret_unreadable",
        shows: "access_key: failed",
        exit: 3,
        to: by_key,
        broken: |hands| {
            let auth = hands.to["auth"].as_object_mut().unwrap();
            auth.remove("secret_access_key");
            auth.insert(
                "secret_access_key_file".into(),
                json!(hands.site.dir.path().join("secret").display().to_string()),
            );
        },
        says: &["can't be read", "put the secret access key into that file"],
        mended: |hands| std::fs::write(hands.site.dir.path().join("secret"), "marked-secret-customer-key\n").unwrap(),
    },
    Setup {
        code: "access_key_root",
        shows: "access_key: warning",
        exit: 0,
        to: by_key,
        broken: |hands| hands.to["auth"]["access_key_id"] = json!("AKIAROOT000000000001"),
        says: &["root", "create an IAM user"],
        mended: |hands| hands.to["auth"]["access_key_id"] = json!("AKIAUSER000000000001"),
    },
    Setup {
        code: "access_key_temporary",
        shows: "access_key: failed",
        exit: 3,
        to: by_key,
        broken: |hands| hands.to["auth"]["access_key_id"] = json!("ASIATEMPORARY0000001"),
        says: &["ASIA", "AKIA"],
        mended: |hands| hands.to["auth"]["access_key_id"] = json!("AKIAUSER000000000001"),
    },
    Setup {
        code: "account_disabled",
        shows: "multipart: failed",
        exit: 3,
        to: by_key,
        broken: |hands| {
            let message = "All access to this object has been disabled";
            writes(hands, &Effect::Error(403, "AllAccessDisabled", message));
        },
        says: &["suspended"],
        mended: CUSTOMER,
    },
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn access_keys_that_do_not_fit() {
    all(ACCESS_KEYS_THAT_DO_NOT_FIT).await;
}
