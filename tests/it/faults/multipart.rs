//! Complete is where an outcome may be unknown, and abort is where a customer's policy says no.

use std::time::Duration;

use serde_json::Value;

use crate::fixture::AcmeFixture;
use crate::testbed::scripted::{CRC, Call, Effect};
use crate::testbed::site::job;
use crate::testbed::{MIB, bytes, until};

/// Delivers 20 MiB in spite of what `bend` does to Complete; the upload must not have been begun
/// twice.
async fn completed_in_spite_of(word: &str, effect: Effect) -> AcmeFixture {
    let fixture = AcmeFixture::start(word).await;
    fixture.s3.on("CompleteMultipartUpload").nth(1).after(effect);
    let content = bytes(9, 20 * MIB);
    fixture.schedule("a", &content).await;
    let data = fixture.delivered("a").await;
    assert_eq!((&data["attempts"], &data["bytes"]), (&1.into(), &content.len().into()), "{data:#}");
    assert_eq!(fixture.object("a").unwrap().bytes, content);
    assert_eq!(fixture.s3.calls("CreateMultipartUpload").len(), 1, "the upload was not begun again");
    assert_eq!(fixture.s3.open_uploads(), 0);
    fixture
}

#[tokio::test]
async fn a_lost_reply_to_complete_is_reconciled_by_listing_the_key() {
    let fixture = completed_in_spite_of("lostcomplete", Effect::LostReply).await;
    let listed = fixture.s3.calls("ListObjectsV2");
    assert_eq!(listed.last().map(|call| call.asked("prefix")), Some("in/a"));
    fixture.close().await;
}

#[tokio::test]
async fn a_200_with_nothing_in_it_is_no_proof() {
    completed_in_spite_of("emptybody", Effect::EmptyBody).await.close().await;
}

#[tokio::test]
async fn a_200_with_an_error_in_it_is_an_error() {
    let fixture = AcmeFixture::start("error200").await;
    fixture.s3.on("CompleteMultipartUpload").nth(1).before(Effect::ErrorIn200("InternalError"));
    let content = bytes(10, 20 * MIB);
    fixture.schedule("a", &content).await;
    assert_eq!(fixture.delivered("a").await["attempts"], 1);
    assert_eq!(fixture.object("a").unwrap().bytes, content);
    assert_eq!(fixture.s3.calls("CompleteMultipartUpload").len(), 2);
    assert_eq!(fixture.s3.calls("CreateMultipartUpload").len(), 1);
    fixture.close().await;
}

#[tokio::test]
async fn where_listing_is_denied_a_lost_reply_costs_a_second_upload() {
    let fixture = AcmeFixture::start("nolist").await;
    fixture.s3.on("CompleteMultipartUpload").nth(1).after(Effect::LostReply);
    fixture.s3.on("ListObjectsV2").before(Effect::Error(403, "AccessDenied", "Access Denied"));
    let content = bytes(11, 20 * MIB);
    fixture.schedule("a", &content).await;
    fixture.delivered("a").await;
    assert_eq!(fixture.object("a").unwrap().bytes, content);
    assert_eq!(fixture.s3.count("acme"), 1);
    assert_eq!(fixture.s3.open_uploads(), 0);
    fixture.close().await;
}

#[tokio::test]
async fn a_failed_upload_is_aborted_and_nothing_is_visible() {
    let fixture = AcmeFixture::start("aborted").await;
    fixture.s3.on("UploadPart").before(Effect::Error(400, "SomethingNew", "Nobody foresaw this."));
    fixture.schedule("a", &bytes(12, 20 * MIB)).await;
    fixture.failed("a", "unclassified").await;
    assert!(fixture.object("a").is_none());
    assert_eq!(fixture.s3.open_uploads(), 0);
    assert_eq!(fixture.worker.metric("consign_multipart_aborted_total", "").await, 1.0);
    fixture.close().await;
}

/// The upload of a failed job is open, since S3 is `"down"` for its abort.
async fn left_open(word: &str) -> AcmeFixture {
    let fixture = AcmeFixture::start(word).await;
    fixture.s3.on("UploadPart").before(Effect::Error(400, "SomethingNew", "Nobody foresaw this."));
    let down = Effect::Error(503, "ServiceUnavailable", "Please try again.");
    fixture.s3.on("AbortMultipartUpload").named("down").before(down);
    fixture.schedule("a", &bytes(12, 20 * MIB)).await;
    fixture.failed("a", "unclassified").await;
    assert_eq!(fixture.s3.open_uploads(), 1);
    fixture
}

#[tokio::test]
async fn an_upload_that_can_not_be_aborted_now_is_aborted_later() {
    let fixture = left_open("abortlater").await;
    fixture.s3.lift("down");
    until("it is aborted", Duration::from_secs(60), async || (fixture.s3.open_uploads() == 0).then_some(())).await;
    assert_eq!(fixture.worker.metric("consign_multipart_orphaned_total", "").await, 0.0);
    fixture.close().await;
}

#[tokio::test]
async fn an_upload_that_could_not_be_aborted_is_aborted_before_the_worker_exits() {
    let fixture = left_open("abortdrain").await;
    fixture.s3.lift("down");
    fixture.worker.terminate();
    assert!(fixture.worker.exit(Duration::from_secs(30)).await.success());
    assert_eq!(fixture.s3.open_uploads(), 0);
    fixture.site.broker.clean().await;
}

#[tokio::test]
async fn a_worker_exits_although_an_abort_gets_no_answer() {
    let fixture = left_open("aborthangs").await;
    fixture.s3.on("AbortMultipartUpload").before(Effect::Delay(Duration::from_secs(120)));
    fixture.s3.lift("down");
    fixture.worker.terminate();
    assert!(fixture.worker.exit(Duration::from_secs(60)).await.success());
    assert_eq!(fixture.s3.open_uploads(), 1);
    assert!(fixture.worker.log().contains("aborts_unfinished"), "{}", fixture.worker.log());
    fixture.site.broker.clean().await;
}

#[tokio::test]
async fn where_an_earlier_delivery_wrote_the_object_the_own_upload_is_aborted() {
    let fixture = AcmeFixture::start("older").await;
    let url = fixture.site.file("a", &bytes(16, 20 * MIB));
    fixture.site.broker.schedule(&job("a", &url, "acme", "same")).await;
    fixture.delivered("a").await;
    // S3 tells the age of an object in whole seconds.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let nothing_done = Effect::Error(500, "InternalError", "We encountered an internal error.");
    fixture.s3.on("CompleteMultipartUpload").before(nothing_done);
    fixture.site.broker.schedule(&job("b", &url, "acme", "same")).await;
    fixture.delivered("b").await;
    assert_eq!((fixture.s3.count("acme"), fixture.s3.open_uploads()), (1, 0));
    fixture.close().await;
}

#[tokio::test]
async fn where_another_upload_became_the_object_the_own_one_is_aborted() {
    let fixture = AcmeFixture::start("younger").await;
    fixture.s3.on("UploadPart").named("slow").before(Effect::Delay(Duration::from_secs(6)));
    let url = fixture.site.file("a", &bytes(16, 20 * MIB));
    fixture.site.broker.schedule(&job("a", &url, "acme", "same")).await;
    let begun = until("the upload is open", Duration::from_secs(30), async || fixture.s3.why_open().pop()).await;
    fixture.s3.on("CompleteMultipartUpload").form("uploadId", &begun.0).before(Effect::LostReply);
    // S3 tells the age of an object in whole seconds.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    fixture.s3.lift("slow");
    fixture.site.broker.schedule(&job("b", &url, "acme", "same")).await;
    fixture.delivered("b").await;
    assert_eq!(fixture.s3.open_uploads(), 1, "the other one came first");
    fixture.delivered("a").await;
    assert_eq!((fixture.s3.count("acme"), fixture.s3.open_uploads()), (1, 0));
    fixture.close().await;
}

#[tokio::test]
async fn a_denied_abort_is_counted_and_carried() {
    let fixture = AcmeFixture::start("abortdenied").await;
    fixture.s3.on("UploadPart").before(Effect::Error(400, "SomethingNew", "Nobody foresaw this."));
    fixture.s3.on("AbortMultipartUpload").before(Effect::Error(403, "AccessDenied", "Access Denied"));
    fixture.schedule("a", &bytes(13, 20 * MIB)).await;
    fixture.failed("a", "unclassified").await;
    assert_eq!(fixture.worker.metric("consign_multipart_abort_denied_total", "").await, 1.0);
    assert_eq!(fixture.failures("unclassified").await, 1.0, "the abort does not hide why");
    assert_eq!(fixture.failures("access_denied").await, 0.0);
    fixture.close().await;
}

#[tokio::test]
async fn a_wrong_checksum_in_the_reply_is_a_defect_with_one_more_try() {
    let fixture = AcmeFixture::start("checksum").await;
    fixture.s3.on("UploadPart").before(Effect::Delay(Duration::ZERO));
    fixture.s3.on("CompleteMultipartUpload").after(Effect::WrongChecksum);
    fixture.schedule("a", &bytes(14, 20 * MIB)).await;
    let waiting = fixture.site.broker.taken("wait.30s", "\"a\"").await;
    assert_eq!(waiting.header("x-defects"), "1", "{:?}", waiting.headers);
    assert_eq!(fixture.failures("checksum_mismatch").await, 1.0);
    fixture.close().await;
}

#[tokio::test]
async fn every_byte_is_proven_by_part_and_as_a_whole() {
    let fixture = AcmeFixture::start("proven").await;
    fixture.schedule("small", b"hello").await;
    fixture.schedule("large", &bytes(15, 20 * MIB)).await;
    fixture.delivered("small").await;
    fixture.delivered("large").await;
    for operation in ["PutObject", "UploadPart", "CompleteMultipartUpload"] {
        let calls = fixture.s3.calls(operation);
        let proven = |call: &Call| call.header(CRC).is_some() || (operation == "UploadPart" && call.proves_its_body());
        assert!(!calls.is_empty() && calls.iter().all(proven), "{operation}");
        assert!(
            calls.iter().all(|c| c.header("x-amz-expected-bucket-owner") == Some(crate::fixture::ACME)),
            "{operation}"
        );
        assert!(calls.iter().all(|c| !c.asks_encryption()), "{operation} asks for encryption that nobody asked for");
    }
    let complete = &fixture.s3.calls("CompleteMultipartUpload")[0];
    assert_eq!(complete.header("x-amz-mp-object-size"), Some((20 * MIB).to_string().as_str()));
    let listed = String::from_utf8_lossy(&complete.body).matches("<ChecksumCRC64NVME>").count();
    assert_eq!(listed, fixture.s3.calls("UploadPart").len(), "the checksum of each part is listed");
    fixture.close().await;
}

#[tokio::test]
async fn slow_down_halves_the_parts_in_flight() {
    let fixture = AcmeFixture::start("fewer").await;
    let slow = Effect::Error(503, "SlowDown", "Please reduce your request rate.");
    fixture.s3.on("UploadPart").first(2).before(slow);
    let content = bytes(17, 36 * MIB);
    fixture.schedule("a", &content).await;
    assert_eq!(fixture.delivered("a").await["attempts"], 1);
    assert_eq!(fixture.object("a").unwrap().bytes, content);
    let log = fixture.worker.log();
    let changes: Vec<Value> = log
        .lines()
        .filter(|line| line.contains("part_concurrency_changed"))
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let first = changes.first().unwrap_or_else(|| panic!("the number did not change: {log}"));
    assert_eq!((&first["from"], &first["to"]), (&8.into(), &4.into()), "{first:#}");
    fixture.close().await;
}
