//! Jobs that wait for minutes for a broken destination are released as soon as somebody reports
//! that it is fixed.

use std::collections::BTreeMap;

use lapin::BasicProperties;
use lapin::options::BasicPublishOptions;
use lapin::types::{AMQPValue, FieldTable};
use rusqlite::Connection;

use super::*;

const COUNT: usize = 60;

/// A site with a bucket that is not there, and one job that a worker has found that out with.
async fn broken(site: &mut Site, name: &str) -> Worker {
    site.destination(name, &role_destination(name, "222222222222"));
    let worker = site.worker().await;
    site.broker.offer("scheduled", &job_for(site, name, 0)).await;
    circuit(&worker, name, true).await;
    worker
}

fn job_for(site: &Site, destination: &str, number: usize) -> Value {
    let name = format!("{destination}-{number}");
    job(&name, &site.file("hello", b"hello"), destination, &name)
}

/// Puts jobs into the wait queue of 10 minutes, as a worker would after two failed probes.
async fn park(site: &Site, destination: &str) {
    let channel = site.broker.reachable().await;
    for number in 1..COUNT {
        let job = job_for(site, destination, number);
        let mut headers = FieldTable::default();
        headers.insert("consign-wait".into(), AMQPValue::LongString("10m".into()));
        headers.insert("x-deferred-since".into(), AMQPValue::LongString(jiff::Timestamp::now().to_string().into()));
        let properties = BasicProperties::default()
            .with_content_type("application/json".into())
            .with_message_id(job["id"].as_str().unwrap().into())
            .with_headers(headers)
            .with_delivery_mode(2);
        let (exchange, key) = (format!("{}.wait", site.broker.prefix), format!("job.backfill.{destination}"));
        let (options, body) = (BasicPublishOptions::default(), job.to_string());
        let sent = channel.basic_publish(exchange.into(), key.into(), options, body.as_bytes(), properties);
        sent.await.unwrap().await.unwrap();
    }
}

/// Terminal outcomes of each job of a destination.
async fn ends(site: &Site, destination: &str) -> BTreeMap<String, usize> {
    let (mut ends, prefix) = (BTreeMap::new(), format!("{destination}-"));
    for outcome in site.broker.outcomes().await {
        let outcome = outcome.json();
        let subject = outcome["subject"].as_str().unwrap();
        if subject.starts_with(&prefix) {
            assert_eq!(outcome["type"], "consign.transfer.delivered.v1", "{outcome:#}");
            assert_eq!(outcome["data"]["attempts"], 1, "{outcome:#}");
            *ends.entry(subject.to_owned()).or_default() += 1;
        }
    }
    ends
}

/// Far sooner than they would come by themselves.
async fn all_flow(site: &Site, destination: &str) {
    until("all are delivered", LONG, async || (ends(site, destination).await.len() == COUNT).then_some(())).await;
    let ends = ends(site, destination).await;
    assert!(ends.values().all(|times| *times == 1), "{ends:?}");
}

fn reset(site: &Site, destination: &str) {
    let reset = site.consign(&["status", "reset", destination]);
    assert!(reset.status.success(), "{}", String::from_utf8_lossy(&reset.stderr));
    let said = String::from_utf8_lossy(&reset.stdout).into_owned();
    assert!(said.contains("they close the circuit breaker of"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_recalls_what_waits_for_minutes_and_so_does_a_check_by_message() {
    let (mut site, s3) = site("callback").await;
    let first = broken(&mut site, "beta").await;
    park(&site, "beta").await;
    s3.bucket("beta", REGION, "222222222222");
    reset(&site, "beta");
    all_flow(&site, "beta").await;
    first.terminate();
    assert!(first.exit(LONG).await.success());

    let worker = broken(&mut site, "gamma").await;
    park(&site, "gamma").await;
    s3.bucket("gamma", REGION, "222222222222");
    let answers = site.broker.own("reply.answers").await;
    let properties =
        BasicProperties::default().with_type("consign.check.v1".into()).with_reply_to(answers.as_str().into());
    let question = json!({"version": 1, "destination": "gamma"}).to_string();
    site.broker.publish_raw("job.scheduled.gamma", question.as_bytes(), properties).await;
    all_flow(&site, "gamma").await;
    site.broker.disown("reply.answers").await;
    AcmeFixture { site, s3, worker }.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_worker_recalls_what_it_does_not_know_of() {
    let mut site = Site::embedded("callback");
    let s3 = crate::fixture::add_acme(&mut site).await;
    let worker = broken(&mut site, "beta").await;
    for number in 1..COUNT {
        assert!(site.broker.offer("scheduled", &job_for(&site, "beta", number)).await);
    }
    let db = Connection::open(site.dir.path().join("queue.db")).unwrap();
    db.busy_timeout(LONG).unwrap();
    let longer = "UPDATE waiting SET due_ms = due_ms + 600000, rung_ms = 43200000 WHERE rung_ms < 43200000";
    let mut parked = 0;
    until("all wait for minutes", LONG, async || {
        parked += db.execute(longer, []).unwrap();
        (parked == COUNT).then_some(())
    })
    .await;
    worker.terminate();
    assert!(worker.exit(LONG).await.success());
    let worker = site.worker().await;
    s3.bucket("beta", REGION, "222222222222");
    reset(&site, "beta");
    all_flow(&site, "beta").await;
    worker.quiet().await;
    worker.terminate();
    assert!(worker.exit(LONG).await.success());
}
