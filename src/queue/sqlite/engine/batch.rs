//! One transaction with all that is to be done: settlements and publishes that meet, copies that are due, and new jobs.

use super::Engine;
use crate::domain::lane::Lane;
use crate::queue::sqlite::control::Reader;
use crate::queue::sqlite::owner::Owner;
use crate::queue::sqlite::trouble::Trouble;
use crate::queue::sqlite::work::{Context, Pending, WriteOp};
use crate::queue::sqlite::{jobs, outcomes};
use crate::queue::{Delivery, QueueError};

/// Pieces of work in one transaction.
const BATCH: usize = 256;

/// What a transaction did.
struct Done {
    answers: Vec<Result<(), QueueError>>,
    fetched: Vec<(Lane, usize, Vec<Delivery>)>,
    arrived: usize,
    next_due: Option<i64>,
}

impl Engine {
    /// One transaction with all that is to be done.
    pub(super) fn turn(&mut self) -> Result<(), Trouble> {
        let due = self.next_due.is_some_and(|due| due <= jobs::now_ms());
        let wanted = self.wanted(due);
        if self.pending.is_empty() && wanted.is_empty() && !due {
            return Ok(());
        }
        let Some(session) = &mut self.session else { return Ok(()) };
        let batch = || self.pending.iter().take(BATCH).map(|pending| &pending.work);
        let prefix = self.shared.prefix.as_str();
        let owner = (session.owner.as_ref().map_or("", Owner::id), self.generation);
        let context =
            Context { prefix, owner: owner.0, generation: owner.1, leased: &|ticket| self.leases.has(ticket) };
        let recorded = batch().any(|work| matches!(work, WriteOp::Settle { events, .. } if !events.is_empty()));
        let work = |db: &rusqlite::Transaction<'_>| {
            let answers = batch().map(|work| work.apply(db, context)).collect::<rusqlite::Result<_>>()?;
            if recorded {
                outcomes::trim(db)?;
            }
            let arrived = if due { jobs::arrive(db, prefix)? } else { 0 };
            let fetched = wanted
                .iter()
                .map(|(lane, room)| Ok((*lane, *room, jobs::claim(db, prefix, *lane, owner, *room)?)))
                .collect::<rusqlite::Result<_>>()?;
            Ok(Done { answers, fetched, arrived, next_due: jobs::next_due(db, prefix)? })
        };
        let done = session.store.transact(batch().any(WriteOp::is_durable), work);
        match done {
            Ok(done) => self.finish(done),
            Err(error) => return Err(Trouble::of(&self.shared.file, &error)),
        }
        Ok(())
    }

    /// The lanes with room, and how much, after the settlements that are pending.
    fn wanted(&self, due: bool) -> Vec<(Lane, usize)> {
        if !self.shared.prefetched.accepts() {
            return Vec::new();
        }
        let batch = || self.pending.iter().take(BATCH).map(|pending| &pending.work);
        let brings = due || batch().any(WriteOp::brings_jobs);
        let ending: Vec<_> = batch().flat_map(|work| work.ends(self.generation)).map(|ticket| ticket.lane).collect();
        let lanes = self.shared.lanes.iter().filter(|(lane, _)| brings || self.more.contains(lane));
        let room = |(lane, prefetch): &(Lane, u16)| {
            let held = self.held.values().filter(|held| *held == lane).count();
            let ending = ending.iter().filter(|ending| *ending == lane).count();
            (*lane, usize::from((*prefetch).max(1)).saturating_sub(held.saturating_sub(ending)))
        };
        lanes.map(room).filter(|(_, room)| *room > 0).collect()
    }

    fn finish(&mut self, done: Done) {
        if done.answers.iter().any(Result::is_err) {
            tracing::debug!("a settlement came too late; its delivery is somebody else's by now");
        }
        if self.pending.iter().take(done.answers.len()).any(|pending| pending.work.brings_jobs()) || done.arrived > 0 {
            self.more = self.shared.lanes.iter().map(|(lane, _)| *lane).collect();
        }
        self.next_due = done.next_due;
        if self.pending.iter().take(done.answers.len()).any(|pending| matches!(pending.work, WriteOp::Announce(_))) {
            self.control.iter_mut().for_each(Reader::wake);
        }
        for answer in done.answers {
            let Some(mut pending) = self.pending.pop_front() else { break };
            for ticket in pending.work.ends(self.generation) {
                self.held.remove(&ticket.tag);
            }
            self.leased(&mut pending.work, &answer);
            pending.answer(answer);
        }
        for (lane, room, fetched) in done.fetched {
            if fetched.len() < room {
                self.more.retain(|other| *other != lane);
            }
            self.hand_off(fetched);
        }
    }

    fn hand_off(&mut self, fetched: Vec<Delivery>) {
        let mut unwanted = Vec::new();
        for delivery in fetched {
            self.held.insert(delivery.ticket.tag, delivery.lane);
            let refused = self.shared.prefetched.push(delivery.lane, delivery).err();
            unwanted.extend(refused.map(|delivery| delivery.ticket));
        }
        if !unwanted.is_empty() {
            let work = WriteOp::GiveBack { tickets: unwanted, counted: false };
            self.pending.push_back(Pending { work, deadline: None, reply: None });
        }
    }
}
