//! The worker's own limits: few file descriptors, a frozen process.

use std::time::Duration;

use crate::shop::{Shop, site};
use crate::testbed::scripted::Effect;
use crate::testbed::{MIB, bytes};

#[tokio::test]
async fn with_few_file_descriptors_nothing_is_lost_and_no_job_is_blamed() {
    let (mut site, s3) = site("nofile").await;
    site.limit("-n", 40).set("worker.slots", 16).set("upload.part_concurrency", 8);
    // So slow that all of them want their connections at once.
    s3.on("UploadPart").before(Effect::Delay(Duration::from_millis(1500)));
    let worker = site.worker().await;
    let shop = Shop { site, s3, worker };
    for n in 0..12 {
        shop.schedule(&format!("large-{n}"), &bytes(120 + n, 24 * MIB)).await;
    }
    shop.site.broker.all_ended(12, Duration::from_secs(120)).await;
    for n in 0..12 {
        shop.delivered(&format!("large-{n}")).await;
    }
    assert!(shop.worker.log().contains("Too many open files"), "there were enough");
    shop.close().await;
}

#[tokio::test]
async fn a_process_that_stood_still_goes_on() {
    let shop = Shop::open("standstill").await;
    shop.s3.on("PutObject").before(Effect::Delay(Duration::from_secs(1)));
    shop.schedule_many("job", 10).await;
    shop.running(10.0).await;
    shop.worker.freeze();
    tokio::time::sleep(Duration::from_secs(5)).await;
    shop.worker.thaw();
    shop.site.broker.all_ended(10, Duration::from_secs(60)).await;
    shop.close().await;
}
