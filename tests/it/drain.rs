//! SIGTERM: what runs is finished or given back, nothing is lost, nothing is half delivered.

use std::time::Duration;

use crate::fixture::{AcmeFixture, site};
use crate::testbed::checker::Checker;
use crate::testbed::scripted::{Effect, ScriptedS3};
use crate::testbed::site::{Site, job};
use crate::testbed::{MIB, bytes, until};

const JOBS: usize = 60;

/// Jobs of one part and of several, so that the signal meets uploads in every state.
async fn publish(site: &Site) -> Vec<(String, Vec<u8>)> {
    let mut sources = Vec::new();
    for n in 0..JOBS {
        let (name, content) = (format!("job-{n}"), bytes(u64::try_from(n).unwrap(), [1000, 20 * MIB, 300_000][n % 3]));
        let url = site.file(&name, &content);
        site.broker.schedule(&job(&name, &url, "acme", &name)).await;
        sources.push((name, content));
    }
    sources
}

fn check(s3: &ScriptedS3, sources: &[(String, Vec<u8>)]) {
    for (name, content) in sources {
        let object = s3.object("acme", &format!("in/{name}")).unwrap_or_else(|| panic!("{name} is lost"));
        assert!(object.bytes == content, "{name} is not its source");
    }
}

#[tokio::test]
async fn sigterm_under_load_ends_in_time_and_another_worker_does_the_rest() {
    let (mut site, s3) = site("drain").await;
    site.set("worker.drain_timeout", "20s");
    s3.on("UploadPart").before(Effect::Delay(Duration::from_millis(150)));
    let sources = publish(&site).await;
    let first = site.worker().await;
    until("some of it is done", Duration::from_secs(60), async || (s3.count("acme") >= 10).then_some(())).await;
    first.terminate();
    let status = first.exit(Duration::from_secs(25)).await;
    assert_eq!(status.code(), Some(0), "{}", first.log());
    let done = s3.count("acme");
    assert!(done < JOBS, "the signal came too late to show anything");

    let second = site.worker().await;
    site.broker.all_ended(JOBS, Duration::from_secs(90)).await;
    check(&s3, &sources);
    assert_eq!(site.broker.take("dead").await.len(), 0);
    let retrying = site.broker.outcomes().await.iter().filter(|o| o.routing_key.contains("retrying")).count();
    assert_eq!(retrying, 0, "a drain charges no attempt");
    Checker::new(&site, &s3).worker(&second).after_others().check().await;
    site.broker.clean().await;
}

#[tokio::test]
async fn what_cannot_be_finished_in_time_goes_back_uncharged() {
    let (mut site, s3) = site("drainlate").await;
    site.set("worker.drain_timeout", "2s");
    s3.on("UploadPart").before(Effect::Delay(Duration::from_secs(60)));
    let content = bytes(1, 20 * MIB);
    let url = site.file("a", &content);
    let worker = site.worker().await;
    site.broker.schedule(&job("a", &url, "acme", "a")).await;
    until("the upload is open", Duration::from_secs(30), async || (s3.open_uploads() == 1).then_some(())).await;
    worker.terminate();
    assert_eq!(worker.exit(Duration::from_secs(20)).await.code(), Some(0), "{}", worker.log());
    // The checker finds the open upload in it.
    let back = site.broker.taken("jobs.continued", "\"a\"").await;
    assert_eq!((back.header("x-attempt"), back.header("x-deferrals")), ("", ""), "{:?}", back.headers);
    Checker::new(&site, &s3).check().await;
    site.broker.clean().await;
}

#[tokio::test]
async fn a_second_signal_ends_at_once_and_loses_nothing() {
    let fixture = AcmeFixture::start("second").await;
    fixture.s3.on("PutObject").before(Effect::Delay(Duration::from_secs(120)));
    fixture.schedule("a", b"hello").await;
    until("the transfer runs", Duration::from_secs(30), async || {
        (fixture.worker.metric("consign_transfers_in_flight", "").await == 1.0).then_some(())
    })
    .await;
    fixture.worker.terminate();
    until("the drain began", Duration::from_secs(30), async || {
        (fixture.worker.metric("consign_draining", "").await == 1.0).then_some(())
    })
    .await;
    fixture.worker.terminate();
    let status = fixture.worker.exit(Duration::from_secs(5)).await;
    assert_eq!(status.code(), Some(143), "{}", fixture.worker.log());
    fixture.s3.calm();
    let next = fixture.site.worker().await;
    assert_eq!(fixture.site.broker.ended("a").await["type"], "consign.transfer.delivered.v1");
    Checker::new(&fixture.site, &fixture.s3).worker(&next).after_others().check().await;
    fixture.site.broker.clean().await;
}

#[tokio::test]
async fn a_worker_that_drains_is_not_ready() {
    let fixture = AcmeFixture::start("notready").await;
    fixture.s3.on("PutObject").before(Effect::Delay(Duration::from_secs(3)));
    fixture.schedule("a", b"hello").await;
    until("the transfer runs", Duration::from_secs(30), async || {
        (fixture.worker.metric("consign_transfers_in_flight", "").await == 1.0).then_some(())
    })
    .await;
    fixture.worker.terminate();
    until("it says why", Duration::from_secs(30), async || {
        fixture.worker.get("/readyz").await.contains("drain").then_some(())
    })
    .await;
    assert_eq!(fixture.worker.exit(Duration::from_secs(30)).await.code(), Some(0));
    fixture.delivered("a").await;
    Checker::new(&fixture.site, &fixture.s3).check().await;
    fixture.site.broker.clean().await;
}
