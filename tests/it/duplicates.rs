//! Nothing is lost and nothing counts twice: duplicates, two workers, a worker that dies in the
//! middle.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::Value;

use crate::fixture::{AcmeFixture, site};
use crate::testbed::broker::Message;
use crate::testbed::checker::Checker;
use crate::testbed::scripted::Effect;
use crate::testbed::site::job;
use crate::testbed::until;

/// The CloudEvents ids of the terminal outcomes, by job.
fn terminal_ids(outcomes: &[Message]) -> BTreeMap<String, BTreeSet<String>> {
    let mut ids: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for outcome in outcomes.iter().map(Message::json) {
        if outcome["type"] != "consign.transfer.retrying.v1" {
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            ids.entry(text(&outcome["subject"])).or_default().insert(text(&outcome["id"]));
        }
    }
    ids
}

/// Waits until nothing of this prefix is left to be worked on: every delivery was settled.
async fn settled(workers: &[&crate::testbed::worker::Worker], deliveries: f64) {
    until(&format!("{deliveries} settlements"), Duration::from_secs(60), async || {
        let mut sum = 0.0;
        for worker in workers {
            sum += worker.metric("consign_broker_settlements_total", "action=\"ack\"").await;
        }
        (sum >= deliveries).then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_same_job_twice_is_one_upload_and_one_outcome_that_counts() {
    let fixture = AcmeFixture::start("twice").await;
    let url = fixture.site.file("a", b"hello");
    for _ in 0..3 {
        fixture.site.broker.schedule(&job("a", &url, "acme", "a")).await;
    }
    fixture.delivered("a").await;
    settled(&[&fixture.worker], 3.0).await;
    assert_eq!(fixture.s3.calls("PutObject").len(), 1, "the finished work is remembered");
    let ids = terminal_ids(&fixture.site.broker.outcomes().await);
    assert_eq!(ids["a"].len(), 1, "{ids:?}");
    fixture.close().await;
}

#[tokio::test]
async fn two_workers_at_once_leave_one_object_and_one_outcome_that_counts() {
    let (mut site, s3) = site("twoworkers").await;
    // One delivery each: both are at it at the same time.
    site.set("worker.slots", 1).set("worker.backfill_slots", 1);
    s3.on("PutObject").before(Effect::Delay(Duration::from_millis(500)));
    let workers = [site.worker().await, site.worker().await];
    let url = site.file("a", b"hello");
    for _ in 0..2 {
        site.broker.schedule(&job("a", &url, "acme", "a")).await;
    }
    settled(&[&workers[0], &workers[1]], 2.0).await;
    assert_eq!(s3.calls("PutObject").len(), 2, "both delivered it");
    assert_eq!((s3.count("acme"), s3.object("acme", "in/a").unwrap().bytes), (1, "hello".into()));
    until("both outcomes", Duration::from_secs(30), async || (site.broker.outcomes().await.len() == 2).then_some(()))
        .await;
    let ids = terminal_ids(&site.broker.outcomes().await);
    assert_eq!(ids["a"].len(), 1, "{ids:?}");
    Checker::new(&site, &s3).worker(&workers[0]).worker(&workers[1]).check().await;
    site.broker.clean().await;
}

#[tokio::test]
async fn a_worker_that_dies_loses_nothing() {
    let (site, s3) = site("workerdies").await;
    s3.on("PutObject").before(Effect::Delay(Duration::from_millis(100)));
    let url = site.file("f", b"hello");
    for n in 0..100 {
        site.broker.schedule(&job(&format!("job-{n}"), &url, "acme", &format!("k-{n}"))).await;
    }
    let first = site.worker().await;
    until("20 objects", Duration::from_secs(60), async || (s3.count("acme") >= 20).then_some(())).await;
    first.kill();
    assert!(s3.count("acme") < 100, "the worker died too late to show anything");
    let second = site.worker().await;
    site.broker.all_ended(100, Duration::from_secs(60)).await;
    assert_eq!(s3.count("acme"), 100);
    assert!(terminal_ids(&site.broker.outcomes().await).values().all(|ids| ids.len() == 1));
    Checker::new(&site, &s3).worker(&second).after_a_crash().check().await;
    site.broker.clean().await;
}
