//! The picture of the README, taken again with `CONSIGN_TEST_PICTURE=deploy/docs/status-page.png
//! tests/run --run-ignored only -E 'test(the_picture_of_the_readme)'`.

use std::path::Path;
use std::time::Duration;

use serde_json::json;

use crate::fixture::{REGION, add_acme, role_destination};
use crate::testbed::broker::Broker;
use crate::testbed::browser::Browser;
use crate::testbed::scripted::{Effect, ScriptedS3};
use crate::testbed::site::{Site, job};
use crate::testbed::worker::Worker;
use crate::testbed::{MIB, bytes, exported, free_port};

/// Seconds of load before the picture: the chart shows two minutes at first.
const SECONDS: usize = 96;
/// The most bytes of a picture in the repository.
const LIMIT: usize = 200_000;
/// Feed and file of those jobs that take a while.
const LARGE: [(&str, &str); 6] = [
    ("acme/google_ads", "48"),
    ("globex/events", "30"),
    ("initech/backfill/orders", "22"),
    ("acme/stripe", "14"),
    ("hooli/clickstream", "64"),
    ("globex/salesforce", "36"),
];

async fn furnished() -> (Site, ScriptedS3) {
    let broker = Broker::at(exported("CONSIGN_TEST_AMQP_URL"), "consign");
    let mut site = Site::on(broker).await;
    let s3 = add_acme(&mut site).await;
    for (id, account) in [("globex", "222222222222"), ("initech", "333333333333"), ("hooli", "555555555555")] {
        s3.bucket(id, REGION, account);
        site.destination(id, &role_destination(id, account));
    }
    let mut umbrella = role_destination("umbrella", "444444444444");
    umbrella["bucket"] = json!("umbrella-reports");
    s3.bucket("umbrella-reports", REGION, "444444444444");
    site.destination("umbrella", &umbrella);
    site.set("worker.id", "consign-eu-1").set("worker.slots", 8).set("worker.backfill_slots", 4);
    site.set("upload.part_size", "5MiB").set("upload.part_concurrency", 1).set("upload.multipart_threshold", "6MiB");
    for (feed, delay) in [("google_ads", 1900), ("events", 1300), ("orders", 1600), ("stripe", 900), ("stream", 1500)] {
        s3.on("UploadPart").key(feed).before(Effect::Delay(Duration::from_millis(delay)));
    }
    s3.on("UploadPart").key("salesforce").before(Effect::Delay(Duration::from_millis(1100)));
    s3.on("PutObject").key("crm").before(Effect::Error(403, "AccessDenied", "Access Denied"));
    s3.put("initech", "in/initech/ledger", "there before");
    (site, s3)
}

async fn schedule(site: &Site, feed: &str, number: usize, file: &str) {
    let destination = feed.split('/').next().unwrap();
    let id = format!("{feed}/11-22.{number:02}");
    let url = format!("file://{}", site.files().join(file).display());
    // Objects replace each other: a memory is no disk.
    let mut job = job(&id, &url, destination, feed);
    if feed.contains("events") {
        job["compression"] = json!("gzip");
    }
    if feed.contains("ledger") {
        job["if_exists"] = json!("fail");
    }
    site.broker.publish(if feed.contains("backfill") { "backfill" } else { "scheduled" }, &job).await;
}

async fn load(site: &Site) {
    for size in [14, 22, 30, 36, 48, 64] {
        site.file(&size.to_string(), &bytes(size, usize::try_from(size).unwrap() * MIB));
    }
    site.file("small", &bytes(1, 340_000));
    for second in 0..SECONDS {
        if second % 2 == 0 {
            let (feed, file) = LARGE[(second / 2) % LARGE.len()];
            schedule(site, feed, second, file).await;
        }
        for small in 0..(second * 7) % 3 {
            schedule(site, ["acme/hubspot", "globex/zendesk", "hooli/billing"][small], second, "small").await;
        }
        match second {
            20 | 50 | 94 => schedule(site, "umbrella/crm", second, "small").await,
            62 | 92 => schedule(site, "initech/ledger", second, "small").await,
            _ => {}
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

#[tokio::test]
#[ignore = "takes the picture of the README, in two minutes"]
async fn the_picture_of_the_readme() {
    let path = exported("CONSIGN_TEST_PICTURE");
    let (site, s3) = furnished().await;
    let port = free_port().await;
    let worker = Worker::start(&site, site.dir.path().join("worker.toml"), port);
    worker.ready().await;
    let browser = Browser::start().await;
    load(&site).await;
    browser.prefers("prefers-color-scheme", "light").await;
    browser.prefers("prefers-reduced-motion", "reduce").await;
    browser.open(&format!("http://127.0.0.1:{port}/")).await;
    browser.until("document.querySelectorAll('#running tbody tr').length >= 5").await;
    browser.until("(document.querySelector('#sent-chart polyline')?.points.length ?? 0) >= 18").await;
    let picture = browser.picture("readme").await;
    super::check_picture(&picture);
    let size = std::fs::metadata(&picture).unwrap().len();
    assert!(size < LIMIT as u64, "{size} bytes are too many for the repository");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::copy(&picture, path).unwrap();
    s3.calm();
    browser.close().await;
}
