//! What a worker can't start it leaves to the others: each test has two workers.

use std::time::{Duration, Instant};

use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use serde_json::json;

use crate::fixture::{ACME, AcmeFixture, REGION, role_destination, site};
use crate::testbed::scripted::{Effect, ScriptedS3};
use crate::testbed::site::{Site, job};
use crate::testbed::until;
use crate::testbed::worker::Worker;

async fn consuming(worker: &Worker, lane: &str) -> bool {
    worker.metric("consign_consuming", &format!("lane=\"{lane}\"")).await == 1.0
}

/// A worker of the site whose own identity STS refuses, on an S3 of its own.
async fn sick_worker(site: &mut Site, healthy: &ScriptedS3) -> (Worker, ScriptedS3) {
    let sick = ScriptedS3::start().await;
    sick.bucket("acme", REGION, ACME);
    let message = "The security token included in the request is invalid.";
    for operation in ["AssumeRole", "GetCallerIdentity"] {
        sick.on(operation).before(Effect::Error(403, "InvalidClientTokenId", message));
    }
    site.aws(&sick.url);
    let worker = site.worker().await;
    site.aws(&healthy.url);
    (worker, sick)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_beside_a_sick_worker_are_delivered_by_a_healthy_one_within_a_minute() {
    let (mut site, s3) = site("sick").await;
    let (ill, sick) = sick_worker(&mut site, &s3).await;
    let url = site.file("f", b"hello");
    for n in 0..40 {
        let lane = if n % 4 == 0 { "backfill" } else { "scheduled" };
        let name = format!("job-{n}");
        site.broker.publish(lane, &job(&name, &url, "acme", &name)).await;
    }
    until("the worker is sick", Duration::from_secs(30), async || {
        ill.get("/readyz").await.contains("identity_denied").then_some(())
    })
    .await;
    until("it consumes nothing", Duration::from_secs(10), async || {
        let mut any = false;
        for lane in ["scheduled", "backfill", "continued"] {
            any |= consuming(&ill, lane).await;
        }
        (!any).then_some(())
    })
    .await;
    let healthy = site.worker().await;
    let begun = Instant::now();
    let ended = site.broker.all_ended(40, Duration::from_secs(60)).await;
    assert!(ended.values().all(|outcome| outcome["type"] == "consign.transfer.delivered.v1"), "{ended:#?}");
    assert!(ended.values().all(|outcome| outcome["data"]["attempts"] == 1), "no attempt was charged");
    assert_eq!(s3.count("acme"), 40, "after {:?}", begun.elapsed());
    assert_eq!(ill.metric("consign_broker_reconnects_total", "").await, 0.0);

    // Alone again, it probes with one message, fails and waits; once that is fixed, it delivers.
    healthy.terminate();
    assert!(healthy.exit(Duration::from_secs(30)).await.success());
    sick.calm();
    for n in 0..5 {
        site.broker.schedule(&job(&format!("late-{n}"), &url, "acme", &format!("late-{n}"))).await;
    }
    let ended = site.broker.all_ended(45, Duration::from_secs(120)).await;
    assert!(ended.values().all(|outcome| outcome["type"] == "consign.transfer.delivered.v1"), "{ended:#?}");
    assert_eq!(sick.count("acme"), 5);
    until("it is ready and consumes", Duration::from_secs(30), async || {
        let ready = !ill.get("/readyz").await.contains("identity_denied");
        (ready && consuming(&ill, "scheduled").await && consuming(&ill, "backfill").await).then_some(())
    })
    .await;
    assert_eq!(site.broker.take("dead").await.len(), 0);
    AcmeFixture { site, s3, worker: ill }.site.broker.clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backfills_that_can_t_start_in_one_worker_are_delivered_by_another() {
    let (mut site, s3) = site("lanes").await;
    // Prefetched deliveries then wait for 10 s, and not for a minute.
    site.set("broker.lease_after", "20s").set("worker.slots", 4).set("worker.backfill_slots", 2);
    let mut slow = role_destination("acme", ACME);
    // 16 MiB take longer than the test waits.
    slow["max_bytes_per_second"] = json!(64 << 10);
    // Each on its own: a destination at its rate starts no second transfer.
    site.destination("slow-0", &slow).destination("slow-1", &slow);
    let busy = site.worker().await;
    let large = site.file("large", &vec![7; 16 << 20]);
    for n in 0..2 {
        let name = format!("slow-{n}");
        site.broker.publish("backfill", &job(&name, &large, &name, &name)).await;
    }
    until("both backfill permits are taken", Duration::from_secs(30), async || {
        (busy.metric("consign_transfers_in_flight", "lane=\"backfill\"").await >= 2.0).then_some(())
    })
    .await;
    let url = site.file("f", b"hello");
    for n in 0..4 {
        site.broker.publish("backfill", &job(&format!("job-{n}"), &url, "acme", &format!("job-{n}"))).await;
    }
    // Two were fetched, and can't start; two wait in the queue.
    until("the prefetch is full", Duration::from_secs(10), async || {
        let queue = format!("{}.jobs.backfill", site.broker.prefix);
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let channel = site.broker.reachable().await;
        let counted = channel.queue_declare(queue.into(), passive, FieldTable::default()).await.unwrap();
        (counted.message_count() == 2).then_some(())
    })
    .await;
    let free = site.worker().await;
    let ended = site.broker.all_ended(4, Duration::from_secs(90)).await;
    assert!(ended.values().all(|outcome| outcome["type"] == "consign.transfer.delivered.v1"), "{ended:#?}");
    assert_eq!(s3.count("acme"), 4);
    assert!(!consuming(&busy, "backfill").await && consuming(&busy, "scheduled").await, "only that lane is paused");
    assert!(consuming(&free, "backfill").await);
    for worker in [&busy, &free] {
        assert_eq!(worker.metric("consign_broker_reconnects_total", "").await, 0.0);
    }
    site.broker.schedule(&job("scheduled", &url, "acme", "scheduled")).await;
    site.broker.all_ended(5, Duration::from_secs(30)).await;
    assert_eq!(site.broker.take("dead").await.len(), 0);
    busy.kill();
    site.broker.clean().await;
}
