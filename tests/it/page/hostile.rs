//! Whatever a job, a destination or an error is called: it is shown as text, and nothing of it
//! runs.

use serde_json::{Value, json};

use super::complaints;
use super::stub::{Stub, busy, destination, problem, running};
use crate::testbed::browser::Browser;

const HOSTILE: &str = r#""><img src=x onerror="window.hacked=1"><script>window.hacked=1</script>'${7*7}\u003cb\u003e"#;

/// Every place a text from outside can get into.
fn status() -> Value {
    let mut status = busy();
    for key in ["worker", "prefix", "version"] {
        status[key] = json!(HOSTILE);
    }
    status["broker"]["address"] = json!(HOSTILE);
    let mut transfer = running(1, HOSTILE, 10, Some(100));
    transfer["destination"] = json!(HOSTILE);
    transfer["lane"] = json!(HOSTILE);
    status["running"] = json!([transfer]);
    let mut end = problem(2, HOSTILE, HOSTILE, HOSTILE, HOSTILE);
    end["destination"] = json!(HOSTILE);
    end["outcome"] = json!(HOSTILE);
    end["at"] = json!(HOSTILE);
    status["recent"] = json!({"ended": [end], "problems": [end]});
    status["failures"] = json!([{"class": HOSTILE, "reason": HOSTILE, "count": 1}]);
    status["lanes"][0]["lane"] = json!(HOSTILE);
    let state = destination(HOSTILE, Some(&end["trouble"]));
    status["destination_states"] = json!({"shown": [state], "matching": 1, "filter": HOSTILE});
    status
}

#[tokio::test]
async fn hostile_text_stays_text() {
    let stub = Stub::start(status()).await;
    let browser = Browser::start().await;
    browser.open(&stub.url).await;
    browser.until("document.querySelectorAll('#destinations tbody tr').length === 1").await;
    for selector in ["#running tbody th .first", "#ended tbody th .first", "#destinations tbody th .first", "#worker"] {
        assert_eq!(browser.text(selector).await, HOSTILE, "{selector}");
    }
    let story = browser.text("#ended tbody td:nth-child(3)").await;
    assert!(story.contains("<script>"), "{story}");
    // Not ready, with a reason from outside, is the other way in.
    let mut refused = status();
    refused["ready"] = json!(false);
    refused["not_ready_because"] = json!(HOSTILE);
    stub.say(refused);
    browser.until("document.getElementById('banner').textContent.includes('<script>')").await;
    // So is a reload that was refused.
    let mut old = status();
    old["reload_refused"] = json!({"at": "2026-11-23T12:00:00Z", "problem": HOSTILE});
    stub.say(old);
    browser.until("document.getElementById('banner').textContent.includes('was not reloaded completely')").await;
    assert!(browser.text("#banner").await.ends_with(HOSTILE));
    let made = browser
        .value("document.querySelectorAll('main img, main script, main b, .banner *, dd *[onerror]').length")
        .await;
    assert_eq!(made, 0, "markup was made from text");
    assert_eq!(browser.value("typeof window.hacked").await, "undefined");
    assert_eq!(complaints(&browser).await, Vec::<String>::new());
    browser.close().await;
}
