//! One transaction per batch: settlements and publishes, copies that are due, and the next jobs.

use super::Engine;
use crate::domain::lane::Lane;
use crate::queue::sqlite::control_reader::ControlCursor;
use crate::queue::sqlite::errors::FileError;
use crate::queue::sqlite::jobs::JobClaim;
use crate::queue::sqlite::owner::Owner;
use crate::queue::sqlite::settle::WriteContext;
use crate::queue::sqlite::write_op::WriteOp;
use crate::queue::sqlite::{jobs, outcomes, release};
use crate::queue::{Delivery, QueueError};

/// Maximum number of write operations in one transaction.
const MAX_BATCH: usize = 256;

/// Free prefetch of a lane.
#[derive(Clone, Copy)]
struct Demand {
    lane: Lane,
    limit: usize,
}

struct BatchResult {
    results: Vec<Result<(), QueueError>>,
    claimed: Vec<(Demand, Vec<Delivery>)>,
    released: usize,
    next_due: Option<i64>,
}

impl Engine {
    /// Commits one batch of everything that is pending, if there is anything.
    pub(super) fn commit_batch(&mut self) -> Result<(), FileError> {
        let due = self.next_due.is_some_and(|due| due <= jobs::now_ms());
        let demand = self.demand(due);
        if self.pending.is_empty() && demand.is_empty() && !due {
            return Ok(());
        }
        let Some(session) = &mut self.session else { return Ok(()) };
        let batch = || self.pending.iter().take(MAX_BATCH).map(|pending| &pending.op);
        let prefix = self.shared.prefix.as_str();
        let (owner, generation) = (session.owner.as_ref().map_or("", Owner::id), self.generation);
        let context =
            WriteContext { prefix, owner, generation, is_leased: &|ticket| self.leased_jobs.contains(ticket) };
        let has_outcomes = batch().any(|op| matches!(op, WriteOp::Settle { events, .. } if !events.is_empty()));
        let transaction = |db: &rusqlite::Transaction<'_>| {
            let results = batch().map(|op| op.apply(db, context)).collect::<rusqlite::Result<_>>()?;
            if has_outcomes {
                outcomes::trim(db)?;
            }
            let released = if due { release::release_due(db, prefix)? } else { 0 };
            let claim = |Demand { lane, limit }| jobs::claim(db, JobClaim { prefix, lane, owner, generation, limit });
            let claimed =
                demand.iter().map(|demand| Ok((*demand, claim(*demand)?))).collect::<rusqlite::Result<_>>()?;
            Ok(BatchResult { results, claimed, released, next_due: release::next_due(db, prefix)? })
        };
        let result = session.store.transact(batch().any(WriteOp::must_be_durable), transaction)?;
        self.finish_batch(result);
        Ok(())
    }

    /// Returns the lanes with free prefetch once the pending settlements are committed.
    fn demand(&self, due: bool) -> Vec<Demand> {
        let batch = || self.pending.iter().take(MAX_BATCH).map(|pending| &pending.op);
        let all = due || batch().any(WriteOp::makes_jobs_ready);
        let settled: Vec<_> =
            batch().flat_map(|op| op.settled_tags(self.generation)).map(|ticket| ticket.lane).collect();
        let lanes = self.shared.lanes.iter().filter(|(lane, _)| all || self.ready_lanes.contains(lane));
        let demand = |(lane, prefetch): &(Lane, u16)| {
            let unsettled = self.unsettled.values().filter(|other| *other == lane).count();
            let settled = settled.iter().filter(|other| *other == lane).count();
            let unsettled = unsettled.saturating_sub(settled);
            let room = self.shared.prefetched.room(*lane, (*prefetch).max(1)).unwrap_or(0);
            Demand { lane: *lane, limit: usize::from(room).saturating_sub(unsettled) }
        };
        lanes.map(demand).filter(|demand| demand.limit > 0).collect()
    }

    fn finish_batch(&mut self, batch: BatchResult) {
        if batch.results.iter().any(Result::is_err) {
            tracing::debug!(
                event = "settlement_late",
                "a settlement came too late: its delivery belongs to another worker"
            );
        }
        let written = || self.pending.iter().take(batch.results.len()).map(|pending| &pending.op);
        let control_published = written().any(|op| matches!(op, WriteOp::PublishControl(_)));
        if written().any(WriteOp::makes_jobs_ready) || batch.released > 0 {
            self.ready_lanes = self.shared.lanes.iter().map(|(lane, _)| *lane).collect();
        }
        self.next_due = batch.next_due;
        if control_published {
            self.control.iter_mut().for_each(ControlCursor::wake);
        }
        for result in batch.results {
            let Some(mut pending) = self.pending.pop_front() else { break };
            for ticket in pending.op.settled_tags(self.generation) {
                self.unsettled.remove(&ticket.tag);
            }
            self.update_leases(&mut pending.op, &result);
            pending.answer(result);
        }
        for (demand, claimed) in batch.claimed {
            if claimed.len() < demand.limit {
                self.ready_lanes.retain(|other| *other != demand.lane);
            }
            self.prefetch(claimed);
        }
    }

    /// Puts claimed jobs into the prefetch buffer. What it refuses is requeued.
    fn prefetch(&mut self, claimed: Vec<Delivery>) {
        let mut refused = Vec::new();
        for delivery in claimed {
            self.unsettled.insert(delivery.ticket.tag, delivery.lane);
            let full = self.shared.prefetched.push(delivery.lane, delivery).err();
            refused.extend(full.map(|delivery| delivery.ticket));
        }
        if !refused.is_empty() {
            self.write_in_background(WriteOp::Requeue { tickets: refused, delivered: false });
        }
    }
}
