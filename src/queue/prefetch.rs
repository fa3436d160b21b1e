//! Buffer of prefetched deliveries: fetched from the broker, not yet handed out to the worker.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::domain::lane::Lane;

#[derive(Debug)]
struct Buffered<T> {
    lanes: [VecDeque<T>; 3],
    closed: bool,
    paused: bool,
}

/// One FIFO per lane. The prefetch of each lane bounds its length.
#[derive(Debug)]
pub(in crate::queue) struct PrefetchBuffer<T> {
    buffered: Mutex<Buffered<T>>,
    changed: [Notify; 3],
}

impl<T> Default for PrefetchBuffer<T> {
    fn default() -> Self {
        let lanes = std::array::from_fn(|_| VecDeque::new());
        Self { buffered: Mutex::new(Buffered { lanes, closed: false, paused: false }), changed: Default::default() }
    }
}

fn index(lane: Lane) -> usize {
    match lane {
        Lane::Continued => 0,
        Lane::Scheduled => 1,
        Lane::Backfill => 2,
    }
}

impl<T> PrefetchBuffer<T> {
    fn lock(&self) -> MutexGuard<'_, Buffered<T>> {
        self.buffered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends a delivery. A closed or paused buffer returns it, and the caller requeues it.
    pub(in crate::queue) fn push(&self, lane: Lane, delivery: T) -> Result<(), T> {
        let lane = index(lane);
        let mut buffered = self.lock();
        if buffered.closed || buffered.paused {
            return Err(delivery);
        }
        buffered.lanes[lane].push_back(delivery);
        drop(buffered);
        self.changed[lane].notify_one();
        Ok(())
    }

    /// Returns the next delivery of a lane after `hand_out`, which runs under the lock: no
    /// [`PrefetchBuffer::clear`] comes in between. `None` once closed. Cancel safe: nothing is
    /// removed before the last await.
    pub(in crate::queue) async fn next<R>(&self, lane: Lane, hand_out: impl Fn(T) -> R) -> Option<R> {
        let lane = index(lane);
        loop {
            let mut changed = std::pin::pin!(self.changed[lane].notified());
            changed.as_mut().enable();
            {
                let mut buffered = self.lock();
                if buffered.closed {
                    return None;
                }
                if let Some(delivery) = buffered.lanes[lane].pop_front() {
                    return Some(hand_out(delivery));
                }
            }
            changed.await;
        }
    }

    /// Ends every [`PrefetchBuffer::next`] for good. Returns the buffered deliveries.
    pub(in crate::queue) fn close(&self) -> Vec<T> {
        let mut buffered = self.lock();
        buffered.closed = true;
        let rest = drain(&mut buffered);
        drop(buffered);
        self.changed.iter().for_each(Notify::notify_waiters);
        rest
    }

    /// Refuses deliveries until [`PrefetchBuffer::resume`]. Returns the buffered ones.
    pub(in crate::queue) fn pause(&self) -> Vec<T> {
        let mut buffered = self.lock();
        buffered.paused = true;
        drain(&mut buffered)
    }

    /// Accepts deliveries again.
    pub(in crate::queue) fn resume(&self) {
        self.lock().paused = false;
    }

    /// Drops the buffered deliveries: their session ended, and the broker delivers them again.
    pub(in crate::queue) fn clear(&self) {
        drain(&mut self.lock());
    }

    /// Returns true when deliveries are accepted: neither closed nor paused.
    pub(in crate::queue) fn accepts(&self) -> bool {
        let buffered = self.lock();
        !buffered.closed && !buffered.paused
    }

    /// Returns true after [`PrefetchBuffer::close`].
    pub(in crate::queue) fn is_closed(&self) -> bool {
        self.lock().closed
    }
}

fn drain<T>(buffered: &mut Buffered<T>) -> Vec<T> {
    buffered.lanes.iter_mut().flat_map(|lane| lane.drain(..)).collect()
}

#[cfg(test)]
mod tests {
    use std::convert::identity;
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn a_dropped_next_loses_nothing() {
        let buffer = PrefetchBuffer::default();
        for _ in 0..3 {
            let next = buffer.next(Lane::Scheduled, identity);
            assert!(tokio::time::timeout(std::time::Duration::from_millis(1), next).await.is_err());
        }
        buffer.push(Lane::Scheduled, 7).unwrap();
        assert_eq!(buffer.next(Lane::Scheduled, identity).await, Some(7));
    }

    #[tokio::test]
    async fn several_waiters_each_get_one() {
        let buffer = Arc::new(PrefetchBuffer::default());
        let waiters: Vec<_> = (0..4)
            .map(|_| {
                let buffer = Arc::clone(&buffer);
                tokio::spawn(async move { buffer.next(Lane::Backfill, identity).await })
            })
            .collect();
        tokio::task::yield_now().await;
        for tag in 1..=4 {
            buffer.push(Lane::Backfill, tag).unwrap();
        }
        let mut tags = Vec::new();
        for waiter in waiters {
            tags.push(waiter.await.unwrap().unwrap());
        }
        tags.sort_unstable();
        assert_eq!(tags, [1, 2, 3, 4]);
    }

    #[tokio::test]
    async fn closing_ends_the_waiting_and_returns_the_rest() {
        let buffer = Arc::new(PrefetchBuffer::default());
        buffer.push(Lane::Scheduled, 1).unwrap();
        let waiting = tokio::spawn({
            let buffer = Arc::clone(&buffer);
            async move { buffer.next(Lane::Continued, identity).await.is_none() }
        });
        tokio::task::yield_now().await;
        assert_eq!(buffer.close(), [1]);
        assert!(waiting.await.unwrap());
        assert_eq!(buffer.next(Lane::Scheduled, identity).await, None);
        assert_eq!(buffer.push(Lane::Scheduled, 2), Err(2));
    }

    #[test]
    fn a_paused_buffer_returns_what_it_has_and_accepts_again_when_resumed() {
        let buffer = PrefetchBuffer::default();
        buffer.push(Lane::Backfill, 1).unwrap();
        assert_eq!(buffer.pause(), [1]);
        assert_eq!((buffer.push(Lane::Backfill, 2), buffer.accepts()), (Err(2), false));
        buffer.resume();
        assert_eq!((buffer.push(Lane::Backfill, 2), buffer.accepts()), (Ok(()), true));
    }
}
