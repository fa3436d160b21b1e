//! The network between worker and broker breaks: resets, silence, latency, connections that are cut
//! or half closed.

use std::time::Duration;

use crate::fixture::{AcmeFixture, site};
use crate::testbed::proxy::{Condition, Proxy, address_of};
use crate::testbed::scripted::Effect;
use crate::testbed::until;

/// A fixture whose worker reaches the broker through the proxy.
async fn fixture(word: &str) -> (AcmeFixture, Proxy) {
    let (mut site, s3) = site(word).await;
    let proxy = Proxy::before(address_of(&site.broker.url)).await;
    site.set("broker.url", proxy.in_place_of(&site.broker.url));
    let worker = site.worker().await;
    (AcmeFixture { site, s3, worker }, proxy)
}

#[tokio::test]
async fn reset_the_jobs_continue_and_their_redeliveries_join_them() {
    let (fixture, proxy) = fixture("reset").await;
    fixture.s3.on("PutObject").before(Effect::Held);
    fixture.schedule_many("job", 10).await;
    fixture.running(10.0).await;
    proxy.set(Condition::Reset);
    fixture.unready(&["reset", "connection", "refused", "closed"]).await;
    proxy.set(Condition::Normal);
    fixture.joined(10).await;
    fixture.s3.calm();
    fixture.site.broker.all_ended(10, Duration::from_secs(60)).await;
    assert_eq!(fixture.s3.calls("PutObject").len(), 10);
    fixture.close().await;
}

#[tokio::test]
async fn silent_it_is_found_out_by_the_heartbeat() {
    let (fixture, proxy) = fixture("silent").await;
    fixture.s3.on("PutObject").before(Effect::Held);
    fixture.schedule_many("job", 5).await;
    fixture.running(5.0).await;
    proxy.set(Condition::BlackHole);
    fixture.s3.calm();
    fixture.objects(5).await;
    fixture.unready(&["heartbeat", "connection", "confirm", "answer"]).await;
    proxy.set(Condition::Normal);
    fixture.site.broker.all_ended(5, Duration::from_secs(60)).await;
    assert_eq!(fixture.s3.calls("PutObject").len(), 5);
    fixture.close().await;
}

#[tokio::test]
async fn cut_or_half_closed_while_it_connects_it_connects_again() {
    let (fixture, proxy) = fixture("cutwire").await;
    for (round, condition) in
        [Condition::CutAfter(3000), Condition::CutReplyAfter(3000), Condition::HalfClose].into_iter().enumerate()
    {
        proxy.set(Condition::Reset);
        fixture.unready(&["reset", "connection", "refused", "closed"]).await;
        proxy.set(condition);
        let name = format!("job-{round}");
        fixture.schedule(&name, b"hello").await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(fixture.worker.get("/readyz").await != "ok", "{condition:?} breaks nothing");
        proxy.set(Condition::Normal);
        fixture.delivered(&name).await;
    }
    fixture.close().await;
}

#[tokio::test]
async fn slow_it_makes_nothing_fail() {
    let (fixture, proxy) = fixture("latency").await;
    proxy.set(Condition::Latency(Duration::from_millis(100)));
    fixture.schedule_many("job", 40).await;
    fixture.site.broker.all_ended(40, Duration::from_secs(60)).await;
    assert_eq!(fixture.worker.metric("consign_broker_reconnects_total", "").await, 0.0);
    fixture.close().await;
}

#[tokio::test]
async fn a_consumer_that_the_broker_cancels_is_recreated_and_the_jobs_continue() {
    let fixture = AcmeFixture::start("cancelled").await;
    fixture.s3.on("PutObject").before(Effect::Held);
    fixture.schedule_many("job", 5).await;
    fixture.running(5.0).await;
    // No error comes with it: the stream of deliveries just ends.
    fixture.site.broker.disown("jobs.backfill").await;
    fixture.unready(&["ended the consumer"]).await;
    fixture.joined(5).await;
    fixture.s3.calm();
    fixture.site.broker.all_ended(5, Duration::from_secs(60)).await;
    assert_eq!(fixture.s3.calls("PutObject").len(), 5, "the redeliveries joined");
    let url = fixture.site.file("late", b"late");
    let late = crate::testbed::site::job("late", &url, "acme", "late");
    until("the queue is there again", Duration::from_secs(30), async || {
        fixture.worker.get("/readyz").await.contains("ok").then_some(())
    })
    .await;
    fixture.site.broker.publish("backfill", &late).await;
    fixture.delivered("late").await;
    fixture.close().await;
}
