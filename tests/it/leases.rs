//! Long transfers are held by a lease: no time-out of the broker ends them, and another worker
//! takes over when theirs is gone.

use std::collections::BTreeSet;
use std::fs::File;
use std::time::Duration;

use serde_json::json;

use crate::fixture::{add_acme, site};
use crate::testbed::broker::{Broker, Message};
use crate::testbed::node::Node;
use crate::testbed::proxy::{Condition, Proxy, address_of};
use crate::testbed::scripted::{Effect, ScriptedS3};
use crate::testbed::site::{Site, job};
use crate::testbed::worker::Worker;
use crate::testbed::{MIB, bytes, unique, until};

const LEASE: &str = "application/vnd.consign.lease.v1+bincode";

/// The first lease that is written.
async fn lease(site: &Site) -> Message {
    until("a lease", Duration::from_secs(30), async || site.broker.take("lease").await.into_iter().next()).await
}

#[tokio::test]
async fn an_upload_of_more_than_1_gib_is_written_down_before_its_first_part() {
    let (site, s3) = site("leasecreate").await;
    s3.on("UploadPart").before(Effect::Delay(Duration::from_secs(120)));
    let path = site.files().join("large");
    File::create(&path).unwrap().set_len((1 << 30) + 1).unwrap();
    let worker = site.worker().await;
    site.broker.schedule(&job("large", &format!("file://{}", path.display()), "acme", "large")).await;
    let lease = lease(&site).await;
    assert_eq!(lease.content_type.as_deref(), Some(LEASE));
    let decoded = consign::domain::job::lease::Lease::decode(&lease.body).unwrap();
    assert_eq!(decoded.job(Some("large")).unwrap().id.as_str(), "large");
    let checkpoint = decoded.checkpoint.unwrap();
    assert_eq!(checkpoint.upload_id, s3.why_open()[0].0, "the id that S3 gave");
    assert_eq!(checkpoint.parts, []);
    assert_eq!(worker.metric("consign_broker_settlements_total", "action=\"lease\"").await, 1.0);
    worker.kill();
    site.broker.clean().await;
}

#[tokio::test]
async fn a_transfer_that_takes_long_is_put_under_a_lease_whatever_it_is() {
    let (mut site, s3) = site("leaseafter").await;
    site.set("broker.lease_after", "1s");
    s3.on("PutObject").before(Effect::Delay(Duration::from_secs(4)));
    let url = site.file("a", b"hello");
    let worker = site.worker().await;
    site.broker.schedule(&job("a", &url, "acme", "a")).await;
    let decoded = consign::domain::job::lease::Lease::decode(&lease(&site).await.body).unwrap();
    assert_eq!(decoded.checkpoint, None, "one PutObject starts over");
    assert_eq!(site.broker.ended("a").await["type"], "consign.transfer.delivered.v1");
    assert_eq!(worker.metric("consign_broker_settlements_total", "action=\"lease\"").await, 1.0);
    worker.quiet().await;
    site.broker.clean().await;
}

/// A site with leases that come back after a second: the lower of policy and declaration counts.
async fn short_leases(node: &Node, word: &str) -> (Site, ScriptedS3) {
    let prefix = unique(word);
    node.shorten_leases(&prefix, Duration::from_secs(1));
    let mut site = Site::on(Broker::at(node.url.clone(), &prefix)).await;
    let s3 = add_acme(&mut site).await;
    site.set("upload.part_size", "5MiB").set("upload.part_concurrency", 2).set("broker.lease_after", "1s");
    (site, s3)
}

#[tokio::test]
async fn no_time_out_of_the_broker_ends_a_transfer_under_a_lease() {
    let node = Node::in_turn();
    let (mut site, s3) = short_leases(&node, "leasetimeout").await;
    node.acknowledge_within(Duration::from_secs(4));
    site.set("worker.slots", 2);
    s3.on("UploadPart").before(Effect::Delay(Duration::from_millis(1500)));
    let content = bytes(1, 60 * MIB);
    let url = site.file("a", &content);
    let worker = site.worker().await;
    site.broker.schedule(&job("a", &url, "acme", "a")).await;
    let data = site.broker.ended("a").await["data"].clone();
    assert_eq!((&data["attempts"], &data["resumed"]), (&json!(1), &json!(false)), "{data:#}");
    assert_eq!(worker.metric("consign_broker_reconnects_total", "").await, 0.0, "no channel was closed");
    assert!(s3.object("acme", "in/a").unwrap().bytes == content);
    assert_eq!(s3.calls("CreateMultipartUpload").len(), 1);
    worker.quiet().await;
    site.broker.clean().await;
}

/// From now on workers reach the broker through a proxy; with the way that does without it.
async fn behind_a_proxy(site: &mut Site) -> (Proxy, String) {
    let direct = site.broker.url.clone();
    let proxy = Proxy::before(address_of(&direct)).await;
    site.set("broker.url", proxy.in_place_of(&direct));
    (proxy, direct)
}

/// A worker whose only job, an upload in parts of 700 ms, has come to it again over a connection
/// that was cut; with what the job's source holds, and the way to the broker that is not cut.
async fn redelivered(site: &mut Site, s3: &ScriptedS3) -> (Worker, Vec<u8>, String) {
    site.set("upload.part_size", "5MiB").set("upload.part_concurrency", 1);
    s3.on("UploadPart").before(Effect::Delay(Duration::from_millis(700)));
    let content = bytes(4, 100 * MIB);
    let url = site.file("a", &content);
    let (proxy, direct) = behind_a_proxy(site).await;
    let worker = site.worker().await;
    site.broker.schedule(&job("a", &url, "acme", "a")).await;
    until("a part", Duration::from_secs(30), async || (!s3.calls("UploadPart").is_empty()).then_some(())).await;
    proxy.set(Condition::Reset);
    until("it is cut off", Duration::from_secs(30), async || {
        (worker.metric("consign_broker_connected", "").await == 0.0).then_some(())
    })
    .await;
    proxy.set(Condition::Normal);
    until("the job is redelivered", Duration::from_secs(60), async || {
        worker.log().contains("the job is in flight here; its duplicate waits").then_some(())
    })
    .await;
    (worker, content, direct)
}

/// Replaces the worker; the other one must continue where it left off.
async fn is_continued(mut site: Site, s3: ScriptedS3, (first, content, direct): (Worker, Vec<u8>, String)) {
    first.terminate();
    let status = first.exit(Duration::from_secs(25)).await;
    assert_eq!(status.code(), Some(0), "{}", first.log());
    site.set("broker.url", direct);
    let second = site.worker().await;
    let data = site.broker.ended("a").await["data"].clone();
    assert_eq!((&data["attempts"], &data["resumed"]), (&json!(1), &json!(true)), "{data:#}");
    assert!(s3.object("acme", "in/a").unwrap().bytes == content);
    assert_eq!(s3.calls("CreateMultipartUpload").len(), 1, "the upload is resumed");
    let sent: usize = s3.calls("UploadPart").iter().filter(|call| call.status == 200).map(|call| call.body.len()).sum();
    assert_eq!(sent, content.len(), "nothing is sent twice");
    second.quiet().await;
    assert_eq!(s3.why_open(), []);
    assert_eq!(site.broker.take("jobs.scheduled").await.len(), 0, "the delivery that came again is settled");
    site.broker.clean().await;
}

#[tokio::test]
async fn work_whose_connection_broke_is_handed_over_by_its_redelivery() {
    let (mut site, s3) = site("leasegap").await;
    let first = redelivered(&mut site, &s3).await;
    is_continued(site, s3, first).await;
}

#[tokio::test]
async fn work_whose_connection_broke_before_its_lease_takes_it_on_its_redelivery() {
    let (mut site, s3) = site("leasegaplater").await;
    // Long enough for the cut to come first, whatever the back-off: the transfer takes 14 s.
    site.set("broker.lease_after", "7s");
    let first = redelivered(&mut site, &s3).await;
    until("it is leased", Duration::from_secs(30), async || {
        (first.0.metric("consign_broker_settlements_total", "action=\"lease\"").await == 1.0).then_some(())
    })
    .await;
    is_continued(site, s3, first).await;
}

#[tokio::test]
async fn another_worker_continues_what_a_killed_one_had_under_a_lease() {
    let node = Node::shared();
    let (site, s3) = short_leases(&node, "leasekilled").await;
    s3.on("UploadPart").before(Effect::Delay(Duration::from_millis(700)));
    let content = bytes(2, 60 * MIB);
    let url = site.file("a", &content);
    let first = site.worker().await;
    site.broker.schedule(&job("a", &url, "acme", "a")).await;
    until("some parts", Duration::from_secs(30), async || (s3.calls("UploadPart").len() >= 6).then_some(())).await;
    first.kill();
    let second = site.worker().await;
    let data = site.broker.ended("a").await["data"].clone();
    assert_eq!((&data["attempts"], &data["resumed"]), (&json!(1), &json!(true)), "{data:#}");
    assert!(s3.object("acme", "in/a").unwrap().bytes == content);
    assert_eq!(s3.calls("CreateMultipartUpload").len(), 1, "the upload is resumed");
    let sent: usize = s3.calls("UploadPart").iter().filter(|call| call.status == 200).map(|call| call.body.len()).sum();
    let again = sent.saturating_sub(content.len()) / (5 * MIB);
    assert!(again <= 6, "a crash costs at most one lease: {again} parts were sent twice");
    second.quiet().await;
    site.broker.clean().await;
}

#[tokio::test]
async fn the_last_lease_of_a_killed_worker_does_not_start_a_delivered_job_again() {
    let node = Node::shared();
    let (site, s3) = short_leases(&node, "leaselast").await;
    node.shorten_leases(&site.broker.prefix, Duration::from_secs(4));
    s3.on("PutObject").before(Effect::Delay(Duration::from_secs(3)));
    let url = site.file("a", b"hello");
    let first = site.worker().await;
    site.broker.schedule(&job("a", &url, "acme", "a")).await;
    until("a lease", Duration::from_secs(30), async || {
        (first.metric("consign_broker_settlements_total", "action=\"lease\"").await > 0.0).then_some(())
    })
    .await;
    let second = site.worker().await;
    assert_eq!(site.broker.ended("a").await["type"], "consign.transfer.delivered.v1");
    // Its lease is still in the broker, and goes to the other worker.
    first.kill();
    until("the lease reaches the other worker", Duration::from_secs(60), async || {
        (second.metric("consign_broker_settlements_total", "action=\"ack\"").await > 0.0).then_some(())
    })
    .await;
    assert_eq!(s3.calls("PutObject").len(), 1, "it knows that the job was delivered");
    let ids: BTreeSet<_> = site.broker.outcomes_of("a").await.iter().map(|outcome| outcome["id"].to_string()).collect();
    assert_eq!(ids.len(), 1, "one outcome that counts");
    site.broker.clean().await;
}

#[tokio::test]
async fn a_worker_that_was_cut_off_leaves_its_job_to_the_one_that_has_it_now() {
    let node = Node::shared();
    let (mut site, s3) = short_leases(&node, "leaselost").await;
    s3.on("UploadPart").before(Effect::Delay(Duration::from_secs(2)));
    let content = bytes(3, 60 * MIB);
    let url = site.file("a", &content);
    let (proxy, direct) = behind_a_proxy(&mut site).await;
    let cut_off = site.worker().await;
    site.broker.schedule(&job("a", &url, "acme", "a")).await;
    until("it is leased", Duration::from_secs(30), async || {
        (cut_off.metric("consign_broker_settlements_total", "action=\"lease\"").await == 1.0).then_some(())
    })
    .await;
    proxy.set(Condition::Reset);
    site.set("broker.url", direct);
    let second = site.worker().await;
    until("another worker continues", Duration::from_secs(60), async || {
        (second.metric("consign_multipart_resumed_total", "").await == 1.0).then_some(())
    })
    .await;
    proxy.set(Condition::Normal);
    let data = site.broker.ended("a").await["data"].clone();
    assert_eq!(data["resumed"], true, "{data:#}");
    until("the first one lets go", Duration::from_secs(60), async || {
        (cut_off.metric("consign_transfer_failures_total", "reason=\"lease_lost\"").await == 1.0).then_some(())
    })
    .await;
    assert!(s3.object("acme", "in/a").unwrap().bytes == content);
    for worker in [&cut_off, &second] {
        worker.quiet().await;
    }
    let ids: BTreeSet<_> = site.broker.outcomes_of("a").await.iter().map(|outcome| outcome["id"].to_string()).collect();
    assert_eq!(ids.len(), 1, "one outcome that counts");
    site.broker.clean().await;
}
