//! `if_exists`: the object that was there stays, and our own is not mistaken for somebody else's.

use serde_json::json;

use crate::shop::Shop;
use crate::testbed::scripted::Effect;
use crate::testbed::{MIB, bytes};

const SIZES: [(&str, usize); 2] = [("small", 5), ("large", 20 * MIB)];

#[tokio::test]
async fn keep_skips_and_fail_fails() {
    let shop = Shop::open("ifexists").await;
    for (name, size) in SIZES {
        shop.s3.put("acme", &format!("in/{name}-keep"), "theirs");
        shop.s3.put("acme", &format!("in/{name}-fail"), "theirs");
        let content = bytes(40, size);
        shop.schedule_with(&format!("{name}-keep"), &content, &json!({"if_exists": "keep"})).await;
        shop.schedule_with(&format!("{name}-fail"), &content, &json!({"if_exists": "fail"})).await;
        let kept = shop.site.broker.ended(&format!("{name}-keep")).await;
        assert_eq!(kept["type"], "consign.transfer.skipped.v1", "{kept:#}");
        shop.failed(&format!("{name}-fail"), "object_exists").await;
        assert_eq!(shop.object(&format!("{name}-keep")).unwrap().bytes, "theirs");
        assert_eq!(shop.object(&format!("{name}-fail")).unwrap().bytes, "theirs");
    }
    assert_eq!(shop.s3.open_uploads(), 0, "a refused Complete leaves no upload behind");
    shop.close().await;
}

#[tokio::test]
async fn a_free_key_is_taken() {
    let shop = Shop::open("free").await;
    for (name, size) in SIZES {
        shop.schedule_with(name, &bytes(41, size), &json!({"if_exists": "fail"})).await;
        shop.delivered(name).await;
    }
    let conditional = |operation| shop.s3.calls(operation).iter().all(|call| call.header("if-none-match") == Some("*"));
    assert!(conditional("PutObject") && conditional("CompleteMultipartUpload"));
    shop.close().await;
}

#[tokio::test]
async fn after_a_lost_reply_our_own_object_is_recognised() {
    let shop = Shop::open("ours").await;
    shop.s3.on("CompleteMultipartUpload").nth(1).after(Effect::LostReply);
    let content = bytes(42, 20 * MIB);
    shop.schedule_with("a", &content, &json!({"if_exists": "fail"})).await;
    shop.delivered("a").await;
    assert_eq!(shop.object("a").unwrap().bytes, content);
    shop.close().await;
}
