//! Broken set-ups that no server enforces: the answers of AWS are scripted, word by word as AWS gives them.

mod access_key;
mod bucket;
mod deny;
mod entry;
mod kms;

use serde_json::json;

use super::by_role;
use super::table::{Act, Hands, Setup, shown};
use crate::shop::KMS_KEY;
use crate::testbed::scripted::Effect;

const OTHER_KEY: &str = "arn:aws:kms:eu-central-1:111111111111:key/11111111-2222-3333-4444-555555555555";
const SSE: &str = "x-amz-server-side-encryption";
const SSE_KEY: &str = "x-amz-server-side-encryption-aws-kms-key-id";

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
use unauthorized;
