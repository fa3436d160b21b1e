//! Worker process as the broker sees it: a connection with a channel per lane. A replacement is a
//! new process.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::clock;
use super::job_record::AttemptEnd;
use super::message::{SimMessage, index};
use crate::domain::lane::Lane;
use crate::domain::outcome::Class;
use crate::metrics::Metrics;
use crate::queue::{Delivery, DeliveryTag};
use crate::worker::Worker;

/// Longest time from the plan of a settlement to the settlement: the report of a generation is
/// confirmed in between.
const MAX_SETTLING: Duration = Duration::from_secs(6);

/// One process.
#[derive(Debug)]
pub(super) struct SimWorker {
    /// False once the process has stopped. A stopped process has no further effect.
    pub(super) alive: bool,
    pub(super) connected: bool,
    pub(super) stopped: bool,
    pub(super) paused: [bool; 3],
    pub(super) draining: bool,
    /// Time until which its own identity is refused.
    pub(super) identity_refused_until: Duration,
    /// Number of the current connection.
    pub(super) generation: u64,
    /// Messages by tag, with the time of their arrival.
    pub(super) prefetched: [VecDeque<(u64, Instant, SimMessage)>; 3],
    pub(super) unacked: BTreeMap<u64, (Lane, SimMessage)>,
    pub(super) prefetch_limit: [usize; 3],
    /// Limit of a lane that was resumed.
    pub(super) limit: [Option<usize>; 3],
    pub(super) running: u32,
    /// Destinations that refused it since the last delivery there.
    pub(super) refused: BTreeSet<usize>,
    /// Time at which a destination that had refused it accepted a delivery.
    pub(super) recovered: BTreeMap<usize, Duration>,
    /// Destinations that failed in any way since the last delivery there.
    pub(super) failed: BTreeSet<usize>,
    /// Number of leases being taken.
    pub(super) leasing: u32,
    /// Jobs that it has delivered and remembers.
    pub(super) delivered: BTreeSet<usize>,
    /// Jobs whose lease it lost to another worker.
    pub(super) lost_leases: Vec<usize>,
    /// Uploads that came with its deliveries.
    pub(super) resumed_uploads: Vec<String>,
    /// Uploads that its leases name.
    pub(super) lease_uploads: BTreeSet<String>,
    /// Uploads of settlements that failed.
    pub(super) unsettled_uploads: Vec<String>,
    pub(super) instance: Weak<Worker>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) drain: CancellationToken,
    pub(super) changed: Arc<[Notify; 3]>,
}

impl SimWorker {
    pub(super) fn new(slots: u32, backfill_slots: u32, metrics: Arc<Metrics>) -> Self {
        let ahead = |slots: u32| slots as usize * 2;
        Self {
            alive: true,
            connected: true,
            stopped: false,
            paused: [false; 3],
            limit: [None; 3],
            draining: false,
            identity_refused_until: Duration::ZERO,
            generation: 0,
            prefetched: Default::default(),
            unacked: BTreeMap::new(),
            prefetch_limit: [ahead(slots), ahead(slots), ahead(backfill_slots)],
            running: 0,
            refused: BTreeSet::new(),
            recovered: BTreeMap::new(),
            failed: BTreeSet::new(),
            leasing: 0,
            delivered: BTreeSet::new(),
            lost_leases: Vec::new(),
            resumed_uploads: Vec::new(),
            lease_uploads: BTreeSet::new(),
            unsettled_uploads: Vec::new(),
            instance: Weak::new(),
            metrics,
            drain: CancellationToken::new(),
            changed: Arc::default(),
        }
    }

    /// Returns all messages that it was sent and has not settled.
    pub(super) fn messages(&self) -> impl Iterator<Item = &SimMessage> {
        let prefetched = self.prefetched.iter().flatten().map(|(_, _, message)| message);
        prefetched.chain(self.unacked.values().map(|(_, message)| message))
    }

    /// Records the end of an attempt for its destination.
    pub(super) fn record_end(&mut self, destination: usize, end: AttemptEnd) {
        match end {
            // The worker may observe an earlier refusal later: an attempt that takes a lease ends with it.
            AttemptEnd::Delivered | AttemptEnd::Skipped if self.leasing > 0 => {}
            AttemptEnd::Delivered | AttemptEnd::Skipped => {
                if self.refused.remove(&destination) {
                    self.recovered.insert(destination, clock::elapsed());
                }
                self.failed.remove(&destination);
            }
            AttemptEnd::Failed(class) => {
                if class == Class::Destination {
                    self.refused.insert(destination);
                }
                self.failed.insert(destination);
            }
            AttemptEnd::Expired => {}
        }
    }

    /// Returns true if a job may just have been deferred because of this destination: what it waits
    /// for before it is settled is bounded.
    pub(super) fn knows_fault(&self, destination: usize) -> bool {
        let recovered = |at: &Duration| clock::elapsed() <= *at + MAX_SETTLING;
        self.refused.contains(&destination) || self.recovered.get(&destination).is_some_and(recovered)
    }

    pub(super) fn is_idle(&self) -> bool {
        self.running == 0 && self.unacked.is_empty() && self.prefetched.iter().all(VecDeque::is_empty) || !self.alive
    }

    /// Returns true if the broker may send it another message of this lane.
    pub(super) fn has_room(&self, lane: Lane) -> bool {
        let open = self.alive && self.connected && !self.stopped && !self.paused[index(lane)];
        let limit = self.prefetch_limit[index(lane)];
        open && self.unsettled(lane) < self.limit[index(lane)].map_or(limit, |room| room.min(limit))
    }

    fn unsettled(&self, lane: Lane) -> usize {
        self.prefetched[index(lane)].len() + self.unacked.values().filter(|(of, _)| *of == lane).count()
    }

    /// Accepts messages of a lane again: so many beside those that are unsettled now.
    pub(super) fn resume(&mut self, lane: Lane, room: u16) {
        self.paused[index(lane)] = false;
        self.limit[index(lane)] = Some(self.unsettled(lane) + usize::from(room));
    }

    /// Returns the lane whose oldest message waits longest, and the time of its arrival.
    pub(super) fn oldest_prefetched(&self) -> Option<(Lane, Instant)> {
        let first = |lane: Lane| Some((lane, self.prefetched[index(lane)].front()?.1));
        Lane::ALL.into_iter().filter_map(first).min_by_key(|(_, at)| *at)
    }

    /// Hands out the next prefetched delivery, which is unacked from then on.
    pub(super) fn deliver_next(&mut self, lane: Lane) -> Option<Delivery> {
        let (tag, _, message) = self.prefetched[index(lane)].pop_front()?;
        let ticket = DeliveryTag { generation: self.generation, lane, tag };
        let delivery = message.delivery(lane, ticket);
        self.unacked.insert(tag, (lane, message));
        Some(delivery)
    }

    /// Returns the message of a delivery, unless its connection is gone.
    pub(super) fn unacked_message(&self, ticket: DeliveryTag) -> Option<&SimMessage> {
        let unacked = self.unacked.get(&ticket.tag).filter(|_| self.alive && ticket.generation == self.generation);
        unacked.map(|(_, message)| message)
    }

    pub(super) fn take_unacked(&mut self, ticket: DeliveryTag) -> Option<SimMessage> {
        self.unacked_message(ticket)?;
        self.unacked.remove(&ticket.tag).map(|(_, message)| message)
    }

    /// Removes everything prefetched of a lane and not handed out.
    pub(super) fn take_lane(&mut self, lane: Lane) -> Vec<(Lane, SimMessage)> {
        self.prefetched[index(lane)].drain(..).map(|(_, _, message)| (lane, message)).collect()
    }

    /// Removes everything prefetched and not handed out, with its lane.
    pub(super) fn take_prefetched(&mut self) -> Vec<(Lane, SimMessage)> {
        Lane::ALL.into_iter().flat_map(|lane| self.take_lane(lane)).collect()
    }
}
