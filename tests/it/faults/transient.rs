//! Time heals it: a few tries in the process, then the retry delay of the attempt.

use std::time::Duration;

use crate::fixture::{AcmeFixture, site};
use crate::testbed::proxy::{Condition, Proxy};
use crate::testbed::scripted::Effect;
use crate::testbed::{MIB, bytes, until};

const SLOW_DOWN: Effect = Effect::Error(503, "SlowDown", "Please reduce your request rate.");

#[tokio::test]
async fn one_503_is_tried_again_in_the_process() {
    let fixture = AcmeFixture::start("slowdown").await;
    fixture.s3.on("PutObject").first(1).before(SLOW_DOWN);
    fixture.schedule("a", b"hello").await;
    assert_eq!(fixture.delivered("a").await["attempts"], 1);
    assert_eq!(fixture.s3.calls("PutObject").len(), 2);
    assert_eq!(fixture.failures("slow_down").await, 0.0, "a healed request is no failed attempt");
    fixture.close().await;
}

#[tokio::test]
async fn a_bucket_that_stays_slow_sends_the_job_to_the_first_retry_delay() {
    let fixture = AcmeFixture::start("throttled").await;
    fixture.s3.on("PutObject").before(SLOW_DOWN);
    fixture.schedule("a", b"hello").await;
    let waiting = fixture.site.broker.taken("wait.5s", "\"a\"").await;
    assert_eq!(waiting.header("x-attempt"), "1", "{:?}", waiting.headers);
    assert!(waiting.header("x-first-failure-at").starts_with("20"), "{:?}", waiting.headers);
    assert_eq!((waiting.routing_key.as_str(), waiting.id.as_deref()), ("job.scheduled.acme", Some("a")));
    assert_eq!(fixture.failures("slow_down").await, 1.0);
    let outcomes = fixture.site.broker.outcomes_of("a").await;
    assert_eq!(outcomes.len(), 1);
    assert_eq!(outcomes[0]["type"], "consign.transfer.retrying.v1");
    assert_eq!(outcomes[0]["data"]["reason"], "slow_down");
    assert!(outcomes[0]["data"]["retry_at"].is_string(), "{:#}", outcomes[0]);
    fixture.close().await;
}

#[tokio::test]
async fn when_the_fault_stops_the_waiting_job_is_delivered() {
    let fixture = AcmeFixture::start("heals").await;
    fixture.s3.on("PutObject").before(Effect::Error(500, "InternalError", "We encountered an internal error."));
    fixture.schedule("a", b"hello").await;
    until("a charged attempt", Duration::from_secs(60), async || {
        (fixture.site.broker.outcomes_of("a").await.len() == 1).then_some(())
    })
    .await;
    fixture.s3.calm();
    assert_eq!(fixture.delivered("a").await["attempts"], 2);
    assert_eq!(fixture.object("a").unwrap().bytes, "hello");
    assert_eq!(fixture.worker.metric("consign_transfer_retries_total", "reason=\"s3_unavailable\"").await, 1.0);
    fixture.close().await;
}

#[tokio::test]
async fn throttling_by_sts_is_transient() {
    let fixture = AcmeFixture::start("ststhrottle").await;
    fixture.s3.on("AssumeRole").before(Effect::Error(400, "Throttling", "Rate exceeded"));
    fixture.schedule("a", b"hello").await;
    let waiting = fixture.site.broker.taken("wait.5s", "\"a\"").await;
    assert_eq!(waiting.header("x-attempt"), "1");
    assert_eq!(fixture.failures("throttled").await, 1.0);
    fixture.close().await;
}

#[tokio::test]
async fn a_lost_reply_of_put_object_ends_as_one_object() {
    let fixture = AcmeFixture::start("lostput").await;
    fixture.s3.on("PutObject").nth(1).after(Effect::LostReply);
    fixture.schedule("a", b"hello").await;
    fixture.delivered("a").await;
    assert_eq!(fixture.object("a").unwrap().bytes, "hello");
    fixture.close().await;
}

#[tokio::test]
async fn a_session_that_expires_in_the_middle_costs_one_part_and_not_the_job() {
    let fixture = AcmeFixture::start("expired").await;
    let content = bytes(7, 40 * MIB);
    fixture.s3.on("UploadPart").nth(3).before(Effect::Error(400, "ExpiredToken", "The provided token has expired."));
    fixture.schedule("a", &content).await;
    assert_eq!(fixture.delivered("a").await["attempts"], 1);
    assert_eq!(fixture.object("a").unwrap().bytes, content);
    assert_eq!(fixture.s3.calls("AssumeRole").len(), 2, "refreshed once");
    assert_eq!(fixture.s3.calls("CreateMultipartUpload").len(), 1, "the upload goes on");
    let sent = fixture.s3.calls("UploadPart").len();
    assert_eq!(sent, 6, "5 parts, one of them twice");
    fixture.close().await;
}

#[tokio::test]
async fn all_sessions_gone_is_one_refresh_for_all_parts() {
    let fixture = AcmeFixture::start("gone").await;
    fixture.schedule("first", b"hello").await;
    fixture.delivered("first").await;
    fixture.s3.expire_sessions();
    let content = bytes(8, 40 * MIB);
    fixture.schedule("a", &content).await;
    assert_eq!(fixture.delivered("a").await["attempts"], 1);
    assert_eq!(fixture.object("a").unwrap().bytes, content);
    assert_eq!(fixture.s3.calls("AssumeRole").len(), 2);
    fixture.close().await;
}

#[tokio::test]
async fn connections_that_break_in_the_middle_of_parts_cost_tries_and_not_the_job() {
    let (mut site, s3) = site("cut").await;
    let proxy = Proxy::before(s3.address).await;
    site.set("aws.s3_endpoint_url", format!("http://{}", proxy.address));
    let worker = site.worker().await;
    let fixture = AcmeFixture { site, s3, worker };
    proxy.set(Condition::CutAfter(3 * MIB));
    let content = bytes(50, 40 * MIB);
    fixture.schedule("a", &content).await;
    until("a part was tried again", Duration::from_secs(60), async || {
        (fixture.worker.metric("consign_parts_total", "result=\"retried\"").await > 0.0).then_some(())
    })
    .await;
    proxy.set(Condition::Normal);
    fixture.delivered("a").await;
    assert_eq!(fixture.object("a").unwrap().bytes, content);
    assert_eq!(fixture.s3.open_uploads(), 0);
    fixture.close().await;
}
