//! Jobs that were taken from the file and wait here until the worker asks for them.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::domain::lane::Lane;
use crate::queue::{Delivery, DeliveryTag};

#[derive(Debug, Default)]
struct Backlogs {
    lanes: [VecDeque<Delivery>; 3],
    closed: bool,
    paused: bool,
}

/// The lanes' backlogs, bounded by their prefetch.
#[derive(Debug, Default)]
pub(super) struct Intake {
    backlogs: Mutex<Backlogs>,
    changed: [Notify; 3],
}

fn index(lane: Lane) -> usize {
    match lane {
        Lane::Continued => 0,
        Lane::Scheduled => 1,
        Lane::Backfill => 2,
    }
}

impl Intake {
    fn lock(&self) -> MutexGuard<'_, Backlogs> {
        self.backlogs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a delivery for the worker. Closed or paused, its ticket comes back, for the job to be given back.
    pub(super) fn put(&self, delivery: Delivery) -> Option<DeliveryTag> {
        let lane = index(delivery.lane);
        let mut backlogs = self.lock();
        if backlogs.closed || backlogs.paused {
            return Some(delivery.ticket);
        }
        backlogs.lanes[lane].push_back(delivery);
        drop(backlogs);
        self.changed[lane].notify_one();
        None
    }

    /// The next delivery of a lane; `None` once closed. Cancel safe: nothing is taken before the last await.
    pub(super) async fn next(&self, lane: Lane) -> Option<Delivery> {
        let lane = index(lane);
        loop {
            let mut changed = std::pin::pin!(self.changed[lane].notified());
            changed.as_mut().enable();
            {
                let mut backlogs = self.lock();
                if backlogs.closed {
                    return None;
                }
                if let Some(delivery) = backlogs.lanes[lane].pop_front() {
                    return Some(delivery);
                }
            }
            changed.await;
        }
    }

    /// No more is handed out. Returns what was not.
    pub(super) fn close(&self) -> Vec<DeliveryTag> {
        let mut backlogs = self.lock();
        backlogs.closed = true;
        let left = drain(&mut backlogs);
        drop(backlogs);
        self.changed.iter().for_each(Notify::notify_waiters);
        left
    }

    /// Nothing is kept until [`Intake::resume`]. Returns what was not handed out.
    pub(super) fn pause(&self) -> Vec<DeliveryTag> {
        let mut backlogs = self.lock();
        backlogs.paused = true;
        drain(&mut backlogs)
    }

    /// Deliveries are kept again.
    pub(super) fn resume(&self) {
        self.lock().paused = false;
    }

    /// What was taken comes again from the file.
    pub(super) fn forget(&self) {
        drain(&mut self.lock());
    }

    /// Whether deliveries are wanted: neither closed nor paused.
    pub(super) fn takes(&self) -> bool {
        let backlogs = self.lock();
        !backlogs.closed && !backlogs.paused
    }

    /// Whether [`Intake::close`] was called.
    pub(super) fn is_closed(&self) -> bool {
        self.lock().closed
    }
}

fn drain(backlogs: &mut Backlogs) -> Vec<DeliveryTag> {
    backlogs.lanes.iter_mut().flat_map(|lane| lane.drain(..)).map(|delivery| delivery.ticket).collect()
}
