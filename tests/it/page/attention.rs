//! What a reader who has never seen the page finds first: what is wrong, for whom, since when, and
//! what to do.

use serde_json::json;

use super::complaints;
use super::stub::{Stub, busy, idle};
use crate::testbed::browser::Browser;

#[tokio::test]
async fn it_says_what_is_wrong_for_whom_since_when_and_what_to_do() {
    let mut status = busy();
    status["time"] = json!("2026-11-23T12:00:00Z");
    let stub = Stub::start(status.clone()).await;
    let browser = Browser::start().await;
    browser.open(&stub.url).await;
    browser.until("document.querySelectorAll('#issues tbody tr').length === 1").await;
    let issue = browser.text("#issues tbody").await;
    for part in [
        "globex",
        "circuit open, its jobs wait",
        "access denied: PutObject: S3 answered 403 AccessDenied",
        "15 min ago",
        "let the bucket's policy allow s3:PutObject for the role",
        "consign check globex",
    ] {
        assert!(issue.contains(part), "`{part}` is not in: {issue}");
    }
    let dead = browser.text("#dead tbody").await;
    assert!(
        dead.contains("consign dead list --reason source_not_found") && dead.contains("the author of the job"),
        "{dead}"
    );

    // Failures without an open circuit: the page knows the time of the last one.
    status["destination_states"]["shown"][0]["circuit_open"] = json!(false);
    status["destination_states"]["shown"][0]["circuit"] = json!(null);
    stub.say(status);
    browser.until("document.querySelector('#issues tbody').textContent.includes('3 failures in a row')").await;
    assert!(browser.text("#issues tbody").await.contains("last failure"));

    stub.say(idle());
    browser.until("document.getElementById('attention').hidden && !document.getElementById('dead-empty').hidden").await;
    assert_eq!(complaints(&browser).await, Vec::<String>::new());
    browser.close().await;
}
