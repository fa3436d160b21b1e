//! Consumes deliveries: a permit first, a delivery second, lane by lane. A lane whose deliveries
//! can't start is paused, and a worker with a fault of its own consumes nothing but its probe.

mod lane_state;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout};

use super::admission::{Admission, Permit};
use super::parts::WorkerParts;
use crate::domain::lane::Lane;
use crate::queue::Delivery;
use lane_state::LaneState;

/// Maximum time that prefetched deliveries wait for a permit. They must not keep other workers
/// waiting.
const MAX_PREFETCH_TIMEOUT: Duration = Duration::from_secs(60);
/// Time for which a probe waits for a message of one lane, before it tries the next.
const PROBE_LANE_TIMEOUT: Duration = Duration::from_secs(5);
/// Lanes in the order in which a probe tries them.
const PROBED: [Lane; 3] = [Lane::Scheduled, Lane::Continued, Lane::Backfill];

/// Chooses the lane that is asked next, and pauses and resumes the lanes.
#[derive(Debug)]
pub(super) struct Consumer {
    parts: Arc<WorkerParts>,
    admission: Arc<Admission>,
    prefetch_timeout: Duration,
    lanes: [LaneState; 3],
}

/// Next thing to do.
enum Step {
    /// Run this delivery.
    Run(Lane, Box<(Delivery, Permit)>),
    /// Pause a lane: its deliveries wait too long.
    Pause(Lane),
    /// Make room for deliveries of a lane, which has a permit.
    Resume(Lane, u16),
    /// Consume nothing: the worker has a fault of its own.
    Stop,
}

impl Consumer {
    /// A delivery that waited for its permit and then runs until it is leased must not reach the
    /// broker's acknowledgement timeout, which `broker.lease_after` is adapted to.
    pub(super) fn new(parts: Arc<WorkerParts>, admission: Arc<Admission>) -> Self {
        let prefetch_timeout = MAX_PREFETCH_TIMEOUT.min(parts.lease_after / 2);
        let consumer = Self { parts, admission, prefetch_timeout, lanes: Default::default() };
        let served = Lane::ALL.into_iter().filter(|lane| consumer.admission.slots.count(*lane) > 0);
        served.for_each(|lane| consumer.parts.metrics.set_consuming(lane, true));
        consumer
    }

    /// Returns the next delivery with its permit: handed-off work first, then scheduled jobs, then
    /// backfills below their ceiling. `None` when the queue consumes no more. A delivery is either
    /// returned or left to the queue, but a lane may stay paused: dropped only to drain.
    pub(super) async fn next(&mut self) -> Option<(Delivery, Permit)> {
        loop {
            let step = tokio::select! {
                biased;
                () = self.admission.health().sick() => Step::Stop,
                lane = self.overdue() => Step::Pause(lane),
                step = self.take() => step?,
            };
            let step = if matches!(step, Step::Stop) { self.stop().await? } else { step };
            match step {
                Step::Run(lane, taken) => {
                    self.state(lane).taken();
                    return Some(*taken);
                }
                Step::Pause(lane) => {
                    let seconds = self.prefetch_timeout.as_secs();
                    tracing::info!(
                        event = "lane_paused",
                        lane = lane.as_str(),
                        seconds,
                        "a lane without a free permit is paused"
                    );
                    self.pause(lane).await;
                }
                Step::Resume(lane, room) => {
                    self.parts.metrics.set_consuming(lane, true);
                    self.resume(lane, room).await;
                }
                Step::Stop => {}
            }
        }
    }

    /// Waits for a permit, and then for a delivery or a lane that needs room.
    async fn take(&self) -> Option<Step> {
        let sole = self.admission.health().ready_for_job().await;
        let (queue, slots) = (&self.parts.queue, &self.admission.slots);
        loop {
            let slot = slots.slot().await.ok()?;
            for lane in [Lane::Continued, Lane::Scheduled] {
                if let Some(room) = self.wanted_room(lane) {
                    return Some(Step::Resume(lane, room));
                }
            }
            let backfill = async {
                let (permit, _reserved) = slots.backfill().await?;
                match self.wanted_room(Lane::Backfill) {
                    Some(room) => Some(Err(room)),
                    None => queue.next(Lane::Backfill).await.map(|delivery| Ok((Box::new(delivery), permit))),
                }
            };
            let (lane, delivery, backfill) = tokio::select! {
                biased;
                // A job that was consumed already goes first.
                () = slots.wanted() => continue,
                delivery = queue.next(Lane::Continued) => (Lane::Continued, delivery?, None),
                delivery = queue.next(Lane::Scheduled) => (Lane::Scheduled, delivery?, None),
                taken = backfill => match taken? {
                    Ok((delivery, permit)) => (Lane::Backfill, *delivery, Some(permit)),
                    Err(room) => return Some(Step::Resume(Lane::Backfill, room)),
                },
            };
            return Some(Step::Run(lane, Box::new((delivery, Permit::new(slot, backfill, sole)))));
        }
    }

    /// Resolves when the oldest prefetched delivery of a lane waits too long.
    async fn overdue(&self) -> Lane {
        loop {
            let now = Instant::now();
            let oldest = self.parts.queue.oldest_prefetched();
            match oldest {
                Some((lane, at)) if at + self.prefetch_timeout <= now => return lane,
                // What arrives from now on waits as long again.
                _ => sleep_until(oldest.map_or(now, |(_, at)| at) + self.prefetch_timeout).await,
            }
        }
    }

    /// Ends consumption until the pause is over, and then takes one message as a probe.
    async fn stop(&mut self) -> Option<Step> {
        for lane in Lane::ALL {
            self.pause(lane).await;
        }
        let Some(sole) = self.admission.health().ready_for_job().await else { return Some(Step::Stop) };
        let slot = self.admission.slots.slot().await.ok()?;
        for lane in PROBED {
            let backfill = match lane {
                Lane::Backfill => self.admission.slots.try_backfill(),
                Lane::Continued | Lane::Scheduled => None,
            };
            if lane == Lane::Backfill && backfill.is_none() {
                continue;
            }
            self.resume(lane, 1).await;
            let taken = timeout(PROBE_LANE_TIMEOUT, self.parts.queue.next(lane)).await;
            if let Ok(taken) = taken {
                // Before the next message is asked for, the lane is paused again.
                let permit = Permit::new(slot, backfill, Some(sole));
                return taken.map(|delivery| Step::Run(lane, Box::new((delivery, permit))));
            }
            self.pause(lane).await;
            if !self.admission.health().is_sick() {
                break;
            }
        }
        Some(Step::Stop)
    }

    /// Returns the room that a lane with a permit needs, if any.
    fn wanted_room(&self, lane: Lane) -> Option<u16> {
        let free = self.admission.slots.free_for(lane).saturating_add(1);
        self.lanes[lane as usize].wanted_room(free, Instant::now())
    }

    fn state(&mut self, lane: Lane) -> &mut LaneState {
        &mut self.lanes[lane as usize]
    }

    async fn pause(&mut self, lane: Lane) {
        if self.state(lane).pause() {
            self.parts.metrics.set_consuming(lane, false);
            self.parts.queue.pause(lane).await;
        }
    }

    async fn resume(&mut self, lane: Lane, room: u16) {
        let permits = self.admission.slots.count(lane);
        let room = self.state(lane).resume(room, permits, Instant::now());
        self.parts.queue.resume(lane, room).await;
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        Lane::ALL.into_iter().for_each(|lane| self.parts.metrics.set_consuming(lane, false));
    }
}
