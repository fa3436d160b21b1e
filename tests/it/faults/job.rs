//! The job itself is wrong, or too old: no retry, one dead letter that says why, nothing visible.

use serde_json::json;

use crate::fixture::AcmeFixture;
use crate::testbed::scripted::Effect;
use crate::testbed::sources::{Content, WebSource};
use crate::testbed::{MIB, bytes};

#[tokio::test]
async fn another_digest_than_promised_is_never_completed() {
    let fixture = AcmeFixture::start("digest").await;
    let wrong = "0".repeat(64);
    for (name, size) in [("small", 5), ("large", 20 * MIB)] {
        let content = bytes(30, size);
        let url = fixture.site.file(name, &content);
        fixture.schedule_with(name, &content, &json!({"source": {"url": url, "sha256": wrong}})).await;
        fixture.failed(name, "source_mismatch").await;
        assert!(fixture.object(name).is_none(), "{name} is visible");
    }
    assert_eq!(fixture.s3.open_uploads(), 0);
    fixture.close().await;
}

#[tokio::test]
async fn another_length_than_promised_is_never_completed() {
    let fixture = AcmeFixture::start("length").await;
    let url = fixture.site.file("a", b"hello");
    fixture.schedule_with("a", b"hello", &json!({"source": {"url": url, "size": 6}})).await;
    fixture.failed("a", "source_mismatch").await;
    assert!(fixture.object("a").is_none());
    fixture.close().await;
}

#[tokio::test]
async fn sources_that_are_gone_or_closed_are_distinguished() {
    let (mut site, s3) = crate::fixture::site("sources").await;
    let ca = site.dir.path().join("ca.pem");
    let web = WebSource::https(&ca).await;
    site.environment("SSL_CERT_FILE", &ca.display().to_string());
    let worker = site.worker().await;
    let fixture = AcmeFixture { site, s3, worker };
    for (status, reason) in [(404, "source_not_found"), (410, "source_not_found"), (403, "source_denied")] {
        let name = format!("answer-{status}");
        let url = web.put(&name, Content::refused(status));
        fixture.schedule_with(&name, b"", &json!({"source": {"url": url}})).await;
        fixture.failed(&name, reason).await;
    }
    let url = web.put("busy", Content::refused(503));
    fixture.schedule_with("busy", b"", &json!({"source": {"url": url}})).await;
    assert_eq!(fixture.site.broker.taken("wait.5s", "\"busy\"").await.header("x-attempt"), "1");
    assert_eq!(fixture.failures("source_unavailable").await, 1.0);
    fixture.close().await;
}

#[tokio::test]
async fn a_job_past_its_time_expires_without_a_dead_letter() {
    let fixture = AcmeFixture::start("expires").await;
    fixture.schedule_with("a", b"hello", &json!({"expires_at": "2020-01-01T00:00:00Z"})).await;
    let outcome = fixture.site.broker.ended("a").await;
    assert_eq!(outcome["type"], "consign.transfer.expired.v1");
    assert_eq!(outcome["data"]["attempts"], 0, "it was never tried: {outcome:#}");
    assert_eq!(fixture.site.broker.take("dead").await.len(), 0);
    assert!(fixture.object("a").is_none());
    assert_eq!(fixture.worker.metric("consign_transfers_total", "outcome=\"expired\"").await, 1.0);
    fixture.close().await;
}

#[tokio::test]
async fn an_unknown_destination_is_dead_at_once() {
    let fixture = AcmeFixture::start("unknown").await;
    fixture.schedule_with("a", b"hello", &json!({"destination": "nobody"})).await;
    let data = fixture.failed("a", "unknown_destination").await;
    assert!(data["message"].as_str().unwrap().contains("nobody"), "{data:#}");
    fixture.close().await;
}

#[tokio::test]
async fn a_refusal_nobody_foresaw_is_dead_after_one_try() {
    let fixture = AcmeFixture::start("unclassified").await;
    let effect = crate::testbed::scripted::Effect::Error(400, "SomethingNew", "Nobody foresaw this.");
    fixture.s3.on("PutObject").before(effect);
    fixture.schedule("a", b"hello").await;
    fixture.failed("a", "unclassified").await;
    assert_eq!(fixture.s3.calls("PutObject").len(), 1);
    fixture.close().await;
}

#[tokio::test]
async fn a_deferred_job_expires_with_its_last_reason_and_never_waits_past_its_time() {
    let fixture = AcmeFixture::start("lateexpiry").await;
    fixture.s3.on("PutObject").before(Effect::Error(403, "AccessDenied", "Access Denied"));
    let expires = (jiff::Timestamp::now() + std::time::Duration::from_secs(14)).to_string();
    fixture.schedule_with("a", b"hello", &json!({"expires_at": expires})).await;
    let outcome = fixture.site.broker.ended("a").await;
    assert_eq!(outcome["type"], "consign.transfer.expired.v1", "{outcome:#}");
    assert_eq!((&outcome["data"]["reason"], &outcome["data"]["attempts"]), (&json!("access_denied"), &json!(0)));
    assert!(outcome["data"]["hint"].as_str().unwrap().contains("s3:PutObject"), "{outcome:#}");
    assert_eq!(fixture.site.broker.take("dead").await.len(), 0);
    assert!(fixture.worker.metric("consign_broker_settlements_total", "action=\"defer\"").await >= 1.0);
    fixture.close().await;
}
