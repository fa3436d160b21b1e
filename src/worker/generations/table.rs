//! Table of pending, written and delivered generations. Pure: changes go in, answers come out.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use moka::notification::RemovalCause;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use tokio::time::Instant;
use uuid::Uuid;

use super::own::OwnDeliveries;
use crate::domain::control::{GenerationChange, KEPT_DAYS};
use crate::domain::generation::{NewerDelivery, ObjectDigest, ObjectGeneration};
use crate::metrics::{GenerationLoss, Metrics};

/// Most objects of each kind. Beyond, the least recently used are forgotten, and counted: a late
/// job of such an object may overwrite a newer one.
const MAX_OBJECTS: u64 = 100_000;
/// Time for which reported generations hold: the stream keeps them as long.
const REPORTED_TTL: Duration = Duration::from_hours(24 * KEPT_DAYS);
/// Time after its last report from which on a write counts as ended: its worker was lost.
const WRITE_TTL: Duration = Duration::from_mins(10);
/// Interval at which a write in progress is reported again: its request may be repeated for longer
/// than [`WRITE_TTL`].
const WRITE_REPORT_INTERVAL: Duration = Duration::from_mins(3);
/// Time after which a cancelled request has no effect on S3 any more. Others write only then.
pub(super) const UNKNOWN_WRITE_TIME: Duration = Duration::from_secs(5);
/// Most deliveries that a worker leaves to the others when it stops.
const MAX_HANDED_OVER: usize = 5_000;
/// Objects with writes from which on those of lost workers are dropped.
const MAX_WRITES: usize = 10_000;
/// Ended writes that are remembered, as the report of a beginning may arrive later or twice.
const MAX_ENDED: u64 = 10_000;

/// Generations of an object that may be written late.
#[derive(Debug, Clone, Copy)]
struct PendingGenerations {
    lowest: u64,
    highest: u64,
    /// Time of the report of the lowest.
    since: Instant,
}

/// Reported write.
#[derive(Debug)]
struct ReportedWrite {
    id: Uuid,
    run: Uuid,
    /// Time from which on it counts as ended, whatever is reported.
    expires_at: Instant,
}

impl ReportedWrite {
    fn is_live(&self) -> bool {
        Instant::now() < self.expires_at
    }
}

/// Write of this worker that is in progress, or waits for its turn.
#[derive(Debug)]
struct OwnWrite {
    generation: u64,
    run: Uuid,
    /// Id, once it was reported.
    id: Option<Uuid>,
    /// Time of the last report.
    reported_at: Instant,
}

impl OwnWrite {
    fn new(generation: u64, run: Uuid, id: Option<Uuid>) -> Self {
        Self { generation, run, id, reported_at: Instant::now() }
    }

    /// Returns a report of the write; `None` if nobody needs to know of it.
    fn report(&mut self) -> Option<GenerationChange> {
        let write = self.id?;
        self.reported_at = Instant::now();
        Some(GenerationChange::Writing { generation: self.generation, run: self.run, write })
    }
}

/// State of one worker.
#[derive(Debug)]
pub(super) struct GenerationTable {
    pending: Cache<ObjectDigest, PendingGenerations>,
    /// Highest reported delivery of each object.
    reported: Cache<ObjectDigest, Arc<NewerDelivery>>,
    /// Highest delivery of each object in this worker.
    own: OwnDeliveries,
    /// Reported writes in the stream's order.
    writes: HashMap<ObjectDigest, Vec<ReportedWrite>>,
    own_writes: HashMap<ObjectDigest, OwnWrite>,
    ended: Cache<Uuid, ()>,
    metrics: Arc<Metrics>,
}

/// Turn of a reported write.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// It is the first.
    First,
    /// Another one is before it.
    Waits,
}

impl GenerationTable {
    pub(super) fn new(metrics: &Arc<Metrics>) -> Self {
        Self {
            pending: cache(REPORTED_TTL, metrics),
            reported: cache(REPORTED_TTL, metrics),
            own: OwnDeliveries::default(),
            writes: HashMap::new(),
            own_writes: HashMap::new(),
            ended: Cache::builder().max_capacity(MAX_ENDED).eviction_policy(EvictionPolicy::lru()).build(),
            metrics: metrics.clone(),
        }
    }

    /// Applies a report. Returns the reports that answer it.
    pub(super) fn apply(&mut self, object: ObjectDigest, change: GenerationChange) -> Vec<GenerationChange> {
        match change {
            GenerationChange::Pending { generation } => {
                self.add_pending(object, generation);
                self.unreported_delivery(object, generation).into_iter().chain(self.report_own_write(object)).collect()
            }
            GenerationChange::Writing { generation, run, write } => {
                if self.ended.contains_key(&write) {
                    return Vec::new();
                }
                self.add_write(object, run, write);
                self.unreported_delivery(object, generation).into_iter().chain(self.report_own_write(object)).collect()
            }
            GenerationChange::Ended { write } => self.end_write(object, write).into_iter().collect(),
            GenerationChange::Delivered { generation, job, write } => {
                self.add_delivery(object, NewerDelivery { generation, job });
                write.and_then(|write| self.end_write(object, write)).into_iter().collect()
            }
        }
    }

    fn add_pending(&self, object: ObjectDigest, generation: u64) {
        let now = Instant::now();
        let pending = match self.pending.get(&object) {
            Some(known) => PendingGenerations {
                lowest: known.lowest.min(generation),
                highest: known.highest.max(generation),
                since: if generation < known.lowest { now } else { known.since },
            },
            None => PendingGenerations { lowest: generation, highest: generation, since: now },
        };
        self.pending.insert(object, pending);
    }

    fn add_write(&mut self, object: ObjectDigest, run: Uuid, id: Uuid) {
        if self.writes.len() >= MAX_WRITES {
            // Those of workers that were lost.
            self.writes.retain(|_, writes| writes.iter().any(ReportedWrite::is_live));
        }
        let expires_at = Instant::now() + WRITE_TTL;
        let writes = self.writes.entry(object).or_default();
        match writes.iter_mut().find(|write| write.id == id) {
            Some(write) => write.expires_at = expires_at,
            None => writes.push(ReportedWrite { id, run, expires_at }),
        }
    }

    /// Ends a write. Returns a report of this worker's own write of the same run, if it has one.
    fn end_write(&mut self, object: ObjectDigest, id: Uuid) -> Option<GenerationChange> {
        // Its beginning may be read only now, or once more.
        self.ended.insert(id, ());
        let writes = self.writes.get_mut(&object)?;
        let run = writes.iter().find(|write| write.id == id).map(|write| write.run);
        if let Some(run) = run {
            // Another write of the same run is most likely that of a worker which was lost. A worker that is not reports
            // it again.
            let soon = Instant::now() + UNKNOWN_WRITE_TIME;
            let others = writes.iter_mut().filter(|write| write.run == run);
            others.for_each(|write| write.expires_at = write.expires_at.min(soon));
        }
        writes.retain(|write| write.id != id);
        if writes.is_empty() {
            self.writes.remove(&object);
        }
        let own = self.own_writes.get_mut(&object)?;
        (Some(own.run) == run && own.id != Some(id)).then(|| own.report())?
    }

    fn add_delivery(&self, object: ObjectDigest, delivery: NewerDelivery) {
        if self.pending.get(&object).is_some_and(|pending| pending.highest <= delivery.generation) {
            self.pending.invalidate(&object);
        }
        if self.reported.get(&object).is_none_or(|known| known.generation < delivery.generation) {
            self.reported.insert(object, Arc::new(delivery));
        }
    }

    /// Returns this worker's delivery above `generation`, if no report has named one as high.
    pub(super) fn unreported_delivery(&self, object: ObjectDigest, generation: u64) -> Option<GenerationChange> {
        let own = self.own.get(object).filter(|own| own.generation > generation)?;
        let reported = self.reported.get(&object);
        if reported.is_some_and(|reported| reported.generation >= own.generation) {
            return None;
        }
        Some(GenerationChange::Delivered { generation: own.generation, job: own.job, write: None })
    }

    /// Returns the deliveries of the last `age` that were not reported: a worker that stops leaves
    /// them to the others.
    pub(super) fn unreported_deliveries(&self, age: Duration) -> Vec<(ObjectDigest, GenerationChange)> {
        let unreported = |object| Some((object, self.unreported_delivery(object, 0)?));
        let mut unreported = self.own.since(age).into_iter().filter_map(unreported);
        let handed_over = unreported.by_ref().take(MAX_HANDED_OVER).collect();
        unreported.for_each(|_| self.metrics.generation_lost(GenerationLoss::Unreported));
        handed_over
    }

    /// Reports the write of this worker, if there is one that is not reported.
    fn report_own_write(&mut self, object: ObjectDigest) -> Option<GenerationChange> {
        let write = self.own_writes.get_mut(&object).filter(|write| write.id.is_none())?;
        write.id = Some(Uuid::new_v4());
        write.report()
    }

    /// Returns reports of this worker's writes whose last report is a while ago.
    pub(super) fn write_reports_due(&mut self) -> Vec<(ObjectDigest, GenerationChange)> {
        let due = |write: &OwnWrite| write.reported_at.elapsed() >= WRITE_REPORT_INTERVAL;
        let writes = self.own_writes.iter_mut().filter(|(_, write)| due(write));
        writes.filter_map(|(object, write)| Some((*object, write.report()?))).collect()
    }

    /// Returns the highest known delivery above a generation.
    pub(super) fn newer_than(&self, this: ObjectGeneration) -> Option<NewerDelivery> {
        let reported = self.reported.get(&this.object).map(|reported| (*reported).clone());
        let own = self.own.get(this.object);
        let highest = reported.into_iter().chain(own).max_by_key(|delivery| delivery.generation)?;
        (highest.generation > this.generation).then_some(highest)
    }

    /// Returns when it was reported that this generation, or a lower one, is pending.
    pub(super) fn pending_since(&self, this: ObjectGeneration) -> Option<Instant> {
        self.pending.get(&this.object).filter(|known| known.lowest <= this.generation).map(|known| known.since)
    }

    /// Returns the same, if this generation stays pending for all workers until it, or a higher
    /// one, is delivered: it was reported, or lies between others that were.
    pub(super) fn announced_since(&self, this: ObjectGeneration) -> Option<Instant> {
        let announced = |known: &PendingGenerations| (known.lowest..=known.highest).contains(&this.generation);
        self.pending.get(&this.object).filter(announced).map(|known| known.since)
    }

    /// Returns true if a delivery of this generation, or of a higher one, is known.
    pub(super) fn knows_delivery(&self, this: ObjectGeneration) -> bool {
        self.newer_than(this.below()).is_some()
    }

    /// Begins a write without a report, unless a generation of the object is pending or written.
    pub(super) fn begin_unreported(&mut self, this: ObjectGeneration, run: Uuid) -> bool {
        if self.pending.contains_key(&this.object) || self.live_writes(this.object).is_some() {
            return false;
        }
        self.own_writes.insert(this.object, OwnWrite::new(this.generation, run, None));
        true
    }

    /// Records a write that waits for its turn. Returns its report. Until its end it is reported
    /// again wherever the others might take it for ended.
    pub(super) fn enter_write(&mut self, this: ObjectGeneration, run: Uuid, id: Uuid) -> GenerationChange {
        self.own_writes.insert(this.object, OwnWrite::new(this.generation, run, Some(id)));
        GenerationChange::Writing { generation: this.generation, run, write: id }
    }

    /// Ends a write of this worker. Returns its id, if it was reported.
    pub(super) fn end_own_write(&mut self, object: ObjectDigest) -> Option<Uuid> {
        self.own_writes.remove(&object)?.id
    }

    /// Returns the turn of a write; `None` while its report was not read, and after its end. Writes
    /// of one run have the same bytes, and do not wait for each other: a worker that continues a
    /// job need not wait for one that was lost with it.
    pub(super) fn turn(&mut self, object: ObjectDigest, id: Uuid) -> Option<Turn> {
        let writes = self.live_writes(object)?;
        let place = writes.iter().position(|write| write.id == id)?;
        let first = writes[..place].iter().all(|write| write.run == writes[place].run);
        Some(if first { Turn::First } else { Turn::Waits })
    }

    /// Returns the writes of an object that have not ended, if there are any.
    fn live_writes(&mut self, object: ObjectDigest) -> Option<&[ReportedWrite]> {
        let writes = self.writes.get_mut(&object)?;
        writes.retain(ReportedWrite::is_live);
        if writes.is_empty() {
            self.writes.remove(&object);
        }
        self.writes.get(&object).map(Vec::as_slice)
    }

    /// Records a delivery of this worker. Returns true if the others must know: a lower generation
    /// is pending.
    pub(super) fn delivered(&mut self, this: ObjectGeneration, job: Arc<str>) -> bool {
        let forgotten = self.own.insert(this.object, NewerDelivery { generation: this.generation, job });
        (0..forgotten).for_each(|_| self.metrics.generation_lost(GenerationLoss::Evicted));
        self.pending.get(&this.object).is_some_and(|pending| pending.lowest < this.generation)
    }
}

fn cache<T: Clone + Send + Sync + 'static>(ttl: Duration, metrics: &Arc<Metrics>) -> Cache<ObjectDigest, T> {
    let metrics = metrics.clone();
    Cache::builder()
        .max_capacity(MAX_OBJECTS)
        .eviction_policy(EvictionPolicy::lru())
        .time_to_live(ttl)
        .eviction_listener(move |_, _, cause| {
            if cause == RemovalCause::Size {
                metrics.generation_lost(GenerationLoss::Evicted);
            }
        })
        .build()
}

#[cfg(test)]
mod tests;
