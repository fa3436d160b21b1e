//! The worker's clock is off: the worker is unwell, not the jobs. Where there is no libfaketime these tests are skipped.

use crate::shop::{Shop, site};
use crate::testbed::exported;

#[tokio::test]
async fn an_hour_ahead_the_worker_stops_taking_and_the_jobs_stay() {
    let (mut site, s3) = site("clock").await;
    site.environment("LD_PRELOAD", &exported("CONSIGN_TEST_FAKETIME")).environment("FAKETIME", "+1h");
    let worker = site.worker().await;
    let mut shop = Shop { site, s3, worker };
    shop.schedule("a", b"hello").await;
    shop.unready(&["clock_skew"]).await;
    assert!(shop.failures("clock_skew").await >= 1.0);
    assert_eq!(shop.site.broker.take("dead").await.len(), 0);
    assert_eq!(shop.site.broker.outcomes_of("a").await.len(), 0, "the customer has nothing to do with it");
    shop.worker.terminate();
    assert!(shop.worker.exit(std::time::Duration::from_secs(30)).await.success());

    shop.site.environment("FAKETIME", "+0");
    shop.worker = shop.site.worker().await;
    assert_eq!(shop.delivered("a").await["attempts"], 1, "no attempt was charged");
    shop.close().await;
}
