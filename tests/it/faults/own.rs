//! The worker itself can't work: it stops taking, says why, and loses nothing.

use crate::fixture::AcmeFixture;
use crate::testbed::scripted::Effect;
use crate::testbed::until;
use std::time::Duration;

#[tokio::test]
async fn a_worker_whose_identity_is_refused_pauses_and_resumes_when_it_is_fixed() {
    let fixture = AcmeFixture::start("identity").await;
    let message = "The security token included in the request is invalid.";
    for operation in ["AssumeRole", "GetCallerIdentity"] {
        fixture.s3.on(operation).before(Effect::Error(403, "InvalidClientTokenId", message));
    }
    fixture.schedule("a", b"hello").await;
    let why = until("not ready", Duration::from_secs(20), async || {
        Some(fixture.worker.get("/readyz").await).filter(|text| text.contains("identity_denied"))
    });
    why.await;
    assert!(fixture.failures("identity_denied").await >= 1.0);
    assert_eq!(fixture.site.broker.take("dead").await.len(), 0, "the job stays in the queue");
    assert_eq!(fixture.site.broker.outcomes_of("a").await.len(), 0, "the customer has nothing to do with it");
    fixture.s3.calm();
    let data = fixture.delivered("a").await;
    assert_eq!(data["attempts"], 1, "no attempt was charged");
    assert_eq!(&fixture.object("a").unwrap().bytes[..], b"hello");
    until("ready again", Duration::from_secs(20), async || {
        Some(fixture.worker.get("/readyz").await).filter(|text| !text.contains("identity_denied"))
    })
    .await;
    fixture.close().await;
}
