//! Jobs under a lease, whose current content is written to the file while the work continues.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Engine;
use crate::domain::headers::Headers;
use crate::queue::sqlite::write_op::{LeaseContent, WriteOp};
use crate::queue::{self, DeliveryTag, LeaseMessage, QueueError};

/// Maximum age of the content in the file.
const LEASE_RENEW_INTERVAL: Duration = Duration::from_secs(10);

struct LeasedJob {
    ticket: DeliveryTag,
    headers: Headers,
    holder: Arc<dyn queue::LeaseHolder>,
    written: LeaseMessage,
    /// Time of the next renewal; `None` while one is being written.
    due: Option<Instant>,
}

/// All jobs of this process under a lease, by row.
#[derive(Default)]
pub(super) struct LeasedJobs(BTreeMap<u64, LeasedJob>);

impl LeasedJobs {
    pub(super) fn contains(&self, ticket: DeliveryTag) -> bool {
        self.0.get(&ticket.tag).is_some_and(|job| job.ticket == ticket)
    }

    /// Removes a job that was settled or requeued.
    pub(super) fn remove(&mut self, ticket: DeliveryTag) {
        self.0.remove(&ticket.tag);
    }

    /// Notifies all holders that their job belongs to another worker, or will.
    pub(super) fn lose_all(&mut self) {
        for job in std::mem::take(&mut self.0).into_values() {
            job.holder.lost();
        }
    }

    /// Returns the content of each job that is due and has changed.
    fn take_changed(&mut self, now: Instant) -> Vec<LeaseContent> {
        let due = self.0.values_mut().filter(|job| job.due.is_some_and(|due| due <= now));
        due.filter_map(|job| {
            let message = job.holder.message();
            let changed = message != job.written;
            job.due = (!changed).then_some(now + LEASE_RENEW_INTERVAL);
            changed.then(|| LeaseContent { ticket: job.ticket, headers: job.headers.clone(), message })
        })
        .collect()
    }

    fn lose(&mut self, ticket: DeliveryTag) {
        if self.contains(ticket)
            && let Some(job) = self.0.remove(&ticket.tag)
        {
            job.holder.lost();
        }
    }
}

impl Engine {
    /// Queues the renewal of each lease that is due and has changed.
    pub(super) fn renew_leases(&mut self, now: Instant) {
        for content in self.leased_jobs.take_changed(now) {
            self.write_in_background(WriteOp::RenewLease(content));
        }
    }

    /// Updates the leases after a write operation.
    pub(super) fn update_leases(&mut self, done: &mut WriteOp, result: &Result<(), QueueError>) {
        for ticket in done.settled_tags(self.generation) {
            self.leased_jobs.remove(ticket);
        }
        match (done, result) {
            (WriteOp::Lease { content, holder }, Ok(())) => {
                let LeaseContent { ticket, headers, message } = content;
                let due = Some(Instant::now() + LEASE_RENEW_INTERVAL);
                let (headers, written) = (std::mem::take(headers), message.clone());
                let job = LeasedJob { ticket: *ticket, headers, holder: Arc::clone(holder), written, due };
                if self.leased_jobs.0.insert(ticket.tag, job).is_none() {
                    self.shared.metrics.settled("lease");
                }
            }
            (WriteOp::RenewLease(content), Ok(())) => {
                if let Some(job) = self.leased_jobs.0.get_mut(&content.ticket.tag) {
                    job.written = content.message.clone();
                    job.due = Some(Instant::now() + LEASE_RENEW_INTERVAL);
                }
            }
            (WriteOp::RenewLease(content), Err(_)) => self.leased_jobs.lose(content.ticket),
            _ => {}
        }
    }
}
