//! What is asked of the file, and how it is done within a transaction. Each piece can be done again after a rollback.

use std::time::Instant;

use rusqlite::Connection;
use tokio::sync::oneshot;

use super::{jobs, outcomes};
use crate::lane::Lane;
use crate::queue::{Delivery, Event, Publication, QueueError, Settlement, Ticket};

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
    pub(super) work: Work,
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

/// One piece of work.
pub(super) enum Work {
    Publish {
        lane: Lane,
        publication: Box<Publication>,
    },
    Settle {
        delivery: Box<Delivery>,
        settlement: Settlement,
        events: Vec<Event>,
    },
    /// `counted`: they were handed out, so they come as redeliveries.
    GiveBack {
        tickets: Vec<Ticket>,
        counted: bool,
    },
}

impl Work {
    /// The tickets that end with it, if they are of `generation`.
    pub(super) fn ends(&self, generation: u64) -> impl Iterator<Item = Ticket> {
        let tickets = match self {
            Self::Publish { .. } => &[],
            Self::Settle { delivery, .. } => std::slice::from_ref(&delivery.ticket),
            Self::GiveBack { tickets, .. } => tickets.as_slice(),
        };
        tickets.iter().copied().filter(move |ticket| ticket.generation == generation)
    }

    /// Whether somebody relies on it being on the disk. What is only given back comes again even if that is forgotten.
    pub(super) fn is_durable(&self) -> bool {
        match self {
            Self::Publish { .. } => true,
            Self::Settle { settlement, events, .. } => !matches!(settlement, Settlement::Return) || !events.is_empty(),
            Self::GiveBack { .. } => false,
        }
    }

    /// Whether jobs may be there to be taken after it.
    pub(super) fn brings_jobs(&self) -> bool {
        match self {
            Self::Publish { .. } | Self::GiveBack { .. } => true,
            Self::Settle { settlement, .. } => matches!(settlement, Settlement::Return),
        }
    }

    /// Does it within a transaction. The inner result is for the caller, the outer one breaks the transaction.
    pub(super) fn apply(
        &self,
        db: &Connection,
        prefix: &str,
        (owner, generation): (&str, u64),
    ) -> rusqlite::Result<Result<(), QueueError>> {
        match self {
            Self::Publish { lane, publication } => jobs::publish(db, prefix, *lane, publication).map(Ok),
            Self::Settle { delivery, settlement, events } => {
                for event in events {
                    outcomes::record(db, prefix, event)?;
                }
                let ours = delivery.ticket.generation == generation && settle(db, delivery, settlement, owner)?;
                Ok(if ours { Ok(()) } else { Err(QueueError::Lost) })
            }
            Self::GiveBack { counted, .. } => {
                for ticket in self.ends(generation) {
                    jobs::release(db, jobs::seq_of(ticket), owner, *counted)?;
                }
                Ok(Ok(()))
            }
        }
    }
}

fn settle(db: &Connection, delivery: &Delivery, settlement: &Settlement, owner: &str) -> rusqlite::Result<bool> {
    let seq = jobs::seq_of(delivery.ticket);
    match settlement {
        Settlement::Ack => jobs::remove(db, seq, owner),
        // Not reached: nothing is leased here yet.
        Settlement::Return | Settlement::HandOver { .. } => jobs::release(db, seq, owner, true),
        Settlement::Retry { rung, headers } | Settlement::Defer { rung, headers } => {
            jobs::wait(db, delivery, owner, (rung.duration(), rung.as_str()), headers)
        }
        Settlement::Dead { headers } => jobs::bury(db, delivery, owner, headers),
    }
}
