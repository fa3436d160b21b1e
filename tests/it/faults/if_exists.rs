//! `if_exists`: the object that was there stays, and our own is not mistaken for somebody else's.

use serde_json::json;

use crate::fixture::AcmeFixture;
use crate::testbed::scripted::Effect;
use crate::testbed::{MIB, bytes};

const SIZES: [(&str, usize); 2] = [("small", 5), ("large", 20 * MIB)];

#[tokio::test]
async fn keep_skips_and_fail_fails() {
    let fixture = AcmeFixture::start("ifexists").await;
    for (name, size) in SIZES {
        fixture.s3.put("acme", &format!("in/{name}-keep"), "theirs");
        fixture.s3.put("acme", &format!("in/{name}-fail"), "theirs");
        let content = bytes(40, size);
        fixture.schedule_with(&format!("{name}-keep"), &content, &json!({"if_exists": "keep"})).await;
        fixture.schedule_with(&format!("{name}-fail"), &content, &json!({"if_exists": "fail"})).await;
        let kept = fixture.site.broker.ended(&format!("{name}-keep")).await;
        assert_eq!(kept["type"], "consign.transfer.skipped.v1", "{kept:#}");
        fixture.failed(&format!("{name}-fail"), "object_exists").await;
        assert_eq!(fixture.object(&format!("{name}-keep")).unwrap().bytes, "theirs");
        assert_eq!(fixture.object(&format!("{name}-fail")).unwrap().bytes, "theirs");
    }
    assert_eq!(fixture.s3.open_uploads(), 0, "a refused Complete leaves no upload behind");
    fixture.close().await;
}

#[tokio::test]
async fn a_free_key_is_taken() {
    let fixture = AcmeFixture::start("free").await;
    for (name, size) in SIZES {
        fixture.schedule_with(name, &bytes(41, size), &json!({"if_exists": "fail"})).await;
        fixture.delivered(name).await;
    }
    let conditional =
        |operation| fixture.s3.calls(operation).iter().all(|call| call.header("if-none-match") == Some("*"));
    assert!(conditional("PutObject") && conditional("CompleteMultipartUpload"));
    fixture.close().await;
}

#[tokio::test]
async fn after_a_lost_reply_our_own_object_is_recognised() {
    let fixture = AcmeFixture::start("ours").await;
    fixture.s3.on("CompleteMultipartUpload").nth(1).after(Effect::LostReply);
    let content = bytes(42, 20 * MIB);
    fixture.schedule_with("a", &content, &json!({"if_exists": "fail"})).await;
    fixture.delivered("a").await;
    assert_eq!(fixture.object("a").unwrap().bytes, content);
    fixture.close().await;
}
