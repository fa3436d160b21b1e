//! Several customers in one worker: one that is sick costs the others nothing.

use std::time::{Duration, Instant};

use crate::fixture::{AcmeFixture, REGION, role_destination, site};
use crate::testbed::scripted::Effect;
use crate::testbed::site::job;
use crate::testbed::until;

/// A fixture with a second and a third customer.
async fn fixture(word: &str) -> AcmeFixture {
    let (mut site, s3) = site(word).await;
    for (name, account) in [("beta", "222222222222"), ("gamma", "333333333333")] {
        s3.bucket(name, REGION, account);
        site.destination(name, &role_destination(name, account));
    }
    let worker = site.worker().await;
    AcmeFixture { site, s3, worker }
}

/// Ten jobs of the sick one are there first; how long the others' then take.
async fn others_take(fixture: &AcmeFixture, sick: &str) -> Duration {
    let url = fixture.site.file("f", b"hello");
    for n in 0..10 {
        fixture.site.broker.schedule(&job(&format!("sick-{n}"), &url, sick, &format!("sick-{n}"))).await;
    }
    let begun = Instant::now();
    for n in 0..30 {
        for well in ["acme", "gamma"] {
            fixture.site.broker.schedule(&job(&format!("{well}-{n}"), &url, well, &format!("well-{n}"))).await;
        }
    }
    for n in 0..30 {
        fixture.delivered(&format!("acme-{n}")).await;
        fixture.delivered(&format!("gamma-{n}")).await;
    }
    begun.elapsed()
}

#[tokio::test]
async fn one_that_never_answers_delays_nobody() {
    let fixture = fixture("mute").await;
    fixture.s3.on("PutObject").bucket("beta").first(10).before(Effect::Delay(Duration::from_secs(300)));
    let took = others_take(&fixture, "beta").await;
    assert!(took < Duration::from_secs(20), "{took:?}");
    // Each of its tries is given up after half a minute; the next one is answered.
    for n in 0..10 {
        assert_eq!(fixture.delivered(&format!("sick-{n}")).await["attempts"], 1);
    }
    fixture.close().await;
}

#[tokio::test]
async fn one_that_throttles_delays_nobody() {
    let fixture = fixture("throttles").await;
    fixture.s3.on("PutObject").bucket("beta").before(Effect::Error(
        503,
        "SlowDown",
        "Please reduce your request rate.",
    ));
    let took = others_take(&fixture, "beta").await;
    assert!(took < Duration::from_secs(20), "{took:?}");
    // Its own attempt takes longer than the others.
    until("the tenant that throttles has failed", Duration::from_secs(30), async || {
        (fixture.failures("slow_down").await >= 1.0).then_some(())
    })
    .await;
    fixture.s3.calm();
    fixture.close().await;
}

#[tokio::test]
async fn what_a_destination_refuses_for_a_day_is_dead_lettered_and_no_sooner() {
    let fixture = AcmeFixture::start("patience").await;
    fixture.s3.on("PutObject").before(Effect::Error(403, "AccessDenied", "Access Denied"));
    let url = fixture.site.file("f", b"hello");
    let since = |hours: i64| jiff::Timestamp::now() - jiff::SignedDuration::from_hours(hours);
    for (name, hours) in [("young", 23), ("old", 25)] {
        let headers = [
            ("x-deferrals", "40".to_owned()),
            ("x-deferred-since", since(hours).to_string()),
            ("x-first-failure-at", since(hours).to_string()),
        ];
        fixture.site.broker.schedule_with_headers(&job(name, &url, "acme", name), &headers).await;
    }
    fixture.failed("old", "access_denied").await;
    let waiting = fixture.site.broker.taken("wait.10m", "\"young\"").await;
    assert_eq!(waiting.header("x-deferrals"), "41", "{:?}", waiting.headers);
    fixture.close().await;
}
