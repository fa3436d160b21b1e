//! What is asked of the file, and how it is done within a transaction. Each piece can be done again after a rollback.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use rusqlite::Connection;
use tokio::sync::oneshot;

use super::control;
use super::jobs::{self, JobContent};
use super::outcomes;
use crate::domain::lane::Lane;
use crate::queue::{self, Delivery, DeliveryTag, LeaseMessage, OutcomeEvent, Publication, QueueError, Settlement};

/// Where the answer goes.
pub(super) type Reply = oneshot::Sender<Result<(), QueueError>>;

/// What the thread is told.
pub(super) enum Command {
    /// To do something in the file.
    Do(Pending),
    /// To look for jobs again.
    Wake,
    /// To give everything back and end.
    Close(oneshot::Sender<()>),
    /// To behave as if the disk had this many pages.
    #[cfg(test)]
    Limit(i64),
}

/// Something that is to be done, at the latest at its deadline.
pub(super) struct Pending {
    pub(super) work: WriteOp,
    /// None: it is tried until it is done.
    pub(super) deadline: Option<Instant>,
    pub(super) reply: Option<Reply>,
}

impl Pending {
    pub(super) fn answer(self, result: Result<(), QueueError>) {
        if let Some(reply) = self.reply {
            // Nobody may be waiting any more.
            let _ = reply.send(result);
        }
    }
}

/// What is recorded of a lease.
pub(super) struct LeaseContent {
    pub(super) ticket: DeliveryTag,
    /// The headers that the delivery came with.
    pub(super) headers: Headers,
    pub(super) message: LeaseMessage,
}

/// Headers by name.
pub(super) type Headers = BTreeMap<String, String>;

/// For whom a transaction works.
#[derive(Clone, Copy)]
pub(super) struct Context<'a> {
    pub(super) prefix: &'a str,
    pub(super) owner: &'a str,
    pub(super) generation: u64,
    /// Whether a job of this generation is under a lease.
    pub(super) leased: &'a dyn Fn(DeliveryTag) -> bool,
}

/// One piece of work.
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
    /// Records a control message.
    Announce(Bytes),
    /// Puts a job under a lease.
    Lease {
        content: LeaseContent,
        work: Arc<dyn queue::LeaseHolder>,
    },
    /// What another worker would get has changed.
    Refresh(LeaseContent),
    /// Ends the wait of copies with one of these routing keys, and says how many there were.
    Recall {
        keys: BTreeSet<String>,
        count: Arc<AtomicU64>,
    },
    /// `counted`: they were handed out, so they come as redeliveries.
    GiveBack {
        tickets: Vec<DeliveryTag>,
        counted: bool,
    },
}

impl WriteOp {
    /// The tickets that end with it, if they are of `generation`.
    pub(super) fn ends(&self, generation: u64) -> impl Iterator<Item = DeliveryTag> {
        let tickets = match self {
            Self::Publish { .. } | Self::Announce(_) | Self::Lease { .. } | Self::Refresh(_) | Self::Recall { .. } => {
                &[]
            }
            Self::Settle { delivery, .. } => std::slice::from_ref(&delivery.ticket),
            Self::GiveBack { tickets, .. } => tickets.as_slice(),
        };
        tickets.iter().copied().filter(move |ticket| ticket.generation == generation)
    }

    /// Whether somebody relies on it being on the disk. What is only given back comes again even if that is forgotten.
    pub(super) fn is_durable(&self) -> bool {
        match self {
            Self::Publish { .. } | Self::Announce(_) | Self::Lease { .. } | Self::Recall { .. } => true,
            Self::Settle { settlement, events, .. } => !matches!(settlement, Settlement::Requeue) || !events.is_empty(),
            Self::GiveBack { .. } | Self::Refresh(_) => false,
        }
    }

    /// Whether jobs may be there to be taken after it.
    pub(super) fn brings_jobs(&self) -> bool {
        match self {
            Self::Publish { .. } | Self::GiveBack { .. } => true,
            Self::Settle { settlement, .. } => matches!(settlement, Settlement::Requeue | Settlement::HandOff { .. }),
            Self::Announce(_) | Self::Lease { .. } | Self::Refresh(_) | Self::Recall { .. } => false,
        }
    }

    /// Does it within a transaction. The inner result is for the caller, the outer one breaks the transaction.
    pub(super) fn apply(&self, db: &Connection, context: Context<'_>) -> rusqlite::Result<Result<(), QueueError>> {
        let Context { prefix, owner, generation, .. } = context;
        let ours = match self {
            Self::Publish { lane, publication } => return jobs::publish(db, prefix, *lane, publication).map(Ok),
            Self::Announce(body) => return control::announce(db, prefix, body).map(Ok),
            Self::Recall { keys, count } => {
                let recalled = jobs::release_delayed(db, prefix, keys)?;
                count.store(u64::try_from(recalled).unwrap_or(u64::MAX), Ordering::Relaxed);
                true
            }
            Self::Settle { delivery, settlement, events } => {
                for event in events {
                    outcomes::record(db, prefix, event)?;
                }
                delivery.ticket.generation == generation && settle(db, delivery, settlement, context)?
            }
            Self::Lease { content, .. } | Self::Refresh(content) => {
                content.ticket.generation == generation && record(db, content, owner)?
            }
            Self::GiveBack { counted, .. } => {
                for ticket in self.ends(generation) {
                    jobs::release(db, jobs::seq_of(ticket), owner, *counted)?;
                }
                true
            }
        };
        Ok(if ours { Ok(()) } else { Err(QueueError::Lost) })
    }
}

fn record(db: &Connection, lease: &LeaseContent, owner: &str) -> rusqlite::Result<bool> {
    let message = &lease.message;
    let content = JobContent {
        body: &message.body,
        content_type: Some(&message.content_type),
        headers: jobs::merged(&lease.headers, &message.headers),
    };
    jobs::lease(db, jobs::seq_of(lease.ticket), owner, &content)
}

fn settle(
    db: &Connection,
    delivery: &Delivery,
    settlement: &Settlement,
    context: Context<'_>,
) -> rusqlite::Result<bool> {
    let (seq, owner) = (jobs::seq_of(delivery.ticket), context.owner);
    match settlement {
        Settlement::Ack => jobs::remove(db, seq, owner),
        Settlement::Requeue if (context.leased)(delivery.ticket) => {
            jobs::hand_off(db, seq, owner, &JobContent::of(delivery, &Headers::new()))
        }
        Settlement::Requeue => jobs::release(db, seq, owner, true),
        Settlement::HandOff { headers } => jobs::hand_off(db, seq, owner, &JobContent::of(delivery, headers)),
        Settlement::Retry { delay, headers } | Settlement::Defer { delay, headers } => {
            jobs::wait(db, delivery, owner, (delay.duration(), delay.as_str()), headers)
        }
        Settlement::DeadLetter { headers } => jobs::bury(db, delivery, owner, headers),
    }
}
