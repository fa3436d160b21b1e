//! `if_exists`: the object that was there stays, and our own is not mistaken for somebody else's.

use std::time::Duration;

use serde_json::json;

use crate::fixture::{AcmeFixture, site};
use crate::testbed::proxy::{Condition, Proxy, address_of};
use crate::testbed::scripted::Effect;
use crate::testbed::site::job;
use crate::testbed::{MIB, bytes, until};

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

/// The first try of the write is lost with its reply, as `operation` says; the object is `theirs`.
fn lost_before(fixture: &AcmeFixture, name: &str, operation: &'static str, theirs: &[u8], parts: Option<usize>) {
    let key = format!("in/{name}");
    fixture.s3.on(operation).key(name).nth(1).before(Effect::LostReply);
    match parts {
        None => fixture.s3.put("acme", &key, theirs.to_vec()),
        Some(parts) => fixture.s3.put_in_parts("acme", &key, theirs.to_vec(), parts),
    }
}

#[tokio::test]
async fn after_a_lost_reply_a_foreign_object_of_the_same_size_and_time_is_not_claimed() {
    let fixture = AcmeFixture::start("sametime").await;
    for (name, size) in SIZES {
        for if_exists in ["keep", "fail"] {
            let (name, theirs) = (format!("{name}-{if_exists}"), bytes(43, size));
            let (operation, parts) =
                if size < MIB { ("PutObject", None) } else { ("CompleteMultipartUpload", Some(3)) };
            lost_before(&fixture, &name, operation, &theirs, parts);
            fixture.schedule_with(&name, &bytes(44, size), &json!({"if_exists": if_exists})).await;
            if if_exists == "keep" {
                let kept = fixture.site.broker.ended(&name).await;
                assert_eq!(kept["type"], "consign.transfer.skipped.v1", "{kept:#}");
            } else {
                fixture.failed(&name, "object_exists").await;
            }
            assert_eq!(fixture.object(&name).unwrap().bytes, theirs);
            assert!(fixture.s3.calls(operation).iter().filter(|call| call.key.ends_with(&name)).count() >= 2);
        }
    }
    fixture.close().await;
}

/// Under a KMS key no ETag is a digest: an upload in parts is recognised by its initiation, a
/// single put by nothing.
#[tokio::test]
async fn under_a_kms_key_what_cannot_be_told_is_not_claimed() {
    let fixture = AcmeFixture::start("kmsours").await;
    let fields = json!({"if_exists": "fail", "destination": "acme-kms"});
    fixture.s3.on("PutObject").nth(1).after(Effect::LostReply);
    fixture.s3.on("CompleteMultipartUpload").nth(1).after(Effect::LostReply);
    fixture.schedule_with("large", &bytes(45, 20 * MIB), &fields).await;
    fixture.delivered("large").await;
    fixture.schedule_with("small", b"hello", &fields).await;
    let data = fixture.failed("small", "object_exists").await;
    assert!(data["hint"].as_str().unwrap().contains("KMS encryption"), "{data:#}");
    fixture.close().await;
}

#[tokio::test]
async fn an_object_that_cannot_be_listed_now_is_judged_by_the_next_attempt() {
    let fixture = AcmeFixture::start("nolistnow").await;
    fixture.s3.on("PutObject").nth(1).after(Effect::LostReply);
    fixture.s3.on("ListObjectsV2").first(4).before(Effect::Error(503, "SlowDown", "Reduce your rate."));
    fixture.schedule_with("a", b"hello", &json!({"if_exists": "fail"})).await;
    assert_eq!(fixture.delivered("a").await["attempts"], 2);
    fixture.close().await;
}

#[tokio::test]
async fn where_listing_is_denied_the_failure_says_what_cannot_be_told() {
    let fixture = AcmeFixture::start("nolistatall").await;
    fixture.s3.on("PutObject").nth(1).after(Effect::LostReply);
    fixture.s3.on("ListObjectsV2").before(Effect::Error(403, "AccessDenied", "Access Denied"));
    fixture.schedule_with("a", b"hello", &json!({"if_exists": "fail"})).await;
    let data = fixture.failed("a", "object_exists").await;
    assert!(data["hint"].as_str().unwrap().contains("s3:ListBucket"), "{data:#}");
    fixture.close().await;
}

/// The reply is lost, and then STS gives no session for the next try.
#[tokio::test]
async fn a_lost_reply_is_not_forgotten_when_the_session_can_not_be_renewed() {
    let fixture = AcmeFixture::start("lostsession").await;
    for (name, size, operation) in [("small", 5, "PutObject"), ("large", 20 * MIB, "CompleteMultipartUpload")] {
        fixture.s3.on(operation).key(name).nth(1).after(Effect::LostReply);
        fixture.s3.on(operation).key(name).nth(2).before(Effect::Error(400, "ExpiredToken", "Too old."));
        fixture.schedule_with(&format!("warm-{size}"), b"the session is there", &json!({})).await;
        fixture.delivered(&format!("warm-{size}")).await;
        fixture.s3.on("AssumeRole").first(6).before(Effect::Error(500, "InternalFailure", "Not now."));
        let content = bytes(46, size);
        fixture.schedule_with(name, &content, &json!({"if_exists": "fail"})).await;
        let data = fixture.delivered(name).await;
        // An upload in parts is looked for by the same attempt, as soon as there is a session.
        assert_eq!(data["attempts"].as_u64().unwrap() > 1, name == "small", "{data:#}");
        assert_eq!(fixture.object(name).unwrap().bytes, content);
    }
    fixture.close().await;
}

/// A site whose store is said to be of a flavor, and that ignores the condition of a write as that
/// store does.
async fn flavored(flavor: &str, ignoring: &[&'static str]) -> AcmeFixture {
    let (mut site, s3) = site("flavored").await;
    site.set("aws.flavor", flavor).set("session.role_auth", true);
    for operation in ignoring {
        s3.on(operation).before(Effect::Unconditional);
    }
    AcmeFixture { worker: site.worker().await, site, s3 }
}

#[tokio::test]
async fn a_store_that_ignores_the_condition_replaces_nothing() {
    for (flavor, ignoring) in [
        ("ceph", &["CompleteMultipartUpload"][..]),
        ("garage", &["PutObject", "CompleteMultipartUpload"]),
        ("gcs", &["PutObject", "CompleteMultipartUpload"]),
    ] {
        let fixture = flavored(flavor, ignoring).await;
        for (name, size) in SIZES {
            fixture.s3.put("acme", &format!("in/{name}-keep"), "theirs");
            fixture.s3.put("acme", &format!("in/{name}-fail"), "theirs");
            let content = bytes(44, size);
            fixture.schedule_with(&format!("{name}-keep"), &content, &json!({"if_exists": "keep"})).await;
            fixture.schedule_with(&format!("{name}-fail"), &content, &json!({"if_exists": "fail"})).await;
            fixture.schedule_with(&format!("{name}-free"), &content, &json!({"if_exists": "fail"})).await;
            let kept = fixture.site.broker.ended(&format!("{name}-keep")).await;
            assert_eq!(kept["type"], "consign.transfer.skipped.v1", "{flavor}: {kept:#}");
            fixture.failed(&format!("{name}-fail"), "object_exists").await;
            fixture.delivered(&format!("{name}-free")).await;
            for taken in ["keep", "fail"] {
                assert_eq!(fixture.object(&format!("{name}-{taken}")).unwrap().bytes, "theirs", "{flavor}: {name}");
            }
            assert_eq!(fixture.object(&format!("{name}-free")).unwrap().bytes, content, "{flavor}: {name}");
        }
        assert_eq!(fixture.s3.open_uploads(), 0);
        fixture.close().await;
    }
}

#[tokio::test]
async fn where_the_key_may_not_be_listed_nothing_is_written_and_the_permission_is_named() {
    let fixture = flavored("ceph", &["CompleteMultipartUpload"]).await;
    fixture.s3.on("ListObjectsV2").before(Effect::Error(403, "AccessDenied", "Access Denied"));
    fixture.schedule_with("a", &bytes(45, 20 * MIB), &json!({"if_exists": "fail"})).await;
    until("the denial is counted", Duration::from_secs(60), async || {
        (fixture.failures("access_denied").await >= 1.0).then_some(())
    })
    .await;
    assert_eq!(fixture.s3.calls("CompleteMultipartUpload").len(), 0);
    assert!(fixture.worker.log().contains("allow s3:ListBucket for the prefix"));
    fixture.s3.calm();
    fixture.close().await;
}

#[tokio::test]
async fn a_completion_without_an_etag_that_names_the_key_is_one() {
    let fixture = AcmeFixture::start("noetag").await;
    let reply = "<CompleteMultipartUploadResult><Bucket>acme</Bucket><Key>in/a</Key><ETag></ETag></CompleteMultipartUploadResult>";
    fixture.s3.on("CompleteMultipartUpload").after(Effect::Body(reply));
    // Nothing is listed either, as most customers have it.
    fixture.s3.on("ListObjectsV2").before(Effect::Error(403, "AccessDenied", "Access Denied"));
    let content = bytes(46, 20 * MIB);
    fixture.schedule("a", &content).await;
    let data = fixture.delivered("a").await;
    assert_eq!((&data["etag"], &data["attempts"]), (&json!(null), &json!(1)), "{data:#}");
    assert_eq!(fixture.object("a").unwrap().bytes, content);
    assert_eq!(fixture.s3.calls("CompleteMultipartUpload").len(), 1);
    fixture.close().await;
}

#[tokio::test]
async fn an_object_that_another_worker_wrote_after_the_delivery_was_lost_is_the_jobs() {
    let (mut site, s3) = site("ifrival").await;
    let direct = site.broker.url.clone();
    let proxy = Proxy::before(address_of(&direct)).await;
    site.set("broker.url", proxy.in_place_of(&direct));
    s3.on("PutObject").first(1).before(Effect::Held);
    let first = site.worker().await;
    let mut fresh = job("fresh", &site.file("fresh", b"hello"), "acme", "fresh");
    fresh["if_exists"] = json!("fail");
    site.broker.schedule(&fresh).await;
    until("the write is held", Duration::from_secs(60), async || s3.calls("PutObject").pop()).await;
    proxy.set(Condition::Reset);
    site.set("broker.url", direct);
    s3.on("PutObject").after(Effect::Delay(Duration::from_secs(60)));
    let second = site.worker().await;
    until("the other worker has written", Duration::from_secs(60), async || s3.object("acme", "in/fresh")).await;
    // It knows nothing of that.
    second.kill();
    proxy.set(Condition::Normal);
    until("it is connected again", Duration::from_secs(60), async || {
        first.try_get("/readyz").await?.contains("ok").then_some(())
    })
    .await;
    s3.calm();
    let ended = site.broker.ended("fresh").await;
    assert_eq!(ended["type"], "consign.transfer.delivered.v1", "{ended:#}");
    first.quiet().await;
    assert!(site.broker.take("dead").await.is_empty());
    site.broker.clean().await;
}
