//! SIGHUP: destinations come and go without a restart, and a bad file changes nothing.

use std::time::Duration;

use crate::shop::{REGION, Shop, role_destination};
use crate::testbed::site::job;
use crate::testbed::until;

async fn status(shop: &Shop) -> serde_json::Value {
    serde_json::from_str(&shop.worker.get("/status").await).unwrap()
}

const SUCCESSFUL: &str = "consign_config_last_reload_successful";

#[tokio::test(flavor = "multi_thread")]
async fn a_new_destination_becomes_usable_and_a_bad_file_keeps_the_old_one() {
    let mut shop = Shop::open("reload").await;
    shop.s3.bucket("beta", REGION, "222222222222");
    let url = shop.site.file("f", b"hello");
    shop.site.broker.schedule(&job("too-early", &url, "beta", "too-early")).await;
    shop.failed("too-early", "unknown_destination").await;

    shop.site.destination("beta", &role_destination("beta", "222222222222"));
    shop.worker.rewrite_config(&shop.site.toml());
    shop.worker.reload();
    let mut tries = 0;
    until("a job for the new destination is delivered", Duration::from_secs(30), async || {
        tries += 1;
        let id = format!("try-{tries}");
        shop.site.broker.schedule(&job(&id, &url, "beta", &id)).await;
        (shop.site.broker.ended(&id).await["type"] == "consign.transfer.delivered.v1").then_some(())
    })
    .await;
    assert_eq!(shop.worker.metric(SUCCESSFUL, "").await, 1.0);

    shop.worker.rewrite_config("destinations.gamma.bucket = \"Not A Bucket\"\n");
    shop.worker.reload();
    until("the failed reload is in the metrics", Duration::from_secs(30), async || {
        (shop.worker.metric(SUCCESSFUL, "").await == 0.0).then_some(())
    })
    .await;
    assert!(shop.worker.log().contains("gamma"), "the log says what is wrong");
    // The metric is set first.
    let refused = until("the refusal is in the status", Duration::from_secs(30), async || {
        status(&shop).await.get("reload_refused").cloned()
    })
    .await;
    assert!(refused["problem"].as_str().unwrap().contains("destinations.gamma.bucket"), "{refused:#}");
    assert!(refused["at"].is_string(), "{refused:#}");
    let shown = tokio::task::block_in_place(|| shop.site.consign(&["status", "--admin", shop.worker.admin()]));
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("its reload was rejected ") && shown.contains("destinations.gamma.bucket"), "{shown}");
    shop.site.broker.schedule(&job("still", &url, "beta", "still")).await;
    shop.delivered("still").await;

    shop.worker.rewrite_config(&shop.site.toml());
    shop.worker.reload();
    until("a good file makes it good again", Duration::from_secs(30), async || {
        (shop.worker.metric(SUCCESSFUL, "").await == 1.0).then_some(())
    })
    .await;
    until("nothing is said to be refused", Duration::from_secs(30), async || {
        status(&shop).await.get("reload_refused").is_none().then_some(())
    })
    .await;
    shop.close().await;
}

#[tokio::test]
async fn a_section_that_is_corrected_lets_the_jobs_go_that_wait_for_it() {
    let mut shop = Shop::open("corrected").await;
    let mut wrong = role_destination("nowhere", "111111111111");
    shop.site.destination("beta", &wrong);
    shop.worker.rewrite_config(&shop.site.toml());
    shop.worker.reload();
    let url = shop.site.file("f", b"hello");
    let open = "consign_destination_circuit_open";
    until("the circuit is open", Duration::from_secs(30), async || {
        let id = format!("wait-{}", crate::testbed::unique("n"));
        shop.site.broker.schedule(&job(&id, &url, "beta", &id)).await;
        (shop.worker.metric(open, "destination=\"beta\"").await == 1.0).then_some(())
    })
    .await;
    shop.site.broker.schedule(&job("waits", &url, "beta", "waits")).await;
    until("it waits", Duration::from_secs(30), async || {
        (shop.worker.metric("consign_deferred_total", "cause=\"circuit\"").await >= 1.0).then_some(())
    })
    .await;

    let stays = "a reload does not take them";
    assert!(!shop.worker.log().contains(stays), "nothing but a destination was changed: {}", shop.worker.log());
    wrong["bucket"] = "acme".into();
    shop.site.destination("beta", &wrong).set("worker.slots", 7);
    shop.worker.rewrite_config(&shop.site.toml());
    shop.worker.reload();
    shop.delivered("waits").await;
    let back = "jobs that waited for destinations that were reset are back";
    until("it was called back", Duration::from_secs(30), async || shop.worker.log().contains(back).then_some(())).await;
    assert_eq!(shop.worker.metric(open, "destination=\"beta\"").await, 0.0);
    assert!(shop.worker.log().contains("\"changed\":1"), "the log says that a section is another");
    let log = shop.worker.log();
    let said: Vec<_> = log.lines().filter(|line| line.contains(stays)).collect();
    let [line] = said[..] else { panic!("not once: {said:?}") };
    assert!(line.contains("\"WARN\"") && line.contains("\"keys\":\"worker.slots\""), "{line}");
    shop.close().await;
}
