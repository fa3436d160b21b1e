//! One leased job: the epoch and the sequence numbers of its lease, and who holds it.

use std::sync::Arc;
use std::time::Instant;

use lapin::BasicProperties;

use super::decision::{KnownLease, LeaseDecision, LeaseMark, LeaseState};
use crate::queue::rabbitmq::fields::delivery_count;
use crate::queue::{DeliveryTag, LeaseHolder};

/// Request for a lease.
pub(super) struct LeaseRequest<'a> {
    pub(super) ticket: DeliveryTag,
    pub(super) key: &'a str,
    pub(super) properties: BasicProperties,
    pub(super) job_key: &'a str,
    pub(super) holder: Arc<dyn LeaseHolder>,
}

/// Next lease to publish.
pub(super) struct LeaseRenewal {
    pub(super) epoch: u32,
    pub(super) seq: u64,
    pub(super) properties: Arc<BasicProperties>,
    pub(super) job_key: Arc<str>,
    pub(super) holder: Arc<dyn LeaseHolder>,
}

/// Lease of a delivery.
#[derive(Debug, Clone)]
pub(in crate::queue::rabbitmq) struct LeasedDelivery {
    pub(in crate::queue::rabbitmq) key: String,
    pub(in crate::queue::rabbitmq) epoch: u32,
    pub(in crate::queue::rabbitmq) properties: Arc<BasicProperties>,
    /// True when another worker owns the job, or another delivery replaced this one.
    pub(in crate::queue::rabbitmq) lost: bool,
}

/// Leased job.
#[derive(Debug)]
pub(super) struct LeaseEntry {
    pub(super) ticket: DeliveryTag,
    pub(super) epoch: u32,
    /// Properties of the delivery, for copies.
    properties: Arc<BasicProperties>,
    /// Routing key of the job itself.
    job_key: Arc<str>,
    pub(super) state: LeaseState,
    /// Highest sequence number that was used.
    tried: u64,
    /// Highest sequence number that was confirmed.
    pub(super) latest: u64,
    pub(super) holder: Option<Arc<dyn LeaseHolder>>,
    /// Former owner that is still to be notified.
    pub(super) former_owner: Option<String>,
    /// True while its leases must be routed here.
    pub(super) wanted: bool,
    /// True while the key may be bound to this queue.
    pub(super) bound: bool,
    pub(super) ended: Option<Instant>,
}

impl LeaseEntry {
    /// Lease by `us`, one epoch above `known` and the one that the message carries.
    pub(super) fn new(us: &str, known: u32, new: LeaseRequest<'_>) -> Self {
        let mark = LeaseMark::read(new.properties.headers().as_ref());
        let epoch = mark.as_ref().map_or(0, |mark| mark.epoch).max(known).saturating_add(1);
        // The worker that had the message before may have published a lease that was never confirmed.
        let redeliveries = delivery_count(new.properties.headers().as_ref());
        Self {
            ticket: new.ticket,
            epoch: epoch.saturating_add(u32::try_from(redeliveries).unwrap_or(u32::MAX)),
            properties: Arc::new(new.properties),
            job_key: new.job_key.into(),
            state: LeaseState::Active,
            tried: 0,
            latest: 0,
            holder: Some(new.holder),
            former_owner: mark.filter(|mark| mark.name() != us).map(|mark| mark.owner),
            wanted: true,
            bound: true,
            ended: None,
        }
    }

    /// Returns the lease; `None` while the broker has confirmed none.
    pub(super) fn leased(&self, key: &str) -> Option<LeasedDelivery> {
        let lost = self.state == LeaseState::Lost;
        (self.latest > 0 || lost).then(|| LeasedDelivery {
            key: key.to_owned(),
            epoch: self.epoch,
            properties: Arc::clone(&self.properties),
            lost,
        })
    }

    /// Returns the next lease; `None` when no transfer is running.
    pub(super) fn next_renewal(&mut self) -> Option<LeaseRenewal> {
        let holder = Arc::clone(self.holder.as_ref().filter(|_| self.state == LeaseState::Active)?);
        self.tried += 1;
        let (properties, job_key) = (Arc::clone(&self.properties), Arc::clone(&self.job_key));
        Some(LeaseRenewal { epoch: self.epoch, seq: self.tried, properties, job_key, holder })
    }

    /// Known facts about the lease, for a decision about a returned message.
    pub(super) fn known(&self) -> KnownLease {
        KnownLease { epoch: self.epoch, latest: self.latest, state: self.state }
    }

    /// Records the consequences of a decision about a returned message. Returns the holder that has
    /// lost its job.
    pub(super) fn apply(&mut self, decision: LeaseDecision, mark: &LeaseMark) -> Option<Arc<dyn LeaseHolder>> {
        match decision {
            LeaseDecision::TakenOver => {
                self.wanted = false;
                let loses = matches!(self.state, LeaseState::Active | LeaseState::Released);
                return if loses { self.end(LeaseState::Lost) } else { None };
            }
            // A lease whose confirm was lost may still return.
            LeaseDecision::Settled => self.wanted &= mark.seq() < Some(self.tried),
            LeaseDecision::Outdated if self.state == LeaseState::Unconfirmed => {
                self.wanted &= (mark.epoch, mark.seq()) < (self.epoch, Some(self.tried));
            }
            _ => {}
        }
        None
    }

    /// Ends the lease. Returns the holder, which loses it.
    pub(super) fn end(&mut self, state: LeaseState) -> Option<Arc<dyn LeaseHolder>> {
        self.state = state;
        self.ended = Some(Instant::now());
        self.former_owner = None;
        self.holder.take()
    }
}
