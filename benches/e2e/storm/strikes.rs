//! The faults: one after the other, drawn from the seed, until every job has ended.

use std::collections::BTreeMap;
use std::time::Duration;

use rustix::process::Signal;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::StormArgs;
use super::inbox::Inbox;
use crate::Fallible;
use crate::node::Node;
use crate::worker::{Surroundings, Worker};

const FROZEN: Duration = Duration::from_millis(1_500);
const BROKER_DOWN: Duration = Duration::from_millis(500);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    KillWorker,
    ReplaceWorker,
    FreezeWorker,
    CloseConnections,
    KillBroker,
}

/// Each kind as often as it is drawn on average.
const DECK: [Kind; 20] = {
    use Kind::{CloseConnections, FreezeWorker, KillBroker, KillWorker, ReplaceWorker};
    [
        KillWorker,
        KillWorker,
        KillWorker,
        KillWorker,
        KillWorker,
        KillWorker,
        KillWorker,
        KillWorker,
        ReplaceWorker,
        ReplaceWorker,
        ReplaceWorker,
        ReplaceWorker,
        FreezeWorker,
        FreezeWorker,
        FreezeWorker,
        FreezeWorker,
        CloseConnections,
        CloseConnections,
        CloseConnections,
        KillBroker,
    ]
};

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::KillWorker => "worker killed",
            Self::ReplaceWorker => "worker replaced",
            Self::FreezeWorker => "worker frozen",
            Self::CloseConnections => "connections closed",
            Self::KillBroker => "broker killed",
        }
    }
}

/// Workers by slot; an empty slot is about to be filled.
struct Crew<'a> {
    around: &'a Surroundings<'a>,
    slots: Vec<Option<Worker>>,
}

/// Starts the workers and strikes until every job has ended. Returns how often each fault struck.
pub async fn run(
    args: &StormArgs,
    seed: u64,
    around: &Surroundings<'_>,
    node: &Node,
    inbox: &Inbox,
) -> Fallible<BTreeMap<&'static str, u32>> {
    let mut crew = Crew { around, slots: Vec::new() };
    for _ in 0..args.workers {
        crew.slots.push(Some(Worker::start(around).await?));
    }
    let (mut dice, mut faults) = (fastrand::Rng::with_seed(seed), BTreeMap::new());
    while !inbox.is_complete() {
        let pause = sleep(Duration::from_millis(args.every));
        let kind = DECK[dice.usize(..DECK.len())];
        let slot = dice.usize(..args.workers);
        *faults.entry(kind.name()).or_insert(0) += 1;
        let struck = async {
            match kind {
                Kind::CloseConnections => node.close_connections().await,
                Kind::KillBroker => node.kill_for(BROKER_DOWN).await,
                kind => crew.strike(kind, slot).await,
            }
        };
        tokio::join!(struck, pause).0?;
    }
    let mut stopping = JoinSet::new();
    for worker in crew.slots.into_iter().flatten() {
        stopping.spawn(worker.stop());
    }
    while let Some(stopped) = stopping.join_next().await {
        stopped??;
    }
    Ok(faults)
}

impl Crew<'_> {
    async fn strike(&mut self, kind: Kind, slot: usize) -> Fallible<()> {
        let Some(worker) = self.slots[slot].take() else { return Ok(()) };
        let worker = match kind {
            Kind::FreezeWorker => {
                worker.signal(Signal::STOP)?;
                sleep(FROZEN).await;
                worker.signal(Signal::CONT)?;
                worker
            }
            Kind::ReplaceWorker => {
                worker.stop().await?;
                Worker::start(self.around).await?
            }
            _ => {
                drop(worker);
                Worker::start(self.around).await?
            }
        };
        self.slots[slot] = Some(worker);
        Ok(())
    }
}
