//! The broker itself breaks: a node that tests break in turn is killed, stopped, frozen, alarmed,
//! and loses its patience.

use std::time::{Duration, Instant};

use crate::fixture::{AcmeFixture, add_acme};
use crate::testbed::broker::Broker;
use crate::testbed::checker::Checker;
use crate::testbed::node::Node;
use crate::testbed::scripted::Effect;
use crate::testbed::site::{Site, job};
use crate::testbed::{unique, until};

/// A fixture on the node, its worker not yet started.
async fn site_on(node: &Node, word: &str) -> (Site, crate::testbed::scripted::ScriptedS3) {
    let mut site = Site::on(Broker::at(node.url.clone(), &unique(word))).await;
    let s3 = add_acme(&mut site).await;
    (site, s3)
}

async fn fixture_on(node: &Node, word: &str) -> AcmeFixture {
    let (site, s3) = site_on(node, word).await;
    let worker = site.worker().await;
    AcmeFixture { site, s3, worker }
}

impl AcmeFixture {
    /// The checker, with the broken node; leaves no queues.
    async fn close_on(self, node: &Node) {
        Checker::new(&self.site, &self.s3).worker(&self.worker).node(node).check().await;
        self.site.broker.clean().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_in_the_middle_of_500_jobs_it_loses_none() {
    let node = Node::in_turn();
    let (site, s3) = site_on(&node, "killed").await;
    // Slow enough that the broker dies with work in every state.
    s3.on("PutObject").before(Effect::Delay(Duration::from_millis(40)));
    let url = site.file("f", b"hello");
    for n in 0..500 {
        site.broker.schedule(&job(&format!("job-{n}"), &url, "acme", &format!("k-{n}"))).await;
    }
    let worker = site.worker().await;
    let fixture = AcmeFixture { site, s3, worker };
    fixture.objects(100).await;
    node.kill();
    assert!(fixture.s3.count("acme") < 500, "the broker died too late to show anything");
    node.start_again();
    fixture.site.broker.all_ended(500, Duration::from_secs(120)).await;
    assert_eq!(fixture.s3.count("acme"), 500);
    assert!(fixture.worker.metric("consign_broker_reconnects_total", "").await >= 1.0);
    assert_eq!(fixture.site.broker.take("dead").await.len(), 0);
    fixture.close_on(&node).await;
}

/// Measures the time from the broker's return to the first outcome, and prints it: it depends on
/// the machine. More rounds by `CONSIGN_TEST_ROUNDS`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_or_stopped_repeatedly_work_continues_soon_after_its_return() {
    let rounds = std::env::var("CONSIGN_TEST_ROUNDS").map_or(2, |rounds| rounds.parse().unwrap());
    let node = Node::in_turn();
    let fixture = fixture_on(&node, "returns").await;
    fixture.s3.on("PutObject").before(Effect::Delay(Duration::from_millis(200)));
    let mut waits = Vec::new();
    for round in 0..rounds {
        fixture.schedule_many(&format!("round-{round}"), 40).await;
        fixture.objects(round * 40 + 5).await;
        if round % 2 == 0 {
            node.kill();
        } else {
            node.stop();
        }
        let settled = async || fixture.worker.metric("consign_broker_settlements_total", "action=\"ack\"").await;
        let before = settled().await;
        node.start_again();
        let back = Instant::now();
        until("the first delivery", Duration::from_secs(60), async || (settled().await > before).then_some(())).await;
        waits.push(back.elapsed());
        fixture.site.broker.all_ended((round + 1) * 40, Duration::from_secs(60)).await;
    }
    waits.sort_unstable();
    let at = |share: usize| waits[(waits.len() * share / 100).min(waits.len() - 1)];
    eprintln!(
        "from the broker's return to the first delivery, {rounds} rounds: p50 {:?}, p99 {:?}; {waits:?}",
        at(50),
        at(99)
    );
    let log = fixture.worker.log();
    let tries = log.lines().filter_map(|line| line.split_once("trying again\",\"reason\":\"")?.1.split('"').next());
    eprintln!("what each try to connect ended with: {:#?}", tries.collect::<Vec<_>>());
    fixture.close_on(&node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frozen_it_is_noticed_and_what_was_finished_meanwhile_is_not_done_again() {
    let node = Node::in_turn();
    let fixture = fixture_on(&node, "frozen").await;
    fixture.s3.on("PutObject").before(Effect::Held);
    fixture.schedule_many("job", 10).await;
    fixture.running(10.0).await;
    node.freeze();
    fixture.s3.calm();
    fixture.objects(10).await;
    fixture.unready(&["heartbeat", "connection", "confirm", "answer"]).await;
    node.thaw();
    fixture.site.broker.all_ended(10, Duration::from_secs(90)).await;
    assert_eq!(fixture.s3.calls("PutObject").len(), 10, "a redelivery joins the work that was done");
    fixture.close_on(&node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn out_of_memory_it_makes_settlements_wait_and_loses_nothing() {
    let node = Node::in_turn();
    let fixture = fixture_on(&node, "memory").await;
    fixture.s3.on("PutObject").before(Effect::Held);
    fixture.schedule_many("job", 10).await;
    fixture.running(10.0).await;
    node.out_of_memory();
    fixture.s3.calm();
    fixture.objects(10).await;
    fixture.unready(&["blocks publishers"]).await;
    let settled = fixture.worker.metric("consign_broker_settlements_total", "").await;
    assert_eq!(settled, 0.0, "nothing is acknowledged whose outcome is not confirmed");
    assert_eq!(fixture.worker.metric("consign_broker_connected", "").await, 1.0, "an alarm is no lost connection");
    // What acknowledges is another connection than what publishes: it would be blocked if it published, and is not.
    let connections = node.ctl(&["list_connections", "state", "client_properties"]);
    let state = |what: &str| {
        let lines: Vec<_> = connections.lines().filter(|line| line.contains(&format!(" {what}\""))).collect();
        assert_eq!(lines.len(), 1, "{what}: {connections}");
        lines[0].split_whitespace().next().unwrap().to_owned()
    };
    assert_eq!((state("publisher").as_str(), state("consumer").as_str()), ("blocked", "blocking"), "{connections}");
    node.enough_memory();
    fixture.site.broker.all_ended(10, Duration::from_secs(60)).await;
    assert_eq!(fixture.s3.calls("PutObject").len(), 10);
    assert_eq!(fixture.worker.metric("consign_broker_reconnects_total", "").await, 0.0);
    fixture.close_on(&node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_connections_closed_the_jobs_continue_and_their_redeliveries_join_them() {
    let node = Node::in_turn();
    let fixture = fixture_on(&node, "closed").await;
    fixture.s3.on("PutObject").before(Effect::Held);
    fixture.schedule_many("job", 10).await;
    fixture.running(10.0).await;
    node.close_connections();
    fixture.unready(&["CONNECTION_FORCED", "connection"]).await;
    fixture.joined(10).await;
    fixture.s3.calm();
    fixture.site.broker.all_ended(10, Duration::from_secs(60)).await;
    assert_eq!(fixture.s3.calls("PutObject").len(), 10, "each job was delivered by the transfer that was running");
    fixture.close_on(&node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_another_password_it_is_waited_for_without_saying_the_old_one() {
    let node = Node::in_turn();
    let fixture = fixture_on(&node, "password").await;
    fixture.s3.on("PutObject").before(Effect::Held);
    fixture.schedule_many("job", 5).await;
    fixture.running(5.0).await;
    node.change_password();
    node.close_connections();
    let why = fixture.unready(&["ACCESS_REFUSED", "refused"]).await;
    assert!(!why.contains("marked-secret") && !fixture.worker.log().contains("marked-secret"), "{why}");
    node.restore_password();
    fixture.s3.calm();
    fixture.site.broker.all_ended(5, Duration::from_secs(60)).await;
    assert_eq!(fixture.s3.count("acme"), 5);
    fixture.close_on(&node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_the_consumer_timeout_it_closes_the_channel_and_the_job_continues() {
    let node = Node::in_turn();
    node.acknowledge_within(Duration::from_secs(5));
    let fixture = fixture_on(&node, "impatient").await;
    fixture.s3.on("PutObject").before(Effect::Held);
    fixture.schedule("a", b"hello").await;
    fixture.unready(&["timed out", "timeout"]).await;
    fixture.joined(1).await;
    fixture.s3.calm();
    fixture.delivered("a").await;
    assert_eq!(fixture.s3.calls("PutObject").len(), 1, "the redelivery joined the job");
    fixture.close_on(&node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_of_dead_letters_it_refuses_one_and_the_job_is_not_lost() {
    let node = Node::in_turn();
    let fixture = fixture_on(&node, "full").await;
    node.limit_length(&format!("^{}\\.dead$", fixture.site.broker.prefix), 1);
    let missing = format!("file://{}/missing", fixture.site.files().display());
    let dead = async || fixture.worker.metric("consign_broker_settlements_total", "action=\"dead\"").await;
    let mut count = 0;
    // A quorum queue takes a few more than its limit.
    until("a dead letter is refused", Duration::from_secs(60), async || {
        let name = format!("job-{count}");
        count += 1;
        fixture.site.broker.schedule(&job(&name, &missing, "acme", &name)).await;
        fixture.site.broker.ended(&name).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        fixture.worker.log().contains("was not accepted").then_some(())
    })
    .await;
    assert!(dead().await < f64::from(count), "a refused dead letter counts as settled");
    until("there is room for every dead letter", Duration::from_secs(90), async || {
        fixture.site.broker.take("dead").await;
        (dead().await == f64::from(count)).then_some(())
    })
    .await;
    fixture.close_on(&node).await;
}
