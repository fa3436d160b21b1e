//! Jobs under a lease: kept by a message of their own, so that neither a lost channel nor a time-out of the broker touches them, and
//! a worker that is gone loses none.
//!
//! # The round of a lease
//! ```text
//! lease() -> consign.lease, 2 min -> consign.owners -- key is bound --> consign.owner.<process> -> the next lease, then the ack
//!                                                   \- else -> consign.orphans -> consign.jobs.continued -> another worker
//! ```
//! A lease that comes back is answered with the next one (what the work says by then), confirmed, before it is acknowledged. So
//! there is always one in the broker. While this process is gone, its leases wait in its queue for a minute and then go to
//! `continued` as well.
//!
//! # Who has a job
//! The routing key of a lease names the run of the job. (The contract, section 4, says "the routing key is the owner"; this is on
//! purpose another.) Whoever takes a job over binds that key to its own queue before its first lease, and so a lease that is out of
//! date finds the worker that has the job now, and ends there. By the owner's name it would come out of a dead owner's queue and
//! find a third worker, which would send the same bytes again.
//!
//! Each worker that takes a job over raises the epoch (`consign-lease-epoch`), and names itself (`consign-lease-owner`). What comes
//! back is judged by that (see `judge`): the higher epoch has the job. The former owner, whom the message names, gets a notice at
//! its address, so that it hears at once if it lives; then its queue is unbound from the key, else copies of the new leases would
//! come out of it if it is dead. A notice is no work, and whoever meets it in `continued` drops it. A former owner that was cut off
//! for longer than a notice lasts binds its keys again when it is back, and hears from the next lease that expires.
//!
//! A lease may come out while its owner is only cut off, and meet it again in `continued` before anybody else: then it is renewed
//! there, as in the owner's queue.
//!
//! # The end
//! A settlement publishes its events and its copy, and then the lease is over in memory (see `book`): its message is acknowledged
//! when it comes back. What may still come when the queue is closed is led to nothing, by a queue that exists for that
//! (`consign.owner.<process>.ended`), lest a job that was delivered or handed over comes to another worker once more. A process
//! that is killed within two minutes of a settlement can't do that: then the job comes again, as any redelivery may.
//!
//! An owner's queue goes when its process closes with nothing left to give away; else the broker deletes it when it was not used
//! for a day. (The contract says 15 min. The broker deletes messages with it, and an outage counts: a lease that expired during one
//! of 20 min was lost in a dead owner's queue.)

mod book;
mod judge;
mod keeper;
mod process;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

pub(super) use book::Book;
pub(super) use keeper::Keeper;
pub(super) use process::Process;

use super::publish::Message;
use super::session::Session;
use super::settle::{self, Content};
use super::{PATIENCE, RabbitMqQueue, acknowledge};
use crate::queue::{Delivery, LeaseHolder, OutcomeEvent, QueueError, Settlement};
use crate::runtime::failpoints;
use book::{Beginning, Leased};
use judge::Standing;

/// How often the job has changed hands.
pub(super) const EPOCH: &str = "consign-lease-epoch";
/// The process that leased it.
pub(super) const OWNER: &str = "consign-lease-owner";
/// The number of the message that keeps it.
pub(super) const SEQ: &str = "consign-lease-seq";
/// Set on what only tells a former owner of a key.
pub(super) const NOTICE: &str = "consign-lease-notice";
/// That key.
pub(super) const KEY: &str = "consign-lease-key";

/// How long the settlement of a leased delivery tries to publish. Nobody waits for it: the lease holds the job.
const LEASED_PATIENCE: Duration = Duration::from_mins(10);
/// How long closing clears up after leases that have ended.
const RETIREMENT: Duration = Duration::from_secs(2);

impl RabbitMqQueue {
    /// See [`crate::queue::Queue::lease`].
    pub(super) async fn take_lease(
        &self,
        delivery: &Delivery,
        key: &str,
        work: Arc<dyn LeaseHolder>,
    ) -> Result<(), QueueError> {
        let (ticket, book) = (delivery.ticket, &self.shared.leases);
        if let Some(leased) = book.leased(ticket) {
            return self.write_again(delivery, &leased, work).await;
        }
        let properties = self.shared.intake.properties(ticket).ok_or(QueueError::Lost)?;
        let keeper = self.keeper_of(delivery).await?;
        let beginning = Beginning { ticket, key, properties, job_key: &delivery.routing_key, work: Arc::clone(&work) };
        if let Some(other) = book.begin(self.shared.process.name(), beginning)? {
            // Its lease comes back out of date, perhaps when there is no work any more that could be told.
            work.outdated(other.message().body);
            other.lost();
        }
        // Bound before it is published, a lease can't miss its owner.
        let begun = match keeper.bind(key).await {
            Ok(()) => match keeper.write(key).await {
                // The queue was closed meanwhile, or another delivery took the place: nothing was written, so nothing holds the job.
                Ok(false) => Err(QueueError::Lost),
                written => written,
            },
            Err(error) => Err(error),
        };
        if let Err(error) = begun {
            book.not_begun(ticket);
            keeper.unbind_unwanted(key).await;
            return Err(if self.shared.intake.properties(ticket).is_some() { error } else { QueueError::Lost });
        }
        failpoints::hit("lease_written");
        self.acknowledge_leased(delivery).await;
        self.shared.metrics.settled("lease");
        keeper.tell_former(key).await;
        Ok(())
    }

    /// The keeper of the very session that the delivery came by.
    async fn keeper_of(&self, delivery: &Delivery) -> Result<Arc<Keeper>, QueueError> {
        let session = self.session((Instant::now() + PATIENCE).into()).await?;
        if session.generation() != delivery.ticket.generation {
            return Err(QueueError::Lost);
        }
        session.keeper().ok_or(QueueError::Lost)
    }

    /// Leased again: the next lease, now.
    async fn write_again(
        &self,
        delivery: &Delivery,
        leased: &Leased,
        work: Arc<dyn LeaseHolder>,
    ) -> Result<(), QueueError> {
        if leased.lost {
            return Err(QueueError::Lost);
        }
        self.shared.leases.replace_work(delivery.ticket, work);
        let keeper = self.current().and_then(|session| session.keeper());
        let keeper = keeper.ok_or_else(|| QueueError::Unavailable("not connected to the broker".to_owned()))?;
        if keeper.write(&leased.key).await? { Ok(()) } else { Err(QueueError::Lost) }
    }

    /// The lease keeps the job from now on; a channel that is gone delivers it once more, to be joined by the worker.
    async fn acknowledge_leased(&self, delivery: &Delivery) {
        let Some(loan) = self.shared.intake.take(delivery.ticket) else { return };
        if acknowledge(&loan.acker, true).await.is_err() {
            tracing::debug!("a leased delivery comes again; its channel is gone");
        }
    }

    /// Settles a delivery that is under a lease: its message is acknowledged when it comes back.
    pub(super) async fn settle_leased(
        &self,
        delivery: Delivery,
        settlement: Settlement,
        events: &[OutcomeEvent],
        leased: Leased,
    ) -> Result<(), QueueError> {
        let (ticket, action) = (delivery.ticket, settlement.action());
        let published = self.publish_leased(&delivery, settlement, events, &leased).await;
        // A lease that was broken off in the middle has left it.
        self.acknowledge_leased(&delivery).await;
        match published {
            Ok(()) => {
                self.shared.leases.end(ticket, Standing::TransferResult);
                self.shared.metrics.settled(action);
                Ok(())
            }
            Err(problem) => {
                self.shared.leases.end(ticket, Standing::Released);
                Err(problem)
            }
        }
    }

    async fn publish_leased(
        &self,
        delivery: &Delivery,
        settlement: Settlement,
        events: &[OutcomeEvent],
        leased: &Leased,
    ) -> Result<(), QueueError> {
        // What is delivered is delivered, whoever has the job by now; anything else is for that one to say.
        let delivered = events.iter().any(|event| event.routing_key.starts_with("transfer.delivered."));
        if leased.lost && !delivered {
            return Err(QueueError::Lost);
        }
        self.publish_events(events, LEASED_PATIENCE).await?;
        if self.shared.leases.leased(delivery.ticket).is_none_or(|leased| leased.lost) {
            return Err(QueueError::Lost);
        }
        match self.leased_copy(delivery, settlement, leased)? {
            Some(copy) => self.insist(&copy, LEASED_PATIENCE).await,
            None => Ok(()),
        }
    }

    /// The copy of a leased delivery says who leased it, so that whoever takes it over can clear up.
    fn leased_copy(
        &self,
        delivery: &Delivery,
        settlement: Settlement,
        leased: &Leased,
    ) -> Result<Option<Message>, QueueError> {
        let mark = [(EPOCH.to_owned(), leased.epoch.to_string()), (OWNER.to_owned(), self.shared.process.address())];
        let (names, key, content) = (&self.shared.names, &delivery.routing_key, Content::of(delivery));
        match settlement {
            Settlement::Ack => Ok(None),
            Settlement::DeadLetter { headers } => {
                settle::dead(names, key, content, &leased.properties, headers).map(Some)
            }
            Settlement::Retry { delay, mut headers } | Settlement::Defer { delay, mut headers } => {
                headers.extend(mark);
                settle::waiting(names, delay, key, content, &leased.properties, headers).map(Some)
            }
            Settlement::HandOff { mut headers } => {
                headers.extend(mark);
                settle::handed_over(names, key, content, &leased.properties, headers).map(Some)
            }
            Settlement::Requeue => settle::handed_over(names, key, content, &leased.properties, mark.into()).map(Some),
        }
    }

    /// Closing: no lease is written any more, and what works under one is told.
    pub(super) async fn end_leases(&self, session: Option<&Session>) {
        let closing = self.shared.leases.close();
        for work in closing.works {
            work.lost();
        }
        let Some(keeper) = session.and_then(Session::keeper) else { return };
        let retired = tokio::time::timeout(RETIREMENT, keeper.retire(&closing.ended, closing.unfinished)).await;
        if !matches!(retired, Ok(Ok(()))) {
            tracing::debug!("leases that have ended may come to other workers once more");
        }
    }
}
