//! The worker's clock is off: the worker is unwell, not the jobs. Where there is no libfaketime
//! these tests are skipped.

use crate::fixture::{AcmeFixture, site};
use crate::testbed::exported;

#[tokio::test]
async fn an_hour_ahead_the_worker_stops_taking_and_the_jobs_stay() {
    let (mut site, s3) = site("clock").await;
    site.environment("LD_PRELOAD", &exported("CONSIGN_TEST_FAKETIME")).environment("FAKETIME", "+1h");
    let worker = site.worker().await;
    let mut fixture = AcmeFixture { site, s3, worker };
    fixture.schedule("a", b"hello").await;
    fixture.unready(&["clock_skew"]).await;
    assert!(fixture.failures("clock_skew").await >= 1.0);
    assert_eq!(fixture.site.broker.take("dead").await.len(), 0);
    assert_eq!(fixture.site.broker.outcomes_of("a").await.len(), 0, "the customer has nothing to do with it");
    fixture.worker.terminate();
    assert!(fixture.worker.exit(std::time::Duration::from_secs(30)).await.success());

    fixture.site.environment("FAKETIME", "+0");
    fixture.worker = fixture.site.worker().await;
    assert_eq!(fixture.delivered("a").await["attempts"], 1, "no attempt was charged");
    fixture.close().await;
}
