//! Secrets that the connection test knows and never prints.

use lapin::BasicProperties;
use serde_json::json;
use std::time::Duration;

use super::{by_key, check, run};
use crate::fixture::{REGION, site};
use crate::testbed::scripted::Effect;
use crate::testbed::until;

/// Marks every secret of these tests but the external id, which the trust policy to paste has to
/// hold.
const MARK: &str = "marked-secret";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_and_tokens_are_in_no_answer_and_no_log() {
    let (mut site, s3) = site("checksecrets").await;
    s3.bucket("keyed", REGION, "333333333333");
    let mut keyed = by_key();
    keyed["bucket"] = json!("keyed");
    site.destination("keyed", &keyed).set("log.filter", "trace");
    let worker = site.worker().await;
    let answers = site.broker.own("reply.answers").await;
    s3.on("PutObject").before(Effect::Error(403, "SignatureDoesNotMatch", "The request signature does not match."));
    let mut said = String::new();
    for id in ["acme", "keyed"] {
        let properties =
            BasicProperties::default().with_type("consign.check.v1".into()).with_reply_to(answers.as_str().into());
        let body = json!({"version": 1, "destination": id}).to_string();
        site.broker.publish_raw(&format!("job.scheduled.{id}"), body.as_bytes(), properties).await;
        let answer =
            until("an answer", Duration::from_secs(60), async || site.broker.take("reply.answers").await.pop()).await;
        assert_eq!(answer.json()["verdict"], "not ready", "{}", answer.text());
        said.push_str(&answer.text());
        let printed = run(&site, &["check", id]);
        for stream in [printed.stdout, printed.stderr] {
            said.push_str(&String::from_utf8_lossy(&stream));
        }
    }
    // The external id of the fixture's customer is marked, too; it belongs into the trust policy, and nowhere else.
    let said = said.replace("\"sts:ExternalId\": \"marked-secret-external-id\"", "");
    let said = said.replace("\"sts:ExternalId\":\"marked-secret-external-id\"", "");
    let log = worker.log();
    assert!(log.contains("\"TRACE\"") && log.contains("connection tested"), "the worker logs at trace level");
    for (place, text) in [("answers", &said), ("log", &log)] {
        let hits: Vec<_> = text
            .lines()
            .filter(|line| line.contains(MARK))
            .map(|line| line.chars().take(400).collect::<String>())
            .collect();
        assert!(hits.is_empty(), "{place}: {hits:#?}");
    }
    site.broker.disown("reply.answers").await;
    worker.quiet().await;
    site.broker.clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_hint_of_a_refused_role_holds_no_external_id_and_the_answer_does() {
    let (mut site, s3) = super::customer().await;
    site.destination("acme", &super::by_role());
    s3.trust(Some("another"));
    let (answer, _) = check(&site);
    let remedy = &super::step(&answer, "assume_role")["remedy"];
    assert!(!remedy["text"].as_str().unwrap().contains(super::EXTERNAL_ID), "{remedy:#}");
    assert!(remedy["statement"].to_string().contains(super::EXTERNAL_ID), "{remedy:#}");
}
