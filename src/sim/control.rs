//! Simulated control stream. It carries reports about generations alone: the other ones are off in
//! the simulation.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::Notify;
use tokio::time::Instant;
use uuid::Uuid;

use super::queue::SimQueue;
use super::world::{SimState, note};
use crate::domain::control::{Control, ControlCommand, GenerationChange};
use crate::queue::{ControlEvent, QueueError};

/// Longest time after which a connected worker reads a message.
const MAX_LAG: Duration = Duration::from_millis(1500);
/// Longest time in which a worker that starts reads the messages of the past.
pub(super) const MAX_CATCH_UP: Duration = Duration::from_secs(5);

/// Stream, and the position of every worker in it.
#[derive(Debug, Default)]
pub(super) struct ControlStream {
    messages: Vec<Bytes>,
    readers: Vec<ControlReader>,
}

/// Messages that a worker has not read, each with the time of its arrival.
#[derive(Debug)]
struct ControlReader {
    inbox: VecDeque<(Instant, ControlEvent)>,
    changed: Arc<Notify>,
}

impl ControlStream {
    /// Adds the reader of the next worker, which reads everything from the start, within
    /// `catch_up`.
    pub(super) fn join(&mut self, catch_up: Duration) {
        let now = Instant::now();
        // As the start message of a real worker: it is read back, and concerns nobody.
        let started = Control::new(ControlCommand::JobDelivered(Uuid::nil()), Timestamp::UNIX_EPOCH);
        self.messages.push(started.render().into());
        let past = self.messages.iter().cloned().map(ControlEvent::Message).chain([ControlEvent::CaughtUp]);
        let count = u32::try_from(self.messages.len()).unwrap_or(u32::MAX);
        let inbox = (0..).zip(past).map(|(read, event)| (now + catch_up * read / count, event)).collect();
        self.readers.push(ControlReader { inbox, changed: Arc::default() });
    }

    /// Tells all workers that the broker is unreachable. They receive unread messages afterwards. A
    /// worker that lost the connection of its jobs alone reads on: the stream has its own.
    pub(super) fn interrupt(&mut self) {
        for reader in &mut self.readers {
            reader.inbox.push_front((Instant::now(), ControlEvent::Interrupted));
            reader.changed.notify_one();
        }
    }

    /// Tells all workers, after the messages that they missed, that they have caught up.
    pub(super) fn resume(&mut self) {
        for reader in &mut self.readers {
            let last = reader.inbox.back().map_or_else(Instant::now, |(at, _)| *at);
            reader.inbox.push_back((last, ControlEvent::CaughtUp));
            reader.changed.notify_one();
        }
    }

    fn publish(&mut self, body: &Bytes, mut lag: impl FnMut() -> Duration) {
        self.messages.push(body.clone());
        for reader in &mut self.readers {
            let earliest = reader.inbox.back().map_or_else(Instant::now, |(at, _)| *at);
            let at = earliest.max(Instant::now() + lag());
            reader.inbox.push_back((at, ControlEvent::Message(body.clone())));
            reader.changed.notify_one();
        }
    }
}

/// Records a report. A scenario's generations are the numbers of its jobs, from 1.
fn record(state: &mut SimState, worker: usize, change: &GenerationChange) {
    let (what, generation) = match change {
        GenerationChange::Pending { generation } => ("pending", *generation),
        GenerationChange::Writing { generation, .. } => ("writing", *generation),
        GenerationChange::Delivered { generation, .. } => ("delivered", *generation),
        GenerationChange::Ended { .. } => ("ended", 0),
    };
    note!(state, "worker {worker} reports {what} of generation {generation}");
    state.count_fault("reports");
    let job = usize::try_from(generation).unwrap_or(0).saturating_sub(1);
    if what == "delivered" && generation > 0 {
        state.records[job].reported = true;
    }
}

impl SimQueue {
    pub(super) async fn publish_report(&self, body: Bytes) -> Result<(), QueueError> {
        let command = Control::parse(&body).map(|control| control.command);
        let Ok(ControlCommand::Generation(_, change)) = command else {
            return Err(QueueError::Refused("the simulation has no such reports".to_owned()));
        };
        self.while_alive().await;
        self.published(|| {
            let mut state = self.world.lock();
            record(&mut state, self.worker, &change);
            let mut rng = state.rng.fork();
            state.control.publish(&body, || rng.millis(1, u64::try_from(MAX_LAG.as_millis()).unwrap_or(0)));
        })
        .await
    }

    pub(super) async fn next_report(&self) -> Option<ControlEvent> {
        let changed = Arc::clone(&self.world.lock().control.readers[self.worker].changed);
        loop {
            self.while_alive().await;
            let due = {
                let mut state = self.world.lock();
                let reachable = !state.broker_down;
                let inbox = &mut state.control.readers[self.worker].inbox;
                match inbox.front() {
                    Some((_, ControlEvent::Interrupted)) => return inbox.pop_front().map(|(_, event)| event),
                    Some((at, _)) if reachable && *at <= Instant::now() => {
                        return inbox.pop_front().map(|(_, event)| event);
                    }
                    Some((at, _)) if reachable => Some(*at),
                    // The reader is notified when the broker is back.
                    Some(_) | None => None,
                }
            };
            match due {
                Some(at) => tokio::time::sleep_until(at).await,
                None => changed.notified().await,
            }
        }
    }
}
