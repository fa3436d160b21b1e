//! SIGHUP: destinations come and go without a restart, and a bad file keeps its last valid content.

use std::time::Duration;

use crate::fixture::{AcmeFixture, REGION, role_destination};
use crate::testbed::site::job;
use crate::testbed::until;

async fn status(fixture: &AcmeFixture) -> serde_json::Value {
    serde_json::from_str(&fixture.worker.get("/status").await).unwrap()
}

const SUCCESSFUL: &str = "consign_config_last_reload_successful";

#[tokio::test(flavor = "multi_thread")]
async fn a_new_destination_becomes_usable_and_a_bad_file_keeps_the_old_one() {
    let mut fixture = AcmeFixture::start("reload").await;
    fixture.s3.bucket("beta", REGION, "222222222222");
    let url = fixture.site.file("f", b"hello");
    fixture.site.broker.schedule(&job("too-early", &url, "beta", "too-early")).await;
    fixture.failed("too-early", "unknown_destination").await;

    fixture.site.destination("beta", &role_destination("beta", "222222222222"));
    fixture.worker.rewrite_config(&fixture.site.toml());
    fixture.worker.reload();
    let mut tries = 0;
    until("a job for the new destination is delivered", Duration::from_secs(30), async || {
        tries += 1;
        let id = format!("try-{tries}");
        fixture.site.broker.schedule(&job(&id, &url, "beta", &id)).await;
        (fixture.site.broker.ended(&id).await["type"] == "consign.transfer.delivered.v1").then_some(())
    })
    .await;
    assert_eq!(fixture.worker.metric(SUCCESSFUL, "").await, 1.0);

    fixture.worker.rewrite_config("destinations.gamma.bucket = \"Not A Bucket\"\n");
    fixture.worker.reload();
    until("the failed reload is in the metrics", Duration::from_secs(30), async || {
        (fixture.worker.metric(SUCCESSFUL, "").await == 0.0).then_some(())
    })
    .await;
    assert!(fixture.worker.log().contains("gamma"), "the log says what is wrong");
    // The metric is set first.
    let refused = until("the refusal is in the status", Duration::from_secs(30), async || {
        status(&fixture).await.get("reload_refused").cloned()
    })
    .await;
    assert!(refused["problem"].as_str().unwrap().contains("destinations.gamma.bucket"), "{refused:#}");
    assert!(refused["at"].is_string(), "{refused:#}");
    let shown = tokio::task::block_in_place(|| fixture.site.consign(&["status", "--admin", fixture.worker.admin()]));
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("was not reloaded completely") && shown.contains("destinations.gamma.bucket"), "{shown}");
    fixture.site.broker.schedule(&job("still", &url, "beta", "still")).await;
    fixture.delivered("still").await;

    fixture.worker.rewrite_config(&fixture.site.toml());
    fixture.worker.reload();
    until("a good file makes it good again", Duration::from_secs(30), async || {
        (fixture.worker.metric(SUCCESSFUL, "").await == 1.0).then_some(())
    })
    .await;
    until("nothing is said to be refused", Duration::from_secs(30), async || {
        status(&fixture).await.get("reload_refused").is_none().then_some(())
    })
    .await;
    fixture.close().await;
}

#[tokio::test]
async fn a_section_that_is_corrected_lets_the_jobs_go_that_wait_for_it() {
    let mut fixture = AcmeFixture::start("corrected").await;
    let mut wrong = role_destination("nowhere", "111111111111");
    fixture.site.destination("beta", &wrong);
    fixture.worker.rewrite_config(&fixture.site.toml());
    fixture.worker.reload();
    let url = fixture.site.file("f", b"hello");
    let open = "consign_destination_circuit_open";
    until("the circuit is open", Duration::from_secs(30), async || {
        let id = format!("wait-{}", crate::testbed::unique("n"));
        fixture.site.broker.schedule(&job(&id, &url, "beta", &id)).await;
        (fixture.worker.metric(open, "destination=\"beta\"").await == 1.0).then_some(())
    })
    .await;
    fixture.site.broker.schedule(&job("waits", &url, "beta", "waits")).await;
    until("it waits", Duration::from_secs(30), async || {
        (fixture.worker.metric("consign_deferred_total", "cause=\"circuit\"").await >= 1.0).then_some(())
    })
    .await;

    let stays = "config_restart_needed";
    assert!(!fixture.worker.log().contains(stays), "nothing but a destination was changed: {}", fixture.worker.log());
    wrong["bucket"] = "acme".into();
    fixture.site.destination("beta", &wrong).set("worker.slots", 7);
    fixture.worker.rewrite_config(&fixture.site.toml());
    fixture.worker.reload();
    fixture.delivered("waits").await;
    let back = "jobs_recalled";
    until("the job was released", Duration::from_secs(30), async || fixture.worker.log().contains(back).then_some(()))
        .await;
    assert_eq!(fixture.worker.metric(open, "destination=\"beta\"").await, 0.0);
    assert!(fixture.worker.log().contains("\"changed\":1"), "the log says that a section is another");
    let log = fixture.worker.log();
    let said: Vec<_> = log.lines().filter(|line| line.contains(stays)).collect();
    let [line] = said[..] else { panic!("not once: {said:?}") };
    assert!(line.contains("\"WARN\"") && line.contains("\"keys\":\"worker.slots\""), "{line}");
    fixture.close().await;
}
