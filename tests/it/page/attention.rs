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
    browser.until("document.querySelectorAll('#issues tbody tr').length === 3").await;
    let issue = browser.text("#issues tbody").await;
    for part in [
        "globex",
        "circuit breaker open, its jobs wait",
        "access denied: PutObject: S3 answered 403 AccessDenied",
        "15 min ago",
        "let the bucket's policy allow s3:PutObject for the role",
        "consign check globex",
        "4 jobs",
        "dead-lettered: source not found",
        "fixed by the author of the job",
        "last job, 2 min ago",
        "Fix the cause, then requeue the jobs.",
        "consign dead list --reason source_not_found",
    ] {
        assert!(issue.contains(part), "`{part}` is not in: {issue}");
    }
    let dead = browser.text("#dead tbody").await;
    assert!(
        dead.contains("consign dead list --reason source_not_found") && dead.contains("the author of the job"),
        "{dead}"
    );

    // A dead letter is not retried by itself, whatever its class.
    status["dead_letters"][1]["class"] = json!("transient");
    stub.say(status.clone());
    browser.until("document.querySelector('#dead tbody').textContent.includes('the operator: requeue once')").await;
    assert!(!browser.text("#dead tbody").await.contains("it retries"));

    // Failures without an open circuit breaker: the page knows the time of the last one.
    status["destination_states"]["shown"][0]["circuit_open"] = json!(false);
    status["destination_states"]["shown"][0]["circuit"] = json!(null);
    stub.say(status.clone());
    browser.until("document.querySelector('#issues tbody').textContent.includes('3 failures in a row')").await;
    assert!(browser.text("#issues tbody").await.contains("last failure, "));

    // Old dead letters may be requeued or discarded already.
    status["time"] = json!("2026-11-23T12:45:00Z");
    stub.say(status.clone());
    browser.until("document.querySelectorAll('#issues tbody tr').length === 2").await;
    assert!(!browser.text("#issues tbody").await.contains("kms denied"));

    // A worker that is not ready: since when, in the time of the browser, and what to do.
    status["ready"] = json!(false);
    status["not_ready_because"] = json!("outage: S3 does not answer; check the network (since 2026-11-23T12:00:00Z)");
    stub.say(status);
    browser.until("document.getElementById('banner').textContent.includes('check the network (since')").await;
    let banner = browser.text("#banner").await;
    assert!(banner.contains("This worker is not ready for jobs: outage") && !banner.contains("T12:00"), "{banner}");

    stub.say(idle());
    browser.until("document.getElementById('attention').hidden && !document.getElementById('dead-empty').hidden").await;
    assert_eq!(complaints(&browser).await, Vec::<String>::new());
    browser.close().await;
}
