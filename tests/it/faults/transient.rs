//! Time heals it: a few tries in the process, then the wait ladder by attempt.

use std::time::Duration;

use crate::shop::{Shop, site};
use crate::testbed::proxy::{Proxy, Weather};
use crate::testbed::scripted::Effect;
use crate::testbed::{MIB, bytes, until};

const SLOW_DOWN: Effect = Effect::Error(503, "SlowDown", "Please reduce your request rate.");

#[tokio::test]
async fn one_503_is_tried_again_in_the_process() {
    let shop = Shop::open("slowdown").await;
    shop.s3.on("PutObject").first(1).before(SLOW_DOWN);
    shop.schedule("a", b"hello").await;
    assert_eq!(shop.delivered("a").await["attempts"], 1);
    assert_eq!(shop.s3.calls("PutObject").len(), 2);
    assert_eq!(shop.failures("slow_down").await, 0.0, "a healed request is no failed attempt");
    shop.close().await;
}

#[tokio::test]
async fn a_bucket_that_stays_slow_sends_the_job_to_the_first_rung() {
    let shop = Shop::open("throttled").await;
    shop.s3.on("PutObject").before(SLOW_DOWN);
    shop.schedule("a", b"hello").await;
    let waiting = shop.site.broker.taken("wait.5s", "\"a\"").await;
    assert_eq!(waiting.header("x-attempt"), "1", "{:?}", waiting.headers);
    assert!(waiting.header("x-first-failure-at").starts_with("20"), "{:?}", waiting.headers);
    assert_eq!((waiting.routing_key.as_str(), waiting.id.as_deref()), ("job.scheduled.acme", Some("a")));
    assert_eq!(shop.failures("slow_down").await, 1.0);
    let told = shop.site.broker.outcomes_of("a").await;
    assert_eq!(told.len(), 1);
    assert_eq!(told[0]["type"], "consign.transfer.retrying.v1");
    assert_eq!(told[0]["data"]["reason"], "slow_down");
    assert!(told[0]["data"]["retry_at"].is_string(), "{:#}", told[0]);
    shop.close().await;
}

#[tokio::test]
async fn when_the_fault_stops_the_waiting_job_is_delivered() {
    let shop = Shop::open("heals").await;
    shop.s3.on("PutObject").before(Effect::Error(500, "InternalError", "We encountered an internal error."));
    shop.schedule("a", b"hello").await;
    until("a charged attempt", Duration::from_secs(60), async || {
        (shop.site.broker.outcomes_of("a").await.len() == 1).then_some(())
    })
    .await;
    shop.s3.calm();
    assert_eq!(shop.delivered("a").await["attempts"], 2);
    assert_eq!(shop.object("a").unwrap().bytes, "hello");
    assert_eq!(shop.worker.metric("consign_transfer_retries_total", "reason=\"s3_unavailable\"").await, 1.0);
    shop.close().await;
}

#[tokio::test]
async fn throttling_by_sts_is_transient() {
    let shop = Shop::open("ststhrottle").await;
    shop.s3.on("AssumeRole").before(Effect::Error(400, "Throttling", "Rate exceeded"));
    shop.schedule("a", b"hello").await;
    let waiting = shop.site.broker.taken("wait.5s", "\"a\"").await;
    assert_eq!(waiting.header("x-attempt"), "1");
    assert_eq!(shop.failures("throttled").await, 1.0);
    shop.close().await;
}

#[tokio::test]
async fn a_lost_reply_of_put_object_ends_as_one_object() {
    let shop = Shop::open("lostput").await;
    shop.s3.on("PutObject").nth(1).after(Effect::LostReply);
    shop.schedule("a", b"hello").await;
    shop.delivered("a").await;
    assert_eq!(shop.object("a").unwrap().bytes, "hello");
    shop.close().await;
}

#[tokio::test]
async fn a_session_that_expires_in_the_middle_costs_one_part_and_not_the_job() {
    let shop = Shop::open("expired").await;
    let content = bytes(7, 40 * MIB);
    shop.s3.on("UploadPart").nth(3).before(Effect::Error(400, "ExpiredToken", "The provided token has expired."));
    shop.schedule("a", &content).await;
    assert_eq!(shop.delivered("a").await["attempts"], 1);
    assert_eq!(shop.object("a").unwrap().bytes, content);
    assert_eq!(shop.s3.calls("AssumeRole").len(), 2, "refreshed once");
    assert_eq!(shop.s3.calls("CreateMultipartUpload").len(), 1, "the upload goes on");
    let sent = shop.s3.calls("UploadPart").len();
    assert_eq!(sent, 6, "5 parts, one of them twice");
    shop.close().await;
}

#[tokio::test]
async fn all_sessions_gone_is_one_refresh_for_all_parts() {
    let shop = Shop::open("gone").await;
    shop.schedule("first", b"hello").await;
    shop.delivered("first").await;
    shop.s3.expire_sessions();
    let content = bytes(8, 40 * MIB);
    shop.schedule("a", &content).await;
    assert_eq!(shop.delivered("a").await["attempts"], 1);
    assert_eq!(shop.object("a").unwrap().bytes, content);
    assert_eq!(shop.s3.calls("AssumeRole").len(), 2);
    shop.close().await;
}

#[tokio::test]
async fn connections_that_break_in_the_middle_of_parts_cost_tries_and_not_the_job() {
    let (mut site, s3) = site("cut").await;
    let proxy = Proxy::before(s3.address).await;
    site.set("aws.s3_endpoint_url", format!("http://{}", proxy.address));
    let worker = site.worker().await;
    let shop = Shop { site, s3, worker };
    proxy.set(Weather::CutAfter(3 * MIB));
    let content = bytes(50, 40 * MIB);
    shop.schedule("a", &content).await;
    until("a part was tried again", Duration::from_secs(60), async || {
        (shop.worker.metric("consign_parts_total", "result=\"retried\"").await > 0.0).then_some(())
    })
    .await;
    proxy.set(Weather::Fair);
    shop.delivered("a").await;
    assert_eq!(shop.object("a").unwrap().bytes, content);
    assert_eq!(shop.s3.open_uploads(), 0);
    shop.close().await;
}
