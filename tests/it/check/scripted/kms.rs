//! KMS keys that may not be used, or can not encrypt.

use serde_json::json;

use super::{CUSTOMER, OTHER_KEY, PASTED, SSE_KEY, all, by_role_with_key, unauthorized, writes};
use crate::check::by_key;
use crate::check::table::{Act, Hands, Setup};
use crate::fixture::KMS_KEY;
use crate::testbed::scripted::Effect;

pub const KEYS_THAT_MAY_NOT_BE_USED: &[Setup] = &[
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
        mended: PASTED,
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
        mended: PASTED,
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
        mended: PASTED,
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
        says: &["kms:Decrypt", "join the parts of a large file"],
        mended: PASTED,
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
        mended: PASTED,
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
        mended: PASTED,
    },
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_may_not_be_used() {
    all(KEYS_THAT_MAY_NOT_BE_USED).await;
}

fn key_refused(hands: &Hands<'_>, code: &'static str, message: &'static str) {
    for operation in ["CreateMultipartUpload", "PutObject"] {
        hands.s3.on(operation).unless(SSE_KEY, Some(OTHER_KEY)).before(Effect::Error(400, code, message));
    }
}
const ANOTHER_KEY: Act = |hands| hands.to["kms_key_arn"] = json!(OTHER_KEY);
const fn key_row(code: &'static str, broken: Act, says: &'static [&'static str], mended: Act) -> Setup {
    Setup { code, shows: "write: failed", exit: 3, to: by_role_with_key, broken, says, mended }
}

pub const KEYS_THAT_CAN_NOT_ENCRYPT: &[Setup] = &[
    key_row(
        "kms_key_not_found",
        |hands| {
            key_refused(
                hands,
                "KMS.NotFoundException",
                "Key 'arn:aws:kms:eu-central-1:111111111111:key/x' does not exist",
            );
        },
        &["there is no KMS key", "correct kms_key_arn"],
        ANOTHER_KEY,
    ),
    key_row(
        "kms_key_other_region",
        |hands| key_refused(hands, "KMS.NotFoundException", "Invalid arn us-west-2"),
        &["another region"],
        ANOTHER_KEY,
    ),
    key_row(
        "kms_key_disabled",
        |hands| key_refused(hands, "KMS.DisabledException", "arn:aws:kms:eu-central-1:111111111111:key/x is disabled."),
        &["enable the KMS key"],
        CUSTOMER,
    ),
    key_row(
        "kms_key_pending_deletion",
        |hands| key_refused(hands, "KMS.KMSInvalidStateException", "arn:aws:kms:... is pending deletion."),
        &["cancel the deletion"],
        CUSTOMER,
    ),
    key_row(
        "kms_key_unusable",
        |hands| key_refused(hands, "KMS.InvalidKeyUsageException", "key usage is SIGN_VERIFY"),
        &["symmetric"],
        ANOTHER_KEY,
    ),
    key_row(
        "encryption_mismatch",
        |hands| {
            for operation in ["CreateMultipartUpload", "PutObject"] {
                hands.s3.on(operation).after(Effect::WrongEncryption);
            }
        },
        &["asked for aws:kms", "honours encryption headers"],
        CUSTOMER,
    ),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_can_not_encrypt() {
    all(KEYS_THAT_CAN_NOT_ENCRYPT).await;
}
