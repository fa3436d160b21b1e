//! The newest refresh wins: a job that writes its object late never replaces a newer one, whichever
//! worker delivered that.

use std::time::Duration;

use serde_json::{Value, json};

use crate::fixture::{ACME, AcmeFixture, add_acme, role_destination, site};
use crate::testbed::broker::Broker;
use crate::testbed::node::Node;
use crate::testbed::proxy::{Condition, Proxy, address_of};
use crate::testbed::scripted::{Effect, ScriptedS3};
use crate::testbed::site::{Site, job};
use crate::testbed::worker::Worker;
use crate::testbed::{MIB, bytes, unique, until};

const LIMIT: Duration = Duration::from_secs(120);
const UNAVAILABLE: Effect = Effect::Error(503, "InternalError", "try again");
const SKIPPED: &str = "consign.transfer.skipped.v1";
const DELIVERED: &str = "consign.transfer.delivered.v1";

/// A refresh of `in/today` whose content is its own name.
fn refresh(site: &Site, name: &str, generation: u64) -> Value {
    refresh_with(site, name, generation, name.as_bytes())
}

fn refresh_with(site: &Site, name: &str, generation: u64, content: &[u8]) -> Value {
    let mut job = job(name, &site.file(name, content), "acme", "today");
    job["generation"] = json!(generation);
    job
}

async fn two_workers(site: &Site) -> [Worker; 2] {
    let workers = [site.worker().await, site.worker().await];
    for worker in &workers {
        until("every worker knows the fleet", LIMIT, async || {
            (worker.metric("consign_fleet_workers", "").await >= 2.0).then_some(())
        })
        .await;
    }
    workers
}

async fn superseded(workers: &[Worker]) -> f64 {
    let mut count = 0.0;
    for worker in workers {
        count += worker.metric("consign_superseded_total", "").await;
    }
    count
}

/// Waits until the job `name` has failed twice: it waits for 30 s then.
async fn retrying(site: &Site, name: &str) {
    until("a retry", LIMIT, async || {
        let retrying = |outcome: &&Value| outcome["type"] == "consign.transfer.retrying.v1";
        (site.broker.outcomes_of(name).await.iter().filter(retrying).count() == 2).then_some(())
    })
    .await;
}

fn content(s3: &ScriptedS3) -> String {
    String::from_utf8_lossy(&s3.object("acme", "in/today").unwrap().bytes).into_owned()
}

/// The 01:00 job fails and waits, and the 02:00 job delivers.
async fn first_waits_second_delivers(site: &Site, s3: &ScriptedS3) {
    s3.on("PutObject").before(UNAVAILABLE);
    site.broker.schedule(&refresh(site, "01:00", 1)).await;
    retrying(site, "01:00").await;
    s3.calm();
    site.broker.schedule(&refresh(site, "02:00", 2)).await;
    assert_eq!(site.broker.ended("02:00").await["type"], DELIVERED);
}

async fn first_is_superseded(site: &Site, s3: &ScriptedS3) {
    let outcome = site.broker.ended("01:00").await;
    assert_eq!(outcome["type"], SKIPPED, "{outcome:#}");
    assert_eq!(outcome["data"]["reason"], "superseded");
    assert_eq!(outcome["data"]["superseded_by"], json!({"job_id": "02:00", "generation": 2}));
    assert_eq!(content(s3), "02:00");
}

#[tokio::test]
async fn a_retry_does_not_replace_what_a_later_refresh_delivered() {
    let (site, s3) = site("genretry").await;
    let workers = two_workers(&site).await;
    first_waits_second_delivers(&site, &s3).await;
    let puts = s3.calls("PutObject").len();
    first_is_superseded(&site, &s3).await;
    assert_eq!(s3.calls("PutObject").len(), puts, "nothing was uploaded for the late one");
    assert_eq!(superseded(&workers).await, 1.0);
    site.broker.clean().await;
}

#[tokio::test]
async fn a_worker_that_starts_later_knows_what_was_delivered() {
    let (site, s3) = site("genrestart").await;
    let workers = two_workers(&site).await;
    first_waits_second_delivers(&site, &s3).await;
    workers.iter().for_each(Worker::kill);
    let _worker = site.worker().await;
    first_is_superseded(&site, &s3).await;
    site.broker.clean().await;
}

#[tokio::test]
async fn a_superseded_refresh_stays_superseded_after_its_worker_was_lost() {
    let AcmeFixture { site, s3, worker } = AcmeFixture::start("genlost").await;
    for (name, generation, end) in [("02:00", 2, DELIVERED), ("01:00", 1, SKIPPED)] {
        site.broker.schedule(&refresh(&site, name, generation)).await;
        assert_eq!(site.broker.ended(name).await["type"], end);
    }
    worker.kill();
    let _worker = site.worker().await;
    site.broker.schedule(&refresh(&site, "01:00-again", 1)).await;
    assert_eq!(site.broker.ended("01:00-again").await["type"], SKIPPED, "its worker delivered nothing itself");
    assert_eq!((content(&s3).as_str(), s3.calls("PutObject").len()), ("02:00", 1));
    site.broker.clean().await;
}

#[tokio::test]
async fn of_two_refreshes_that_wait_the_higher_one_is_known_after_the_end_of_the_lower_one() {
    let AcmeFixture { site, s3, worker } = AcmeFixture::start("gentwo").await;
    s3.on("PutObject").before(UNAVAILABLE);
    for (name, generation) in [("01:00", 1), ("03:00", 3)] {
        site.broker.schedule(&refresh(&site, name, generation)).await;
        retrying(&site, name).await;
    }
    s3.calm();
    assert_eq!(site.broker.ended("01:00").await["type"], DELIVERED);
    site.broker.schedule(&refresh(&site, "04:00", 4)).await;
    assert_eq!(site.broker.ended("04:00").await["type"], DELIVERED);
    worker.kill();
    let _worker = site.worker().await;
    let outcome = site.broker.ended("03:00").await;
    assert_eq!((&outcome["type"], &outcome["data"]["superseded_by"]["job_id"]), (&json!(SKIPPED), &json!("04:00")));
    assert_eq!(content(&s3), "04:00");
    site.broker.clean().await;
}

#[tokio::test]
async fn a_first_attempt_whose_delivery_was_lost_does_not_replace_a_newer_one() {
    let (mut site, s3) = site("genchannel").await;
    site.set("upload.part_size", "5MiB").set("upload.multipart_threshold", "5MiB");
    let direct = site.broker.url.clone();
    let proxy = Proxy::before(address_of(&direct)).await;
    site.set("broker.url", proxy.in_place_of(&direct));
    s3.on("UploadPart").first(1).before(Effect::Held);
    let first = site.worker().await;
    site.broker.schedule(&refresh_with(&site, "01:00", 1, &bytes(1, 6 * MIB))).await;
    until("a part is sent", LIMIT, async || s3.calls("UploadPart").pop()).await;
    proxy.set(Condition::Reset);
    site.set("broker.url", direct);
    let _second = site.worker().await;
    assert_eq!(site.broker.ended("01:00").await["type"], DELIVERED);
    site.broker.schedule(&refresh(&site, "02:00", 2)).await;
    assert_eq!(site.broker.ended("02:00").await["type"], DELIVERED);
    proxy.set(Condition::Normal);
    until("it is connected again", LIMIT, async || first.try_get("/readyz").await?.contains("ok").then_some(())).await;
    s3.calm();
    first.quiet().await;
    assert_eq!(content(&s3), "02:00");
    site.broker.clean().await;
}

#[tokio::test]
async fn a_reload_forgets_no_generation() {
    let (mut site, s3) = site("genreload").await;
    let workers = two_workers(&site).await;
    first_waits_second_delivers(&site, &s3).await;
    site.destination("beta", &role_destination("beta", ACME));
    for worker in &workers {
        worker.rewrite_config(&site.toml());
        worker.reload();
    }
    first_is_superseded(&site, &s3).await;
    site.broker.clean().await;
}

#[tokio::test]
async fn a_restart_of_the_broker_forgets_no_generation() {
    let node = Node::in_turn();
    let mut site = Site::on(Broker::at(node.url.clone(), &unique("genbroker"))).await;
    let s3 = add_acme(&mut site).await;
    let _workers = two_workers(&site).await;
    first_waits_second_delivers(&site, &s3).await;
    node.stop();
    node.start_again();
    first_is_superseded(&site, &s3).await;
    site.broker.clean().await;
}

#[tokio::test]
async fn a_job_deferred_by_a_circuit_breaker_does_not_replace_a_newer_one() {
    let (mut site, s3) = site("gencircuit").await;
    site.destination("acme", &role_destination("no-such-bucket", ACME));
    let workers = two_workers(&site).await;
    for (generation, name) in [(1, "01:00"), (3, "03:00"), (2, "02:00")] {
        site.broker.schedule(&refresh(&site, name, generation)).await;
    }
    until("all are deferred", LIMIT, async || {
        let mut deferred = 0.0;
        for worker in &workers {
            deferred += worker.metric("consign_broker_settlements_total", "action=\"defer\"").await;
        }
        (deferred >= 3.0).then_some(())
    })
    .await;
    s3.bucket("no-such-bucket", crate::fixture::REGION, ACME);
    assert_eq!(site.consign(&["status", "reset", "acme"]).status.code(), Some(0));
    let ended = site.broker.all_ended(3, LIMIT).await;
    assert_eq!(ended["03:00"]["type"], DELIVERED);
    assert_eq!(s3.object("no-such-bucket", "in/today").unwrap().bytes, "03:00");
    site.broker.clean().await;
}

#[tokio::test]
async fn a_job_whose_worker_was_killed_does_not_replace_a_newer_one() {
    let (site, s3) = site("genkill").await;
    s3.on("UploadPart").before(Effect::Delay(Duration::from_secs(2)));
    let first = site.worker().await;
    site.broker.schedule(&refresh_with(&site, "01:00", 1, &bytes(1, 40 * MIB))).await;
    until("it uploads", LIMIT, async || (s3.open_uploads() == 1).then_some(())).await;
    s3.calm();
    first.kill();
    let workers = [site.worker().await, site.worker().await];
    site.broker.schedule(&refresh(&site, "02:00", 2)).await;
    let ended = site.broker.all_ended(2, LIMIT).await;
    assert_eq!(ended["02:00"]["type"], DELIVERED);
    assert_eq!(content(&s3), "02:00", "{:#}", ended["01:00"]);
    drop(workers);
    site.broker.clean().await;
}

/// The first refresh is a long upload that another worker continues; the second comes meanwhile.
async fn taken_over(mut site: Site, s3: ScriptedS3, leave: impl Fn(&Worker)) {
    site.set("upload.part_size", "5MiB").set("upload.part_concurrency", 1).set("broker.lease_after", "1s");
    s3.on("UploadPart").before(Effect::Delay(Duration::from_secs(1)));
    let first = site.worker().await;
    site.broker.schedule(&refresh_with(&site, "01:00", 1, &bytes(1, 150 * MIB))).await;
    until("two parts", LIMIT, async || (s3.calls("UploadPart").len() >= 2).then_some(())).await;
    let _others = [site.worker().await, site.worker().await];
    leave(&first);
    until("another worker continues", LIMIT, async || (s3.calls("UploadPart").len() >= 6).then_some(())).await;
    site.broker.schedule(&refresh(&site, "02:00", 2)).await;
    let ended = site.broker.all_ended(2, LIMIT).await;
    assert_eq!(ended["02:00"]["type"], DELIVERED);
    assert_eq!(content(&s3), "02:00", "{:#}", ended["01:00"]);
    assert_eq!(s3.open_uploads(), 0, "the upload of the late one is aborted, or complete");
    site.broker.clean().await;
}

#[tokio::test]
async fn a_job_that_was_handed_off_does_not_replace_a_newer_one() {
    let (site, s3) = site("gendrain").await;
    taken_over(site, s3, Worker::terminate).await;
}

#[tokio::test]
async fn a_lease_that_was_taken_over_does_not_replace_a_newer_one() {
    let node = Node::in_turn();
    let prefix = unique("genlease");
    node.shorten_leases(&prefix, Duration::from_secs(1));
    let mut site = Site::on(Broker::at(node.url.clone(), &prefix)).await;
    let s3 = add_acme(&mut site).await;
    taken_over(site, s3, Worker::kill).await;
}

#[tokio::test]
async fn a_newer_refresh_waits_for_the_write_of_a_leased_one() {
    let (mut site, s3) = site("genwrite").await;
    site.set("broker.lease_after", "1s").set("worker.slots", 1);
    s3.on("PutObject").first(1).before(Effect::Delay(Duration::from_secs(6)));
    let _workers = two_workers(&site).await;
    site.broker.schedule(&refresh(&site, "01:00", 1)).await;
    until("it is leased", LIMIT, async || site.broker.take("lease").await.into_iter().next()).await;
    site.broker.schedule(&refresh(&site, "02:00", 2)).await;
    let ended = site.broker.all_ended(2, LIMIT).await;
    assert_eq!([&ended["01:00"]["type"], &ended["02:00"]["type"]], [DELIVERED; 2]);
    assert_eq!(content(&s3), "02:00");
    site.broker.clean().await;
}

#[tokio::test]
async fn in_one_worker_the_jobs_of_a_key_write_one_after_the_other() {
    let AcmeFixture { site, s3, worker } = AcmeFixture::start("genserial").await;
    s3.on("PutObject").first(1).before(Effect::Delay(Duration::from_secs(3)));
    site.broker.schedule(&refresh(&site, "02:00", 2)).await;
    until("it writes", LIMIT, async || {
        (worker.metric("consign_transfers_in_flight", "lane=\"scheduled\"").await == 1.0).then_some(())
    })
    .await;
    site.broker.schedule(&refresh(&site, "01:00", 1)).await;
    site.broker.schedule(&refresh(&site, "03:00", 3)).await;
    let ended = site.broker.all_ended(3, LIMIT).await;
    assert_eq!(ended["01:00"]["type"], SKIPPED, "a first attempt, too: this worker knows the newer one");
    assert_eq!([&ended["02:00"]["type"], &ended["03:00"]["type"]], [DELIVERED; 2]);
    assert_eq!((content(&s3).as_str(), s3.calls("PutObject").len()), ("03:00", 2));
    worker.quiet().await;
    site.broker.clean().await;
}

#[tokio::test]
async fn first_attempts_cost_no_report() {
    let (site, _s3) = site("genfree").await;
    let _workers = two_workers(&site).await;
    for generation in 1..=20 {
        let name = format!("refresh-{generation}");
        site.broker.schedule(&refresh(&site, &name, generation)).await;
        assert_eq!(site.broker.ended(&name).await["type"], DELIVERED);
    }
    let config = consign::config::load_str(&site.toml()).unwrap().config;
    let messages = consign::queue::admin(&config.broker, "test").control_messages().await.unwrap();
    let reports = messages.iter().filter(|body| String::from_utf8_lossy(body).contains("generation_"));
    assert_eq!(reports.count(), 0);
    site.broker.clean().await;
}

#[tokio::test]
async fn a_dead_letter_keeps_its_generation_unless_it_is_requeued_as_new() {
    let AcmeFixture { site, s3, worker } = AcmeFixture::start("gendead").await;
    let missing = |name: &str, generation: u64| {
        let mut job = job(name, &format!("file://{}/{name}", site.files().display()), "acme", "today");
        job["generation"] = json!(generation);
        job
    };
    for (name, generation) in [("01:00", 1), ("01:30", 1)] {
        site.broker.schedule(&missing(name, generation)).await;
        assert_eq!(site.broker.ended(name).await["data"]["reason"], "source_not_found");
    }
    site.broker.schedule(&refresh(&site, "02:00", 2)).await;
    assert_eq!(site.broker.ended("02:00").await["type"], DELIVERED);
    for name in ["01:00", "01:30"] {
        site.file(name, name.as_bytes());
    }
    let requeue = |arguments: &[&str]| {
        let all: Vec<_> = ["dead", "requeue", "--force"].iter().chain(arguments).copied().collect();
        let requeued = site.consign(&all);
        let [said, notices] = [requeued.stdout, requeued.stderr].map(|text| String::from_utf8(text).unwrap());
        assert!(requeued.status.success(), "{notices}");
        (said, notices)
    };
    let (_, notices) = until("the delivery is reported", LIMIT, async || {
        let (said, notices) = requeue(&["--dry-run", "--job", "01:00"]);
        said.contains("1 would be requeued (1 superseded)").then_some((said, notices))
    })
    .await;
    assert!(notices.contains("01:00: superseded by 02:00 (generation 2)"), "{notices}");
    let (said, _) = requeue(&["--job", "01:00"]);
    assert!(said.contains("1 requeued (1 superseded)"), "{said}");
    let skipped = async |name: &str, kind: &str| {
        until("the next run ends", LIMIT, async || {
            site.broker.outcomes_of(name).await.iter().any(|outcome| outcome["type"] == kind).then_some(())
        })
        .await;
    };
    skipped("01:00", SKIPPED).await;
    assert_eq!(content(&s3), "02:00");
    let (said, _) = requeue(&["--job", "01:30", "--as-new"]);
    assert!(said.contains("1 requeued") && !said.contains("superseded"), "{said}");
    skipped("01:30", DELIVERED).await;
    assert_eq!(content(&s3), "01:30");
    // The producer's next refresh is not older.
    site.broker.schedule(&refresh(&site, "03:00", 3)).await;
    assert_eq!(site.broker.ended("03:00").await["type"], DELIVERED);
    worker.quiet().await;
    site.broker.clean().await;
}

#[tokio::test]
async fn the_embedded_queue_remembers_generations_across_a_restart() {
    let mut site = Site::embedded("genembedded");
    let s3 = add_acme(&mut site).await;
    site.topology();
    let file = site.broker.file.as_ref().unwrap();
    let publish = async |job: Value| {
        assert!(file.publish("job.scheduled.acme".to_owned(), None, job.to_string().into_bytes()).await);
    };
    let ended = async |name: &str, kind: &str| {
        until("an outcome", LIMIT, async || {
            let mut all = file.outcomes().into_iter().map(|message| message.json());
            all.find(|outcome| outcome["subject"] == name && outcome["type"] == kind)
        })
        .await
    };
    let worker = site.worker().await;
    s3.on("PutObject").before(UNAVAILABLE);
    publish(refresh(&site, "01:00", 1)).await;
    ended("01:00", "consign.transfer.retrying.v1").await;
    until("the second failure", LIMIT, async || {
        (worker.metric("consign_transfer_retries_total", "").await >= 2.0).then_some(())
    })
    .await;
    s3.calm();
    publish(refresh(&site, "02:00", 2)).await;
    ended("02:00", DELIVERED).await;
    worker.kill();
    let _worker = site.worker().await;
    let outcome = ended("01:00", SKIPPED).await;
    assert_eq!(outcome["data"]["superseded_by"]["job_id"], "02:00");
    assert_eq!(content(&s3), "02:00");
}
