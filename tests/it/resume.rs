//! A transfer that is cut short continues where it was: handed over by a drain, carried by a retry,
//! found again after a crash.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::fixture::site;
use crate::testbed::scripted::{CRC, Call, Effect, ScriptedS3};
use crate::testbed::site::{Site, job};
use crate::testbed::sources::{Content, WebSource};
use crate::testbed::{MIB, bytes, unpacked, until};

const PARTS: usize = 12;
const LENGTH: usize = PARTS * 5 * MIB - 1000;

/// A site that cuts parts of 5 MiB and sends two at a time, each of which takes a moment.
async fn slow_site(word: &str) -> (Site, ScriptedS3) {
    let (mut site, s3) = site(word).await;
    site.set("upload.part_size", "5MiB").set("upload.part_concurrency", 2).set("worker.drain_timeout", "20s");
    s3.on("UploadPart").before(Effect::Delay(Duration::from_millis(250)));
    (site, s3)
}

/// Times that S3 accepted each part, by upload and number.
fn taken(s3: &ScriptedS3) -> BTreeMap<(String, u32), usize> {
    let mut taken = BTreeMap::new();
    for call in s3.calls("UploadPart").iter().filter(|call| call.status == 200) {
        *taken.entry((call.asked("uploadId").to_owned(), call.asked("partNumber").parse().unwrap())).or_default() += 1;
    }
    taken
}

async fn parts_taken(s3: &ScriptedS3, count: usize) {
    until(&format!("{count} parts"), Duration::from_secs(60), async || (taken(s3).len() >= count).then_some(())).await;
}

/// One upload, no part twice, the object whole.
fn sent_once(s3: &ScriptedS3, key: &str, content: &[u8]) {
    assert_eq!(s3.calls("CreateMultipartUpload").len(), 1);
    let twice: Vec<_> = taken(s3).into_iter().filter(|(_, times)| *times > 1).collect();
    assert_eq!(twice, [], "parts that were sent twice");
    assert!(s3.object("acme", key).unwrap().bytes == content, "the object is not its source");
    assert_eq!(s3.open_uploads(), 0);
}

async fn delivered(site: &Site, id: &str) -> Value {
    let outcome = site.broker.ended(id).await;
    assert_eq!(outcome["type"], "consign.transfer.delivered.v1", "{outcome:#}");
    outcome["data"].clone()
}

/// Drains a worker in mid-upload, lets another one continue, and gives the outcome and how long the
/// first took to end.
async fn handed_over(site: &Site, s3: &ScriptedS3, job: &Value, after: usize) -> (Value, Duration) {
    let first = site.worker().await;
    site.broker.schedule(job).await;
    parts_taken(s3, after).await;
    let told = Instant::now();
    first.terminate();
    let status = first.exit(Duration::from_secs(15)).await;
    let took = told.elapsed();
    assert_eq!(status.code(), Some(0), "{}", first.log());
    assert_eq!(s3.open_uploads(), 1, "the upload waits for whoever goes on");
    let second = site.worker().await;
    let data = delivered(site, job["id"].as_str().unwrap()).await;
    assert_eq!(data["resumed"], true, "{data:#}");
    assert_eq!(data["attempts"], 1, "a hand-over charges no attempt");
    assert_eq!(second.metric("consign_multipart_resumed_total", "").await, 1.0);
    second.quiet().await;
    (data, took)
}

#[tokio::test]
async fn a_drain_hands_the_rest_over_and_nothing_is_sent_twice() {
    let (site, s3) = slow_site("handover").await;
    let content = bytes(1, LENGTH);
    let url = site.file("a", &content);
    let (data, took) = handed_over(&site, &s3, &job("a", &url, "acme", "a"), 4).await;
    assert!(took < Duration::from_secs(6), "the drain took {took:?}");
    assert_eq!((&data["bytes"], &data["parts"]), (&json!(LENGTH), &json!(PARTS)));
    sent_once(&s3, "in/a", &content);
    site.broker.clean().await;
}

#[tokio::test]
async fn parts_that_were_sent_without_a_checksum_header_are_handed_over_with_their_checksums() {
    let (site, s3) = slow_site("handovercrc").await;
    let first = site.worker().await;
    site.broker.schedule(&job("learnt", &site.file("learnt", &bytes(5, 20 * MIB)), "acme", "learnt")).await;
    delivered(&site, "learnt").await;
    let content = bytes(6, LENGTH);
    site.broker.schedule(&job("a", &site.file("a", &content), "acme", "a")).await;
    parts_taken(&s3, 4 + 4).await;
    first.terminate();
    first.exit(Duration::from_secs(15)).await;
    let second = site.worker().await;
    assert_eq!(delivered(&site, "a").await["resumed"], true);
    let of_a = |operation| s3.calls(operation).into_iter().filter(|call| call.key == "in/a").collect::<Vec<_>>();
    let parts = of_a("UploadPart");
    let headers: Vec<_> = parts.iter().map(|part| part.header(CRC).is_some()).collect();
    assert!(parts.len() == PARTS && parts.iter().all(Call::proves_its_body), "{}", parts.len());
    assert!(headers.is_sorted() && !headers[0] && headers[PARTS - 1], "{headers:?}");
    let complete = String::from_utf8_lossy(&of_a("CompleteMultipartUpload")[0].body).into_owned();
    assert_eq!(complete.matches("<ChecksumCRC64NVME>").count(), PARTS);
    assert!(s3.object("acme", "in/a").unwrap().bytes == content, "the object is not its source");
    second.quiet().await;
    site.broker.clean().await;
}

#[tokio::test]
async fn a_web_source_with_ranges_resumes_in_its_middle() {
    let (mut site, s3) = slow_site("handoverweb").await;
    let web = WebSource::http().await;
    site.set("source.allow_http", true);
    let content = bytes(2, LENGTH);
    let url = web.put("a", Content::new(content.clone()));
    handed_over(&site, &s3, &job("a", &url, "acme", "a"), 4).await;
    sent_once(&s3, "in/a", &content);
    site.broker.clean().await;
}

#[tokio::test]
async fn a_digest_is_proven_over_the_whole_though_the_upload_resumes() {
    use sha2::Digest as _;
    let (mut site, s3) = slow_site("handoversha").await;
    let web = WebSource::http().await;
    site.set("source.allow_http", true);
    let content = bytes(3, LENGTH);
    let mut job = job("a", &web.put("a", Content::new(content.clone())), "acme", "a");
    job["source"]["sha256"] = json!(hex::encode(sha2::Sha256::digest(&content)));
    handed_over(&site, &s3, &job, 4).await;
    sent_once(&s3, "in/a", &content);
    site.broker.clean().await;
}

#[tokio::test]
async fn compressed_uploads_resume_too() {
    for compression in ["gzip", "zstd"] {
        let (site, s3) = slow_site(&format!("handover{compression}")).await;
        let content = bytes(4, LENGTH);
        let mut job = job("a", &site.file("a", &content), "acme", "a");
        job["compression"] = json!(compression);
        let (data, _) = handed_over(&site, &s3, &job, 4).await;
        assert_eq!(data["source_bytes"], json!(LENGTH), "{data:#}");
        let object = s3.object("acme", "in/a").unwrap().bytes;
        assert_eq!(data["bytes"], json!(object.len()));
        assert!(unpacked(compression, &object) == content, "{compression}: the object is not its source");
        assert!(taken(&s3).values().all(|times| *times == 1), "{compression}: parts were sent twice");
        assert_eq!(s3.calls("CreateMultipartUpload").len(), 1);
        site.broker.clean().await;
    }
}

#[tokio::test]
async fn a_source_that_changed_begins_a_new_upload_and_aborts_the_old_one() {
    let (site, s3) = slow_site("changed").await;
    let url = site.file("a", &bytes(5, LENGTH));
    let first = site.worker().await;
    site.broker.schedule(&job("a", &url, "acme", "a")).await;
    parts_taken(&s3, 4).await;
    first.terminate();
    assert_eq!(first.exit(Duration::from_secs(15)).await.code(), Some(0));
    let content = bytes(6, LENGTH + 5);
    site.file("a", &content);
    let second = site.worker().await;
    let data = delivered(&site, "a").await;
    assert_eq!((&data["resumed"], &data["attempts"]), (&json!(false), &json!(1)));
    assert!(s3.object("acme", "in/a").unwrap().bytes == content);
    assert_eq!((s3.calls("CreateMultipartUpload").len(), s3.open_uploads()), (2, 0));
    assert_eq!(second.metric("consign_multipart_aborted_total", "").await, 1.0);
    second.quiet().await;
    site.broker.clean().await;
}

#[tokio::test]
async fn a_source_without_ranges_is_requeued_and_restarts() {
    let (mut site, s3) = slow_site("noranges").await;
    site.set("worker.drain_timeout", "2s");
    let web = WebSource::http().await;
    site.set("source.allow_http", true);
    let content = bytes(7, LENGTH);
    let url = web.put("a", Content::of_unknown_length(content.clone()));
    let first = site.worker().await;
    site.broker.schedule(&job("a", &url, "acme", "a")).await;
    parts_taken(&s3, 2).await;
    first.terminate();
    assert_eq!(first.exit(Duration::from_secs(15)).await.code(), Some(0));
    assert_eq!(s3.open_uploads(), 0, "nobody could continue it");
    let second = site.worker().await;
    assert_eq!(delivered(&site, "a").await["resumed"], false);
    assert!(s3.object("acme", "in/a").unwrap().bytes == content);
    second.quiet().await;
    site.broker.clean().await;
}

#[tokio::test]
async fn a_retry_carries_what_was_done() {
    let (site, s3) = slow_site("retrycarries").await;
    let content = bytes(8, LENGTH);
    let url = site.file("a", &content);
    s3.calm();
    // The seventh part fails as often as an attempt tries it.
    s3.on("UploadPart").form("partNumber", "7").first(4).before(Effect::Error(
        500,
        "InternalError",
        "We encountered an internal error.",
    ));
    let worker = site.worker().await;
    site.broker.schedule(&job("a", &url, "acme", "a")).await;
    let data = delivered(&site, "a").await;
    assert_eq!((&data["resumed"], &data["attempts"]), (&json!(true), &json!(2)));
    sent_once(&s3, "in/a", &content);
    worker.quiet().await;
    site.broker.clean().await;
}

#[tokio::test]
async fn the_upload_of_a_dead_lettered_job_is_aborted() {
    let (mut site, s3) = slow_site("givenup").await;
    site.set("worker.max_attempts", 2);
    s3.calm();
    s3.on("UploadPart").form("partNumber", "7").before(Effect::Error(
        500,
        "InternalError",
        "We encountered an internal error.",
    ));
    let content = bytes(9, LENGTH);
    let url = site.file("a", &content);
    let worker = site.worker().await;
    site.broker.schedule(&job("a", &url, "acme", "a")).await;
    let dead = site.broker.taken("dead", "a").await;
    assert_eq!(dead.header("x-error-reason"), "exhausted");
    assert_eq!(dead.json()["id"], "a", "a dead letter carries the job as it came");
    until("it is aborted", Duration::from_secs(10), async || (s3.open_uploads() == 0).then_some(())).await;
    worker.quiet().await;
    site.broker.clean().await;
}

/// A hand-over whose upload is gone when the second worker comes: `listing` says whether it may
/// look.
async fn gone_meanwhile(word: &str, completed: bool, listing: bool) -> (Site, ScriptedS3, Value, Vec<u8>) {
    let (site, s3) = slow_site(word).await;
    let content = bytes(10, LENGTH);
    let url = site.file("a", &content);
    let first = site.worker().await;
    site.broker.schedule(&job("a", &url, "acme", "a")).await;
    parts_taken(&s3, 4).await;
    first.terminate();
    assert_eq!(first.exit(Duration::from_secs(15)).await.code(), Some(0));
    if completed {
        s3.complete_for("acme", "in/a", &content, PARTS);
    } else {
        s3.abort_all();
    }
    if !listing {
        s3.on("ListObjectsV2").before(Effect::Error(403, "AccessDenied", "Access Denied"));
    }
    let second = site.worker().await;
    let data = delivered(&site, "a").await;
    assert_eq!(data["attempts"], 1, "a lost race charges no attempt");
    assert!(s3.object("acme", "in/a").unwrap().bytes == content);
    second.quiet().await;
    (site, s3, data, content)
}

#[tokio::test]
async fn an_upload_that_somebody_else_completed_is_found_and_not_sent_again() {
    let (site, s3, data, _) = gone_meanwhile("completedelsewhere", true, true).await;
    assert_eq!(s3.calls("CreateMultipartUpload").len(), 1, "{data:#}");
    assert!(taken(&s3).len() < PARTS);
    site.broker.clean().await;
}

#[tokio::test]
async fn an_upload_that_is_gone_restarts_without_a_charge() {
    for (word, completed, listing) in [("abortedelsewhere", false, true), ("completedunseen", true, false)] {
        let (site, s3, data, _) = gone_meanwhile(word, completed, listing).await;
        assert_eq!((s3.calls("CreateMultipartUpload").len(), &data["resumed"]), (2, &json!(false)), "{word}");
        site.broker.clean().await;
    }
}
