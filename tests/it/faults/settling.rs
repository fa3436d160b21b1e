//! Publications count once the broker has confirmed and routed them; prefetch is bounded.

use std::time::Duration;

use lapin::options::{BasicGetOptions, BasicNackOptions};

use crate::fixture::{AcmeFixture, site};
use crate::testbed::checker::Checker;
use crate::testbed::scripted::Effect;
use crate::testbed::site::job;
use crate::testbed::until;

const SLOW_DOWN: Effect = Effect::Error(503, "SlowDown", "Please reduce your request rate.");

#[tokio::test]
async fn a_copy_that_no_queue_takes_is_not_lost_and_never_taken_for_another() {
    let fixture = AcmeFixture::start("unrouted").await;
    fixture.s3.on("PutObject").key("bad").before(SLOW_DOWN);
    fixture.site.broker.disown("wait.5s").await;
    let url = fixture.site.file("f", b"hello");
    for n in 0..40 {
        let name = format!("{}-{n}", if n % 2 == 0 { "bad" } else { "good" });
        fixture.site.broker.schedule(&job(&name, &url, "acme", &name)).await;
    }
    fixture.objects(20).await;
    until("a copy is returned", Duration::from_secs(30), async || {
        fixture.worker.log().contains("was not accepted").then_some(())
    })
    .await;
    let retried = async || fixture.worker.metric("consign_broker_settlements_total", "action=\"retry\"").await;
    assert_eq!(retried().await, 0.0, "what was returned counts as published");
    assert!(fixture.site.consign(&["topology", "apply"]).status.success());
    until("every copy waits", Duration::from_secs(60), async || (retried().await >= 20.0).then_some(())).await;
    let waiting = fixture.site.broker.take("wait.5s").await;
    assert!(waiting.iter().all(|message| message.text().contains("\"bad-")), "{waiting:?}");
    fixture.s3.calm();
    fixture.close().await;
}

#[tokio::test]
async fn no_more_is_fetched_than_is_soon_begun() {
    let (mut site, s3) = site("prefetch").await;
    site.set("worker.slots", 2).set("worker.backfill_slots", 2);
    s3.on("PutObject").before(Effect::Held);
    let url = site.file("f", b"hello");
    for n in 0..60 {
        site.broker.schedule(&job(&format!("job-{n}"), &url, "acme", &format!("k-{n}"))).await;
    }
    let worker = site.worker().await;
    until("both slots are busy", Duration::from_secs(30), async || (s3.calls("PutObject").len() == 2).then_some(()))
        .await;
    let left = site.broker.take("jobs.scheduled").await.len();
    assert!(left >= 60 - 2 - 4, "{} were fetched for 2 slots", 60 - left);
    s3.calm();
    Checker::new(&site, &s3).worker(&worker).check().await;
    site.broker.clean().await;
}

#[tokio::test]
async fn a_job_that_was_requeued_up_to_the_delivery_limit_is_delivered() {
    let (site, s3) = site("requeued").await;
    let url = site.file("f", b"hello");
    let channel = site.broker.reachable().await;
    for (lane, limit) in [("scheduled", 990), ("backfill", 510)] {
        site.broker.publish(lane, &job(lane, &url, "acme", lane)).await;
        let queue = format!("{}.jobs.{lane}", site.broker.prefix);
        // As workers that had no slot for it, again and again.
        for _ in 0..limit {
            let got = channel.basic_get(queue.as_str().into(), BasicGetOptions::default()).await.unwrap().unwrap();
            got.delivery.acker.nack(BasicNackOptions { multiple: false, requeue: true }).await.unwrap();
        }
    }
    let worker = site.worker().await;
    let fixture = AcmeFixture { site, s3, worker };
    for lane in ["scheduled", "backfill"] {
        assert_eq!(fixture.delivered(lane).await["attempts"], 1);
    }
    assert_eq!(fixture.s3.calls("PutObject").len(), 2);
    assert!(fixture.worker.log().contains("is replaced by a copy"), "its count begins anew");
    assert_eq!(fixture.site.broker.take("dead").await.len(), 0);
    fixture.close().await;
}

#[tokio::test]
async fn a_job_that_ends_workers_is_a_dead_letter_and_its_neighbours_are_not() {
    let (site, s3) = site("poison").await;
    let url = site.file("f", b"hello");
    // As a lease that the sixth worker left behind.
    let poison = job("poison", &url, "acme", "poison").to_string();
    let headers = [("x-crashes", "6"), ("x-original-routing-key", "job.scheduled.acme")];
    site.broker.put_into("jobs.continued", poison.as_bytes(), &headers).await;
    site.broker.schedule(&job("neighbour", &url, "acme", "neighbour")).await;
    let worker = site.worker().await;
    let fixture = AcmeFixture { site, s3, worker };
    fixture.failed("poison", "crash_loop").await;
    fixture.delivered("neighbour").await;
    assert_eq!(fixture.s3.calls("PutObject").len(), 1, "it was not tried once more");
    fixture.close().await;
}
