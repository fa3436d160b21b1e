//! Consumption of one lane: full, limited or paused. Pure.

use std::time::Duration;

use tokio::time::Instant;

/// Time in which deliveries start promptly: a lane that used its room up in it gets twice as much.
const PROMPT: Duration = Duration::from_secs(5);

/// State of one lane.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum LaneState {
    /// Consumed with the configured prefetch.
    #[default]
    Full,
    /// Not consumed.
    Paused,
    /// Consumed with room for so many deliveries, of which `left` have not been taken.
    Limited { room: u16, left: u16, since: Instant },
}

impl LaneState {
    /// Records that a delivery was taken.
    pub(super) fn taken(&mut self) {
        if let Self::Limited { left, .. } = self {
            *left = left.saturating_sub(1);
        }
    }

    /// Pauses the lane. Returns false if it was paused already.
    pub(super) fn pause(&mut self) -> bool {
        std::mem::replace(self, Self::Paused) != Self::Paused
    }

    /// Returns the room that the lane needs when it has a permit and `free` jobs of it could start:
    /// those after a pause, and when they were taken as many again, or twice as many where all of
    /// them started promptly.
    pub(super) fn wanted_room(&self, free: u16, now: Instant) -> Option<u16> {
        match self {
            Self::Limited { room, left: 0, since } if now < *since + PROMPT => Some(free.max(room.saturating_mul(2))),
            Self::Paused | Self::Limited { left: 0, .. } => Some(free.max(1)),
            Self::Full | Self::Limited { .. } => None,
        }
    }

    /// Resumes the lane, and returns its room: without a limit if it is more than all `permits`.
    pub(super) fn resume(&mut self, room: u16, permits: u16, now: Instant) -> u16 {
        let full = room > permits;
        *self = if full { Self::Full } else { Self::Limited { room, left: room, since: now } };
        if full { u16::MAX } else { room }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_resumes_with_its_free_permits_and_grows_while_its_deliveries_start_promptly() {
        let (now, late) = (Instant::now(), Instant::now() + PROMPT * 2);
        let mut lane = LaneState::default();
        assert_eq!(lane.wanted_room(3, now), None);
        assert!(lane.pause() && !lane.pause());
        assert_eq!((lane.wanted_room(0, now), lane.wanted_room(3, now)), (Some(1), Some(3)));
        assert_eq!(lane.resume(1, 4, now), 1);
        assert_eq!(lane.wanted_room(3, now), None, "the room is not used up");
        for (room, grown) in [(1, 2), (2, 4), (4, 8)] {
            assert_eq!(lane, LaneState::Limited { room, left: room, since: now });
            (0..room).for_each(|_| lane.taken());
            assert_eq!((lane.wanted_room(1, late), lane.wanted_room(3, late)), (Some(1), Some(3)), "slow ones");
            assert_eq!(lane.wanted_room(1, now), Some(grown));
            assert_eq!(lane.resume(grown, 4, now), if grown > 4 { u16::MAX } else { grown });
        }
        assert_eq!(lane, LaneState::Full);
    }
}
