//! Broken set-ups that no server enforces: the answers of AWS are scripted, word by word as AWS
//! gives them.

mod access_key;
mod bucket;
mod deny;
mod entry;
mod kms;

use std::collections::BTreeSet;

use consign::domain::diagnosis::Code;
use serde_json::json;

use super::by_role;
use super::table::{Act, Hands, Setup, shown};
use crate::fixture::KMS_KEY;
use crate::testbed::scripted::Effect;

const OTHER_KEY: &str = "arn:aws:kms:eu-central-1:111111111111:key/11111111-2222-3333-4444-555555555555";
const SSE: &str = "x-amz-server-side-encryption";
const SSE_KEY: &str = "x-amz-server-side-encryption-aws-kms-key-id";

fn by_role_with_key() -> serde_json::Value {
    let mut to = by_role();
    to["kms_key_arn"] = json!(KMS_KEY);
    to
}

/// The customer does what the remedy says, which the scripted server shows by not refusing any
/// more.
const CUSTOMER: Act = |hands| hands.s3.calm();

/// The customer pastes the statement, which allows something.
const PASTED: Act = |hands| {
    let statement = &hands.remedy["statement"];
    assert_eq!(statement["Effect"], "Allow", "{:#}", hands.remedy);
    assert!(hands.remedy["place"].as_str().is_some_and(|place| place.contains("policy")), "{:#}", hands.remedy);
    hands.s3.calm();
};

fn writes(hands: &Hands<'_>, effect: &Effect) {
    for operation in ["CreateMultipartUpload", "PutObject"] {
        hands.s3.on(operation).before(effect.clone());
    }
}

/// Codes shown elsewhere: where there is nothing to fix, by the test of the worker itself, and by a
/// server that never answers.
const ELSEWHERE: [&str; 9] = [
    "ok",
    "not_needed",
    "not_tried",
    "unexpected",
    "timed_out",
    "upload_left_open",
    "broker_not_configured",
    "broker_unavailable",
    "topology_missing",
];

#[test]
fn every_code_there_is_has_a_broken_set_up() {
    let tables = [
        access_key::ACCESS_KEYS_THAT_DO_NOT_FIT,
        bucket::BUCKETS_THAT_ARE_NOT_WHAT_THEY_SHOULD_BE,
        bucket::WHAT_IS_WEAKER_WITHOUT_AN_OPTIONAL_PERMISSION,
        deny::POLICIES_THAT_DENY,
        entry::ROLES_THAT_DO_NOT_LET_US_IN_AS_THEY_SHOULD,
        entry::THE_WORKERS_OWN_PROBLEMS,
        kms::KEYS_THAT_CAN_NOT_ENCRYPT,
        kms::KEYS_THAT_MAY_NOT_BE_USED,
    ];
    let shown: BTreeSet<_> = tables.into_iter().flatten().map(|setup| setup.code).chain(ELSEWHERE).collect();
    let all: BTreeSet<_> = Code::ALL.iter().map(|code| code.as_str()).collect();
    assert_eq!(shown, all);
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
