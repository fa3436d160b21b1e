//! Messages that are no jobs: each ends as a dead letter that names the field, and the worker
//! continues.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use serde::Deserialize;
use serde_json::json;

use crate::testbed::broker::{Broker, Message};
use crate::testbed::scripted::ScriptedS3;
use crate::testbed::site::{Site, job};
use crate::testbed::until;

/// One line of the corpus.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Bad {
    name: String,
    content_type: Option<String>,
    message_id: Option<String>,
    body: Option<String>,
    body_base64: Option<String>,
    generator: Option<String>,
    /// `worker`: a job as such, refused only where the configuration is known.
    stage: Option<String>,
    expect_reason: String,
    expect_field: String,
}

impl Bad {
    fn bytes(&self) -> Vec<u8> {
        let bytes = self.given();
        match self.stage {
            // Jobs of one id join each other, so each needs its own.
            Some(_) => String::from_utf8(bytes).unwrap().replace("bad-1", &self.id()).into_bytes(),
            None => bytes,
        }
    }

    fn id(&self) -> String {
        self.name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect()
    }

    fn given(&self) -> Vec<u8> {
        match (&self.body, &self.body_base64, self.generator.as_deref()) {
            (Some(text), None, None) => text.as_bytes().to_vec(),
            (None, Some(text), None) => base64::engine::general_purpose::STANDARD.decode(text).unwrap(),
            (None, None, Some(name)) => generated(name),
            _ => panic!("{}: give one body", self.name),
        }
    }

    /// Published as a scheduled job; a header of the producer tells which line it was.
    async fn publish(&self, broker: &Broker) {
        let mut headers = FieldTable::default();
        headers.insert(ShortString::from("corpus-name"), AMQPValue::LongString(self.name.as_str().into()));
        let mut properties = BasicProperties::default().with_headers(headers);
        if let Some(kind) = &self.content_type {
            properties = properties.with_content_type(kind.as_str().into());
        }
        if let Some(id) = &self.message_id {
            properties = properties.with_message_id(id.as_str().into());
        }
        let named = serde_json::from_slice::<serde_json::Value>(&self.bytes()).unwrap_or_default();
        // A job as such is published for the destination that it names.
        let to = named["destination"].as_str().filter(|_| self.stage.is_some()).unwrap_or("acme");
        broker.publish_raw(&format!("job.scheduled.{to}"), &self.bytes(), properties).await;
    }

    fn problem(&self, dead: Option<&Message>) -> Option<String> {
        let name = &self.name;
        let Some(dead) = dead else { return Some(format!("{name}: no dead letter")) };
        let (reason, message) = (dead.header("x-error-reason"), dead.header("x-error-message"));
        if reason != self.expect_reason {
            return Some(format!("{name}: reason {reason}, not {}: {message}", self.expect_reason));
        }
        if !message.contains(&self.expect_field) {
            return Some(format!("{name}: {} is not named in: {message}", self.expect_field));
        }
        let untouched = dead.body == self.bytes() && dead.content_type == self.content_type;
        (!untouched).then(|| format!("{name}: the body was touched"))
    }
}

/// Bodies too large to be written down; the unit tests of `job` read the same corpus.
fn generated(name: &str) -> Vec<u8> {
    let with = |field: &str| {
        let start = r#"{"version":1,"id":"a","source":{"url":"https://h.example/a"},"destination":"acme","key":"k","#;
        format!("{start}{field}}}").into_bytes()
    };
    let many = |letter: char, count: usize| {
        let pairs: Vec<_> = (0..count).map(|n| format!(r#""{letter}{n}":"x""#)).collect();
        pairs.join(",")
    };
    match name {
        "300_kib" => with(&format!(r#""labels":{{"a":"{}"}}"#, "x".repeat(300 * 1024))),
        "300_kib_binary" => std::iter::once(1).chain(std::iter::repeat_n(b'a', 300 * 1024)).collect(),
        "deep_labels" => with(&format!(r#""labels":{}1{}"#, "[".repeat(100_000), "]".repeat(100_000))),
        "deep_unknown" => with(&format!(r#""x":{}1{}"#, r#"{"a":"#.repeat(20_000), "}".repeat(20_000))),
        "deep_everything" => "[".repeat(200_000).into_bytes(),
        "65_labels" => with(&format!(r#""labels":{{{}}}"#, many('l', 65))),
        "11_tags" => with(&format!(r#""tags":{{{}}}"#, many('t', 11))),
        "3_kib_metadata" => with(&format!(r#""metadata":{{"a":"{}"}}"#, "x".repeat(3 * 1024))),
        _ => panic!("unknown generator {name}"),
    }
}

fn corpus() -> Vec<Bad> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus/bad_jobs/bad_jobs.ndjson");
    std::fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

#[tokio::test]
async fn every_bad_message_is_dead_lettered_by_its_field_and_the_worker_continues() {
    let s3 = ScriptedS3::start().await;
    s3.bucket("acme", "eu-central-1", "111111111111");
    let mut site = Site::new("badjobs").await;
    site.aws(&s3.url).set("source.allow_private_networks", false);
    let role = json!({"method": "iam_role", "role_arn": "arn:aws:iam::111111111111:role/consign"});
    site.destination("acme", &json!({"bucket": "acme", "region": "eu-central-1", "auth": role}));
    let worker = site.worker().await;
    let corpus = corpus();
    assert!(corpus.len() >= 60);
    for bad in &corpus {
        bad.publish(&site.broker).await;
    }
    let mut dead = BTreeMap::new();
    let all = until("a dead letter for each bad message", Duration::from_secs(240), async || {
        let taken = site.broker.take("dead").await;
        dead.extend(taken.into_iter().map(|message| (message.header("corpus-name").to_owned(), message)));
        (dead.len() >= corpus.len()).then_some(())
    });
    // Those that are missing are named below.
    let _ = tokio::time::timeout(Duration::from_secs(30), all).await;
    let problems: Vec<_> = corpus.iter().filter_map(|bad| bad.problem(dead.get(&bad.name))).collect();
    assert!(problems.is_empty(), "{} of {}:\n{}", problems.len(), corpus.len(), problems.join("\n"));

    // Neither an id nor a destination can be read off these bodies: the message around them has both.
    for (id, kind, body) in [("cut/1", "application/json", r#"{"version":1,"#), ("odd/1", "text/plain", "{}")] {
        let properties = BasicProperties::default().with_content_type(kind.into()).with_message_id(id.into());
        site.broker.publish_raw("job.scheduled.acme", body.as_bytes(), properties).await;
        let outcome = site.broker.ended(id).await;
        assert_eq!(outcome["type"], "consign.transfer.failed.v1", "{outcome:#}");
        assert_eq!(
            (&outcome["data"]["destination"], &outcome["data"]["reason"]),
            (&json!("acme"), &json!("invalid_job"))
        );
    }

    let url = site.file("good.csv", b"good");
    site.broker.schedule(&job("good", &url, "acme", "good.csv")).await;
    assert_eq!(site.broker.ended("good").await["type"], "consign.transfer.delivered.v1");
    assert_eq!(s3.object("acme", "good.csv").unwrap().bytes, "good");
    worker.quiet().await;
    site.broker.clean().await;
}
