//! A worker as the broker sees it: a session with a channel for each lane. A worker that takes another's place is a new one.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::message::{Message, index};
use super::record::End;
use crate::domain::lane::Lane;
use crate::domain::outcome::Class;
use crate::metrics::Metrics;
use crate::queue::{Delivery, DeliveryTag};
use crate::worker::Worker;

/// One process.
#[derive(Debug)]
pub(super) struct Member {
    /// Nothing that a dead process does has any effect.
    pub(super) alive: bool,
    pub(super) connected: bool,
    pub(super) stopped: bool,
    pub(super) paused: bool,
    pub(super) draining: bool,
    /// Until when its own identity is refused.
    pub(super) sick: Duration,
    /// Which session it is.
    pub(super) generation: u64,
    pub(super) fetched: [VecDeque<(u64, Message)>; 3],
    pub(super) loans: BTreeMap<u64, (Lane, Message)>,
    pub(super) prefetch: [usize; 3],
    pub(super) running: u32,
    /// Destinations that have refused it since the last delivery there.
    pub(super) refused: BTreeSet<usize>,
    /// Destinations that failed it, in whatever way, likewise.
    pub(super) failed: BTreeSet<usize>,
    /// Leases that are being taken.
    pub(super) leasing: u32,
    /// Jobs that it has delivered, and remembers.
    pub(super) delivered: BTreeSet<usize>,
    /// Jobs whose lease it had, and that others have now.
    pub(super) told: Vec<usize>,
    /// Uploads that came with its deliveries.
    pub(super) resumed: Vec<String>,
    /// Uploads that its leases tell of.
    pub(super) written: BTreeSet<String>,
    /// Uploads that were to go on with copies it could not make.
    pub(super) unsettled: Vec<String>,
    pub(super) worker: Weak<Worker>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) drain: CancellationToken,
    pub(super) changed: Arc<[Notify; 3]>,
}

impl Member {
    pub(super) fn new(slots: u32, backfill_slots: u32, metrics: Arc<Metrics>) -> Self {
        let ahead = |slots: u32| slots as usize * 2;
        Self {
            alive: true,
            connected: true,
            stopped: false,
            paused: false,
            draining: false,
            sick: Duration::ZERO,
            generation: 0,
            fetched: Default::default(),
            loans: BTreeMap::new(),
            prefetch: [ahead(slots), ahead(slots), ahead(backfill_slots)],
            running: 0,
            refused: BTreeSet::new(),
            failed: BTreeSet::new(),
            leasing: 0,
            delivered: BTreeSet::new(),
            told: Vec::new(),
            resumed: Vec::new(),
            written: BTreeSet::new(),
            unsettled: Vec::new(),
            worker: Weak::new(),
            metrics,
            drain: CancellationToken::new(),
            changed: Arc::default(),
        }
    }

    /// Everything that it was sent and has not settled.
    pub(super) fn messages(&self) -> impl Iterator<Item = &Message> {
        let fetched = self.fetched.iter().flatten().map(|(_, message)| message);
        fetched.chain(self.loans.values().map(|(_, message)| message))
    }

    /// An attempt has ended: what that says of its destination.
    pub(super) fn answered(&mut self, destination: usize, end: End) {
        match end {
            End::Delivered | End::Skipped => {
                self.refused.remove(&destination);
                self.failed.remove(&destination);
            }
            End::Failed(class) => {
                if class == Class::Destination {
                    self.refused.insert(destination);
                }
                self.failed.insert(destination);
            }
            End::Expired => {}
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.running == 0 && self.loans.is_empty() && self.fetched.iter().all(VecDeque::is_empty) || !self.alive
    }

    /// Whether the broker may send it one more message of this lane.
    pub(super) fn has_room(&self, lane: Lane) -> bool {
        let lent = self.loans.values().filter(|(of, _)| *of == lane).count();
        let open = self.alive && self.connected && !self.stopped && !self.paused;
        open && self.fetched[index(lane)].len() + lent < self.prefetch[index(lane)]
    }

    /// The next delivery that was fetched, now on loan.
    pub(super) fn hand_out(&mut self, lane: Lane) -> Option<Delivery> {
        let (tag, message) = self.fetched[index(lane)].pop_front()?;
        let ticket = DeliveryTag { generation: self.generation, lane, tag };
        let delivery = message.delivery(lane, ticket);
        self.loans.insert(tag, (lane, message));
        Some(delivery)
    }

    /// The message of a delivery, unless its session is over.
    pub(super) fn loan(&self, ticket: DeliveryTag) -> Option<&Message> {
        let loan = self.loans.get(&ticket.tag).filter(|_| self.alive && ticket.generation == self.generation);
        loan.map(|(_, message)| message)
    }

    pub(super) fn take_loan(&mut self, ticket: DeliveryTag) -> Option<Message> {
        self.loan(ticket)?;
        self.loans.remove(&ticket.tag).map(|(_, message)| message)
    }

    /// What was fetched and not handed out, with its lane.
    pub(super) fn take_fetched(&mut self) -> Vec<(Lane, Message)> {
        let all = Lane::ALL.into_iter().zip(&mut self.fetched);
        all.flat_map(|(lane, fetched)| fetched.drain(..).map(move |(_, message)| (lane, message))).collect()
    }
}
