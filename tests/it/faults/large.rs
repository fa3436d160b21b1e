//! Messages far beyond the bound: read by nobody, and kept by the broker.

use std::time::Duration;

use lapin::BasicProperties;
use lapin::options::{BasicGetOptions, BasicNackOptions};
use serde_json::Value;

use crate::fixture::{AcmeFixture, add_acme};
use crate::testbed::broker::Broker;
use crate::testbed::node::Node;
use crate::testbed::site::{Site, job};
use crate::testbed::worker::Worker;
use crate::testbed::{MIB, unique, until};

/// Messages of 40 MiB each.
const COUNT: usize = 24;
const SIZE: usize = 40 * MIB;
/// Growth of a worker that has read none of them.
const MOST_GROWTH: usize = 100 * MIB;

/// The most memory that a worker has ever had, in bytes.
fn peak(worker: &Worker) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", worker.id())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    peak.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

fn dead(site: &Site, arguments: &[&str]) -> std::process::Output {
    tokio::task::block_in_place(|| site.consign(&[&["dead"], arguments].concat()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_beyond_the_bound_cost_no_memory_and_stay_in_the_broker() {
    let node = Node::in_turn();
    node.take_large_messages();
    let mut site = Site::on(Broker::at(node.url.clone(), &unique("large"))).await;
    let s3 = add_acme(&mut site).await;
    let worker = site.worker().await;
    let fixture = AcmeFixture { site, s3, worker };
    let broker = &fixture.site.broker;
    fixture.schedule("before", b"hello").await;
    fixture.delivered("before").await;
    let (before, body) = (peak(&fixture.worker), vec![b'x'; SIZE]);
    for n in 0..COUNT {
        let properties = BasicProperties::default().with_message_id(format!("large-{n}").into());
        broker.publish_raw("job.scheduled.acme", &body, properties).await;
    }
    fixture.schedule("neighbour", b"hello").await;
    fixture.delivered("neighbour").await;
    for n in 0..COUNT {
        let outcome = broker.ended(&format!("large-{n}")).await;
        let data = &outcome["data"];
        assert_eq!((&outcome["type"], &data["reason"]), (&"consign.transfer.failed.v1".into(), &"invalid_job".into()));
        assert!(data["message"].as_str().unwrap().contains(&format!("body: has {SIZE} bytes")), "{data:#}");
        assert_eq!(data["destination"], "acme");
    }
    let settled = async || fixture.worker.metric("consign_broker_settlements_total", "action=\"dead\"").await;
    until("all are dead-lettered", Duration::from_secs(60), async || (settled().await == 24.0).then_some(())).await;
    let growth = peak(&fixture.worker).saturating_sub(before);
    assert!(growth < MOST_GROWTH, "the worker has grown by {growth} bytes");
    assert_eq!(fixture.worker.metric("consign_broker_reconnects_total", "").await, 0.0);
    is_shown_and_kept(&fixture.site).await;
    fixture.worker.quiet().await;
    broker.clean().await;
}

/// The dead letters have their whole bodies, and the commands work without them.
async fn is_shown_and_kept(site: &Site) {
    let channel = site.broker.reachable().await;
    let queue = format!("{}.dead", site.broker.prefix);
    let letter = until("a dead letter", Duration::from_secs(60), async || {
        channel.basic_get(queue.as_str().into(), BasicGetOptions::default()).await.unwrap()
    });
    let letter = letter.await.delivery;
    assert_eq!((letter.data.len(), letter.routing_key.as_str()), (SIZE, "job.scheduled.acme"));
    letter.acker.nack(BasicNackOptions { multiple: false, requeue: true }).await.unwrap();
    let letters = until("all letters are listed", Duration::from_secs(120), async || {
        let listed = String::from_utf8(dead(site, &["list", "--json"]).stdout).unwrap();
        let letters: Vec<Value> = listed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        (letters.len() >= COUNT).then_some(letters)
    })
    .await;
    for letter in &letters {
        assert_eq!((&letter["reason"], &letter["class"]), (&"invalid_job".into(), &"job".into()), "{letter:#}");
    }
    let shown = dead(site, &["show", "large-3"]);
    let text = String::from_utf8_lossy(&shown.stdout);
    assert!(shown.status.success() && text.contains(&format!("body           {SIZE} bytes, too large")), "{text}");
    let shown: Value = serde_json::from_slice(&dead(site, &["show", "large-3", "--json"]).stdout).unwrap();
    assert_eq!((&shown["bytes"], &shown["job_id"]), (&SIZE.into(), &"large-3".into()), "{shown:#}");
    let refused = dead(site, &["requeue", "--job", "large-3", "--force"]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("too large to be read"), "{said}");
    let exported = dead(site, &["export", "-"]);
    let said = String::from_utf8_lossy(&exported.stderr);
    assert!(exported.status.code() == Some(75) && said.contains("24 not exported"), "{said}");
    let discarded = dead(site, &["discard", "--all", "--yes"]);
    assert!(String::from_utf8_lossy(&discarded.stdout).contains("24 discarded"), "{discarded:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forged_lease_beyond_the_bound_reaches_the_dead_letters_as_well() {
    let node = Node::in_turn();
    let mut site = Site::on(Broker::at(node.url.clone(), &unique("largelease"))).await;
    let s3 = add_acme(&mut site).await;
    let worker = site.worker().await;
    let fixture = AcmeFixture { site, s3, worker };
    let marks = [("consign-lease-epoch", "1"), ("consign-lease-seq", "1"), ("consign-lease-owner", "nobody")];
    fixture.site.broker.put_into("jobs.continued", &vec![b'x'; 3 * MIB], &marks).await;
    let letter =
        until("the dead letter", Duration::from_secs(60), async || fixture.site.broker.take("dead").await.pop()).await;
    assert_eq!(letter.body.len(), 3 * MIB);
    let url = fixture.site.file("f", b"hello");
    fixture.site.broker.schedule(&job("good", &url, "acme", "good")).await;
    fixture.delivered("good").await;
    fixture.worker.quiet().await;
    fixture.site.broker.clean().await;
}
