//! One broken, slow or busy customer costs the others nothing, and everything that fails alike is
//! nobody's fault.

mod recall;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::fixture::{AcmeFixture, REGION, role_destination, site};
use crate::testbed::scripted::{Effect, ScriptedS3};
use crate::testbed::site::{Site, job};
use crate::testbed::worker::Worker;
use crate::testbed::{MIB, bytes, http, until};

const LONG: Duration = Duration::from_secs(120);

/// Another customer with a bucket of the same name.
fn customer(site: &mut Site, s3: &ScriptedS3, name: &str, account: &str, more: &Value) {
    s3.bucket(name, REGION, account);
    let mut keys = role_destination(name, account);
    for (key, value) in more.as_object().unwrap() {
        keys[key] = value.clone();
    }
    site.destination(name, &keys);
}

async fn schedule(site: &Site, lane: &str, destination: &str, names: impl Iterator<Item = String>) {
    let url = site.file("hello", b"hello");
    for name in names {
        site.broker.publish(lane, &job(&name, &url, destination, &name)).await;
    }
}

fn named(word: &str, count: usize) -> impl Iterator<Item = String> {
    (0..count).map(move |n| format!("{word}-{n}"))
}

/// Entry of a destination in `/status`.
async fn state(worker: &Worker, destination: &str) -> Value {
    let status: Value = serde_json::from_str(&worker.get("/status").await).unwrap();
    let shown = status["destination_states"]["shown"].as_array().unwrap().clone();
    shown.into_iter().find(|one| one["id"] == destination).unwrap_or_default()
}

async fn circuit(worker: &Worker, destination: &str, wanted: bool) {
    until(&format!("the circuit of {destination} is open: {wanted}"), LONG, async || {
        (state(worker, destination).await["circuit_open"] == wanted).then_some(())
    })
    .await;
}

/// Waits until the worker has deferred jobs of a broken destination, or has none any more.
async fn awaiting_repair(worker: &Worker, destination: &str, some: bool) {
    until(&format!("jobs wait until {destination} is mended: {some}"), LONG, async || {
        let count = state(worker, destination).await["awaiting_repair"].as_u64().unwrap();
        ((count > 0) == some).then_some(())
    })
    .await;
}

/// Requests that S3 or STS had for a bucket.
fn requests(s3: &ScriptedS3, bucket: &str) -> usize {
    s3.calls("PutObject").iter().filter(|call| call.bucket == bucket).count()
}

#[tokio::test]
async fn a_dead_destination_sees_only_its_probes_and_a_reset_lets_its_jobs_flow_everywhere() {
    let (mut site, s3) = site("deaddest").await;
    site.set("worker.destination_slots", 8);
    site.destination("beta", &role_destination("beta", "222222222222"));
    let workers = [site.worker().await, site.worker().await];
    let jobs = 400;
    schedule(&site, "scheduled", "beta", named("b", jobs)).await;
    schedule(&site, "scheduled", "acme", named("a", 50)).await;
    for name in named("a", 50) {
        assert_eq!(site.broker.ended(&name).await["type"], "consign.transfer.delivered.v1");
    }
    for worker in &workers {
        circuit(worker, "beta", true).await;
        let shown = state(worker, "beta").await;
        assert_eq!(shown["circuit"]["reason"], "bucket_not_found", "{shown:#}");
        assert!(shown["circuit"]["next_probe_at"].is_string(), "{shown:#}");
        assert!(worker.metric("consign_destination_circuit_open", "destination=\"beta\"").await == 1.0);
        assert!(worker.metric("consign_deferred_total", "cause=\"circuit\"").await > 0.0);
        awaiting_repair(worker, "beta", true).await;
    }
    // Those that were under way when it opened (at most 8 in a worker), and one probe of each worker half a minute later.
    let asked = requests(&s3, "beta");
    assert!(asked <= 2 * (8 + 1), "{asked} requests for {jobs} jobs");
    s3.bucket("beta", REGION, "222222222222");
    let reset = site.consign(&["status", "reset", "beta", "-c", &config(&site)]);
    assert!(reset.status.success(), "{}", String::from_utf8_lossy(&reset.stderr));
    for worker in &workers {
        circuit(worker, "beta", false).await;
    }
    for name in named("b", jobs) {
        let outcome = site.broker.ended(&name).await;
        assert_eq!(outcome["type"], "consign.transfer.delivered.v1", "{outcome:#}");
        assert_eq!(outcome["data"]["attempts"], 1, "{outcome:#}");
    }
    for worker in &workers {
        awaiting_repair(worker, "beta", false).await;
        worker.quiet().await;
        worker.terminate();
        assert!(worker.exit(LONG).await.success());
    }
}

/// A configuration file for commands.
fn config(site: &Site) -> String {
    let path = site.dir.path().join("command.toml");
    std::fs::write(&path, site.toml()).unwrap();
    path.display().to_string()
}

// The scripted S3 must answer while the command runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_passing_check_closes_the_circuit_in_a_running_worker() {
    let (mut site, s3) = site("checkreset").await;
    site.destination("beta", &role_destination("beta", "222222222222"));
    let worker = site.worker().await;
    schedule(&site, "scheduled", "beta", named("b", 1)).await;
    circuit(&worker, "beta", true).await;
    let failed = site.consign(&["check", "beta", "-c", &config(&site)]);
    assert_eq!(failed.status.code(), Some(3));
    s3.bucket("beta", REGION, "222222222222");
    let passed = site.consign(&["check", "beta", "-c", &config(&site)]);
    assert!(passed.status.success(), "{}", String::from_utf8_lossy(&passed.stdout));
    circuit(&worker, "beta", false).await;
    AcmeFixture { site, s3, worker }.close().await;
}

#[tokio::test]
async fn a_slow_destination_has_no_more_than_its_share() {
    let (mut site, s3) = site("slowdest").await;
    customer(&mut site, &s3, "slow", "222222222222", &json!({"max_concurrency": 2}));
    let worker = site.worker().await;
    s3.on("PutObject").bucket("slow").before(Effect::Delay(Duration::from_secs(1)));
    schedule(&site, "scheduled", "slow", named("s", 40)).await;
    schedule(&site, "scheduled", "acme", named("a", 200)).await;
    let mut most = 0;
    until("the others are done", LONG, async || {
        most = most.max(state(&worker, "slow").await["in_flight"].as_u64().unwrap_or(0));
        (s3.count("acme") == 200).then_some(())
    })
    .await;
    assert!(s3.count("slow") < 40, "the slow one is not waited for");
    until("the slow ones are done", LONG, async || {
        most = most.max(state(&worker, "slow").await["in_flight"].as_u64().unwrap_or(0));
        (s3.count("slow") == 40).then_some(())
    })
    .await;
    assert_eq!(most, 2);
    assert!(worker.metric("consign_deferred_total", "cause=\"concurrency\"").await > 0.0);
    for name in named("s", 40) {
        assert_eq!(site.broker.ended(&name).await["data"]["attempts"], 1, "nothing is charged");
    }
    AcmeFixture { site, s3, worker }.close().await;
}

#[tokio::test]
async fn bytes_a_second_are_held_to_and_what_exceeds_them_waits_uncharged() {
    let (mut site, s3) = site("rate").await;
    customer(&mut site, &s3, "narrow", "222222222222", &json!({"max_bytes_per_second": 512 * 1024}));
    let worker = site.worker().await;
    let url = site.file("large", &bytes(3, 6 * MIB));
    let begun = Instant::now();
    for name in named("large", 5) {
        site.broker.schedule(&job(&name, &url, "narrow", &name)).await;
    }
    schedule(&site, "scheduled", "acme", named("a", 20)).await;
    for name in named("a", 20) {
        site.broker.ended(&name).await;
    }
    assert!(s3.count("narrow") < 5, "the others do not wait for it");
    until("one waits for the rate", LONG, async || {
        (worker.metric("consign_deferred_total", "cause=\"rate\"").await > 0.0).then_some(())
    })
    .await;
    until("all are delivered", LONG, async || (s3.count("narrow") == 5).then_some(())).await;
    for name in named("large", 5) {
        assert_eq!(site.broker.ended(&name).await["data"]["attempts"], 1, "nothing is charged");
    }
    // The last one is sent when the four before it are paid for, 12 s each; a second is saved up.
    assert!(begun.elapsed() >= Duration::from_secs(47), "{:?}", begun.elapsed());
    AcmeFixture { site, s3, worker }.close().await;
}

#[tokio::test]
async fn backfills_never_hold_more_than_their_slots_and_scheduled_jobs_pass_them() {
    let (mut site, s3) = site("ceiling").await;
    site.set("worker.slots", 4).set("worker.backfill_slots", 2).set("worker.destination_slots", 4);
    let worker = site.worker().await;
    s3.on("PutObject").key("fill").before(Effect::Delay(Duration::from_millis(400)));
    schedule(&site, "backfill", "acme", named("fill", 60)).await;
    until("backfills run", LONG, async || (s3.count("acme") >= 2).then_some(())).await;
    schedule(&site, "scheduled", "acme", named("a", 40)).await;
    let mut most: f64 = 0.0;
    until("the scheduled jobs are done", LONG, async || {
        most = most.max(worker.metric("consign_transfers_in_flight", "lane=\"backfill\"").await);
        let done: BTreeSet<_> =
            named("a", 40).filter(|name| s3.object("acme", &format!("in/{name}")).is_some()).collect();
        (done.len() == 40).then_some(())
    })
    .await;
    assert!(s3.count("acme") < 100, "they did not wait for the backfill");
    until("the backfill is done", LONG, async || {
        most = most.max(worker.metric("consign_transfers_in_flight", "lane=\"backfill\"").await);
        (s3.count("acme") == 100).then_some(())
    })
    .await;
    assert_eq!(most, 2.0);
    AcmeFixture { site, s3, worker }.close().await;
}

#[tokio::test]
async fn backfills_leave_a_slot_free_for_the_scheduled_job_that_comes_next() {
    let (mut site, s3) = site("keptfree").await;
    site.set("worker.slots", 8).set("worker.backfill_slots", 8).set("worker.destination_slots", 8);
    let worker = site.worker().await;
    s3.on("PutObject").key("fill").before(Effect::Delay(Duration::from_secs(20)));
    schedule(&site, "backfill", "acme", named("fill", 12)).await;
    until("backfills have what they may have", LONG, async || {
        (worker.metric("consign_transfers_in_flight", "lane=\"backfill\"").await == 7.0).then_some(())
    })
    .await;
    schedule(&site, "scheduled", "acme", named("a", 1)).await;
    assert_eq!(site.broker.ended("a-0").await["type"], "consign.transfer.delivered.v1");
    assert_eq!(s3.count("acme"), 1, "no backfill has ended before");
    until("all are done", LONG, async || (s3.count("acme") == 13).then_some(())).await;
    AcmeFixture { site, s3, worker }.close().await;
}

#[tokio::test]
async fn when_everything_fails_alike_no_circuit_opens_and_the_worker_says_why() {
    let (mut site, s3) = site("outage").await;
    let names = ["one", "two", "three", "four"];
    for (n, name) in names.into_iter().enumerate() {
        customer(&mut site, &s3, name, &format!("22222222222{n}"), &json!({}));
    }
    let worker = site.worker().await;
    for name in names {
        schedule(&site, "scheduled", name, named(name, 1)).await;
        site.broker.ended(&format!("{name}-0")).await;
    }
    // As another S3 says it, to our own question, too.
    for operation in ["PutObject", "HeadBucket"] {
        let unknown = Effect::Error(404, "NoSuchBucket", "The specified bucket does not exist");
        s3.on(operation).named("outage").before(unknown);
    }
    for name in names {
        schedule(&site, "scheduled", name, (10..20).map(|n| format!("{name}-{n}"))).await;
    }
    until("the worker is not ready", LONG, async || {
        let answer = http().get(format!("{}/readyz", worker.admin())).send().await.ok()?;
        let status = answer.status();
        let text = answer.text().await.ok()?;
        (status == 503 && text.contains("outage")).then_some(())
    })
    .await;
    for name in names {
        circuit(&worker, name, false).await;
    }
    s3.lift("outage");
    for name in names {
        for n in 10..20 {
            let outcome = site.broker.ended(&format!("{name}-{n}")).await;
            assert_eq!(outcome["type"], "consign.transfer.delivered.v1", "{outcome:#}");
            assert_eq!(outcome["data"]["attempts"], 1, "nothing is charged");
        }
    }
    worker.ready().await;
    AcmeFixture { site, s3, worker }.close().await;
}

#[tokio::test]
async fn on_the_embedded_queue_circuits_and_resets_are_the_same() {
    let mut site = Site::embedded("embeddedfair");
    let s3 = crate::fixture::add_acme(&mut site).await;
    site.set("worker.destination_slots", 4);
    site.destination("beta", &role_destination("beta", "222222222222"));
    let worker = site.worker().await;
    let url = site.file("hello", b"hello");
    let jobs: String = named("b", 60)
        .map(|name| job(&name, &url, "beta", &name))
        .chain(named("a", 20).map(|name| job(&name, &url, "acme", &name)))
        .map(|job| format!("{job}\n"))
        .collect();
    let file = site.dir.path().join("jobs.ndjson");
    std::fs::write(&file, jobs).unwrap();
    let enqueued = site.consign(&["enqueue", &file.display().to_string(), "-c", &config(&site)]);
    assert!(enqueued.status.success(), "{}", String::from_utf8_lossy(&enqueued.stderr));
    until("the others are delivered", LONG, async || (s3.count("acme") == 20).then_some(())).await;
    circuit(&worker, "beta", true).await;
    let asked = requests(&s3, "beta");
    assert!(asked <= 4 + 1, "{asked} requests for 60 jobs");
    s3.bucket("beta", REGION, "222222222222");
    let reset = site.consign(&["status", "reset", "beta", "-c", &config(&site)]);
    assert!(reset.status.success(), "{}", String::from_utf8_lossy(&reset.stderr));
    circuit(&worker, "beta", false).await;
    until("all are delivered", LONG, async || (s3.count("beta") == 60).then_some(())).await;
    worker.quiet().await;
    worker.terminate();
    assert!(worker.exit(LONG).await.success());
}
