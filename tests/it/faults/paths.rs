//! The paths to the broker: replies, settlements and leases do not wait for each other, and nothing
//! gives up while the broker asks for patience.

use std::time::{Duration, Instant};

use lapin::BasicProperties;
use serde_json::{Value, json};

use crate::fixture::{AcmeFixture, add_acme, site};
use crate::testbed::broker::Broker;
use crate::testbed::node::Node;
use crate::testbed::scripted::{Effect, ScriptedS3};
use crate::testbed::site::{Site, job};
use crate::testbed::worker::Worker;
use crate::testbed::{MIB, bytes, unique, until};

const CHECK: &str = "consign.check.v1";

/// Two workers of one installation.
struct Fleet {
    site: Site,
    s3: ScriptedS3,
    workers: [Worker; 2],
}

impl Fleet {
    async fn of((site, s3): (Site, ScriptedS3)) -> Self {
        let workers = [site.worker().await, site.worker().await];
        Self { site, s3, workers }
    }

    async fn metric(&self, name: &str, labels: &str) -> f64 {
        self.workers[0].metric(name, labels).await + self.workers[1].metric(name, labels).await
    }

    async fn replies(&self, result: &str) -> f64 {
        self.metric("consign_replies_total", &format!("result=\"{result}\"")).await
    }

    /// Schedules so many small jobs whose outcomes go to `reply_to` as well.
    async fn schedule(&self, word: &str, count: usize, reply_to: &str) {
        let url = self.site.file("f", b"hello");
        for n in 0..count {
            let name = format!("{word}-{n}");
            let body = serde_json::to_vec(&job(&name, &url, "acme", &name)).unwrap();
            let properties = BasicProperties::default().with_reply_to(reply_to.into());
            self.site.broker.publish_raw("job.scheduled.acme", &body, properties).await;
        }
    }

    async fn check(&self, correlation: &str, reply_to: &str) {
        let body = json!({"version": 1, "destination": "acme"}).to_string();
        let properties = BasicProperties::default()
            .with_type(CHECK.into())
            .with_correlation_id(correlation.into())
            .with_reply_to(reply_to.into());
        self.site.broker.publish_raw("job.scheduled.acme", body.as_bytes(), properties).await;
    }

    async fn close(self) {
        for worker in &self.workers {
            assert_eq!(worker.metric("consign_broker_reconnects_total", "").await, 0.0, "{}", worker.log());
            worker.quiet().await;
            worker.terminate();
        }
        for worker in &self.workers {
            assert!(worker.exit(Duration::from_secs(45)).await.success(), "{}", worker.log());
        }
        self.site.broker.clean().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hostile_reply_queue_costs_its_own_copies_only() {
    let node = Node::shared();
    let fleet = Fleet::of(site("hostilereply").await).await;
    let broker = &fleet.site.broker;
    let (good, full) = (broker.own("reply.good").await, broker.own_bounded("reply.full", 1).await);
    let silent = broker.own_bounded("reply.silent", 1_000_000).await;
    node.silence(&silent);
    let missing = format!("{}.reply.missing", broker.prefix);
    let since = Instant::now();
    for (word, queue) in [("silent", &silent), ("full", &full), ("missing", &missing)] {
        fleet.schedule(word, 60, queue).await;
    }
    fleet.schedule("good", 120, &good).await;
    let ended = broker.all_ended(300, Duration::from_secs(60)).await;
    assert!(ended.values().all(|outcome| outcome["type"] == "consign.transfer.delivered.v1"));
    let took = since.elapsed();
    assert!(took < Duration::from_secs(45), "settlements waited for replies: {took:?}");
    let mut answers = Vec::new();
    until("every copy of the others", Duration::from_secs(30), async || {
        answers.extend(broker.take("reply.good").await);
        (answers.len() >= 120).then_some(())
    })
    .await;
    assert_eq!(answers.len(), 120);
    until("every copy is counted", Duration::from_secs(60), async || {
        (fleet.replies("sent").await + fleet.replies("failed").await >= 300.0).then_some(())
    })
    .await;
    assert!(fleet.replies("failed").await >= 120.0, "{} sent", fleet.replies("sent").await);
    assert_eq!(fleet.replies("refused").await, 0.0);

    // The answer to a connection test gives up, and another one does not wait for it.
    fleet.check("silent", &silent).await;
    fleet.check("good", &good).await;
    let answer = until("an answer", Duration::from_secs(30), async || broker.take("reply.good").await.pop()).await;
    assert_eq!((answer.correlation_id.as_deref(), &answer.json()["verdict"]), (Some("good"), &json!("ready")));
    let dead = broker.taken("dead", "acme").await;
    assert_eq!((dead.correlation_id.as_deref(), dead.header("x-error-reason")), (Some("silent"), "invalid_job"));
    let why = dead.header("x-error-message");
    assert!(why.starts_with("reply_to: the answer") && why.contains("no confirm"), "{why}");
    node.give_voice(&silent);
    for name in ["reply.good", "reply.full", "reply.silent"] {
        broker.disown(name).await;
    }
    assert_eq!(fleet.s3.count("acme"), 300);
    fleet.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_to_that_is_not_permitted_gets_no_copy_and_is_counted() {
    let fleet = Fleet::of(site("forbiddenreply").await).await;
    let broker = &fleet.site.broker;
    let (elsewhere, own) = (broker.own("elsewhere").await, broker.prefix.clone());
    let stranger = unique("stranger");
    let forbidden = [elsewhere, stranger, format!("{own}.dead"), format!("{own}.jobs.backfill"), own];
    for (n, queue) in forbidden.iter().enumerate() {
        fleet.schedule(&format!("job-{n}"), 1, queue).await;
        broker.ended(&format!("job-{n}-0")).await;
    }
    assert_eq!((fleet.replies("refused").await, fleet.replies("sent").await), (5.0, 0.0));
    assert!(broker.take("elsewhere").await.is_empty());
    assert_eq!(broker.outcomes().await.len(), 5, "no copy was taken for a job");
    let logs = fleet.workers.iter().map(Worker::log).collect::<String>();
    let told = logs.matches("further refusals are logged at level debug").count();
    assert!((1..=2).contains(&told), "each worker warns once:\n{logs}");

    fleet.check("a", &forbidden[2]).await;
    let dead = broker.taken("dead", "\"destination\"").await;
    assert_eq!((dead.header("x-error-reason"), dead.correlation_id.as_deref()), ("invalid_job", Some("a")));
    assert!(dead.header("x-error-message").contains("of consign itself"), "{:?}", dead.headers);
    assert!(broker.take("dead").await.is_empty(), "the dead letter itself, and no answer beside it");
    fleet.check("b", &forbidden[1]).await;
    let dead = broker.taken("dead", "\"destination\"").await;
    assert!(dead.header("x-error-message").contains("broker.reply_to permits"), "{:?}", dead.headers);
    assert_eq!(fleet.replies("refused").await, 7.0);
    broker.disown("elsewhere").await;
    fleet.close().await;
}

/// Longer than a settlement tries to publish.
const LONG_ALARM: Duration = Duration::from_secs(45);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settlements_wait_for_a_long_alarm_and_none_gives_up() {
    let node = Node::in_turn();
    let mut site = Site::on(Broker::at(node.url.clone(), &unique("longalarm"))).await;
    let s3 = add_acme(&mut site).await;
    // More than a publisher has channels: further ones must not be opened meanwhile.
    site.set("worker.slots", 40).set("worker.destination_slots", 40);
    s3.on("PutObject").before(Effect::Held);
    let worker = site.worker().await;
    let fixture = AcmeFixture { site, s3, worker };
    fixture.schedule_many("job", 40).await;
    fixture.running(40.0).await;
    node.out_of_memory();
    fixture.s3.calm();
    fixture.objects(40).await;
    fixture.unready(&["blocks publishers"]).await;
    tokio::time::sleep(LONG_ALARM).await;
    assert_eq!(fixture.worker.metric("consign_broker_settlements_total", "").await, 0.0);
    node.enough_memory();
    fixture.site.broker.all_ended(40, Duration::from_secs(60)).await;
    until("all are acknowledged", Duration::from_secs(30), async || {
        (fixture.worker.metric("consign_broker_settlements_total", "action=\"ack\"").await == 40.0).then_some(())
    })
    .await;
    assert_eq!(fixture.s3.calls("PutObject").len(), 40, "nothing came again");
    let log = fixture.worker.log();
    assert!(!log.contains("could not be settled") && !log.contains("lost before it was settled"), "{log}");
    assert_eq!(fixture.worker.metric("consign_broker_reconnects_total", "").await, 0.0);
    fixture.worker.quiet().await;
    fixture.site.broker.clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_outlast_an_alarm_and_no_upload_is_begun_twice() {
    const COUNT: usize = 12;
    let node = Node::in_turn();
    let prefix = unique("leasealarm");
    node.shorten_leases(&prefix, Duration::from_secs(2));
    let mut site = Site::on(Broker::at(node.url.clone(), &prefix)).await;
    let s3 = add_acme(&mut site).await;
    site.set("upload.part_size", "5MiB").set("upload.part_concurrency", 1).set("broker.lease_after", "1s");
    site.set("worker.destination_slots", COUNT);
    s3.on("UploadPart").before(Effect::Delay(Duration::from_secs(12)));
    let fleet = Fleet::of((site, s3)).await;
    let url = fleet.site.file("f", &bytes(7, 20 * MIB));
    for n in 0..COUNT {
        fleet.site.broker.schedule(&job(&format!("job-{n}"), &url, "acme", &format!("k-{n}"))).await;
    }
    until("all are leased", Duration::from_secs(30), async || {
        (fleet.metric("consign_broker_settlements_total", "action=\"lease\"").await >= 12.0).then_some(())
    })
    .await;
    node.out_of_memory();
    tokio::time::sleep(Duration::from_secs(30)).await;
    node.enough_memory();
    let ended = fleet.site.broker.all_ended(COUNT, Duration::from_secs(90)).await;
    for (job, outcome) in &ended {
        let data: &Value = &outcome["data"];
        assert_eq!((&data["attempts"], &data["resumed"]), (&json!(1), &json!(false)), "{job}: {data:#}");
    }
    assert_eq!(fleet.s3.calls("CreateMultipartUpload").len(), COUNT, "another worker took one over");
    assert_eq!(fleet.s3.calls("UploadPart").len(), 4 * COUNT);
    fleet.close().await;
}
