//! Many leases at once, while the broker takes nothing, or refuses them: each is renewed beside the
//! others, and none goes to another worker.

use crate::queue_conformance::leases::{Steps, nothing_arrives};
use crate::testbed::node::Node;

use super::leases::LEASE_TTL;
use super::*;

/// More than a publisher has channels for leases.
const COUNT: usize = 24;

/// Time in which each lease is renewed again, the longest pause before a repetition included.
const RENEWED: Duration = Duration::from_secs(20);

struct Leased {
    rabbit: Rabbit,
    owner: Arc<RabbitMqQueue>,
    other: Arc<RabbitMqQueue>,
    leases: Vec<(Delivery, Arc<Steps>)>,
}

async fn leased(node: &Node, name: &str) -> Leased {
    let rabbit = Rabbit::leasing_at(&node.url, name).await;
    let (owner, mut leases) = (rabbit.worker("owner").await, Vec::new());
    for n in 0..COUNT {
        leases.push(rabbit.leased(&owner, &format!("run-{n}")).await);
    }
    let other = rabbit.worker("other").await;
    Leased { rabbit, owner, other, leases }
}

impl Leased {
    /// Nothing has reached the other worker, and each lease is renewed again.
    async fn are_kept(self) {
        let asked: Vec<_> = self.leases.iter().map(|(_, steps)| steps.asked()).collect();
        nothing_arrives(&*self.other, RENEWED).await;
        for ((_, steps), asked) in self.leases.iter().zip(asked) {
            assert_eq!(steps.lost(), 0);
            assert!(steps.asked() > asked, "a lease is not renewed any more");
        }
        for (delivery, _) in self.leases {
            self.owner.settle(delivery, Settlement::Ack, vec![event(None)]).await.unwrap();
        }
        nothing_arrives(&*self.other, 3 * LEASE_TTL).await;
        self.owner.close().await;
        self.other.close().await;
        drop(self.rabbit);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_leases_outlast_an_alarm() {
    let node = Node::in_turn();
    let leased = leased(&node, "alarmed").await;
    tokio::task::block_in_place(|| node.out_of_memory());
    nothing_arrives(&*leased.other, Duration::from_secs(35)).await;
    tokio::task::block_in_place(|| node.enough_memory());
    leased.are_kept().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_is_refused_is_kept_and_not_requeued_all_the_time() {
    let node = Node::in_turn();
    let leased = leased(&node, "refused").await;
    let queue = leased.rabbit.name("lease");
    tokio::task::block_in_place(|| node.limit_length(&format!("^{queue}$"), 1));
    nothing_arrives(&*leased.other, 5 * LEASE_TTL).await;
    // Requeued, a message would expire to the other worker, and count as a delivery.
    tokio::task::block_in_place(|| node.limit_length(&format!("^{queue}$"), 100_000));
    leased.are_kept().await;
}
