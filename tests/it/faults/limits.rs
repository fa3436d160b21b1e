//! The worker's own limits: few file descriptors, a frozen process.

use std::time::Duration;

use crate::fixture::{AcmeFixture, site};
use crate::testbed::scripted::Effect;
use crate::testbed::{MIB, bytes};

#[tokio::test]
async fn with_few_file_descriptors_nothing_is_lost_and_no_job_fails() {
    let (mut site, s3) = site("nofile").await;
    site.limit("-n", 40).set("worker.slots", 16).set("upload.part_concurrency", 8);
    // So slow that all of them want their connections at once.
    s3.on("UploadPart").before(Effect::Delay(Duration::from_millis(1500)));
    let worker = site.worker().await;
    let fixture = AcmeFixture { site, s3, worker };
    for n in 0..12 {
        fixture.schedule(&format!("large-{n}"), &bytes(120 + n, 24 * MIB)).await;
    }
    fixture.site.broker.all_ended(12, Duration::from_secs(120)).await;
    for n in 0..12 {
        fixture.delivered(&format!("large-{n}")).await;
    }
    assert!(fixture.worker.log().contains("Too many open files"), "there were enough");
    fixture.close().await;
}

#[tokio::test]
async fn a_frozen_process_continues() {
    let fixture = AcmeFixture::start("standstill").await;
    // The slow start of the destination is over.
    fixture.schedule("first", b"hello").await;
    fixture.delivered("first").await;
    fixture.s3.on("PutObject").before(Effect::Delay(Duration::from_secs(1)));
    fixture.schedule_many("job", 10).await;
    fixture.running(10.0).await;
    fixture.worker.freeze();
    tokio::time::sleep(Duration::from_secs(5)).await;
    fixture.worker.thaw();
    fixture.site.broker.all_ended(10, Duration::from_secs(60)).await;
    fixture.close().await;
}
