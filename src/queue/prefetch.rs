//! Buffer of prefetched deliveries: fetched from the broker, not yet handed out to the worker.

use std::collections::VecDeque;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::domain::lane::Lane;

/// State of one lane.
#[derive(Debug)]
struct LaneBuffer<T> {
    /// Deliveries with the time of their arrival.
    fetched: VecDeque<(Instant, T)>,
    paused: bool,
    /// Limit of the deliveries of the lane's consumer; `None` for the configured prefetch.
    room: Option<u16>,
}

impl<T> Default for LaneBuffer<T> {
    fn default() -> Self {
        Self { fetched: VecDeque::new(), paused: false, room: None }
    }
}

impl<T> LaneBuffer<T> {
    fn drain(&mut self) -> Vec<T> {
        self.fetched.drain(..).map(|(_, delivery)| delivery).collect()
    }
}

#[derive(Debug)]
struct Buffered<T> {
    lanes: [LaneBuffer<T>; 3],
    closed: bool,
}

/// One FIFO per lane. The prefetch of each lane bounds its length.
#[derive(Debug)]
pub(in crate::queue) struct PrefetchBuffer<T> {
    buffered: Mutex<Buffered<T>>,
    changed: [Notify; 3],
}

impl<T> Default for PrefetchBuffer<T> {
    fn default() -> Self {
        let buffered = Buffered { lanes: Default::default(), closed: false };
        Self { buffered: Mutex::new(buffered), changed: Default::default() }
    }
}

impl<T> PrefetchBuffer<T> {
    /// Appends a delivery. A closed buffer or a paused lane returns it, and the caller requeues it.
    pub(in crate::queue) fn push(&self, lane: Lane, delivery: T) -> Result<(), T> {
        let lane = lane as usize;
        let mut buffered = self.buffered.lock();
        if buffered.closed || buffered.lanes[lane].paused {
            return Err(delivery);
        }
        buffered.lanes[lane].fetched.push_back((Instant::now(), delivery));
        drop(buffered);
        self.changed[lane].notify_one();
        Ok(())
    }

    /// Returns the next delivery of a lane after `hand_out`, which runs under the lock: no
    /// [`PrefetchBuffer::clear`] comes in between. `None` once closed. Cancel safe: nothing is
    /// removed before the last await.
    pub(in crate::queue) async fn next<R>(&self, lane: Lane, hand_out: impl Fn(T) -> R) -> Option<R> {
        let lane = lane as usize;
        loop {
            let mut changed = std::pin::pin!(self.changed[lane].notified());
            changed.as_mut().enable();
            {
                let mut buffered = self.buffered.lock();
                if buffered.closed {
                    return None;
                }
                if let Some((_, delivery)) = buffered.lanes[lane].fetched.pop_front() {
                    return Some(hand_out(delivery));
                }
            }
            changed.await;
        }
    }

    /// Returns the lane whose oldest delivery waits longest, and the time of its arrival.
    pub(in crate::queue) fn oldest(&self) -> Option<(Lane, Instant)> {
        let buffered = self.buffered.lock();
        let first = |lane: Lane| Some((lane, buffered.lanes[lane as usize].fetched.front()?.0));
        Lane::ALL.into_iter().filter_map(first).min_by_key(|(_, at)| *at)
    }

    /// Ends every [`PrefetchBuffer::next`] for good. Returns the buffered deliveries.
    pub(in crate::queue) fn close(&self) -> Vec<T> {
        let mut buffered = self.buffered.lock();
        buffered.closed = true;
        let rest = buffered.lanes.iter_mut().flat_map(LaneBuffer::drain).collect();
        drop(buffered);
        self.changed.iter().for_each(Notify::notify_waiters);
        rest
    }

    /// Refuses deliveries of a lane until [`PrefetchBuffer::resume`]. Returns the buffered ones.
    pub(in crate::queue) fn pause(&self, lane: Lane) -> Vec<T> {
        let mut buffered = self.buffered.lock();
        let buffer = &mut buffered.lanes[lane as usize];
        buffer.paused = true;
        buffer.drain()
    }

    /// Accepts deliveries of a lane again, from a consumer with this limit.
    pub(in crate::queue) fn resume(&self, lane: Lane, room: u16) {
        let mut buffered = self.buffered.lock();
        let buffer = &mut buffered.lanes[lane as usize];
        (buffer.paused, buffer.room) = (false, Some(room.max(1)));
    }

    /// Returns the limit of a lane's consumer, at most the configured prefetch; `None` while the
    /// lane accepts no deliveries.
    pub(in crate::queue) fn room(&self, lane: Lane, configured: u16) -> Option<u16> {
        let buffered = self.buffered.lock();
        let buffer = &buffered.lanes[lane as usize];
        let room = buffer.room.map_or(configured, |room| room.min(configured));
        (!buffered.closed && !buffer.paused).then_some(room)
    }

    /// Drops the buffered deliveries: their session ended, and the broker delivers them again.
    pub(in crate::queue) fn clear(&self) {
        self.buffered.lock().lanes.iter_mut().for_each(|lane| lane.fetched.clear());
    }

    /// Returns true after [`PrefetchBuffer::close`].
    pub(in crate::queue) fn is_closed(&self) -> bool {
        self.buffered.lock().closed
    }
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
    fn a_paused_lane_returns_what_it_has_and_leaves_the_others_alone() {
        let buffer = PrefetchBuffer::default();
        buffer.push(Lane::Backfill, 1).unwrap();
        buffer.push(Lane::Scheduled, 2).unwrap();
        assert_eq!(buffer.room(Lane::Backfill, 8), Some(8));
        assert_eq!(buffer.pause(Lane::Backfill), [1]);
        assert_eq!((buffer.push(Lane::Backfill, 3), buffer.room(Lane::Backfill, 8)), (Err(3), None));
        assert_eq!((buffer.push(Lane::Scheduled, 4), buffer.room(Lane::Scheduled, 8)), (Ok(()), Some(8)));
        for (room, expected) in [(0, 1), (3, 3), (100, 8)] {
            buffer.resume(Lane::Backfill, room);
            assert_eq!((buffer.push(Lane::Backfill, 3), buffer.room(Lane::Backfill, 8)), (Ok(()), Some(expected)));
        }
        assert_eq!(buffer.close(), [2, 4, 3, 3, 3]);
        assert_eq!(buffer.room(Lane::Scheduled, 8), None);
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_delivery_of_all_lanes_is_known() {
        let buffer = PrefetchBuffer::default();
        assert_eq!(buffer.oldest(), None);
        let first = Instant::now();
        buffer.push(Lane::Backfill, 1).unwrap();
        tokio::time::advance(std::time::Duration::from_secs(5)).await;
        buffer.push(Lane::Continued, 2).unwrap();
        assert_eq!(buffer.oldest(), Some((Lane::Backfill, first)));
        assert_eq!(buffer.next(Lane::Backfill, identity).await, Some(1));
        assert_eq!(buffer.oldest(), Some((Lane::Continued, Instant::now())));
        buffer.clear();
        assert_eq!(buffer.oldest(), None);
    }
}
