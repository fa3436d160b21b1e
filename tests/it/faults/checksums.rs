//! Parts of a file with and without a checksum header: which of them a store gets, and that nothing
//! unproven is ever delivered.

use std::time::Duration;

use serde_json::json;
use sha2::Digest as _;

use crate::fixture::AcmeFixture;
use crate::testbed::scripted::{CRC, Call, Effect};
use crate::testbed::{MIB, bytes, until};

/// Parts of [`content`].
const PARTS: usize = 3;
/// The words of S3.
const LOCKED: Effect = Effect::Error(
    400,
    "InvalidRequest",
    "Content-MD5 OR x-amz-checksum- HTTP header is required for Put Part requests with Object Lock parameters",
);

fn content(seed: u64) -> Vec<u8> {
    bytes(seed, 20 * MIB)
}

/// The parts that were sent for a job.
fn parts(fixture: &AcmeFixture, name: &str) -> Vec<Call> {
    let key = format!("in/{name}");
    fixture.s3.calls("UploadPart").into_iter().filter(|call| call.key == key).collect()
}

fn without_header(parts: &[Call]) -> usize {
    parts.iter().filter(|part| part.header(CRC).is_none()).count()
}

/// Delivers a file in one attempt; the object is its source. Gives the parts that were sent.
async fn delivers(fixture: &AcmeFixture, name: &str, seed: u64) -> Vec<Call> {
    fixture.schedule(name, &content(seed)).await;
    assert_eq!(fixture.delivered(name).await["attempts"], 1);
    assert!(fixture.object(name).unwrap().bytes == content(seed), "{name} is not its source");
    parts(fixture, name)
}

/// After a part that proved nothing without its header, that part and all others have it.
async fn learns_the_header(fixture: &AcmeFixture) {
    let first = delivers(fixture, "first", 1).await;
    assert_eq!((first.len(), without_header(&first)), (PARTS + 1, 1), "one part was sent twice");
    let second = delivers(fixture, "second", 2).await;
    assert_eq!((second.len(), without_header(&second)), (PARTS, 0), "it is remembered");
    let log = fixture.worker.log();
    assert_eq!(log.matches("part_checksum_headers_learnt").count(), 1, "{log}");
    assert_eq!(fixture.worker.metric("consign_parts_total", "result=\"retried\"").await, 1.0);
    assert_eq!(fixture.worker.metric("consign_parts_total", "result=\"failed\"").await, 0.0);
}

#[tokio::test]
async fn a_store_that_responds_with_the_checksum_of_each_part_gets_no_header() {
    let fixture = AcmeFixture::start("onepass").await;
    let first = delivers(&fixture, "first", 1).await;
    assert_eq!((first.len(), without_header(&first)), (PARTS, 1), "one part shows what the store does");
    let second = delivers(&fixture, "second", 2).await;
    assert_eq!((second.len(), without_header(&second)), (PARTS, PARTS));
    assert!(second.iter().all(Call::proves_its_body));
    fixture.close().await;
}

#[tokio::test]
async fn a_bucket_that_requires_the_header_refuses_one_part_and_no_upload() {
    let fixture = AcmeFixture::start("locked").await;
    fixture.s3.on("UploadPart").unless(CRC, None).before(LOCKED);
    learns_the_header(&fixture).await;
    let refused = fixture.s3.calls("UploadPart").into_iter().filter(|call| call.status != 200).count();
    assert_eq!(refused, 1);
    fixture.close().await;
}

#[tokio::test]
async fn a_store_that_refuses_parts_without_the_header_in_other_words_gets_it() {
    let fixture = AcmeFixture::start("otherwords").await;
    let refusal = Effect::Error(400, "InvalidArgument", "The request is not valid.");
    fixture.s3.on("UploadPart").unless(CRC, None).before(refusal);
    learns_the_header(&fixture).await;
    fixture.close().await;
}

#[tokio::test]
async fn a_bucket_that_begins_to_require_the_header_gets_it() {
    let fixture = AcmeFixture::start("lockedlater").await;
    delivers(&fixture, "first", 1).await;
    fixture.s3.on("UploadPart").unless(CRC, None).before(LOCKED);
    let second = delivers(&fixture, "second", 2).await;
    assert_eq!(second.len() - without_header(&second), PARTS, "each part is sent again with its header");
    let third = delivers(&fixture, "third", 3).await;
    assert_eq!((third.len(), without_header(&third)), (PARTS, 0));
    fixture.close().await;
}

#[tokio::test]
async fn a_store_that_responds_without_checksums_gets_the_header() {
    let fixture = AcmeFixture::start("silent").await;
    for operation in ["UploadPart", "CompleteMultipartUpload"] {
        fixture.s3.on(operation).after(Effect::NoChecksum);
    }
    learns_the_header(&fixture).await;
    fixture.close().await;
}

#[tokio::test]
async fn a_store_that_responds_with_another_checksum_of_a_part_gets_the_header() {
    let fixture = AcmeFixture::start("otherpart").await;
    fixture.s3.on("UploadPart").unless(CRC, None).after(Effect::WrongChecksum);
    learns_the_header(&fixture).await;
    fixture.close().await;
}

#[tokio::test]
async fn a_store_that_always_responds_with_another_checksum_delivers_nothing() {
    let fixture = AcmeFixture::start("otherparts").await;
    fixture.s3.on("UploadPart").after(Effect::WrongChecksum);
    fixture.schedule("a", &content(1)).await;
    let waiting = fixture.site.broker.taken("wait.30s", "\"a\"").await;
    assert_eq!(waiting.header("x-defects"), "1", "{:?}", waiting.headers);
    assert_eq!(fixture.failures("checksum_mismatch").await, 1.0);
    assert!(fixture.object("a").is_none());
    assert_eq!(fixture.s3.open_uploads(), 0);
    fixture.close().await;
}

#[tokio::test]
async fn a_store_that_does_not_keep_the_checksum_of_the_object_gets_the_header() {
    let fixture = AcmeFixture::start("nocrc").await;
    fixture.s3.on("CreateMultipartUpload").after(Effect::NoChecksum);
    for (name, seed) in [("first", 1), ("second", 2)] {
        let parts = delivers(&fixture, name, seed).await;
        assert_eq!((parts.len(), without_header(&parts)), (PARTS, 0), "{name}");
    }
    fixture.close().await;
}

#[tokio::test]
async fn another_checksum_of_the_object_is_learnt_from() {
    let fixture = AcmeFixture::start("otherobject").await;
    fixture.s3.on("CompleteMultipartUpload").key("first").after(Effect::WrongChecksum);
    fixture.schedule("first", &content(1)).await;
    fixture.site.broker.taken("wait.30s", "\"first\"").await;
    let second = delivers(&fixture, "second", 2).await;
    assert_eq!((second.len(), without_header(&second)), (PARTS, 0));
    fixture.close().await;
}

#[tokio::test]
async fn bytes_that_change_in_transit_without_a_header_are_sent_again_with_it() {
    for (word, answers) in [("garbled", true), ("garbledsilent", false)] {
        let fixture = AcmeFixture::start(word).await;
        delivers(&fixture, "first", 1).await;
        if !answers {
            fixture.s3.on("UploadPart").after(Effect::NoChecksum);
        }
        fixture.s3.on("UploadPart").key("second").unless(CRC, None).nth(2).before(Effect::Garbled);
        let second = delivers(&fixture, "second", 2).await;
        assert!(second.iter().any(|part| part.header(CRC).is_some()), "{word}: no part was sent again");
        fixture.close().await;
    }
}

#[tokio::test]
async fn bytes_that_change_in_transit_with_a_header_are_refused_and_sent_again() {
    let fixture = AcmeFixture::start("garbledheader").await;
    fixture.s3.on("UploadPart").with(CRC).nth(1).before(Effect::Garbled);
    let parts = delivers(&fixture, "first", 1).await;
    assert_eq!(parts.iter().filter(|part| part.status == 400).count(), 1);
    fixture.close().await;
}

#[tokio::test]
async fn a_part_without_a_header_that_broke_is_sent_again_with_its_own_checksum() {
    let fixture = AcmeFixture::start("brokenpart").await;
    delivers(&fixture, "first", 1).await;
    fixture.s3.on("UploadPart").key("second").nth(1).before(Effect::LostReply);
    fixture.s3.on("UploadPart").key("second").nth(2).after(Effect::LostReply);
    fixture.s3.on("UploadPart").key("second").nth(3).before(Effect::Error(503, "SlowDown", "Reduce your rate."));
    let second = delivers(&fixture, "second", 2).await;
    assert_eq!((second.len(), without_header(&second)), (PARTS + 3, PARTS + 3));
    fixture.close().await;
}

#[tokio::test]
async fn a_file_that_shrinks_before_it_is_sent_is_no_fault_of_the_destination() {
    let fixture = AcmeFixture::start("shrinks").await;
    delivers(&fixture, "first", 1).await;
    fixture.s3.on("CreateMultipartUpload").before(Effect::Delay(Duration::from_secs(2)));
    let path = fixture.site.files().join("second");
    // With its digest, the next attempt does not take the new content.
    let digest = hex::encode(sha2::Sha256::digest(content(2)));
    let source = json!({"url": format!("file://{}", path.display()), "sha256": digest});
    fixture.schedule_with("second", &content(2), &json!({"source": source})).await;
    until("the upload begins", Duration::from_secs(30), async || {
        (fixture.s3.calls("CreateMultipartUpload").len() == 2).then_some(())
    })
    .await;
    std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(9 * MIB as u64).unwrap();
    fixture.failed("second", "source_changed").await;
    assert_eq!(fixture.failures("connection").await, 0.0);
    assert_eq!((fixture.object("second").is_none(), fixture.s3.open_uploads()), (true, 0));
    fixture.close().await;
}
