//! Several workers on one broker are one fleet: what one learns of a destination the others know,
//! and a customer's limits hold for all of them together.

use std::time::Duration;

use serde_json::{Value, json};

use crate::fixture::{ACME, role_destination, site};
use crate::testbed::scripted::{Effect, ScriptedS3};
use crate::testbed::site::{Site, job};
use crate::testbed::until;
use crate::testbed::worker::Worker;

const WORKERS: u32 = 3;
const LIMIT: Duration = Duration::from_secs(60);

async fn workers(site: &Site) -> Vec<Worker> {
    let mut workers = Vec::new();
    for _ in 0..WORKERS {
        workers.push(site.worker().await);
    }
    for worker in &workers {
        until("every worker knows the fleet", LIMIT, async || {
            (worker.metric("consign_fleet_workers", "").await >= f64::from(WORKERS)).then_some(())
        })
        .await;
    }
    workers
}

async fn schedule(site: &Site, word: &str, destination: &str, count: usize) {
    let url = site.file("some", b"hello");
    for n in 0..count {
        let name = format!("{word}-{n}");
        site.broker.schedule(&job(&name, &url, destination, &name)).await;
    }
}

/// Waits until each worker shows this number of open circuit breakers.
async fn circuits(workers: &[Worker], count: u32) {
    for worker in workers {
        until("each worker knows the circuit breaker", LIMIT, async || {
            let open = worker.metric("consign_destination_circuit_open", "destination=\"acme\"").await;
            (open == f64::from(count)).then_some(())
        })
        .await;
    }
}

/// Waits until so many deferrals are settled by all workers together.
async fn deferrals(workers: &[Worker], count: f64) {
    until(&format!("{count} deferrals"), Duration::from_secs(120), async || {
        let mut deferred = 0.0;
        for worker in workers {
            deferred += worker.metric("consign_broker_settlements_total", "action=\"defer\"").await;
        }
        (deferred >= count).then_some(())
    })
    .await;
}

fn puts(s3: &ScriptedS3) -> usize {
    s3.calls("PutObject").len()
}

#[tokio::test]
async fn a_broken_destination_is_asked_once_per_step_by_the_whole_fleet() {
    let (mut site, s3) = site("fleetcircuit").await;
    site.destination("acme", &role_destination("no-such-bucket", ACME));
    let mut workers = workers(&site).await;
    schedule(&site, "first", "acme", 1).await;
    circuits(&workers, 1).await;
    schedule(&site, "more", "acme", 30).await;
    deferrals(&workers, 31.0).await;
    assert_eq!(puts(&s3), 1, "an open circuit breaker is open for all");
    // All come back after 30 s, to all workers: one of them probes.
    deferrals(&workers, 62.0).await;
    assert_eq!(puts(&s3), 2, "one probe for the fleet");
    // A worker that starts later asks nothing either.
    workers.push(site.worker().await);
    circuits(&workers, 1).await;
    // The fix is noticed once, too: a reset reaches everybody.
    s3.bucket("no-such-bucket", crate::fixture::REGION, ACME);
    assert_eq!(site.consign(&["status", "reset", "acme"]).status.code(), Some(0));
    circuits(&workers, 0).await;
    for (id, outcome) in site.broker.all_ended(31, Duration::from_secs(90)).await {
        assert_eq!(outcome["type"], "consign.transfer.delivered.v1", "{id}: {outcome:#}");
    }
    site.broker.clean().await;
}

/// A burst for a customer whose bucket is gone: no worker sends more than its first request.
#[tokio::test]
async fn a_burst_for_a_broken_destination_sends_one_request_per_worker() {
    let (mut site, s3) = site("fleetburst").await;
    site.destination("acme", &role_destination("no-such-bucket", ACME));
    schedule(&site, "j", "acme", 60).await;
    let workers = workers(&site).await;
    circuits(&workers, 1).await;
    deferrals(&workers, 60.0).await;
    let requests = puts(&s3);
    assert!((1..=WORKERS as usize).contains(&requests), "{requests} requests");
    site.broker.clean().await;
}

#[tokio::test]
async fn the_probe_of_a_worker_that_is_gone_is_another_ones() {
    let (mut site, s3) = site("fleetprobe").await;
    site.destination("acme", &role_destination("no-such-bucket", ACME));
    let mut workers = workers(&site).await;
    schedule(&site, "first", "acme", 1).await;
    circuits(&workers, 1).await;
    let opened = |worker: &Worker| worker.log().contains("circuit breaker half-open");
    s3.on("PutObject").before(Effect::Delay(Duration::from_secs(20)));
    let prober = until("somebody probes", Duration::from_secs(90), async || workers.iter().position(opened)).await;
    workers.remove(prober).kill();
    s3.calm();
    s3.bucket("no-such-bucket", crate::fixture::REGION, ACME);
    schedule(&site, "more", "acme", 3).await;
    for (id, outcome) in site.broker.all_ended(4, Duration::from_secs(240)).await {
        assert_eq!(outcome["type"], "consign.transfer.delivered.v1", "{id}: {outcome:#}");
    }
    circuits(&workers, 0).await;
    site.broker.clean().await;
}

#[tokio::test]
async fn a_limit_of_transfers_holds_for_the_whole_fleet() {
    let (mut site, s3) = site("fleetlimit").await;
    let mut acme = role_destination("acme", ACME);
    acme["max_concurrency"] = json!(2);
    site.destination("acme", &acme);
    // A call is recorded when it is complete, and answered after the delay.
    s3.on("PutObject").before(Effect::Delay(Duration::from_millis(800)));
    let workers = workers(&site).await;
    schedule(&site, "j", "acme", 12).await;
    let mut most = 0.0_f64;
    let ended = until("all are delivered", Duration::from_secs(150), async || {
        let mut running = 0.0;
        for worker in &workers {
            running += worker.metric("consign_transfers_in_flight", "").await;
        }
        most = most.max(running);
        (s3.count("acme") == 12).then_some(())
    });
    ended.await;
    assert!((1.0..=2.0).contains(&most), "{most} transfers at once");
    let outcomes = site.broker.all_ended(12, LIMIT).await;
    assert!(outcomes.values().all(|outcome: &Value| outcome["type"] == "consign.transfer.delivered.v1"));
    site.broker.clean().await;
}
