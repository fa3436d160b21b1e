//! The page over a real worker that delivers to the scripted S3.

use std::time::Duration;

use serde_json::json;

use super::{check_picture, complaints};
use crate::fixture::{REGION, role_destination, site};
use crate::testbed::browser::Browser;
use crate::testbed::scripted::{Effect, ScriptedS3};
use crate::testbed::site::{Site, job};
use crate::testbed::worker::Worker;
use crate::testbed::{MIB, bytes, free_port};

/// Reply of S3 to a job that it refuses: it gets as far as the page.
const HOSTILE: &str = "<img src=x onerror=window.hacked=1>";

/// Some customers, and an S3 that takes its time, so that there is something to see.
async fn furnished() -> (Site, ScriptedS3) {
    let (mut site, s3) = site("page").await;
    for (id, account) in [("globex", "222222222222"), ("initech", "333333333333"), ("umbrella", "444444444444")] {
        s3.bucket(id, REGION, account);
        site.destination(id, &role_destination(id, account));
    }
    site.set("worker.id", "consign-eu-1").set("worker.slots", 6).set("worker.backfill_slots", 3);
    site.set("upload.part_size", "5MiB").set("upload.part_concurrency", 2).set("upload.multipart_threshold", "6MiB");
    s3.on("UploadPart").before(Effect::Delay(Duration::from_millis(1500)));
    s3.on("PutObject").key("crm").before(Effect::Error(403, "AccessDenied", "Access Denied"));
    s3.on("PutObject").key("odd").before(Effect::Error(418, "ImATeapot", HOSTILE));
    s3.put("initech", "in/initech/ledger/2026-11-22", "there before");
    (site, s3)
}

async fn schedule(site: &Site, id: &str, file: &str, fields: &[(&str, &str)]) {
    let destination = id.split('/').next().unwrap();
    let mut job = job(id, &format!("file://{}", site.files().join(file).display()), destination, id);
    for (field, value) in fields {
        job[*field] = json!(value);
    }
    let lane = if id.contains("backfill") { "backfill" } else { "scheduled" };
    site.broker.publish(lane, &job).await;
}

async fn load(site: &Site) {
    site.file("large", &bytes(1, 90 * MIB));
    site.file("middle", &bytes(2, 40 * MIB));
    site.file("small", &bytes(3, 200_000));
    for day in 16..22 {
        schedule(site, &format!("acme/orders/2026-11-{day}"), "small", &[]).await;
    }
    schedule(site, "acme/google_ads/2026-11-22", "large", &[]).await;
    schedule(site, "globex/events/2026-11-22", "middle", &[("compression", "gzip")]).await;
    schedule(site, "initech/backfill/2026-10-04", "middle", &[]).await;
    schedule(site, "initech/ledger/2026-11-22", "small", &[("if_exists", "fail")]).await;
    schedule(site, "umbrella/crm/2026-11-22", "small", &[]).await;
    schedule(site, "umbrella/odd/2026-11-22", "small", &[]).await;
}

/// Position of a job's progress bar, in percent.
async fn progress(browser: &Browser, job: &str) -> f64 {
    let bar =
        format!("document.querySelector('[role=progressbar][aria-label=\"Progress of {job}\"]')?.ariaValueNow ?? -1");
    let shown = browser.value(&bar).await;
    shown.as_str().map_or(-1.0, |text| text.parse().unwrap())
}

/// Bars of running jobs move; a compressed job has none.
async fn assert_progress(browser: &Browser) {
    let large = "acme/google_ads/2026-11-22";
    browser
        .until(&format!("+(document.querySelector('[aria-label=\"Progress of {large}\"]')?.ariaValueNow ?? 0) > 5"))
        .await;
    let before = progress(browser, large).await;
    let width =
        format!("document.querySelector('[aria-label=\"Progress of {large}\"] .fill').getBoundingClientRect().width");
    let (narrow, moved) = (browser.value(&width).await, before + 10.0);
    browser
        .until(&format!(
            "+(document.querySelector('[aria-label=\"Progress of {large}\"]')?.ariaValueNow ?? 0) > {moved}"
        ))
        .await;
    browser.until(&format!("{width} > {narrow}")).await;
    // A compressed one has no end that anybody knows.
    let unknown = "document.querySelector('[aria-label=\"Progress of globex/events/2026-11-22\"]')";
    assert_eq!(browser.value(&format!("{unknown}.hasAttribute('aria-valuenow')")).await, false);
    assert!(
        browser
            .value(&format!("{unknown}.ariaValueText"))
            .await
            .as_str()
            .unwrap()
            .ends_with(", compressed from 40 MiB")
    );
}

/// Failures are shown in plain words, hostile ones as text.
async fn assert_failures(browser: &Browser) {
    browser.until("document.querySelectorAll('#failures tbody tr').length >= 3").await;
    browser.run("document.querySelector('input[value=problems]').click()").await;
    browser.until("[...document.querySelectorAll('#ended tbody tr')].length >= 3").await;
    let problems = browser.text("#ended tbody").await;
    assert!(problems.contains("object exists: ") && problems.contains(HOSTILE), "{problems}");
    assert_eq!(browser.value("document.querySelectorAll('main img').length").await, 0);
    assert_eq!(browser.value("typeof window.hacked").await, "undefined");
    browser.run("document.querySelector('input[value=ended]').click()").await;
    let states = browser.text("#destinations tbody").await;
    assert!(states.contains("umbrella") && states.contains("1 failure in a row"), "{states}");
    let worst = browser.text("#destinations tbody th .first").await;
    assert_eq!(worst, "umbrella", "the destination in trouble comes first");
}

#[tokio::test]
async fn the_page_lives_while_jobs_run() {
    let (site, s3) = furnished().await;
    let port = free_port().await;
    let worker = Worker::start(&site, site.dir.path().join("worker.toml"), port);
    worker.ready().await;
    let browser = Browser::start().await;
    browser.prefers("prefers-color-scheme", "light").await;
    browser.open(&format!("http://127.0.0.1:{port}/")).await;
    browser.until("document.getElementById('state').textContent === '✓ Ready for jobs'").await;
    assert!(browser.text("#running-empty").await.contains("consign enqueue"));
    assert_eq!(browser.value("document.getElementById('running-empty').checkVisibility()").await, true);
    // Whatever changes from here on changes in this very document.
    browser.run("window.same = true").await;

    load(&site).await;
    browser.until("document.querySelectorAll('#running tbody tr').length >= 3").await;
    assert_progress(&browser).await;
    assert_failures(&browser).await;

    // Two steps of the record, so that the chart has a line.
    browser.until("(document.querySelector('#sent-chart polyline')?.points.length ?? 0) >= 3").await;
    let picture = browser.picture("status-page").await;
    check_picture(&picture);

    s3.calm();
    browser.until("document.querySelectorAll('#running tbody tr').length === 0").await;
    browser.until("document.querySelector('#ended tbody').textContent.includes('acme/google_ads/2026-11-22')").await;
    assert_eq!(browser.value("window.same").await, true, "the page was reloaded");
    assert_eq!(browser.console().await, Vec::<String>::new());

    // The worker dies: the page says so, keeps what it has, and finds the next one by itself.
    worker.kill();
    browser.until("document.getElementById('state').textContent === '✕ No answer from the worker'").await;
    assert!(browser.text("#banner").await.contains("What you see is from"));
    assert!(browser.text("#ended tbody").await.contains("acme/google_ads/2026-11-22"));
    drop(worker);
    let next = Worker::start(&site, site.dir.path().join("next.toml"), port);
    next.ready().await;
    browser.until("document.getElementById('state').textContent === '✓ Ready for jobs'").await;
    browser.until("document.getElementById('banner').hidden").await;
    assert_eq!(complaints(&browser).await, Vec::<String>::new());
    browser.close().await;
}
