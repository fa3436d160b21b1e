//! Complete is where an outcome may be unknown, and abort is where a customer's policy says no.

use std::time::Duration;

use crate::shop::Shop;
use crate::testbed::scripted::Effect;
use crate::testbed::site::job;
use crate::testbed::{MIB, bytes, until};

/// Delivers 20 MiB in spite of what `bend` does to Complete; the upload must not have been begun twice.
async fn completed_in_spite_of(word: &str, effect: Effect) -> Shop {
    let shop = Shop::open(word).await;
    shop.s3.on("CompleteMultipartUpload").nth(1).after(effect);
    let content = bytes(9, 20 * MIB);
    shop.schedule("a", &content).await;
    let data = shop.delivered("a").await;
    assert_eq!((&data["attempts"], &data["bytes"]), (&1.into(), &content.len().into()), "{data:#}");
    assert_eq!(shop.object("a").unwrap().bytes, content);
    assert_eq!(shop.s3.calls("CreateMultipartUpload").len(), 1, "the upload was not begun again");
    assert_eq!(shop.s3.open_uploads(), 0);
    shop
}

#[tokio::test]
async fn a_lost_reply_to_complete_is_reconciled_by_listing_the_key() {
    let shop = completed_in_spite_of("lostcomplete", Effect::LostReply).await;
    let listed = shop.s3.calls("ListObjectsV2");
    assert_eq!(listed.last().map(|call| call.asked("prefix")), Some("in/a"));
    shop.close().await;
}

#[tokio::test]
async fn a_200_with_nothing_in_it_is_no_proof() {
    completed_in_spite_of("emptybody", Effect::EmptyBody).await.close().await;
}

#[tokio::test]
async fn a_200_with_an_error_in_it_is_an_error() {
    let shop = Shop::open("error200").await;
    shop.s3.on("CompleteMultipartUpload").nth(1).before(Effect::ErrorIn200("InternalError"));
    let content = bytes(10, 20 * MIB);
    shop.schedule("a", &content).await;
    assert_eq!(shop.delivered("a").await["attempts"], 1);
    assert_eq!(shop.object("a").unwrap().bytes, content);
    assert_eq!(shop.s3.calls("CompleteMultipartUpload").len(), 2);
    assert_eq!(shop.s3.calls("CreateMultipartUpload").len(), 1);
    shop.close().await;
}

#[tokio::test]
async fn where_listing_is_denied_a_lost_reply_costs_a_second_upload() {
    let shop = Shop::open("nolist").await;
    shop.s3.on("CompleteMultipartUpload").nth(1).after(Effect::LostReply);
    shop.s3.on("ListObjectsV2").before(Effect::Error(403, "AccessDenied", "Access Denied"));
    let content = bytes(11, 20 * MIB);
    shop.schedule("a", &content).await;
    shop.delivered("a").await;
    assert_eq!(shop.object("a").unwrap().bytes, content);
    assert_eq!(shop.s3.count("acme"), 1);
    assert_eq!(shop.s3.open_uploads(), 0);
    shop.close().await;
}

#[tokio::test]
async fn a_failed_upload_is_aborted_and_nothing_is_visible() {
    let shop = Shop::open("aborted").await;
    shop.s3.on("UploadPart").before(Effect::Error(400, "SomethingNew", "Nobody foresaw this."));
    shop.schedule("a", &bytes(12, 20 * MIB)).await;
    shop.failed("a", "unclassified").await;
    assert!(shop.object("a").is_none());
    assert_eq!(shop.s3.open_uploads(), 0);
    assert_eq!(shop.worker.metric("consign_multipart_aborted_total", "").await, 1.0);
    shop.close().await;
}

#[tokio::test]
async fn an_upload_that_can_not_be_aborted_now_is_aborted_later() {
    let shop = Shop::open("abortlater").await;
    shop.s3.on("UploadPart").before(Effect::Error(400, "SomethingNew", "Nobody foresaw this."));
    let down = Effect::Error(503, "ServiceUnavailable", "Please try again.");
    shop.s3.on("AbortMultipartUpload").named("down").before(down);
    shop.schedule("a", &bytes(12, 20 * MIB)).await;
    shop.failed("a", "unclassified").await;
    assert_eq!(shop.s3.open_uploads(), 1);
    shop.s3.lift("down");
    until("it is aborted", Duration::from_secs(60), async || (shop.s3.open_uploads() == 0).then_some(())).await;
    assert_eq!(shop.worker.metric("consign_multipart_orphaned_total", "").await, 0.0);
    shop.close().await;
}

#[tokio::test]
async fn where_another_upload_became_the_object_the_own_one_is_given_up() {
    let shop = Shop::open("younger").await;
    shop.s3.on("UploadPart").named("slow").before(Effect::Delay(Duration::from_secs(6)));
    let url = shop.site.file("a", &bytes(16, 20 * MIB));
    shop.site.broker.schedule(&job("a", &url, "acme", "same")).await;
    let begun = until("the upload is open", Duration::from_secs(30), async || shop.s3.why_open().pop()).await;
    shop.s3.on("CompleteMultipartUpload").form("uploadId", &begun.0).before(Effect::LostReply);
    // S3 tells the age of an object in whole seconds.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    shop.s3.lift("slow");
    shop.site.broker.schedule(&job("b", &url, "acme", "same")).await;
    shop.delivered("b").await;
    assert_eq!(shop.s3.open_uploads(), 1, "the other one came first");
    shop.delivered("a").await;
    assert_eq!((shop.s3.count("acme"), shop.s3.open_uploads()), (1, 0));
    shop.close().await;
}

#[tokio::test]
async fn a_denied_abort_is_counted_and_carried() {
    let shop = Shop::open("abortdenied").await;
    shop.s3.on("UploadPart").before(Effect::Error(400, "SomethingNew", "Nobody foresaw this."));
    shop.s3.on("AbortMultipartUpload").before(Effect::Error(403, "AccessDenied", "Access Denied"));
    shop.schedule("a", &bytes(13, 20 * MIB)).await;
    shop.failed("a", "unclassified").await;
    assert_eq!(shop.worker.metric("consign_multipart_abort_denied_total", "").await, 1.0);
    assert_eq!(shop.failures("unclassified").await, 1.0, "the abort does not hide why");
    assert_eq!(shop.failures("access_denied").await, 0.0);
    shop.close().await;
}

#[tokio::test]
async fn a_wrong_checksum_in_the_reply_is_a_defect_with_one_more_try() {
    let shop = Shop::open("checksum").await;
    shop.s3.on("UploadPart").before(Effect::Delay(Duration::ZERO));
    shop.s3.on("CompleteMultipartUpload").after(Effect::WrongChecksum);
    shop.schedule("a", &bytes(14, 20 * MIB)).await;
    let waiting = shop.site.broker.taken("wait.30s", "\"a\"").await;
    assert_eq!(waiting.header("x-defects"), "1", "{:?}", waiting.headers);
    assert_eq!(shop.failures("checksum_mismatch").await, 1.0);
    shop.close().await;
}

#[tokio::test]
async fn every_byte_is_proven_by_part_and_as_a_whole() {
    let shop = Shop::open("proven").await;
    shop.schedule("small", b"hello").await;
    shop.schedule("large", &bytes(15, 20 * MIB)).await;
    shop.delivered("small").await;
    shop.delivered("large").await;
    for operation in ["PutObject", "UploadPart", "CompleteMultipartUpload"] {
        let calls = shop.s3.calls(operation);
        assert!(
            !calls.is_empty() && calls.iter().all(|c| c.header("x-amz-checksum-crc64nvme").is_some()),
            "{operation}"
        );
        assert!(
            calls.iter().all(|c| c.header("x-amz-expected-bucket-owner") == Some(crate::shop::ACME)),
            "{operation}"
        );
        assert!(calls.iter().all(|c| !c.asks_encryption()), "{operation} asks for encryption that nobody asked for");
    }
    let complete = &shop.s3.calls("CompleteMultipartUpload")[0];
    assert_eq!(complete.header("x-amz-mp-object-size"), Some((20 * MIB).to_string().as_str()));
    shop.close().await;
}
