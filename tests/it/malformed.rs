//! Messages that a broker takes and a client library can't read: none of them may cost anybody but
//! itself.

use std::collections::BTreeSet;
use std::time::Duration;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Value, json};

use crate::testbed::raw::{get_and_leave, nested, publish, short, text, void, with_headers};
use crate::testbed::scripted::ScriptedS3;
use crate::testbed::site::{Site, job};
use crate::testbed::until;

async fn site() -> (Site, ScriptedS3) {
    let s3 = ScriptedS3::start().await;
    s3.bucket("acme", "eu-central-1", "111111111111");
    let mut site = Site::new("poison").await;
    site.aws(&s3.url).set("source.allow_private_networks", false);
    let role = json!({"method": "iam_role", "role_arn": "arn:aws:iam::111111111111:role/consign"});
    site.destination("acme", &json!({"bucket": "acme", "region": "eu-central-1", "auth": role}));
    (site, s3)
}

fn body(job: &Value) -> Vec<u8> {
    serde_json::to_vec(job).unwrap()
}

#[tokio::test]
async fn what_a_client_can_not_read_is_delivered_all_the_same_and_nothing_else_suffers() {
    let (site, _s3) = site().await;
    let worker = site.worker().await;
    let url = site.file("a.csv", b"good");
    let key = b"job.scheduled.acme";
    let property = |bit: u16, value: &[u8]| [&(1_u16 << bit).to_be_bytes()[..], &short(value)].concat();
    let (correlation, app) = (property(10, b"\xff"), property(3, b"\xc3("));
    let odd = [
        ("name", &key[..], with_headers(&void(b"a\xff\xfe"))),
        ("correlation", &key[..], correlation),
        ("app", &key[..], app),
        ("lists", &key[..], with_headers(&nested(b'A', 10_000))),
        ("tables", &key[..], with_headers(&nested(b'F', 10_000))),
    ];
    for (id, key, properties) in &odd {
        publish(&site.broker, key, properties, &body(&job(id, &url, "acme", id))).await;
    }
    // Its key names no destination, so it is nobody's.
    publish(&site.broker, b"job.scheduled.\xff", &[0, 0], &body(&job("key", &url, "acme", "key"))).await;
    // Some that wait and come again, and end as dead letters.
    let gone = format!("file://{}/none", site.files().display());
    publish(&site.broker, key, &with_headers(&nested(b'A', 1_000)), &body(&job("gone", &gone, "acme", "gone"))).await;
    publish(&site.broker, b"job.scheduled.\xff", &with_headers(&void(b"\xff")), b"no job").await;
    for (id, ..) in &odd {
        assert_eq!(site.broker.ended(id).await["type"], "consign.transfer.delivered.v1", "{id}");
    }
    let dead = until("three dead letters", Duration::from_secs(60), async || {
        site.broker.take("dead").await;
        let all = site.broker.all_taken();
        let reasons: BTreeSet<_> = all.iter().map(|(_, letter)| letter.header("x-error-reason").to_owned()).collect();
        (all.len() >= 3).then_some(reasons)
    });
    assert_eq!(dead.await, BTreeSet::from(["invalid_job".to_owned(), "source_not_found".to_owned()]));
    assert_eq!(worker.metric("consign_broker_reconnects_total", "").await, 0.0);
    worker.quiet().await;
    site.broker.clean().await;
}

#[tokio::test]
async fn headers_that_the_broker_makes_too_large_for_a_frame_cost_nobody_a_connection() {
    let (site, _s3) = site().await;
    let url = site.file("a.csv", b"good");
    // As much as a frame holds, to the byte; what comes again has one header more, of the broker.
    let padding = 131_072 - 8 - 14 - 4 - "padding".len() - 6;
    let full = with_headers(&text(b"padding", &vec![b'x'; padding]));
    publish(&site.broker, b"job.scheduled.acme", &full, &body(&job("full", &url, "acme", "full"))).await;
    get_and_leave(&site.broker, "jobs.scheduled").await;
    let worker = site.worker().await;
    site.broker.schedule(&job("good", &url, "acme", "good")).await;
    for id in ["full", "good"] {
        assert_eq!(site.broker.ended(id).await["type"], "consign.transfer.delivered.v1", "{id}");
    }
    assert_eq!(worker.metric("consign_broker_reconnects_total", "").await, 0.0);
    worker.quiet().await;
    site.broker.clean().await;
}

#[tokio::test]
async fn an_answer_to_a_made_up_asker_ends_nobody_elses_connection() {
    let (site, _s3) = site().await;
    let worker = site.worker().await;
    let url = site.file("a.csv", b"good");
    let asker = "amq.rabbitmq.reply-to.g1h2AA5yZXBseUA0MjQ4MTU0NwAABGsAAAAAZ0.eIXkJKQ==";
    let asked = || BasicProperties::default().with_reply_to(asker.into());
    site.broker.publish_raw("job.scheduled.acme", &body(&job("told", &url, "acme", "told")), asked()).await;
    let check = asked().with_type("consign.check.v1".into());
    site.broker.publish_raw("job.scheduled.acme", br#"{"version":1,"destination":"acme"}"#, check).await;
    let dead = until("the dead letter", Duration::from_secs(60), async || site.broker.take("dead").await.pop()).await;
    assert_eq!(dead.header("x-error-reason"), "invalid_job");
    assert!(dead.header("x-error-message").starts_with("reply_to: "), "{}", dead.header("x-error-message"));
    site.broker.schedule(&job("good", &url, "acme", "good")).await;
    for id in ["told", "good"] {
        assert_eq!(site.broker.ended(id).await["type"], "consign.transfer.delivered.v1", "{id}");
    }
    assert_eq!(worker.metric("consign_broker_reconnects_total", "").await, 0.0);
    worker.quiet().await;
    site.broker.clean().await;
}

#[tokio::test]
async fn headers_that_fill_a_frame_cost_their_own_message_and_nobody_elses() {
    let (site, _s3) = site().await;
    let worker = site.worker().await;
    let mut headers = FieldTable::default();
    headers.insert("padding".into(), AMQPValue::LongString("x".repeat(130_700).into()));
    let full = BasicProperties::default().with_headers(headers).with_message_id("full".into());
    site.broker.publish_raw("job.scheduled.acme", b"no job", full).await;
    let dead = until("the dead letter", Duration::from_secs(60), async || site.broker.take("dead").await.pop()).await;
    assert_eq!((dead.header("x-error-reason"), dead.header("x-headers-left-out")), ("invalid_job", "padding"));
    let url = site.file("good.csv", b"good");
    site.broker.schedule(&job("good", &url, "acme", "good.csv")).await;
    assert_eq!(site.broker.ended("good").await["type"], "consign.transfer.delivered.v1");
    worker.quiet().await;
    site.broker.clean().await;
}
