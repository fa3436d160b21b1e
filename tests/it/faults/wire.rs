//! The network between worker and broker breaks: resets, silence, latency, connections that are cut or half closed.

use std::time::Duration;

use crate::shop::{Shop, site};
use crate::testbed::proxy::{Proxy, Weather, address_of};
use crate::testbed::scripted::Effect;
use crate::testbed::until;

/// A shop whose worker reaches the broker through the proxy.
async fn shop(word: &str) -> (Shop, Proxy) {
    let (mut site, s3) = site(word).await;
    let proxy = Proxy::before(address_of(&site.broker.url)).await;
    site.set("broker.url", proxy.in_place_of(&site.broker.url));
    let worker = site.worker().await;
    (Shop { site, s3, worker }, proxy)
}

#[tokio::test]
async fn reset_the_jobs_go_on_and_their_redeliveries_join_them() {
    let (shop, proxy) = shop("reset").await;
    shop.s3.on("PutObject").before(Effect::Delay(Duration::from_secs(6)));
    shop.schedule_many("job", 10).await;
    shop.running(10.0).await;
    proxy.set(Weather::Reset);
    shop.unready(&["reset", "connection", "refused", "closed"]).await;
    proxy.set(Weather::Fair);
    shop.site.broker.all_ended(10, Duration::from_secs(60)).await;
    assert_eq!(shop.s3.calls("PutObject").len(), 10);
    shop.close().await;
}

#[tokio::test]
async fn silent_it_is_found_out_by_the_heartbeat() {
    let (shop, proxy) = shop("silent").await;
    shop.s3.on("PutObject").before(Effect::Delay(Duration::from_secs(2)));
    shop.schedule_many("job", 5).await;
    shop.running(5.0).await;
    proxy.set(Weather::BlackHole);
    shop.objects(5).await;
    shop.unready(&["heartbeat", "connection", "confirm", "answer"]).await;
    proxy.set(Weather::Fair);
    shop.site.broker.all_ended(5, Duration::from_secs(60)).await;
    assert_eq!(shop.s3.calls("PutObject").len(), 5);
    shop.close().await;
}

#[tokio::test]
async fn cut_or_half_closed_while_it_connects_it_connects_again() {
    let (shop, proxy) = shop("cutwire").await;
    for (round, weather) in
        [Weather::CutAfter(3000), Weather::CutReplyAfter(3000), Weather::HalfClose].into_iter().enumerate()
    {
        proxy.set(Weather::Reset);
        shop.unready(&["reset", "connection", "refused", "closed"]).await;
        proxy.set(weather);
        let name = format!("job-{round}");
        shop.schedule(&name, b"hello").await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(shop.worker.get("/readyz").await != "ok", "{weather:?} breaks nothing");
        proxy.set(Weather::Fair);
        shop.delivered(&name).await;
    }
    shop.close().await;
}

#[tokio::test]
async fn slow_it_makes_nothing_fail() {
    let (shop, proxy) = shop("latency").await;
    proxy.set(Weather::Latency(Duration::from_millis(100)));
    shop.schedule_many("job", 40).await;
    shop.site.broker.all_ended(40, Duration::from_secs(60)).await;
    assert_eq!(shop.worker.metric("consign_broker_reconnects_total", "").await, 0.0);
    shop.close().await;
}

#[tokio::test]
async fn a_consumer_that_the_broker_ends_is_made_anew_and_the_jobs_go_on() {
    let shop = Shop::open("cancelled").await;
    shop.s3.on("PutObject").before(Effect::Delay(Duration::from_secs(3)));
    shop.schedule_many("job", 5).await;
    shop.running(5.0).await;
    // No error comes with it: the stream of deliveries just ends.
    shop.site.broker.disown("jobs.backfill").await;
    shop.unready(&["ended the consumer"]).await;
    shop.site.broker.all_ended(5, Duration::from_secs(60)).await;
    assert_eq!(shop.s3.calls("PutObject").len(), 5, "the redeliveries joined");
    let url = shop.site.file("late", b"late");
    let late = crate::testbed::site::job("late", &url, "acme", "late");
    until("the queue is there again", Duration::from_secs(30), async || {
        shop.worker.get("/readyz").await.contains("ok").then_some(())
    })
    .await;
    shop.site.broker.publish("backfill", &late).await;
    shop.delivered("late").await;
    shop.close().await;
}
