//! Broken set-ups that no server enforces: the answers of AWS are scripted, word by word as AWS gives them.

use serde_json::json;

use super::table::{Act, Hands, Setup, shown};
use super::{EXTERNAL_ID, by_key, by_role};
use crate::shop::{ACME, KMS_KEY, REGION};
use crate::testbed::moto::Key;
use crate::testbed::scripted::Effect;

const OTHER_KEY: &str = "arn:aws:kms:eu-central-1:111111111111:key/11111111-2222-3333-4444-555555555555";
const SSE: &str = "x-amz-server-side-encryption";
const SSE_KEY: &str = "x-amz-server-side-encryption-aws-kms-key-id";

/// As most refusals are worded.
macro_rules! unauthorized {
    ($action:literal, $why:literal) => {
        concat!(
            "User: arn:aws:sts::111111111111:assumed-role/consign/consign-acme is not authorized to perform: ",
            $action,
            " on resource: \"arn:aws:s3:::acme/in/consign-connection-test\" ",
            $why
        )
    };
}

fn by_role_with_key() -> serde_json::Value {
    let mut to = by_role();
    to["kms_key_arn"] = json!(KMS_KEY);
    to
}

/// The customer does what the remedy says, which the scripted server shows by not refusing any more.
const CUSTOMER: Act = |hands| hands.s3.calm();

fn writes(hands: &Hands<'_>, effect: &Effect) {
    for operation in ["CreateMultipartUpload", "PutObject"] {
        hands.s3.on(operation).before(effect.clone());
    }
}

async fn all(setups: &[Setup]) {
    for setup in setups {
        shown(setup).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_workers_own_problems() {
    all(&[
        Setup {
            code: "identity_absent",
            shows: "identity: failed",
            exit: 77,
            to: by_role,
            broken: |hands| {
                hands.site.without_identity();
            },
            says: &["no AWS credentials of its own", "the customer need not do anything"],
            mended: |hands| {
                hands.site.identity(&Key { id: "AKIAPLATFORM00000001".into(), secret: "any".into() });
            },
        },
        Setup {
            code: "identity_refused",
            shows: "identity: failed",
            exit: 77,
            to: by_role,
            broken: |hands| {
                let effect = Effect::Error(403, "InvalidClientTokenId", "The security token included in the request is invalid.");
                hands.s3.on("GetCallerIdentity").before(effect);
            },
            says: &["renew the credentials of the worker"],
            mended: CUSTOMER,
        },
        Setup {
            code: "identity_may_not_assume",
            shows: "assume_role: failed",
            exit: 77,
            to: by_role,
            broken: |hands| {
                let message = "User: arn:aws:iam::999999999999:user/platform is not authorized to perform: sts:AssumeRole on resource: \
                               arn:aws:iam::111111111111:role/consign because no identity-based policy allows the sts:AssumeRole action";
                hands.s3.on("AssumeRole").before(Effect::Error(403, "AccessDenied", message));
            },
            says: &["this worker's own identity", "allow sts:AssumeRole"],
            mended: CUSTOMER,
        },
        Setup {
            code: "role_auth_off",
            shows: "identity: failed",
            exit: 3,
            to: by_role,
            broken: |hands| {
                hands.site.set("session.role_auth", false);
            },
            says: &["session.role_auth", "use an access key"],
            mended: |hands| {
                hands.site.set("session.role_auth", true);
            },
        },
        Setup {
            code: "clock_skew",
            shows: "identity: failed",
            exit: 3,
            to: by_role,
            broken: |hands| {
                let message = "Signature expired: 20261122T000000Z is now earlier than 20261123T000000Z";
                hands.s3.on("GetCallerIdentity").before(Effect::Error(403, "SignatureDoesNotMatch", message));
            },
            says: &["set the clock"],
            mended: CUSTOMER,
        },
        Setup {
            code: "clock_skew",
            shows: "access_key: failed",
            exit: 3,
            to: by_key,
            broken: |hands| {
                let message = "Signature not yet current: 20261124T000000Z is still later than 20261123T000000Z";
                hands.s3.on("GetCallerIdentity").before(Effect::Error(403, "SignatureDoesNotMatch", message));
            },
            says: &["set the clock"],
            mended: CUSTOMER,
        },
        Setup {
            code: "clock_skew",
            shows: "region: failed",
            exit: 3,
            to: by_role,
            broken: |hands| {
                let message = "The difference between the request time and the current time is too large.";
                hands.s3.on("GetBucketLocation").before(Effect::Error(403, "RequestTimeTooSkewed", message));
            },
            says: &["15 minutes"],
            mended: CUSTOMER,
        },
        Setup {
            code: "sts_unavailable",
            shows: "assume_role: failed",
            exit: 69,
            to: by_role,
            broken: |hands| hands.s3.on("AssumeRole").before(Effect::Error(503, "ServiceUnavailable", "busy")),
            says: &["STS answered 503"],
            mended: CUSTOMER,
        },
        Setup {
            code: "s3_unavailable",
            shows: "region: failed",
            exit: 69,
            to: by_role,
            broken: |hands| hands.s3.on("GetBucketLocation").before(Effect::Error(503, "SlowDown", "Please reduce your request rate.")),
            says: &["test again"],
            mended: CUSTOMER,
        },
        Setup {
            code: "s3_unreachable",
            shows: "region: failed",
            exit: 69,
            to: by_role,
            broken: |hands| {
                hands.site.set("aws.s3_endpoint_url", "http://127.0.0.1:1");
            },
            says: &["aws.s3_endpoint_url"],
            mended: |hands| {
                let url = hands.s3.url.clone();
                hands.site.set("aws.s3_endpoint_url", url);
            },
        },
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roles_that_do_not_let_us_in_as_they_should() {
    let trusted: Act = |hands| {
        let statement = &hands.remedy["statement"]["Statement"][0];
        assert_eq!(
            statement["Principal"]["AWS"], "arn:aws:iam::999999999999:user/AKIAPLATFORM00000001",
            "{statement:#}"
        );
        let id = statement["Condition"]["StringEquals"]["sts:ExternalId"].as_str().expect("the external id to paste");
        hands.s3.trust(Some(id));
    };
    all(&[
        Setup {
            code: "role_denied",
            shows: "assume_role: failed",
            exit: 3,
            to: by_role,
            broken: |hands| hands.s3.trust(Some("another")),
            says: &["trust policy", "AKIAPLATFORM00000001", EXTERNAL_ID],
            mended: trusted,
        },
        Setup {
            code: "role_not_found",
            shows: "assume_role: failed",
            exit: 3,
            to: by_role,
            broken: |hands| hands.s3.on("AssumeRole").before(Effect::Error(404, "NoSuchEntity", "Role consign not found")),
            says: &["there is no role arn:aws:iam::111111111111:role/consign"],
            mended: CUSTOMER,
        },
        Setup {
            code: "role_explicit_deny",
            shows: "assume_role: failed",
            exit: 3,
            to: by_role,
            broken: |hands| {
                let message = "User: arn:aws:iam::999999999999:user/platform is not authorized to perform: sts:AssumeRole on resource: \
                               arn:aws:iam::111111111111:role/consign with an explicit deny in a service control policy";
                hands.s3.on("AssumeRole").before(Effect::Error(403, "AccessDenied", message));
            },
            says: &["Deny of sts:AssumeRole"],
            mended: CUSTOMER,
        },
        Setup {
            code: "role_request_refused",
            shows: "assume_role: failed",
            exit: 3,
            to: by_role,
            broken: |hands| {
                let effect = Effect::Error(400, "PackedPolicyTooLarge", "Serialized token too large for session");
                hands.s3.on("AssumeRole").before(effect);
            },
            says: &["shorten the prefix"],
            mended: CUSTOMER,
        },
        Setup {
            code: "sts_region_disabled",
            shows: "assume_role: failed",
            exit: 3,
            to: by_role,
            broken: |hands| {
                let message = "STS is not activated in this region for account:111111111111.";
                hands.s3.on("AssumeRole").before(Effect::Error(403, "RegionDisabledException", message));
            },
            says: &["activate STS", REGION],
            mended: CUSTOMER,
        },
        Setup {
            code: "external_id_not_enforced",
            shows: "external_id: warning",
            exit: 0,
            to: by_role,
            broken: |hands| hands.s3.trust(None),
            says: &["without the external id", "trust policy"],
            mended: trusted,
        },
        Setup {
            code: "external_id_absent",
            shows: "external_id: warning",
            exit: 0,
            to: || {
                let mut to = by_role();
                to["auth"].as_object_mut().unwrap().remove("external_id");
                to
            },
            broken: |hands| hands.s3.trust(None),
            says: &["auth.external_id"],
            mended: |hands| {
                hands.to["auth"]["external_id"] = json!(EXTERNAL_ID);
                hands.s3.trust(Some(EXTERNAL_ID));
            },
        },
        Setup {
            code: "session_refused",
            shows: "region: failed",
            exit: 3,
            to: by_role,
            broken: |hands| hands.s3.on("GetBucketLocation").before(Effect::Error(400, "ExpiredToken", "The provided token has expired.")),
            says: &["revokes older sessions"],
            mended: CUSTOMER,
        },
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn access_keys_that_do_not_fit() {
    all(&[
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
            mended: |hands| {
                std::fs::write(hands.site.dir.path().join("secret"), "marked-secret-customer-key\n").unwrap()
            },
        },
        Setup {
            code: "access_key_root",
            shows: "access_key: failed",
            exit: 3,
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
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn buckets_that_are_not_what_they_should_be() {
    all(&[
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
            says: &["does not say why", "the bucket must belong to account 111111111111"],
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
                let message =
                    "Content-MD5 OR x-amz-checksum- HTTP header is required for Put Object requests with Object Lock parameters";
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
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_that_deny() {
    const EXPLICIT: &str = unauthorized!("s3:PutObject", "with an explicit deny in a resource-based policy");
    all(&[
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
            mended: CUSTOMER,
        },
        Setup {
            code: "access_denied_unspecified",
            shows: "write: failed",
            exit: 3,
            to: by_role_with_key,
            broken: |hands| writes(hands, &Effect::Error(403, "AccessDenied", "Access Denied")),
            says: &["does not say why", "kms:GenerateDataKey", "\"Action\":\"s3:PutObject\""],
            mended: CUSTOMER,
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
            mended: CUSTOMER,
        },
        Setup {
            code: "explicit_deny_unencrypted",
            shows: "write: failed",
            exit: 3,
            to: by_role,
            broken: |hands| {
                let effect = Effect::Error(403, "AccessDenied", EXPLICIT);
                hands.s3.on("CreateMultipartUpload").unless(SSE, Some("aws:kms")).before(effect.clone());
                hands.s3.on("PutObject").unless(SSE, Some("aws:kms")).before(effect);
            },
            says: &["demands encryption", "kms_key_arn"],
            mended: |hands| hands.to["kms_key_arn"] = json!(KMS_KEY),
        },
        Setup {
            code: "explicit_deny_encryption",
            shows: "write: failed",
            exit: 3,
            to: by_role_with_key,
            broken: |hands| {
                let effect = Effect::Error(403, "AccessDenied", EXPLICIT);
                hands.s3.on("CreateMultipartUpload").unless(SSE_KEY, Some(OTHER_KEY)).before(effect.clone());
                hands.s3.on("PutObject").unless(SSE_KEY, Some(OTHER_KEY)).before(effect);
            },
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
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_may_not_be_used() {
    all(&[
        Setup {
            code: "kms_encrypt_denied_identity",
            shows: "write: failed",
            exit: 3,
            to: by_role_with_key,
            broken: |hands| {
                let message = unauthorized!(
                    "kms:GenerateDataKey",
                    "because no identity-based policy allows the kms:GenerateDataKey action"
                );
                writes(hands, &Effect::Error(403, "AccessDenied", message));
            },
            says: &["no policy of the role or user allows kms:GenerateDataKey", KMS_KEY, "\"kms:Decrypt\""],
            mended: CUSTOMER,
        },
        Setup {
            code: "kms_encrypt_denied_key_policy",
            shows: "write: failed",
            exit: 3,
            to: by_role_with_key,
            broken: |hands| {
                let message = unauthorized!(
                    "kms:GenerateDataKey",
                    "because no resource-based policy allows the kms:GenerateDataKey action"
                );
                writes(hands, &Effect::Error(403, "AccessDenied", message));
            },
            says: &["the key policy of", "\"Principal\":{\"AWS\":\"arn:aws:iam::111111111111:role/consign\"}"],
            mended: CUSTOMER,
        },
        Setup {
            code: "kms_encrypt_denied",
            shows: "write: failed",
            exit: 3,
            to: by_role_with_key,
            broken: |hands| {
                let message = "The ciphertext refers to a customer master key that you cannot use.";
                writes(hands, &Effect::Error(403, "KMS.AccessDeniedException", message));
            },
            says: &["kms:GenerateDataKey", KMS_KEY],
            mended: CUSTOMER,
        },
        Setup {
            code: "kms_decrypt_denied_identity",
            shows: "multipart: failed",
            exit: 3,
            to: by_role_with_key,
            broken: |hands| {
                let message =
                    unauthorized!("kms:Decrypt", "because no identity-based policy allows the kms:Decrypt action");
                hands.s3.on("UploadPart").before(Effect::Error(403, "AccessDenied", message));
            },
            says: &["kms:Decrypt", "put the parts of a large file together"],
            mended: CUSTOMER,
        },
        Setup {
            code: "kms_decrypt_denied_key_policy",
            shows: "multipart: failed",
            exit: 3,
            to: || {
                let mut to = by_key();
                to["kms_key_arn"] = json!(KMS_KEY);
                to
            },
            broken: |hands| {
                let message =
                    unauthorized!("kms:Decrypt", "because no resource-based policy allows the kms:Decrypt action");
                hands.s3.on("UploadPart").before(Effect::Error(403, "AccessDenied", message));
            },
            says: &["the key policy of", "user/AKIACUSTOMER00000001"],
            mended: CUSTOMER,
        },
        Setup {
            code: "kms_decrypt_denied",
            shows: "multipart: failed",
            exit: 3,
            to: by_role_with_key,
            broken: |hands| {
                let message = unauthorized!("kms:Decrypt", "");
                hands.s3.on("UploadPart").before(Effect::Error(403, "AccessDenied", message));
            },
            says: &["kms:Decrypt"],
            mended: CUSTOMER,
        },
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_can_not_encrypt() {
    fn refused(hands: &Hands<'_>, code: &'static str, message: &'static str) {
        for operation in ["CreateMultipartUpload", "PutObject"] {
            hands.s3.on(operation).unless(SSE_KEY, Some(OTHER_KEY)).before(Effect::Error(400, code, message));
        }
    }
    let another_key: Act = |hands| hands.to["kms_key_arn"] = json!(OTHER_KEY);
    let row = |code, broken, says, mended| Setup {
        code,
        shows: "write: failed",
        exit: 3,
        to: by_role_with_key,
        broken,
        says,
        mended,
    };
    all(&[
        row(
            "kms_key_not_found",
            |hands| {
                refused(
                    hands,
                    "KMS.NotFoundException",
                    "Key 'arn:aws:kms:eu-central-1:111111111111:key/x' does not exist",
                )
            },
            &["there is no KMS key", "correct kms_key_arn"],
            another_key,
        ),
        row(
            "kms_key_other_region",
            |hands| refused(hands, "KMS.NotFoundException", "Invalid arn us-west-2"),
            &["another region"],
            another_key,
        ),
        row(
            "kms_key_disabled",
            |hands| refused(hands, "KMS.DisabledException", "arn:aws:kms:eu-central-1:111111111111:key/x is disabled."),
            &["enable the KMS key"],
            CUSTOMER,
        ),
        row(
            "kms_key_pending_deletion",
            |hands| refused(hands, "KMS.KMSInvalidStateException", "arn:aws:kms:... is pending deletion."),
            &["cancel the deletion"],
            CUSTOMER,
        ),
        row(
            "kms_key_unusable",
            |hands| refused(hands, "KMS.InvalidKeyUsageException", "key usage is SIGN_VERIFY"),
            &["symmetric"],
            another_key,
        ),
        row(
            "encryption_mismatch",
            |hands| {
                for operation in ["CreateMultipartUpload", "PutObject"] {
                    hands.s3.on(operation).after(Effect::WrongEncryption);
                }
            },
            &["asked for aws:kms", "honours encryption headers"],
            CUSTOMER,
        ),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_weaker_without_an_optional_permission() {
    fn denied(hands: &Hands<'_>, operation: &'static str) {
        hands.s3.on(operation).before(Effect::Error(403, "AccessDenied", "Access Denied"));
    }
    let row = |code, shows, broken, says| Setup { code, shows, exit: 0, to: by_role, broken, says, mended: CUSTOMER };
    all(&[
        row(
            "region_unchecked",
            "region: warning",
            |hands| denied(hands, "GetBucketLocation"),
            &["s3:GetBucketLocation", "optional"],
        ),
        row(
            "list_denied",
            "list: warning",
            |hands| denied(hands, "ListObjectsV2"),
            &["s3:ListBucket", "\"s3:prefix\":\"in/*\""],
        ),
        row(
            "abort_denied",
            "multipart: warning",
            |hands| denied(hands, "AbortMultipartUpload"),
            &["lifecycle rule", "DaysAfterInitiation"],
        ),
        row(
            "delete_denied",
            "delete: warning",
            |hands| denied(hands, "DeleteObject"),
            &["it stays, empty", "s3:DeleteObject"],
        ),
    ])
    .await;
}
