//! The other forms a job may have: compact, with its destination inside, compressed with zstd, with
//! an address for the answer.

use std::io::Read as _;

use consign::domain::job::compact;
use consign::domain::job::wire::RawJob;
use lapin::BasicProperties;
use lapin::options::{BasicGetOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use serde_json::{Value, json};
use std::time::Duration;

use crate::fixture::{ACME, AcmeFixture, role_destination};
use crate::testbed::site::job;
use crate::testbed::{MIB, bytes, until};

/// A job as a producer would build it, in the compact form.
fn compacted(job: &Value) -> Vec<u8> {
    let raw: RawJob = serde_json::from_value(job.clone()).unwrap();
    compact::encode(&raw).unwrap()
}

#[tokio::test]
async fn a_compact_job_with_its_destination_inside_is_delivered() {
    let fixture = AcmeFixture::start("compact").await;
    let mut inline = role_destination("acme", ACME);
    inline["id"] = json!("acme-inline");
    let content = bytes(61, 300_000);
    let mut wanted = job("a", &fixture.site.file("a", &content), "acme", "a");
    wanted["destination"] = inline;
    let properties =
        BasicProperties::default().with_content_type(compact::CONTENT_TYPE.into()).with_message_id("a".into());
    fixture.site.broker.publish_raw("job.scheduled.acme-inline", &compacted(&wanted), properties).await;
    assert_eq!(fixture.delivered("a").await["destination"], "acme-inline");
    assert_eq!(fixture.object("a").unwrap().bytes, content);
    fixture.close().await;
}

#[tokio::test]
async fn zstd_arrives_as_zstd_and_both_lengths_are_reported() {
    let fixture = AcmeFixture::start("zstd").await;
    let content = b"row,of,numbers\n".repeat(2 * MIB / 15);
    fixture.schedule_with("a", &content, &json!({"compression": "zstd"})).await;
    let data = fixture.delivered("a").await;
    let object = fixture.object("a").unwrap();
    assert_eq!(object.header("content-encoding"), Some("zstd"));
    assert_eq!(data["bytes"], object.bytes.len());
    assert_eq!(data["source_bytes"], content.len());
    assert_eq!(unzstd(&object.bytes), content);
    fixture.close().await;
}

/// The bytes behind a zstd frame, by somebody else's program.
fn unzstd(frame: &[u8]) -> Vec<u8> {
    use std::process::{Command, Stdio};
    let mut file = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut file, frame).unwrap();
    std::io::Seek::rewind(&mut file).unwrap();
    let child = Command::new("zstd").args(["-d", "-c"]).stdin(file).stdout(Stdio::piped()).spawn();
    let mut child = child.expect("the program zstd; tests/run installs it");
    let mut plain = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut plain).unwrap();
    assert!(child.wait().unwrap().success(), "zstd does not accept what was delivered");
    plain
}

#[tokio::test]
async fn the_outcome_is_also_sent_to_reply_to() {
    let fixture = AcmeFixture::start("replyto").await;
    let channel = fixture.site.broker.reachable().await;
    let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
    let answers = format!("{}.reply.answers", fixture.site.broker.prefix);
    channel.queue_declare(answers.as_str().into(), options, FieldTable::default()).await.unwrap();
    let wanted = job("a", &fixture.site.file("a", b"hello"), "acme", "a");
    let properties =
        BasicProperties::default().with_reply_to(answers.as_str().into()).with_correlation_id("c-7".into());
    fixture.site.broker.publish_raw("job.scheduled.acme", &serde_json::to_vec(&wanted).unwrap(), properties).await;
    let answer = until("an answer", Duration::from_secs(30), async || {
        channel.basic_get(answers.as_str().into(), BasicGetOptions { no_ack: true }).await.unwrap()
    })
    .await;
    let answer_body: Value = serde_json::from_slice(&answer.delivery.data).unwrap();
    assert_eq!(answer_body, fixture.site.broker.ended("a").await);
    let correlation = answer.delivery.properties.correlation_id().as_ref().map(ToString::to_string);
    assert_eq!(correlation.as_deref(), Some("c-7"));
    fixture.close().await;
}
