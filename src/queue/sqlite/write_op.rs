//! Write operations on the file, each applied within a transaction and repeatable after a rollback.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use rusqlite::Connection;
use tokio::sync::oneshot;

use super::control;
use super::jobs::{self, JobContent};
use super::release;
use super::settle::{self, WriteContext};
use crate::domain::destination::DestinationIdentity;
use crate::domain::headers::Headers;
use crate::domain::lane::Lane;
use crate::queue::{self, Delivery, DeliveryTag, LeaseMessage, OutcomeEvent, Publication, QueueError, Settlement};

/// Channel for the result of a write operation.
pub(super) type WriteReply = oneshot::Sender<Result<(), QueueError>>;

/// Command to the engine's thread.
pub(super) enum EngineCommand {
    /// Performs a write operation.
    Write(PendingWrite),
    /// Fetches jobs of a lane again: up to `room` beside those that are unsettled then.
    Resume { lane: Lane, room: u16, done: oneshot::Sender<()> },
    /// Requeues everything that is not settled, and ends the thread.
    Close(oneshot::Sender<()>),
    /// Behaves as if the disk had this many pages.
    #[cfg(test)]
    LimitPages(i64),
}

/// A write operation that has not been committed yet.
pub(super) struct PendingWrite {
    pub(super) op: WriteOp,
    /// `None`: the operation is retried until it succeeds.
    pub(super) deadline: Option<Instant>,
    pub(super) reply: Option<WriteReply>,
}

impl PendingWrite {
    pub(super) fn answer(self, result: Result<(), QueueError>) {
        if let Some(reply) = self.reply {
            // The caller may have stopped waiting.
            let _ = reply.send(result);
        }
    }
}

/// Content of a lease, as it is written to the job's row.
pub(super) struct LeaseContent {
    pub(super) ticket: DeliveryTag,
    /// The headers that the delivery came with.
    pub(super) headers: Headers,
    pub(super) message: LeaseMessage,
}

/// A write operation.
pub(super) enum WriteOp {
    Publish {
        lane: Lane,
        publication: Box<Publication>,
    },
    Settle {
        delivery: Box<Delivery>,
        settlement: Settlement,
        events: Vec<OutcomeEvent>,
    },
    /// Publishes a control message.
    PublishControl(Bytes),
    /// Puts a job under a lease.
    Lease {
        content: LeaseContent,
        holder: Arc<dyn queue::LeaseHolder>,
    },
    /// Writes the current content of a lease.
    RenewLease(LeaseContent),
    /// Makes copies that wait for these destinations due, and counts them in `count`.
    ReleaseDelayed {
        destinations: BTreeSet<DestinationIdentity>,
        count: Arc<AtomicU64>,
    },
    /// Requeues jobs. `delivered`: they were handed out, so they count as redeliveries.
    Requeue {
        tickets: Vec<DeliveryTag>,
        delivered: bool,
    },
}

impl WriteOp {
    /// Tags of `generation` that this operation settles.
    pub(super) fn settled_tags(&self, generation: u64) -> impl Iterator<Item = DeliveryTag> {
        let tickets = match self {
            Self::Publish { .. }
            | Self::PublishControl(_)
            | Self::Lease { .. }
            | Self::RenewLease(_)
            | Self::ReleaseDelayed { .. } => &[],
            Self::Settle { delivery, .. } => std::slice::from_ref(&delivery.ticket),
            Self::Requeue { tickets, .. } => tickets.as_slice(),
        };
        tickets.iter().copied().filter(move |ticket| ticket.generation == generation)
    }

    /// Returns true if the operation must be on the disk before it is reported as done. A requeue
    /// need not be: a job whose requeue is lost in a power failure is delivered again anyway.
    pub(super) fn must_be_durable(&self) -> bool {
        match self {
            Self::Publish { .. } | Self::PublishControl(_) | Self::Lease { .. } | Self::ReleaseDelayed { .. } => true,
            Self::Settle { settlement, events, .. } => !matches!(settlement, Settlement::Requeue) || !events.is_empty(),
            Self::Requeue { .. } | Self::RenewLease(_) => false,
        }
    }

    /// Returns true if a lane may have jobs ready after this operation.
    pub(super) fn makes_jobs_ready(&self) -> bool {
        match self {
            Self::Publish { .. } | Self::Requeue { .. } => true,
            Self::Settle { settlement, .. } => matches!(settlement, Settlement::Requeue | Settlement::HandOff { .. }),
            Self::PublishControl(_) | Self::Lease { .. } | Self::RenewLease(_) | Self::ReleaseDelayed { .. } => false,
        }
    }

    /// Applies the operation within a transaction. The inner result is for the caller; the outer
    /// error rolls the transaction back.
    pub(super) fn apply(&self, db: &Connection, context: WriteContext<'_>) -> rusqlite::Result<Result<(), QueueError>> {
        let WriteContext { prefix, owner, generation, .. } = context;
        let is_owned = match self {
            Self::Publish { lane, publication } => return jobs::add(db, prefix, *lane, publication, None).map(Ok),
            Self::PublishControl(body) => return control::publish(db, prefix, body).map(Ok),
            Self::ReleaseDelayed { destinations, count } => {
                let released = release::release_delayed(db, prefix, destinations)?;
                count.store(u64::try_from(released).unwrap_or(u64::MAX), Ordering::Relaxed);
                true
            }
            Self::Settle { delivery, settlement, events } => settle::settle(db, context, delivery, settlement, events)?,
            Self::Lease { content, .. } | Self::RenewLease(content) => {
                content.ticket.generation == generation && write_lease(db, content, owner)?
            }
            Self::Requeue { delivered, .. } => {
                for ticket in self.settled_tags(generation) {
                    jobs::requeue(db, jobs::seq_of(ticket), owner, *delivered)?;
                }
                true
            }
        };
        Ok(if is_owned { Ok(()) } else { Err(QueueError::Lost) })
    }
}

fn write_lease(db: &Connection, lease: &LeaseContent, owner: &str) -> rusqlite::Result<bool> {
    let message = &lease.message;
    let content = JobContent {
        body: &message.body,
        content_type: Some(&message.content_type),
        headers: jobs::copied_headers(&lease.headers, &message.headers),
    };
    jobs::lease(db, jobs::seq_of(lease.ticket), owner, &content)
}
