//! Leases on a RabbitMQ node that is killed and comes back.

use super::leases::{LEASE_TTL, OWNER_TTL};
use super::*;
use crate::queue_conformance::leases::nothing_arrives;
use crate::testbed::node::Node;

/// 3.10 persists its queues within seconds. Killed sooner, it brings a queue up empty or
/// unresponsive.
const WRITTEN_DOWN: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_killed_and_comes_back_keeps_the_leases() {
    let node = Node::in_turn();
    let rabbit = Rabbit::at(&node.url, "killed").await.with_short_leases().await;
    let queue = rabbit.worker("worker").await;
    tokio::time::sleep(WRITTEN_DOWN).await;
    let (got, steps) = rabbit.leased(&queue, "run-1").await;
    let (left, _) = rabbit.leased(&queue, "run-2").await;
    queue.settle(left, Settlement::Ack, vec![]).await.unwrap();
    killed_and_back(&node);
    queue.wait_connected(LIMIT).await.unwrap();
    let asked = steps.asked();
    nothing_arrives(&*queue, 3 * (LEASE_TTL + OWNER_TTL)).await;
    assert!(steps.asked() >= asked + 2, "renewed {} times", steps.asked() - asked);
    assert_eq!(steps.lost(), 0);
    queue.settle(got, Settlement::Ack, vec![event(None)]).await.unwrap();
    nothing_arrives(&*queue, LEASE_TTL + OWNER_TTL).await;
    queue.close().await;
}

/// 3.10 never brings up a quorum queue that was declared just before the kill, and then keeps what
/// is routed to it.
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_killed_as_a_worker_closes_keeps_no_lease_of_a_settled_job() {
    let node = Node::in_turn();
    let rabbit = Rabbit::at(&node.url, "closed").await.with_short_leases().await;
    let queue = rabbit.worker("worker").await;
    tokio::time::sleep(WRITTEN_DOWN).await;
    let (got, _) = rabbit.leased(&queue, "run-1").await;
    queue.settle(got, Settlement::Ack, vec![]).await.unwrap();
    queue.close().await;
    killed_and_back(&node);
    // The lease expires, and is routed to the queue that discards it.
    tokio::time::sleep(3 * LEASE_TTL).await;
    let queues = tokio::task::block_in_place(|| node.ctl(&["list_queues", "name", "messages"]));
    assert!(queues.lines().any(|line| line == format!("{}\t0", rabbit.name("lease"))), "{queues}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owners_queue_that_stops_responding_is_replaced() {
    let node = Node::in_turn();
    let rabbit = Rabbit::at(&node.url, "sick").await.with_short_leases().await;
    tokio::time::sleep(WRITTEN_DOWN).await;
    let queue = rabbit.worker("worker").await;
    killed_and_back(&node);
    queue.wait_connected(LIMIT).await.unwrap();
    let (got, steps) = rabbit.leased(&queue, "run-1").await;
    nothing_arrives(&*queue, 3 * LEASE_TTL).await;
    assert!(steps.asked() >= 3, "renewed {} times", steps.asked());
    queue.settle(got, Settlement::Ack, vec![]).await.unwrap();
    nothing_arrives(&*queue, LEASE_TTL + OWNER_TTL).await;
    queue.close().await;
}

fn killed_and_back(node: &Node) {
    tokio::task::block_in_place(|| {
        node.kill();
        node.start_again();
    });
}
