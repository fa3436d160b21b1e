//! The connection test by message, so that a scheduler can offer the button.

use std::time::Duration;

use futures_util::StreamExt as _;
use lapin::BasicProperties;
use lapin::options::{BasicConsumeOptions, BasicGetOptions, BasicNackOptions, BasicPublishOptions};
use lapin::types::FieldTable;
use serde_json::{Value, json};

use super::{EXTERNAL_ID, by_role, codes, run};
use crate::fixture::{ACME, AcmeFixture, REGION, site};
use crate::testbed::broker::Message;
use crate::testbed::scripted::Effect;
use crate::testbed::until;

const KIND: &str = "consign.check.v1";

/// A fixture whose role asks for its external id.
async fn fixture(word: &str) -> AcmeFixture {
    let (mut site, s3) = site(word).await;
    site.without_destination("acme").destination("acme", &by_role());
    s3.trust(Some(EXTERNAL_ID));
    let worker = site.worker().await;
    AcmeFixture { site, s3, worker }
}

/// Asks for a test, with this reply queue if any.
async fn ask(fixture: &AcmeFixture, body: &Value, reply_to: Option<&str>) {
    let mut properties = BasicProperties::default().with_type(KIND.into()).with_correlation_id("button-7".into());
    if let Some(queue) = reply_to {
        properties = properties.with_reply_to(queue.into());
    }
    let to = &body["destination"];
    let id = to.as_str().or(to["id"].as_str()).unwrap_or("acme");
    fixture.site.broker.publish_raw(&format!("job.scheduled.{id}"), body.to_string().as_bytes(), properties).await;
}

async fn answered(fixture: &AcmeFixture) -> Message {
    until("an answer", Duration::from_secs(60), async || fixture.site.broker.take("reply.answers").await.pop()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_test_by_message_is_answered_with_what_the_command_prints() {
    let fixture = fixture("checked").await;
    let answers = fixture.site.broker.own("reply.answers").await;
    ask(&fixture, &json!({"version": 1, "destination": "acme"}), Some(&answers)).await;
    let message = answered(&fixture).await;
    assert_eq!(message.correlation_id.as_deref(), Some("button-7"));
    assert_eq!((message.kind.as_deref(), message.content_type.as_deref()), (Some(KIND), Some("application/json")));
    let mut answer = message.json();
    let printed = run(&fixture.site, &["check", "acme", "--json"]);
    let mut printed: Value = serde_json::from_slice(&printed.stdout).unwrap();
    for changing in ["checked_at", "duration_seconds"] {
        assert!(answer[changing].take() != Value::Null && printed[changing].take() != Value::Null, "{changing}");
    }
    assert_eq!(answer, printed);
    assert_eq!((answer["verdict"].as_str(), answer["destination"].as_str()), (Some("ready"), Some("acme")));
    until("the question is acknowledged", Duration::from_secs(60), async || {
        (fixture.worker.metric("consign_broker_settlements_total", "action=\"ack\"").await == 1.0).then_some(())
    })
    .await;
    assert_eq!(fixture.site.broker.outcomes().await.len(), 0, "a test is no transfer");
    assert_eq!(fixture.s3.keys(), Vec::<String>::new());
    fixture.site.broker.disown("reply.answers").await;
    fixture.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_asker_without_a_queue_of_its_own_is_answered_once() {
    let fixture = fixture("direct").await;
    // The broker's own pseudo-queue for answers, which only the channel that asks can read.
    let here = "amq.rabbitmq.reply-to";
    let channel = fixture.site.broker.reachable().await;
    let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    let mut answers = channel.basic_consume(here.into(), "".into(), options, FieldTable::default()).await.unwrap();
    let properties = BasicProperties::default()
        .with_type(KIND.into())
        .with_correlation_id("button-8".into())
        .with_reply_to(here.into())
        .with_delivery_mode(2);
    let (exchange, body) =
        (fixture.site.broker.prefix.as_str(), json!({"version": 1, "destination": "acme"}).to_string());
    let sent = channel.basic_publish(
        exchange.into(),
        "job.scheduled.acme".into(),
        BasicPublishOptions::default(),
        body.as_bytes(),
        properties,
    );
    sent.await.unwrap().await.unwrap();
    let answer = tokio::time::timeout(Duration::from_secs(60), answers.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(answer.properties.correlation_id().as_ref().map(ToString::to_string).as_deref(), Some("button-8"));
    assert_eq!(serde_json::from_slice::<Value>(&answer.data).unwrap()["verdict"], "ready");
    until("the question is settled", Duration::from_secs(60), async || {
        let settled = fixture.worker.metric("consign_broker_settlements_total", "action=\"ack\"").await
            + fixture.worker.metric("consign_broker_settlements_total", "action=\"dead\"").await;
        (settled == 1.0).then_some(())
    })
    .await;
    assert_eq!(fixture.site.broker.take("dead").await.len(), 0, "an answered question is no dead letter");
    fixture.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repair_shows_at_the_next_press_of_the_button() {
    let fixture = fixture("repaired").await;
    let answers = fixture.site.broker.own("reply.answers").await;
    let body = json!({"version": 1, "destination": "acme"});
    fixture.s3.trust(Some("another"));
    // A transfer was refused just before: that is remembered for a minute.
    fixture.schedule("a", b"hello").await;
    fixture.site.broker.taken("wait.2m", "\"a\"").await;
    ask(&fixture, &body, Some(&answers)).await;
    let answer = answered(&fixture).await.json();
    assert_eq!(codes(&answer, "failed"), ["role_denied"], "{answer:#}");
    fixture.s3.trust(Some(EXTERNAL_ID));
    ask(&fixture, &body, Some(&answers)).await;
    let answer = answered(&fixture).await.json();
    assert_eq!(answer["verdict"], "ready", "{answer:#}");
    fixture.schedule("b", b"hello").await;
    fixture.delivered("b").await;
    fixture.site.broker.disown("reply.answers").await;
    fixture.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_test_takes_no_session_from_running_transfers_and_a_moved_bucket_is_found() {
    let fixture = fixture("harmless").await;
    let answers = fixture.site.broker.own("reply.answers").await;
    let body = json!({"version": 1, "destination": "acme"});
    fixture.schedule("a", b"hello").await;
    fixture.delivered("a").await;
    fixture.s3.trust(Some("another"));
    ask(&fixture, &body, Some(&answers)).await;
    assert_eq!(codes(&answered(&fixture).await.json(), "failed"), ["role_denied"]);
    fixture.schedule("b", b"hello").await;
    fixture.delivered("b").await;
    fixture.s3.trust(Some(EXTERNAL_ID));

    fixture.s3.bucket("acme", "us-west-2", ACME);
    fixture.schedule("c", b"hello").await;
    fixture.delivered("c").await;
    // What that transfer has learnt must not be held against a bucket that is where it should be by now.
    fixture.s3.bucket("acme", REGION, ACME);
    ask(&fixture, &body, Some(&answers)).await;
    let answer = answered(&fixture).await.json();
    assert_eq!((answer["verdict"].as_str(), answer["region"].as_str()), (Some("ready"), Some(REGION)), "{answer:#}");
    fixture.site.broker.disown("reply.answers").await;
    fixture.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_inline_destination_is_tested_before_it_is_saved() {
    let fixture = fixture("inlinecheck").await;
    fixture.s3.bucket("beta", REGION, ACME);
    fixture.s3.on("PutObject").before(Effect::Error(403, "AccessDenied", "Access Denied"));
    let answers = fixture.site.broker.own("reply.answers").await;
    let mut inline = by_role();
    inline["id"] = json!("beta");
    inline["bucket"] = json!("beta");
    ask(&fixture, &json!({"version": 1, "destination": inline}), Some(&answers)).await;
    let answer = answered(&fixture).await.json();
    assert_eq!((answer["destination"].as_str(), answer["bucket"].as_str()), (Some("beta"), Some("beta")));
    assert_eq!(codes(&answer, "failed"), ["access_denied_unspecified"], "{answer:#}");
    fixture.site.broker.disown("reply.answers").await;
    fixture.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_question_that_makes_no_sense_is_answered_with_its_field() {
    let fixture = fixture("badcheck").await;
    let answers = fixture.site.broker.own("reply.answers").await;
    let mut stolen = by_role();
    stolen["id"] = json!("acme");
    let questions = [
        (json!({"version": 1}), None, "destination: is required"),
        (json!({"version": 1, "destination": "acme", "force": true}), None, "force: is not a field of a check"),
        (json!({"version": 9, "destination": "acme"}), None, "version: 9 is not supported"),
        (json!({"version": 1, "destination": "nobody"}), Some("nobody"), "there is no destination nobody"),
        (json!({"version": 1, "destination": stolen}), Some("acme"), "destination.id: acme is the id of a configured"),
    ];
    let schema: Value = serde_json::from_slice(&run(&fixture.site, &["schema", "check-answer"]).stdout).unwrap();
    let required = schema["required"].as_array().unwrap();
    for (body, destination, words) in questions {
        ask(&fixture, &body, Some(&answers)).await;
        let message = answered(&fixture).await;
        assert_eq!((message.correlation_id.as_deref(), message.kind.as_deref()), (Some("button-7"), Some(KIND)));
        let answer = message.json();
        assert!(required.iter().all(|field| !answer[field.as_str().unwrap()].is_null()), "{answer:#}");
        assert_eq!((&answer["verdict"], answer["destination"].as_str()), (&json!("not ready"), destination));
        let step = &answer["steps"][0];
        assert_eq!(
            (&step["step"], &step["result"], &step["code"]),
            (&json!("configuration"), &json!("failed"), &json!("unexpected"))
        );
        assert!(step["cause"].as_str().unwrap().contains(words), "{answer:#}");
        assert!(!step["remedy"]["text"].as_str().unwrap().is_empty(), "{answer:#}");
    }
    until("the questions are acknowledged", Duration::from_secs(60), async || {
        (fixture.worker.metric("consign_broker_settlements_total", "action=\"ack\"").await == 5.0).then_some(())
    })
    .await;
    assert_eq!(fixture.site.broker.take("dead").await.len(), 0, "whoever asked was told");
    fixture.site.broker.disown("reply.answers").await;
    fixture.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_question_that_nobody_can_be_answered_is_dead_lettered() {
    let fixture = fixture("unanswered").await;
    let good = json!({"version": 1, "destination": "acme"});
    let unknown = json!({"version": 1, "destination": "nobody"});
    let gone = format!("{}.reply.gone", fixture.site.broker.prefix);
    let there = Some(gone.as_str());
    let questions = [
        (&good, None, "invalid_job", "reply_to: is missing"),
        (&good, there, "invalid_job", "reply_to: the answer to the connection test can't be delivered"),
        (&unknown, None, "unknown_destination", "destination: there is no destination nobody"),
        (&unknown, there, "unknown_destination", "destination: there is no destination nobody"),
    ];
    for (body, reply_to, reason, words) in questions {
        ask(&fixture, body, reply_to).await;
        let dead = until(words, Duration::from_secs(60), async || fixture.site.broker.take("dead").await.pop()).await;
        assert_eq!(dead.header("x-error-reason"), reason, "{body}: {:?}", dead.headers);
        assert!(dead.header("x-error-message").starts_with(words), "{body}: {:?}", dead.headers);
        assert_eq!(&dead.json(), body, "the body is untouched");
    }
    fixture.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_that_ends_workers_is_answered_and_dead_lettered() {
    let (mut site, s3) = site("poisoncheck").await;
    site.without_destination("acme").destination("acme", &by_role());
    let answers = site.broker.own("reply.answers").await;
    let question = json!({"version": 1, "destination": "acme"});
    let properties = BasicProperties::default().with_type(KIND.into()).with_reply_to(answers.as_str().into());
    site.broker.publish_raw("job.scheduled.acme", question.to_string().as_bytes(), properties).await;
    let (channel, queue) = (site.broker.reachable().await, format!("{}.jobs.scheduled", site.broker.prefix));
    for _ in 0..400 {
        let got = channel.basic_get(queue.as_str().into(), BasicGetOptions::default()).await.unwrap().unwrap();
        got.delivery.acker.nack(BasicNackOptions { multiple: false, requeue: true }).await.unwrap();
    }
    let worker = site.worker().await;
    let fixture = AcmeFixture { site, s3, worker };
    let answer = answered(&fixture).await.json();
    assert_eq!(
        (answer["verdict"].as_str(), codes(&answer, "failed")),
        (Some("not ready"), vec!["unexpected".to_owned()])
    );
    assert!(answer["steps"][0]["remedy"]["text"].as_str().unwrap().contains("dead letters"), "{answer:#}");
    assert_eq!(fixture.site.broker.taken("dead", "acme").await.header("x-error-reason"), "crash_loop");
    fixture.site.broker.disown("reply.answers").await;
    fixture.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_test_that_a_drain_interrupts_goes_back_to_the_queue() {
    let (mut site, s3) = site("draincheck").await;
    site.set("worker.drain_timeout", "5s");
    s3.on("CreateMultipartUpload").before(Effect::Delay(Duration::from_secs(50)));
    let worker = site.worker().await;
    let fixture = AcmeFixture { site, s3, worker };
    let answers = fixture.site.broker.own("reply.answers").await;
    ask(&fixture, &json!({"version": 1, "destination": "acme"}), Some(&answers)).await;
    until("the test is under way", Duration::from_secs(60), async || {
        (!fixture.s3.calls("ListObjectsV2").is_empty()).then_some(())
    })
    .await;
    fixture.worker.terminate();
    assert!(fixture.worker.exit(Duration::from_secs(30)).await.success(), "drained in time:\n{}", fixture.worker.log());
    let question = fixture.site.broker.taken("jobs.scheduled", "\"acme\"").await;
    assert_eq!(question.kind.as_deref(), Some(KIND));
    assert_eq!(fixture.site.broker.take("reply.answers").await.len(), 0);
    fixture.site.broker.disown("reply.answers").await;
    fixture.site.broker.clean().await;
}
