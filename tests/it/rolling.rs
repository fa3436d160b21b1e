//! A rolling restart: three workers on one queue are replaced one after another under load, and no
//! customer sees it.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use crate::fixture::{add_acme, site};
use crate::testbed::broker::Message;
use crate::testbed::checker::Checker;
use crate::testbed::scripted::{Effect, ScriptedS3};
use crate::testbed::site::{Site, job};
use crate::testbed::worker::Worker;
use crate::testbed::{MIB, bytes, until};

const WORKERS: usize = 3;
/// Each worker's place is renewed so often.
const TIMES: usize = 2;
/// At least so many jobs, and as many more as the restarts take.
const JOBS: usize = 300;
/// Every so many jobs one is sent in parts.
const LARGE_EVERY: usize = 40;
const BETWEEN_JOBS: Duration = Duration::from_millis(50);
const DELIVERED: &str = "consign.transfer.delivered.v1";

#[tokio::test]
async fn workers_on_rabbitmq_are_replaced_under_load_without_a_failed_or_a_doubled_delivery() {
    let (site, s3) = site("rolling").await;
    a_rolling_restart(site, s3).await;
}

#[tokio::test]
async fn workers_on_one_file_are_replaced_under_load_without_a_failed_or_a_doubled_delivery() {
    let mut site = Site::embedded("rollingfile");
    let s3 = add_acme(&mut site).await;
    a_rolling_restart(site, s3).await;
}

async fn a_rolling_restart(mut site: Site, s3: ScriptedS3) {
    site.set("upload.multipart_threshold", "5MiB").set("upload.part_size", "5MiB");
    // So that every signal meets transfers under way, and objects that are there although nobody has been told.
    s3.on("PutObject").after(Effect::Delay(Duration::from_millis(200)));
    s3.on("CompleteMultipartUpload").after(Effect::Delay(Duration::from_millis(300)));
    s3.on("UploadPart").before(Effect::Delay(Duration::from_millis(500)));
    let mut workers = Vec::new();
    for _ in 0..WORKERS {
        workers.push(site.worker().await);
    }
    let rolled = Cell::new(false);
    let (count, ()) = tokio::join!(load(&site, &rolled), roll(&site, &mut workers, &rolled));
    let ended = site.broker.all_ended(count, Duration::from_secs(90)).await;
    assert_eq!(ended.len(), count);
    for worker in &workers {
        worker.quiet().await;
    }
    each_was_delivered_once(&site, count).await;
    each_took_effect_once(&s3, count);
    assert_eq!(site.broker.take("dead").await.len(), 0);
    let all = workers.iter().fold(Checker::new(&site, &s3), Checker::worker);
    all.after_others().check().await;
    site.broker.clean().await;
}

/// A steady load for as long as workers are replaced; answers how many jobs it was.
async fn load(site: &Site, rolled: &Cell<bool>) -> usize {
    let mut count = 0;
    while count < JOBS || !rolled.get() {
        let name = format!("job-{count}");
        let length = if count % LARGE_EVERY == LARGE_EVERY / 2 { 11 * MIB } else { 1000 + count };
        let url = site.file(&name, &bytes(u64::try_from(count).unwrap(), length));
        assert!(site.broker.offer("scheduled", &job(&name, &url, "acme", &name)).await, "{name} was not taken");
        count += 1;
        tokio::time::sleep(BETWEEN_JOBS).await;
    }
    count
}

async fn roll(site: &Site, workers: &mut [Worker], rolled: &Cell<bool>) {
    for _ in 0..TIMES {
        for place in workers.iter_mut() {
            until("the worker is at work", Duration::from_secs(60), async || {
                (place.metric("consign_transfers_in_flight", "").await > 0.0).then_some(())
            })
            .await;
            place.terminate();
            let status = place.exit(Duration::from_secs(60)).await;
            assert_eq!(status.code(), Some(0), "{}", place.log());
            *place = site.worker().await;
        }
    }
    rolled.set(true);
}

/// One terminal outcome of each job, published once: delivered at the first attempt.
async fn each_was_delivered_once(site: &Site, count: usize) {
    let mut told: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for outcome in site.broker.outcomes().await.iter().map(Message::json) {
        told.entry(outcome["subject"].as_str().unwrap().to_owned()).or_default().push(outcome);
    }
    assert_eq!(told.len(), count);
    for (id, outcomes) in told {
        assert_eq!(outcomes.len(), 1, "{id}: {outcomes:#?}");
        assert_eq!(outcomes[0]["type"], DELIVERED, "{:#}", outcomes[0]);
        assert_eq!(outcomes[0]["data"]["attempts"], 1, "{:#}", outcomes[0]);
    }
}

/// The operation that makes an object visible was called once for each key, each time with success.
fn each_took_effect_once(s3: &ScriptedS3, count: usize) {
    let mut made: BTreeMap<String, usize> = BTreeMap::new();
    for call in [s3.calls("PutObject"), s3.calls("CompleteMultipartUpload")].concat() {
        assert_eq!(call.status, 200, "{} {}", call.operation, call.key);
        *made.entry(call.key).or_default() += 1;
    }
    let doubled: Vec<_> = made.iter().filter(|(_, times)| **times != 1).collect();
    assert!(doubled.is_empty(), "{doubled:?}");
    assert_eq!(made.len(), count);
}
