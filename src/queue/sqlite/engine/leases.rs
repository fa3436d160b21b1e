//! Jobs under a lease: what another worker would get is recorded again and again while the work goes on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Engine;
use crate::queue::sqlite::work::{Headers, LeaseContent, Pending, WriteOp};
use crate::queue::{self, DeliveryTag, LeaseMessage, QueueError};

/// How old a record may be.
const REFRESH: Duration = Duration::from_secs(10);

/// One job.
struct Lease {
    ticket: DeliveryTag,
    headers: Headers,
    work: Arc<dyn queue::LeaseHolder>,
    recorded: LeaseMessage,
    /// `None` while a record is being written.
    due: Option<Instant>,
}

/// By row.
#[derive(Default)]
pub(super) struct Leases(BTreeMap<u64, Lease>);

impl Leases {
    pub(super) fn has(&self, ticket: DeliveryTag) -> bool {
        self.0.get(&ticket.tag).is_some_and(|lease| lease.ticket == ticket)
    }

    /// The job has been settled, or given back.
    pub(super) fn end(&mut self, ticket: DeliveryTag) {
        self.0.remove(&ticket.tag);
    }

    /// Others have all of them, or will.
    pub(super) fn lose_all(&mut self) {
        for lease in std::mem::take(&mut self.0).into_values() {
            lease.work.lost();
        }
    }

    /// Those whose record is due and out of date.
    fn changed(&mut self, now: Instant) -> Vec<LeaseContent> {
        let due = self.0.values_mut().filter(|lease| lease.due.is_some_and(|due| due <= now));
        due.filter_map(|lease| {
            let message = lease.work.message();
            let changed = message != lease.recorded;
            lease.due = (!changed).then_some(now + REFRESH);
            changed.then(|| LeaseContent { ticket: lease.ticket, headers: lease.headers.clone(), message })
        })
        .collect()
    }

    fn lost(&mut self, ticket: DeliveryTag) {
        if self.has(ticket)
            && let Some(lease) = self.0.remove(&ticket.tag)
        {
            lease.work.lost();
        }
    }
}

impl Engine {
    /// Asks the work under leases how far it is.
    pub(super) fn refresh_leases(&mut self, now: Instant) {
        for content in self.leases.changed(now) {
            self.pending.push_back(Pending { work: WriteOp::Refresh(content), deadline: None, reply: None });
        }
    }

    /// What follows for the leases from a piece of work that was done.
    pub(super) fn leased(&mut self, done: &mut WriteOp, answer: &Result<(), QueueError>) {
        for ticket in done.ends(self.generation) {
            self.leases.end(ticket);
        }
        match (done, answer) {
            (WriteOp::Lease { content, work }, Ok(())) => {
                let LeaseContent { ticket, headers, message } = content;
                let due = Some(Instant::now() + REFRESH);
                let (headers, recorded) = (std::mem::take(headers), message.clone());
                let lease = Lease { ticket: *ticket, headers, work: Arc::clone(work), recorded, due };
                if self.leases.0.insert(ticket.tag, lease).is_none() {
                    self.shared.metrics.settled("lease");
                }
            }
            (WriteOp::Refresh(content), Ok(())) => {
                if let Some(lease) = self.leases.0.get_mut(&content.ticket.tag) {
                    lease.recorded = content.message.clone();
                    lease.due = Some(Instant::now() + REFRESH);
                }
            }
            (WriteOp::Refresh(content), Err(_)) => self.leases.lost(content.ticket),
            _ => {}
        }
    }
}
