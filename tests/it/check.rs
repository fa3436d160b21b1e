//! The connection test: every broken set-up has a code of its own, and the remedy fixes it.

mod edges;
mod enforced;
mod message;
mod scripted;
mod secrets;
mod table;
mod verdict;

use std::process::Output;

use serde_json::{Value, json};

use crate::fixture::{ACME, REGION};
use crate::testbed::scripted::ScriptedS3;
use crate::testbed::site::Site;

/// The one object that a test may leave.
const TEST_OBJECT: &str = "acme/in/consign-connection-test";
const EXTERNAL_ID: &str = "external-id-of-acme";
const ROLE: &str = "arn:aws:iam::111111111111:role/consign";

/// A role destination in good order.
fn by_role() -> Value {
    let auth = json!({"method": "iam_role", "role_arn": ROLE, "external_id": EXTERNAL_ID});
    json!({"bucket": "acme", "region": REGION, "prefix": "in/", "auth": auth})
}

/// A destination with an access key in good order.
fn by_key() -> Value {
    let auth = json!({
        "method": "access_key", "access_key_id": "AKIACUSTOMER00000001", "secret_access_key": "marked-secret-customer-key",
    });
    json!({"bucket": "acme", "region": REGION, "prefix": "in/", "auth": auth})
}

/// A customer without a fault, on the scripted S3 and STS; no broker.
async fn customer() -> (Site, ScriptedS3) {
    let s3 = ScriptedS3::start().await;
    s3.bucket("acme", REGION, ACME);
    s3.trust(Some(EXTERNAL_ID));
    let mut site = Site::embedded("customer");
    site.aws(&s3.url);
    (site, s3)
}

/// The answer of `consign check acme --json`, and its exit code.
fn check(site: &Site) -> (Value, i32) {
    let output = run(site, &["check", "acme", "--json"]);
    let text = String::from_utf8(output.stdout).unwrap();
    let Ok(answer) = serde_json::from_str(&text) else {
        panic!("no answer: {text}{}", String::from_utf8_lossy(&output.stderr))
    };
    (answer, output.status.code().unwrap())
}

/// A command of the binary; the servers of this process keep running meanwhile.
fn run(site: &Site, arguments: &[&str]) -> Output {
    tokio::task::block_in_place(|| site.consign(arguments))
}

/// The step of this name.
fn step<'a>(answer: &'a Value, name: &str) -> &'a Value {
    let steps = answer["steps"].as_array().unwrap();
    steps.iter().find(|step| step["step"] == name).unwrap_or_else(|| panic!("no step {name}: {answer:#}"))
}

/// The codes of all steps that ended so.
fn codes(answer: &Value, result: &str) -> Vec<String> {
    let steps = answer["steps"].as_array().unwrap().iter().filter(|step| step["result"] == result);
    steps.map(|step| step["code"].as_str().unwrap().to_owned()).collect()
}
