//! Who may publish what: permissions of the broker on routing keys, publishers of a destination, and
//! what a producer can't forge.

use std::time::Duration;

use consign::domain::job::lease::{Checkpoint, Lease, PartSizes, SourceMark};
use consign::domain::lane::Lane;
use consign::domain::outcome::Encryption;
use lapin::BasicProperties;
use lapin::options::BasicPublishOptions;
use lapin::types::{AMQPValue, FieldArray, FieldTable};
use serde_json::{Value, json};

use crate::fixture::{ACME, AcmeFixture, role_destination, site};
use crate::testbed::broker::Broker;
use crate::testbed::node::Node;
use crate::testbed::scripted::{Effect, ScriptedS3};
use crate::testbed::site::{Site, job};
use crate::testbed::until;

const LEASE: &str = "application/vnd.consign.lease.v1+bincode";
/// Topic permissions of a scheduler, as deploy/docs/schedulers.md writes them.
const KEYS: &str = r"^job\.(scheduled|backfill)\.(acme|globex)$";
const OUTCOMES: &str = r"^transfer\.[a-z*]+\.(acme|globex)$";
const LIMIT: Duration = Duration::from_secs(60);

/// A producer with a user of its own.
struct Producer {
    broker: Broker,
    user: String,
}

impl Producer {
    /// One with the permissions of deploy/docs/schedulers.md: it may publish jobs, and read
    /// outcomes from one queue.
    fn new(node: &Node, prefix: &str) -> Self {
        let write = format!(r"^({prefix}|{prefix}\.billing\.outcomes)$");
        let url = node.login(["^$", &write, &format!(r"^{prefix}\.(outcomes|billing\.outcomes)$")]);
        let user = url.split("//").nth(1).and_then(|rest| rest.split(':').next()).unwrap().to_owned();
        Self { broker: Broker::at(url, prefix), user }
    }

    fn properties(&self) -> BasicProperties {
        BasicProperties::default().with_user_id(self.user.as_str().into())
    }

    async fn publish(&self, job: &Value, properties: BasicProperties) {
        let id = job["destination"].as_str().unwrap();
        self.broker.publish_raw(&format!("job.scheduled.{id}"), job.to_string().as_bytes(), properties).await;
    }

    /// Publishes a message that the broker may refuse, by a channel of its own.
    async fn channel(&self) -> lapin::Channel {
        let connection = lapin::Connection::connect(&self.broker.url, lapin::ConnectionProperties::default());
        connection.await.unwrap().create_channel().await.unwrap()
    }

    async fn try_publish(
        &self,
        exchange: &str,
        key: &str,
        body: &[u8],
        properties: BasicProperties,
    ) -> Result<(), String> {
        let channel = self.channel().await;
        channel.confirm_select(lapin::options::ConfirmSelectOptions::default()).await.unwrap();
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let sent = channel.basic_publish(exchange.into(), key.into(), options, body, properties).await;
        sent.map_err(|error| error.to_string())?.await.map(drop).map_err(|error| error.to_string())
    }
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

fn headers(pairs: &[(&str, AMQPValue)]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in pairs {
        table.insert((*name).into(), value.clone());
    }
    table
}

/// A site whose `acme` takes jobs of one producer only; its worker is not started yet.
async fn guarded(node: &Node, word: &str) -> (Parts, Producer, Producer) {
    let (mut site, s3) = site(word).await;
    let (allowed, other) = (Producer::new(node, &site.broker.prefix), Producer::new(node, &site.broker.prefix));
    let mut acme = role_destination("acme", ACME);
    acme["publishers"] = json!([allowed.user]);
    site.destination("acme", &acme);
    ((site, s3), allowed, other)
}

type Parts = (Site, ScriptedS3);

async fn started((site, s3): Parts) -> AcmeFixture {
    let worker = site.worker().await;
    AcmeFixture { site, s3, worker }
}

#[tokio::test]
async fn only_publishers_of_a_destination_deliver_there_and_their_copies_come_back() {
    let node = Node::shared();
    let (parts, allowed, other) = guarded(&node, "publishers").await;
    let fixture = started(parts).await;
    let url = fixture.site.file("f", b"hello");
    let wanted = |name: &str| job(name, &url, "acme", name);
    // Twice away in wait queues, each time by a copy that the worker published.
    fixture.s3.on("PutObject").key("waits").first(8).before(Effect::Error(
        503,
        "SlowDown",
        "Reduce your request rate.",
    ));
    allowed.publish(&wanted("waits"), allowed.properties()).await;
    allowed.publish(&wanted("fine"), allowed.properties()).await;
    fixture.delivered("fine").await;

    let forged = headers(&[("consign-publisher", text(&allowed.user)), ("x-attempt", text("3"))]);
    for (name, properties) in [
        ("nameless", BasicProperties::default()),
        ("stranger", other.properties()),
        ("forged", other.properties().with_headers(forged.clone())),
        ("forged-nameless", BasicProperties::default().with_headers(forged)),
    ] {
        other.publish(&wanted(name), properties).await;
        let data = fixture.failed(name, "destination_forbidden").await;
        let message = data["message"].as_str().unwrap();
        assert!(message.contains("destinations.acme.publishers"), "{message}");
    }
    // The name of another user does not even reach a queue.
    let stolen = BasicProperties::default().with_user_id(allowed.user.as_str().into());
    let body = wanted("stolen").to_string();
    let refused = other.try_publish(&fixture.site.broker.prefix, "job.scheduled.acme", body.as_bytes(), stolen).await;
    assert!(refused.unwrap_err().contains("user_id"));

    let data = fixture.delivered("waits").await;
    assert!(data["attempts"].as_u64().unwrap() > 1, "{data:#}");
    // A forbidden job never passes for the one that its id names.
    let ids: std::collections::BTreeSet<_> =
        fixture.site.broker.outcomes_of("fine").await.into_iter().map(|o| o["id"].to_string()).collect();
    other.publish(&wanted("fine"), other.properties()).await;
    fixture.site.broker.taken("dead", "fine").await;
    let failed =
        fixture.site.broker.outcomes_of("fine").await.into_iter().find(|o| o["type"] == "consign.transfer.failed.v1");
    assert!(!ids.contains(&failed.unwrap()["id"].to_string()));
    fixture.worker.quiet().await;
    fixture.site.broker.clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_are_publishers_like_others_and_a_requeue_keeps_the_first_publisher() {
    let node = Node::shared();
    let (parts, allowed, other) = guarded(&node, "operators").await;
    let mut fixture = started(parts).await;
    let missing = format!("file://{}/late", fixture.site.files().display());
    allowed.publish(&job("late", &missing, "acme", "late"), allowed.properties()).await;
    other.publish(&job("theirs", &missing, "acme", "theirs"), other.properties()).await;
    for (name, reason) in [("late", "source_not_found"), ("theirs", "destination_forbidden")] {
        let outcome = fixture.site.broker.ended(name).await;
        assert_eq!(outcome["data"]["reason"], reason, "{outcome:#}");
    }
    let url = fixture.site.file("late", b"hello");
    let consign = |site: &Site, arguments: &[&str]| tokio::task::block_in_place(|| site.consign(arguments));
    let requeued = consign(&fixture.site, &["dead", "requeue", "--all"]);
    assert!(requeued.status.success(), "{}", String::from_utf8_lossy(&requeued.stderr));
    until("the letter of the publisher is delivered", LIMIT, async || {
        let all = fixture.site.broker.outcomes_of("late").await;
        all.into_iter().find(|outcome| outcome["type"] == "consign.transfer.delivered.v1")
    })
    .await;
    let again = fixture.site.broker.taken("dead", "theirs").await;
    assert_eq!(again.header("x-error-reason"), "destination_forbidden", "a requeue launders nothing");
    assert_eq!(again.header("consign-run"), "1");

    // The commands publish under their own login, here that of the workers.
    let us = node.url.split("//").nth(1).and_then(|rest| rest.split(':').next()).unwrap().to_owned();
    let enqueue =
        |id: &str| ["enqueue", "--source", &url, "--to", "acme", "--key", id, "--id", id, "--wait"].map(str::to_owned);
    let run = |site: &Site, id: &str| {
        let arguments = enqueue(id);
        consign(site, &arguments.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let refused = run(&fixture.site, "ours-1");
    assert!(!refused.status.success());
    let said = [refused.stdout, refused.stderr].concat();
    assert!(String::from_utf8_lossy(&said).contains(&format!("the broker's user {us} may not publish")));
    let mut acme = role_destination("acme", ACME);
    acme["publishers"] = json!([us]);
    fixture.site.destination("acme", &acme);
    fixture.worker.rewrite_config(&fixture.site.toml());
    fixture.worker.reload();
    until("the reload is logged", LIMIT, async || {
        fixture.worker.log().contains("configuration reloaded").then_some(())
    })
    .await;
    let done = run(&fixture.site, "ours-2");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    allowed.publish(&job("no-longer", &url, "acme", "n"), allowed.properties()).await;
    fixture.failed("no-longer", "destination_forbidden").await;
    fixture.site.broker.clean().await;
}

/// What the page shows is what is tried here.
#[test]
fn the_page_shows_these_permissions() {
    let page = include_str!("../../deploy/docs/schedulers.md");
    for shown in
        [KEYS, OUTCOMES, r"'^$' '^(consign|consign\.billing\.outcomes)$' '^consign\.(outcomes|billing\.outcomes)$'"]
    {
        assert!(page.contains(shown), "{shown}");
    }
}

/// A bound scheduler reads the outcomes of its destinations, asks for tests of them, and declares
/// nothing that would route around its permissions.
#[tokio::test]
async fn a_bound_scheduler_reads_its_outcomes_and_no_others() {
    let node = Node::shared();
    let (site, s3) = site("bound").await;
    let prefix = site.broker.prefix.clone();
    let scheduler = Producer::new(&node, &prefix);
    node.topic_permissions(&scheduler.user, &prefix, [KEYS, OUTCOMES]);
    let fixture = started((site, s3)).await;
    let queue = fixture.site.broker.own("billing.outcomes").await;
    let (outcomes, table) = (format!("{prefix}.outcomes"), FieldTable::default());
    let bind = async |key: &str| {
        let options = lapin::options::QueueBindOptions::default();
        let channel = scheduler.channel().await;
        channel.queue_bind(queue.as_str().into(), outcomes.as_str().into(), key.into(), options, table.clone()).await
    };
    for key in ["transfer.#", "#", "transfer.*.victim", "transfer.*.*"] {
        assert!(bind(key).await.is_err(), "{key}");
    }
    bind("transfer.*.acme").await.unwrap();
    let url = fixture.site.file("f", b"hello");
    scheduler.publish(&job("mine", &url, "acme", "mine"), BasicProperties::default()).await;
    let outcome = until("its outcome", LIMIT, async || fixture.site.broker.take("billing.outcomes").await.pop()).await;
    assert_eq!(outcome.json()["subject"], "mine");

    // Declarations by which the broker itself would publish for it.
    let through = lapin::ExchangeKind::Topic;
    let options = lapin::options::ExchangeDeclareOptions::default();
    let around = headers(&[("alternate-exchange", text(&prefix))]);
    let declared = scheduler.channel().await.exchange_declare("around".into(), through, options, around).await;
    assert!(declared.unwrap_err().to_string().contains("ACCESS_REFUSED"));
    let dead = headers(&[
        ("x-dead-letter-exchange", text(&prefix)),
        ("x-dead-letter-routing-key", text("job.scheduled.victim")),
    ]);
    let options = lapin::options::QueueDeclareOptions::default();
    let declared = scheduler.channel().await.queue_declare("around".into(), options, dead).await;
    assert!(declared.unwrap_err().to_string().contains("ACCESS_REFUSED"));

    // A connection test needs no queue of its own.
    let channel = scheduler.channel().await;
    let options = lapin::options::BasicConsumeOptions { no_ack: true, ..Default::default() };
    let mut answers = channel
        .basic_consume("amq.rabbitmq.reply-to".into(), "answers".into(), options, FieldTable::default())
        .await
        .unwrap();
    let kind = BasicProperties::default().with_type("consign.check.v1".into());
    let (body, options) = (json!({"version": 1, "destination": "acme"}).to_string(), BasicPublishOptions::default());
    let properties = kind.with_reply_to("amq.rabbitmq.reply-to".into());
    channel
        .basic_publish(prefix.as_str().into(), "job.scheduled.acme".into(), options, body.as_bytes(), properties)
        .await
        .unwrap();
    let answer =
        tokio::time::timeout(LIMIT, futures_util::StreamExt::next(&mut answers)).await.unwrap().unwrap().unwrap();
    let answer: Value = serde_json::from_slice(&answer.data).unwrap();
    assert_eq!(answer["verdict"], "ready", "{answer:#}");
    fixture.site.broker.disown("billing.outcomes").await;
    fixture.site.broker.clean().await;
}

#[tokio::test]
async fn topic_permissions_bind_a_scheduler_to_its_destinations() {
    let node = Node::shared();
    let (mut site, s3) = site("bindings").await;
    site.destination("victim", &role_destination("acme", ACME));
    let prefix = site.broker.prefix.clone();
    let scheduler = Producer::new(&node, &prefix);
    node.topic_permissions(&scheduler.user, &prefix, [KEYS, OUTCOMES]);
    let fixture = started((site, s3)).await;
    let url = fixture.site.file("f", b"hello");
    scheduler.publish(&job("mine", &url, "acme", "mine"), BasicProperties::default()).await;
    fixture.delivered("mine").await;

    let theirs = job("theirs", &url, "victim", "theirs").to_string();
    let plain = BasicProperties::default();
    let refused = scheduler.try_publish(&prefix, "job.scheduled.victim", theirs.as_bytes(), plain.clone()).await;
    assert!(refused.unwrap_err().contains("ACCESS_REFUSED"));
    for queue in ["jobs.scheduled", "jobs.continued", "wait.5s"] {
        let queue = format!("{prefix}.{queue}");
        assert!(scheduler.try_publish("", &queue, theirs.as_bytes(), plain.clone()).await.is_err(), "{queue}");
    }
    for exchange in ["wait", "orphans", "lease", "owners", "dlx", "outcomes"] {
        let exchange = format!("{prefix}.{exchange}");
        let sent = scheduler.try_publish(&exchange, "job.scheduled.victim", theirs.as_bytes(), plain.clone()).await;
        assert!(sent.is_err(), "{exchange}");
    }

    // Under a key of its own, also with further keys, or that of a copy.
    let list = AMQPValue::FieldArray(FieldArray::from(vec![text("job.scheduled.victim")]));
    let direct = headers(&[("x-original-routing-key", text("job.scheduled.victim"))]);
    for (name, table) in [("body", FieldTable::default()), ("copied", headers(&[("BCC", list)])), ("header", direct)] {
        let body = job(name, &url, "victim", name).to_string();
        // A broker that checks further keys refuses the second one itself.
        let sent = scheduler
            .try_publish(&prefix, "job.scheduled.acme", body.as_bytes(), plain.clone().with_headers(table))
            .await;
        if name == "copied" && sent.is_err() {
            continue;
        }
        let outcome = fixture.site.broker.ended(name).await;
        let message = outcome["data"]["message"].as_str().unwrap();
        assert_eq!(outcome["data"]["reason"], "invalid_job", "{outcome:#}");
        assert!(message.starts_with("routing_key: "), "{message}");
        assert_eq!(outcome["data"]["destination"], "acme", "nobody hears of it under the name of the other");
    }
    assert_eq!(fixture.s3.calls("PutObject").len(), 1);
    fixture.site.broker.clean().await;
}

fn forged_lease(body: &[u8], bucket: &str, key: &str) -> Vec<u8> {
    let checkpoint = Checkpoint {
        bucket: bucket.to_owned(),
        key: key.to_owned(),
        upload_id: "their-upload".to_owned(),
        initiated: 1_800_000_000,
        kms_key_arn: None,
        encryption: Encryption::default(),
        checked: true,
        sizes: PartSizes::Even { part_size: 5 << 20, parts: 1 },
        source: SourceMark { validator: "v".to_owned(), length: Some(5) },
        parts: Vec::new(),
    };
    let lease =
        Lease { body: body.to_vec().into(), content_type: None, lane: Lane::Scheduled, checkpoint: Some(checkpoint) };
    lease.encode().unwrap().to_vec()
}

#[tokio::test]
async fn a_forged_lease_harms_nothing_but_itself() {
    let fixture = AcmeFixture::start("forgedlease").await;
    let url = fixture.site.file("f", b"hello");
    let owner = [("consign-lease-epoch", text("4000000000")), ("consign-lease-owner", text("nobody.1"))];
    let lease = |name: &str, bucket: &str, key: &str| {
        let body = job(name, &url, "acme", name).to_string();
        let properties = BasicProperties::default().with_content_type(LEASE.into()).with_message_id(name.into());
        (forged_lease(body.as_bytes(), bucket, key), properties.with_headers(headers(&owner)))
    };
    let (body, properties) = lease("public", "acme", "in/public");
    fixture.site.broker.publish_raw("job.scheduled.acme", &body, properties).await;
    assert_eq!(fixture.delivered("public").await["attempts"], 1, "the job in it, which starts over");
    let nested = forged_lease(&body, "acme", "in/public");
    let properties = BasicProperties::default().with_content_type(LEASE.into()).with_message_id("nested".into());
    fixture.site.broker.publish_raw("job.scheduled.acme", &nested, properties).await;
    fixture.site.broker.taken("dead", "nested").await;
    let calls: Vec<_> = fixture.s3.calls("Any").into_iter().map(|call| call.operation).collect();
    assert_eq!(calls, ["AssumeRole", "PutObject"], "none of the forged upload, and none of the second message");

    // Where a lease is accepted, it reaches nothing outside of the destination.
    for (name, bucket, key) in [("bucket", "another", "in/x"), ("prefix", "acme", "out/x")] {
        let (body, _) = lease(name, bucket, key);
        let original = headers(&[("x-original-routing-key", text("job.scheduled.acme"))]);
        let properties = BasicProperties::default().with_content_type(LEASE.into()).with_message_id(name.into());
        fixture.site.broker.put_form("jobs.continued", &body, properties.with_headers(original)).await;
        fixture.delivered(name).await;
    }
    let outside = fixture.s3.calls("Any").into_iter().filter(|call| call.operation == "AbortMultipartUpload").count();
    assert_eq!(outside, 0, "no upload outside is aborted");
    fixture.worker.quiet().await;
    fixture.site.broker.clean().await;
}

/// Jobs that pretend to have killed workers neither run alone nor wait for each other.
#[tokio::test]
async fn forged_crash_counts_put_no_job_into_quarantine() {
    let fixture = AcmeFixture::start("forgedcrashes").await;
    fixture.s3.on("PutObject").before(Effect::Delay(Duration::from_secs(2)));
    let url = fixture.site.file("f", b"hello");
    for n in 0..4 {
        let name = format!("job-{n}");
        let wanted = job(&name, &url, "acme", &name);
        fixture.site.broker.schedule_with_headers(&wanted, &[("x-crashes", "5".to_owned())]).await;
    }
    fixture.running(4.0).await;
    for n in 0..4 {
        assert_eq!(fixture.delivered(&format!("job-{n}")).await["attempts"], 1);
    }
    fixture.close().await;
}
